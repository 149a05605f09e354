"""This module reads how the experts of `--experts` were made, and retrieves for new posts as each of them did."""

from __future__ import annotations

import math
import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from ..configuration_mixture import check_labels
from ..data.tasks import Task
from ..encoding import EXPERT_KNOWLEDGE
from ..evidence import LEAST_FOUND
from ..foreign import read_json, read_object
from ..loading import config_of
from ..naming import loaded_from
from ..posts import Posts
from ..processing_more import MoReProcessor
from ..provenance import is_own, of_others
from ..retrieval_settings import ENCODERS, SEARCHES
from .arguments import Arguments, DataArguments, ModelArguments, TrainingArguments
from .checks import check_ranges
from .command_line import TYPES
from .models import check_saved
from .retrieval import knowledge_column, retrieved
from .run_record import HOLDOUT, OPTIONS

#: options of an expert's run that say how its knowledge is retrieved
RETRIEVAL_OPTIONS = (
    *("retrieval", "knowledge", "top_k", "title_in_key", "retriever", "text_model", "query", "captions", "entities"),
    *("image_dir", "image_model"),
)
#: those that name what is opened; of somebody else's expert such names lead to the Hub, or have to be given again
NAMES = ("knowledge", "text_model", "captions", "entities", "image_dir", "image_model")
MOST_ENTRIES = 10_000  # that an expert may retrieve for a post
FIELDS: dict[str, Field[Any]] = {
    one.name: one for kind in (DataArguments, ModelArguments, TrainingArguments) for one in fields(kind)
}
KINDS: dict[str, Any] = {"bool": bool, "int": int, "float": (int, float), "str": str}
Options = TypeVar("Options")


@dataclass
class Expert:
    """A saved expert and how it was made.

    Attributes:
        source: its folder or Hub id.
        name: a short unique name for cards and scores, after what it retrieves by.
        options: the options of its run; empty if unknown.
        holdout_ids: ids of the training posts that it did not train on; None if unknown.
        own: whether this user's run wrote the options here; else they may be anybody's, and name anything.
    """

    source: str
    name: str
    options: dict[str, Any]
    holdout_ids: set[str] | None
    processor: MoReProcessor
    own: bool

    def options_of(self, kind: type[Options], **changes: Any) -> Options:
        """Return the expert's options as one dataclass, with changes; of others' only kinds and numbers."""
        known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
        found = {key: value for key, value in self.options.items() if key in known and (self.own or not _names(key))}
        return kind(**found | changes)

    def data(self, data: DataArguments) -> DataArguments:
        """Return the options that retrieve this expert's knowledge for the posts of this run.

        Raises:
            ValueError: it is somebody else's, and names a file or an address that this run does not name.
        """
        found = {key: self.options[key] for key in RETRIEVAL_OPTIONS if key in self.options}
        # whoever published the expert must not choose which file is run here
        if (own := found.get("retriever", "bm25")) not in SEARCHES and own != data.retriever:
            raise ValueError(
                f"expert {self.name} ({self.source}) searches by code of its own: give --retriever {own} if that file "
                "is here and yours to run"
            )
        if not found:
            column = self.processor.knowledge_column
            found = {"retrieval": "none" if column is None else column.removeprefix("knowledge_")}
        for name in ENCODERS:  # its own copy, where the folder of its run is gone
            kept = getattr(self.processor.retrieval, name, None)
            if self.own and name in found and not Path(found[name]).exists() and kept and Path(kept).is_dir():
                found[name] = kept
        # files may have moved, or belong to other posts; an expert that read none still reads none
        read = {"knowledge": bool(found.get("knowledge")), "image_dir": True}
        read |= {"captions": found.get("query") == "caption", "entities": found.get("query") == "entities"}
        given = {key: getattr(data, key) for key, wanted in read.items() if wanted and getattr(data, key)}
        if not self.own:
            found = self._looked_up(found, given, data)
            # what this run names permits what the expert names; several experts have several corpora
            for key in ("knowledge", "entities"):
                if key in given and set(named := self.options.get(key) or []) <= set(given[key]):
                    given[key] = named or given[key]
        found["top_k"] = max(found.get("top_k", data.top_k), LEAST_FOUND)
        return replace(data, splitter=self.processor.splitter, **found | given)

    def encoder(self, args: ModelArguments) -> dict[str, Any]:
        """Return the options that name the encoder from which to train this expert again.

        Raises:
            ValueError: it is somebody else's, and its encoder is a folder that this run does not name.
        """
        found = self.options_of(ModelArguments)
        if self.own:
            return {"model_name_or_path": found.model_name_or_path, "model_revision": found.model_revision}
        wanted = self.options.get("model_name_or_path", found.model_name_or_path)
        if wanted == args.model_name_or_path:
            return {"model_name_or_path": wanted, "model_revision": args.model_revision}
        return {"model_name_or_path": self._at_hub("model_name_or_path", wanted)}

    def _looked_up(self, found: dict[str, Any], given: Mapping[str, Any], data: DataArguments) -> dict[str, Any]:
        """Return somebody else's options, with names that lead to the Hub alone, but for those that are `given`."""
        searches = bool(found.get("knowledge"))
        needed = {
            "knowledge": searches,
            "text_model": searches and found.get("retriever") in ("dense", "both"),
            "image_model": searches and found.get("retrieval") == "image",
            "captions": found.get("query") == "caption",
            "entities": found.get("query") == "entities",
        }
        kept = {key: value for key, value in found.items() if key not in NAMES}
        for name, wanted in needed.items():
            if wanted and name not in given and (value := found.get(name)) and value != getattr(data, name):
                kept[name] = self._at_hub(name, value)
        return kept

    def _at_hub(self, option: str, value: Any) -> Any:
        """Return the name or names as names at the Hub, or raise ValueError if one is none or is that of a folder."""
        values = value if isinstance(value, list) else [value]
        names = [of_others(one) if option not in ("captions", "entities") else None for one in values]
        if None in names:
            told = [one if one.isprintable() else repr(one) for one in values]
            raise ValueError(
                f"expert {self.name} ({self.source}) was not trained by you here, so that what its {OPTIONS} names is "
                f"not opened: add --{option} {shlex.join(told)} if you trust it, or name another one"
            )
        return names if isinstance(value, list) else names[0]


def load_experts(sources: Sequence[str]) -> list[Expert]:
    """Return the experts that `--experts` names, or raise ValueError if there are none or one is no saved expert."""
    if not sources:
        raise ValueError("--retrieval moe needs --experts FOLDER_OR_ID …")
    experts: list[Expert] = []
    for source in sources:
        if Path(source).exists() and not (Path(source) / "processor_config.json").is_file():
            raise ValueError(f"--experts {source}: no saved expert (processor_config.json is missing)")
        with loaded_from("--experts", source):
            check_saved(source)
            processor = MoReProcessor.from_pretrained(source)
            options_file, holdout_file = _file(source, OPTIONS), _file(source, HOLDOUT)
        options = _read_options(options_file) if options_file else {}
        held_out = _read_ids(holdout_file) if holdout_file else None
        retrieval = options.get("retrieval") or (processor.knowledge_column or "none").removeprefix("knowledge_")
        name = re.sub(r"\W", "_", "caption" if options.get("query") == "caption" else retrieval)
        same = Counter(re.sub(r"_\d+$", "", expert.name) for expert in experts)[name]
        name = f"{name}_{same + 1}" if same else name
        own = options_file is not None and is_own(options_file)
        experts.append(Expert(source, name, options, held_out, processor, own))
    return experts


def check_experts(task: Task, args: Arguments, experts: Sequence[Expert]) -> None:
    """Check what can be told of experts before anything is retrieved or loaded, which takes long.

    Raises:
        ValueError: one is of another task or has other labels, does not allow the choice of `--gate_data`, or names
            what this run does not open.
    """
    labels: list[list[str]] = []
    for expert in experts:
        with loaded_from("--experts", expert.source):
            config = config_of(expert.source)
        if (found := (config.architectures or [config.model_type])[0]) != task.model_class.__name__:
            raise ValueError(
                f"expert {expert.name} at {expert.source} is a {found}, this mixture takes {task.model_class.__name__}"
            )
        labels.append([label for _, label in sorted(config.id2label.items())])
        check_labels(labels[-1], labels[0], expert.name, experts[0].name)
        expert.data(args.data)
        if not args.training.do_train:
            continue
        if args.mixture.gate_data == "holdout" and not expert.holdout_ids:
            raise ValueError(
                f"expert {expert.name} ({expert.source}) held no training posts out for the gate: train it "
                "with --holdout_fraction 0.2, or choose --gate_data crossfit or train"
            )
        if args.mixture.gate_data == "crossfit":
            if not expert.options:
                raise ValueError(
                    f"expert {expert.name} ({expert.source}) does not tell how it was trained ({OPTIONS} is "
                    "missing): choose --gate_data holdout or train"
                )
            expert.encoder(args.model)


def _file(source: str, name: str) -> Path | None:
    """Return a file of an expert, which not every one has: some were not made by our scripts."""
    if Path(source).is_dir():
        return Path(source) / name if (Path(source) / name).exists() else None
    try:
        return Path(hf_hub_download(source, name))
    except EntryNotFoundError:
        return None


def _read_options(file: Path) -> dict[str, Any]:
    """Return the options in an `arguments.json` that this version knows.

    Raises:
        ValueError: the file is damaged, or one is of another kind or out of its range.
    """
    found = {name: value for name, value in read_object(file).items() if name in FIELDS}
    for name, value in found.items():
        kind, choices = TYPES[name], FIELDS[name].metadata.get("choices")
        if not _fits(kind, value):
            raise ValueError(f"{file}: {name} is {value!r:.80}, it must be of type {kind}")
        if choices and any(one not in choices for one in (value if isinstance(value, list) else [value])):
            raise ValueError(f"{file}: {name} is {value!r:.80}, it must be one of {', '.join(choices)}")
    check_ranges(found, f"{file}: ")
    if found.get("top_k", 0) > MOST_ENTRIES:
        raise ValueError(f"{file}: top_k is {found['top_k']}, at most {MOST_ENTRIES} entries are retrieved")
    return found


def _read_ids(file: Path) -> set[str]:
    ids = read_json(file)
    if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
        raise ValueError(f"{file} must hold a list of ids")
    return set(ids)


def _fits(kind: str, value: Any) -> bool:
    """Return whether a value of JSON is of the kind of an option, like `int | None` or `list[str]`."""
    for one in kind.split(" | "):
        if one == "None" or value is None:
            found = one == "None" and value is None
        elif one.startswith("list["):
            found = isinstance(value, list) and all(_fits(one[5:-1], item) for item in value)
        else:
            found = isinstance(value, KINDS[one]) and isinstance(value, bool) == (one == "bool")
            found = found and not (isinstance(value, float) and not math.isfinite(value))
        if found:
            return True
    return False


def _names(option: str) -> bool:
    """Return whether the value of an option can name a file, an address or a place at the Hub."""
    free = "str" in TYPES[option] and "choices" not in FIELDS[option].metadata
    return free and option not in ("none_relation", "splitter", "min_score")


def add_expert_knowledge(posts: Posts, data: DataArguments, sources: Sequence[str]) -> None:
    """Add `EXPERT_KNOWLEDGE` to posts without labels: what each expert retrieves, else what the posts bring along."""
    columns = []
    for expert in load_experts(sources):
        own = expert.data(data)
        column = knowledge_column(own.retrieval)
        # one that searches for entities finds them itself as it predicts, unless this run gives them
        finds = own.query == "entities" and not (data.entities or expert.processor.markers)
        searched = column is not None and own.knowledge and not finds
        columns.append(retrieved(own, posts) if searched else [post.get(column) if column else None for post in posts])
    for post, *knowledge in zip(posts, *columns, strict=True):
        post[EXPERT_KNOWLEDGE] = knowledge
