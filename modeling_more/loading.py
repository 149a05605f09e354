"""Load saved models whole: from safetensors alone, with all weights, and nothing else that their files ask for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import AutoConfig
from transformers.utils import cached_file

from .foreign import read_object, require_regular, resolve_inside
from .provenance import hub_options

CONFIG, ADAPTER = "config.json", "adapter_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PLACE = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
#: what a configuration may ask for, by the names of its entries: more would only fill the memory
LIMITS = {
    "vocab_size": 10**7, "type_vocab_size": 10**6, "max_position_embeddings": 10**7, "num_labels": 10**5,
    "hidden_size": 10**6, "intermediate_size": 10**7, "num_hidden_layers": 10**3, "num_attention_heads": 10**4,
    "gate_hidden": 10**6, "image_dim": 10**6,
}  # fmt: skip
#: implementations of attention that transformers has; others would be code of the Hub
ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")
#: entries that make transformers load by other ways than from the safetensors beside them
REFUSED = ("quantization_config", "transformers_weights", "fusion_config", "distributed_config")
_READ_BY_PROCESSORS = (
    "*processor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    CONFIG,
)
#: our configurations by their `model_type`: transformers does not know those of code that came with a model
OWN_CONFIGS: dict[str, Any] = {}
_SHARDS_OF_RANKS = re.compile(r"shard-\d{5}-model-.*\.safetensors|\.metadata")  # read by torch.distributed
_CHOSEN_BY = "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"


def config_of(name: Any, **place: Any) -> Any:
    """Return the checked configuration of a saved model or encoder; `place` is that of `from_pretrained`."""
    place |= hub_options(name)
    place = {key: value for key, value in place.items() if key in PLACE}
    kind: Any = None
    if (file := _file(name, CONFIG, place)) is not None:
        check_config(found := read_object(file), str(file))
        kind = found.get("model_type")
    with readable(name):
        if isinstance(kind, str) and kind in OWN_CONFIGS:
            return OWN_CONFIGS[kind].from_pretrained(name, **place)
        return AutoConfig.from_pretrained(name, trust_remote_code=False, **place)


def downloaded(name_or_path: Any, patterns: Sequence[str], options: Mapping[str, Any]) -> Any:
    """Return the folder of a Hub id's files of these patterns, which is there without network once it was loaded.

    transformers asks the Hub each time for files that a folder lacks, and fails offline where these decide something.
    """
    if Path(name_or_path).exists():
        return name_or_path
    place = {key: options[key] for key in PLACE if key != "subfolder" and options.get(key) is not None}
    try:
        return snapshot_download(str(name_or_path), allow_patterns=list(patterns), **place)
    except (OSError, ValueError):
        return name_or_path  # transformers knows how to say what is wrong with it


def checked_options(name: Any, pickled: bool = False, **place: Any) -> dict[str, Any]:
    """Check the files of a saved model before its weights are read, and return more options for `from_pretrained`.

    Args:
        pickled: whether a name that the user gave may lead to a pytorch_model.bin, of which torch reads tensors alone
            (`weights_only`): some image towers have no other file.
        place: options of `from_pretrained`, among them those that say where a repository is found.

    Raises:
        ValueError: a file is damaged, asks for code or for too much, or names weights outside of the folder; there are
            no weights as safetensors; an adapter, whose model lies elsewhere.
    """
    options = hub_options(name)
    given = place.get("config")
    place = {key: value for key, value in (place | options).items() if key in PLACE}
    if (config := _file(name, CONFIG, place)) is not None:
        check_config(read_object(config), str(config))
    elif given is None and Path(name).is_dir():
        raise ValueError(f"{name} lacks {CONFIG}: was it saved or copied whole?")
    if _file(name, ADAPTER, place) is not None:
        raise ValueError(
            f"{name} is an adapter ({ADAPTER}), whose model lies elsewhere: load it by peft and save the merged model"
        )
    files = list(_weights(name, place))
    if not files and pickled and not options:
        return {"trust_remote_code": False}
    if not files and config is not None:
        raise ValueError(
            f"{name} has no {WEIGHTS}: weights are read from safetensors alone; to convert a pytorch_model.bin of "
            "your own load it by AutoModel.from_pretrained(…) and save it by save_pretrained(…)"
        )
    if config is not None:
        _check_sizes(config, files)
    # once more for the look-up of adapters, which takes token=False for none given and sends the user's
    again = {"adapter_kwargs": dict(options)} if options else {}
    return {**options, **again, "use_safetensors": True, "trust_remote_code": False}


def load_whole(
    load: Callable[..., Any],
    name: Any,
    *args: Any,
    unused: Sequence[str] = (),
    surplus: bool = False,
    pickled: bool = False,
    **options: Any,
) -> Any:
    """Return `load(name, …)`, a `from_pretrained`, if the file holds every weight of the model.

    Args:
        unused: parts of the names of weights that may be missing.
        surplus: whether the file may hold weights that the model has not (those of another head).
        pickled: see `checked_options`.

    Raises:
        ValueError: weights are missing, of another shape, surplus or not finite; the message names them.
    """
    told = options.pop("output_loading_info", False)
    if name is not None:
        options |= checked_options(name, pickled, **options)
    resized = options.pop("ignore_mismatched_sizes", False)  # the caller wants a new head
    with readable(name):
        model, report = load(name, *args, **options, ignore_mismatched_sizes=True, output_loading_info=True)
    missing = [key for key in report["missing_keys"] if not any(one in key for one in unused)]
    shapes = [f"{key} {list(found)} instead of {list(wanted)}" for key, found, wanted in report["mismatched_keys"]]
    problems = {
        "lacks": missing,
        "has in another shape": [] if resized else shapes,
        "holds, though the model of its configuration has no such": [] if surplus else report["unexpected_keys"],
        "holds NaN or infinity in": [
            key for key, value in model.named_parameters() if not bool(torch.isfinite(value).all())
        ],
    }
    for what, keys in problems.items():
        if keys:
            first = ", ".join(sorted(keys)[:3])
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise ValueError(
                f"{_told(name)} {what} weights: {first}{more}; predictions would be random: is it saved or copied "
                "whole, and of this kind?"
            )
    return (model, report) if told else model


def load_processor(
    load: Callable[..., Any], name: Any, folder: Any, needed: Sequence[str] = (), **options: Any
) -> Any:
    """Return `load(folder, …)`, a `from_pretrained` of a processor or tokenizer; errors name the damaged file.

    Args:
        needed: files without which transformers would take settings or words of its own.
    """
    place = Path(folder) / (options.get("subfolder") or "")
    with readable(name):
        if place.is_dir() and (lacking := [one for one in needed if not (place / one).is_file()]):
            raise ValueError(f"{name} lacks {' and '.join(lacking)}: was it saved or copied whole?")
        try:
            return load(folder, **options)
        except Exception:
            for pattern in _READ_BY_PROCESSORS:  # not all JSON that lies there: others have other forms
                for file in sorted(place.glob(pattern)):
                    read_object(file)
            raise


def check_config(found: Mapping[str, Any], where: str = CONFIG) -> None:
    """Check that the content of a `config.json` asks for no code of others, and for no more than a model can have.

    Raises:
        ValueError: it does; the message names the file and the entry.
    """
    own = "encoder_config" in found or "experts" in found  # the labels of an encoder are not used
    for path, key, value in _entries(found):
        told = f"{where}: {path}"
        if key in REFUSED and value not in (None, {}, False):
            raise ValueError(f"{told} is not supported: the weights must lie in {WEIGHTS}, as they are")
        if key in _CHOSEN_BY:
            for one in value.values() if isinstance(value, dict) else [value]:
                if one is not None and one not in ATTENTION:
                    known = ", ".join(ATTENTION)
                    raise ValueError(f"{told} is {one!r:.80}, which may be code: it must be one of {known}")
        if key in LIMITS and isinstance(value, int | float) and not 0 <= value <= LIMITS[key]:
            raise ValueError(f"{told} is {value}, it must lie between 0 and {LIMITS[key]}")
        if key == "id2label" and value is not None and "encoder_config" not in path and own:
            _check_labels(value, told)


def _check_labels(labels: Any, told: str) -> None:
    if not isinstance(labels, dict) or not all(isinstance(label, str) for label in labels.values()):
        raise ValueError(f'{told} must be an object of numbers and labels, like {{"0": "O"}}')
    if set(map(str, labels)) != set(map(str, range(len(labels)))) or len(set(labels.values())) < len(labels):
        raise ValueError(f"{told} must number different labels from 0 on")
    for label in labels.values():
        if not label.strip() or not label.isprintable():
            raise ValueError(f"{told} holds the label {label!r:.80}, which is empty or can't be printed")


def _entries(value: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Yield (path, name, value) of the entries of an object and of those within them."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            where = f"{path}.{key}" if path else str(key)
            yield where, str(key), one
            if key not in ("id2label", "label2id"):
                yield from _entries(one, where)
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from _entries(one, f"{path}[{number}]")


def _file(name: Any, file: str, place: Mapping[str, Any]) -> Path | None:
    """Return a file of a folder or of a repository, downloaded if need be; None where there is none."""
    folder = Path(name) / (place.get("subfolder") or "")
    if Path(name).is_dir():
        return require_regular(folder / file) if (folder / file).exists() else None
    raised = {"missing_entries": False, "connection_errors": file == WEIGHTS}  # others were cached, or there are none
    found = cached_file(str(name), file, **place, **{f"_raise_exceptions_for_{key}": on for key, on in raised.items()})
    return None if found is None else Path(found)


def _weights(name: Any, place: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the files of the weights, none from outside of the folder."""
    folder = Path(name) / (place.get("subfolder") or "")
    if folder.is_dir():
        for path in folder.iterdir():
            if _SHARDS_OF_RANKS.fullmatch(path.name):
                raise ValueError(f"{path} is of a checkpoint in shards of processes: gather it into {WEIGHTS} first")
    if (whole := _file(name, WEIGHTS, place)) is not None:
        yield whole
    elif (index := _file(name, INDEX, place)) is not None:
        shards = read_object(index, weight_map=dict, metadata=dict)["weight_map"].values()
        if not all(isinstance(shard, str) and shard.endswith(".safetensors") for shard in shards):
            raise ValueError(f"{index} names files that are no safetensors")
        for shard in sorted(set(shards)):
            resolve_inside(index.parent, shard) if folder.is_dir() else resolve_inside(Path(), shard)
            if (file := _file(name, shard, place)) is None:
                raise ValueError(f"{_told(name)} lacks {shard}, which {INDEX} names: it was not saved or copied whole")
            yield file


def _check_sizes(config: Path, files: Sequence[Path]) -> None:
    """Raise ValueError if the configuration needs more numbers than the weights have: they would be made at random."""
    tensors = numbers = 0
    for file in files:
        with readable(file), safe_open(file, "pt") as opened:
            shapes = [opened.get_slice(key).get_shape() for key in opened.keys()]
        tensors += len(shapes)
        numbers += sum(torch.Size(shape).numel() for shape in shapes)
    found = read_object(config)
    encoders = [found, found.get("encoder_config")]
    encoders += [one.get("encoder_config") for one in found.get("experts") or [] if isinstance(one, dict)]
    if found.get("copy_experts") is False:  # the experts' weights lie elsewhere
        return
    for encoder in encoders:
        if not isinstance(encoder, dict):
            continue
        width = encoder.get("embedding_size", encoder.get("hidden_size", 1))
        layers, rows = encoder.get("num_hidden_layers", 0), encoder.get("vocab_size", 0)
        if not all(isinstance(one, int) for one in (width, layers, rows)):
            continue  # transformers says what is wrong with it
        if rows * width > numbers or layers > tensors:
            raise ValueError(
                f"{config} asks for {rows} tokens × {width} and {layers} layers, the weights hold {numbers} numbers "
                f"in {tensors} tensors: it is of another model, or was not saved or copied whole"
            )


@contextmanager
def readable(name: Any) -> Iterator[None]:
    """Raise ValueError, which names the model, where the block fails at what its files hold."""
    try:
        yield
    except (ValueError, OSError):
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit, ImportError):
        raise
    except Exception as error:  # what values of any kind in a configuration, or damaged weights, lead to
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ValueError(f"{_told(name)} can't be loaded ({reason}): was it saved or copied whole?") from error


def _told(name: Any) -> str:
    return "the given state" if name is None else str(name)
