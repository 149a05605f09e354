"""Let a saved model carry the code that loads it where this package is not installed (`trust_remote_code=True`).

transformers copies a file that is imported from a flat file by `from .name import …`, and no other form of import.
"""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import transformers
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedConfig
from transformers.dynamic_module_utils import get_relative_import_files

from .files import code_names
from .loading import CONFIG, OWN_CONFIGS, check_config, readable

#: whether this very file came with a model, and the package may not be there
REMOTE = __name__.partition(".")[0] == "transformers_modules"
HERE = Path(__file__).parent
#: the class by which transformers loads each of our models
AUTO_CLASSES = {
    "MoReForTokenClassification": "AutoModelForTokenClassification",
    "MoReForRelationExtraction": "AutoModelForSequenceClassification",
    "MoReMixtureForTokenClassification": "AutoModelForTokenClassification",
    "MoReMixtureForRelationExtraction": "AutoModelForSequenceClassification",
}
#: the file of `predict`, which works in the same way there
PREDICTING = "pipelines"
#: the file of the pipelines for `transformers.pipeline`, and by Auto class the name of the task and its pipeline there
PIPELINES = "auto_pipelines"
TASKS = {
    "AutoModelForTokenClassification": ("more-ner", "MoReNerPipeline"),
    "AutoModelForSequenceClassification": ("more-re", "MoReRePipeline"),
}
_OPENING = (CONFIG, "processor_config.json")  # a folder with one of these holds a model
_PLACES = ("auto_map", "custom_pipelines")  # entries of a configuration that name code

_left_out: ContextVar[bool] = ContextVar("code left out", default=False)
Saved = TypeVar("Saved")


@contextmanager
def without_code() -> Iterator[None]:
    """Save models and processors without their code in this block: parts of a whole, and checkpoints of a run."""
    token = _left_out.set(True)
    try:
        yield
    finally:
        _left_out.reset(token)


def code_files(*modules: str) -> set[Path]:
    """Return the files of these flat modules, as far as they are here, and of all that they import."""
    found = {HERE / f"{name}.py" for name in modules}
    found = {file for file in found if file.is_file()}
    return found.union(*(map(Path, get_relative_import_files(file)) for file in found))


def bearer(one: Saved, auto_class: str, folder: Any) -> Saved:
    """Return a copy of a configuration or processor whose `save_pretrained` writes its code, unless `without_code`.

    A copy, because transformers decides by class attributes otherwise, which hold for every checkpoint too.

    Raises:
        ValueError: in the folder, which holds no model, another file has the name of one of these.
    """
    found: Any = copy.copy(one)
    for name in _PLACES:
        vars(found).pop(name, None)
    found._auto_class = None if _left_out.get() else auto_class
    if found._auto_class is not None and not any((Path(folder) / name).exists() for name in _OPENING):
        for name in code_names():
            if (there := Path(folder) / name).exists() and not _same(there, HERE / name):
                raise ValueError(
                    f"{there} would be overwritten by the code of the model: save it in a folder of its own"
                )
    return found


def _same(one: Path, other: Path) -> bool:
    return one.is_file() and one.read_bytes() == other.read_bytes()


def pipelines_of(auto_class: str) -> dict[str, Any]:
    """Return the entry `custom_pipelines` of a model's configuration, by which `transformers.pipeline` finds the code.

    It is empty where the file of the pipelines is not here: nothing is named that is not copied.
    """
    if not (HERE / f"{PIPELINES}.py").is_file():
        return {}
    task, name = TASKS[auto_class]
    return {task: {"impl": f"{PIPELINES}.{name}", "pt": [auto_class], "type": "text"}}


class ConfigWithCode(PreTrainedConfig):
    """The base of our configurations: they are checked when loaded, and saved with the code of their models.

    Where the package is installed it forgets which code a file names: local code is used, and nobody is asked.
    """

    modeling: ClassVar[str]  # the file of the models

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Return a configuration made of what a `config.json` holds, see `check_config`."""
        check_config(config_dict)
        if not REMOTE:
            config_dict = {key: value for key, value in config_dict.items() if key not in _PLACES}
        with readable(CONFIG):
            return super().from_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `config.json` and, unless `without_code`, the code of configuration, model and pipeline."""
        saved: Any = bearer(self, "AutoConfig", save_directory)
        architecture = (self.architectures or [""])[0]
        if saved._auto_class is not None and architecture in AUTO_CLASSES:
            auto_class, reference = AUTO_CLASSES[architecture], f"{self.modeling}.{architecture}"
            saved.auto_map = {"AutoModel": reference, auto_class: reference}
            if pipelines := pipelines_of(auto_class):
                saved.custom_pipelines = pipelines
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            for file in code_files(self.modeling, PREDICTING, PIPELINES):
                shutil.copyfile(file, Path(save_directory) / file.name)
        super(ConfigWithCode, saved).save_pretrained(save_directory, push_to_hub, **kwargs)


# Where the package is, transformers is told of its classes, and takes them before any that come with a model.
# Code that came with a model registers nothing: it would be taken for other models, which came with other code.


def register_config(config_class: type[PreTrainedConfig]) -> None:
    """Make a configuration known to `config_of` and, where the package is installed, to transformers."""
    OWN_CONFIGS[config_class.model_type] = config_class
    if not REMOTE:
        AutoConfig.register(config_class.model_type, config_class)


def register_models(config_class: type[PreTrainedConfig], *models: Any) -> None:
    """Make the models of a configuration known to the Auto class of each, and to `AutoModel` by `architectures`."""
    if not REMOTE:
        for model in models:
            getattr(transformers, AUTO_CLASSES[model.__name__]).register(config_class, model)
        AutoModel.register(config_class, models)


def named_class(model_class: Any, config: Any) -> Any:
    """Return the class of a model that a configuration names, or the one that was asked for.

    Of two models with the same code, in folders of one name, transformers loads both by the class of the first.
    """
    name = (getattr(config, "architectures", None) or [""])[0]
    return getattr(sys.modules[model_class.__module__], name, model_class) if REMOTE and name else model_class


def register_processor(config_class: type[PreTrainedConfig], processor: Any) -> None:
    """Make the processor of a configuration known to `AutoProcessor`."""
    if not REMOTE:
        AutoProcessor.register(config_class, processor)
