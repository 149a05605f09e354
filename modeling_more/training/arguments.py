"""The scripts' arguments: dataclasses read from the command line, from a recipe of the paper, or from a YAML file."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from ..naming import NamingParser, nearest, no_choice
from .loop import TrainingArguments
from .output_folders import default_output_dir

RETRIEVALS = ("none", "text", "image", "moe")


@dataclass
class DataArguments:
    """Which posts, and which knowledge they are read with."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "a set by name (twitter15, twitter17, snap, wikidiverse, demo; of relations mnre, "
            "demo_relations), a folder of Parquet or a Hub id"
        },
    )
    retrieval: str = field(
        default="none",
        metadata={
            "help": "knowledge that is read with the post; moe: a mixture of --experts",
            "choices": list(RETRIEVALS),
        },
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "folder or .zip with the named set's files; default: downloaded"}
    )
    columns: list[int] | None = field(
        default=None,
        metadata={
            "help": "columns of words and of labels in your CoNLL files, from 1, like 1 4; default: the first (the "
            "second behind an index) and the last"
        },
    )
    train_file: str | None = field(
        default=None, metadata={"help": "your own posts: CoNLL, JSONL, CSV, TSV or Parquet"}
    )
    validation_file: str | None = field(default=None, metadata={"help": "likewise, to choose the best epoch"})
    test_file: str | None = field(
        default=None,
        metadata={
            "help": "likewise, scored once at the end; where all labels are hidden (null or -1), predicted only"
        },
    )
    predict_file: str | None = field(
        default=None,
        metadata={
            "help": "posts without labels, for --do_predict: what --train_file reads, labels not needed (text or "
            "tokens, id, image), or text with one post a line"
        },
    )
    knowledge: list[str] = field(
        default_factory=list,
        metadata={
            "help": "corpus to retrieve from: JSONL, JSONL.gz or Parquet files, a saved corpus, or a Hub id; with "
            "--experts: instead of what those that retrieve were trained with"
        },
    )
    top_k: int = field(default=10, metadata={"help": "entries of knowledge retrieved and read"})
    knowledge_words: int | None = field(
        default=None, metadata={"help": "words read of each entry, around its matched sentence; default: all"}
    )
    title_in_key: bool = field(
        default=False, metadata={"help": "search title and sentence instead of the sentence alone"}
    )
    retriever: str = field(
        default="bm25",
        metadata={
            "help": "how text is searched: by words, by a sentence encoder, or by both",
            "choices": ["bm25", "dense", "both"],
        },
    )
    text_model: str = field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        metadata={"help": "sentence encoder of --retriever dense or both: folder or Hub id"},
    )
    query: str = field(
        default="words",
        metadata={
            "help": "what is searched for: the post's words, its image's caption, or also its predicted entities",
            "choices": ["words", "caption", "entities"],
        },
    )
    captions: str | None = field(
        default=None,
        metadata={"help": "captions of the images, for --query caption: `ID.jpg :caption` lines or JSONL"},
    )
    entities: list[str] = field(
        default_factory=list,
        metadata={"help": "predictions/*.jsonl of runs that did not train on these posts, for --query entities"},
    )
    image_dir: str | None = field(
        default=None, metadata={"help": "folder with the posts' images, named by image id, for --retrieval image"}
    )
    image_model: str = field(
        default="openai/clip-vit-base-patch32", metadata={"help": "image tower of --retrieval image: folder or Hub id"}
    )
    shuffle_knowledge: bool = field(
        default=False, metadata={"help": "control: every post gets another post's knowledge (same split)"}
    )
    max_length: int = field(
        default=512,
        metadata={"help": "sub-tokens of a post with its knowledge; lowered to what encoder and tokenizer read"},
    )
    overflow: str = field(
        default="cut",
        metadata={"help": "knowledge past max_length: cut its end, or skip whole entries", "choices": ["cut", "skip"]},
    )
    none_relation: str = field(
        default="None", metadata={"help": "the class of pairs without a relation, which F1 leaves out (run_re.py)"}
    )
    splitter: str = field(
        default="twitter17",
        metadata={
            "help": "how raw text becomes words (in predict mode: as the expert was trained); of scripts without "
            "blanks (Chinese, Thai …) each letter is a word, but for whitespace, which splits at blanks alone",
            "choices": ["twitter17", "twitter15", "whitespace"],
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "train on the first so many posts"})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "score on the first so many posts of a split"}
    )
    holdout_fraction: float = field(
        default=0.0, metadata={"help": "share of the training posts kept unseen, for a gate to learn from later"}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "for data, corpora and downloads"})


@dataclass
class ModelArguments:
    """Which encoder or expert, and which head and loss."""

    model_name_or_path: str = field(
        default="FacebookAI/xlm-roberta-large", metadata={"help": "encoder, or a saved expert: folder or Hub id"}
    )
    model_revision: str = field(default="main", metadata={"help": "branch, tag or commit of the model on the Hub"})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, flash_attention_2 … (default: the library's choice)"}
    )
    head: str = field(
        default="crf", metadata={"help": "layer over the words of entities", "choices": ["crf", "softmax"]}
    )
    two_views: str = field(
        default="off",
        metadata={"help": "loss that ties the views with and without knowledge", "choices": ["off", "crf_kl", "kl"]},
    )
    kl_temperature: float = field(default=1.0, metadata={"help": "softens both sides of that loss"})
    nll_weight: float = field(default=0.5, metadata={"help": "lambda: weight of the likelihoods; KL weighs the rest"})
    kl_target_transitions: bool = field(
        default=False, metadata={"help": "let the KL's target move the transitions, as the authors' code does"}
    )
    head_dropout: float = field(default=0.0, metadata={"help": "on what the head reads"})
    word_dropout: float = field(default=0.0, metadata={"help": "zero a word's whole representation"})
    class_weights: bool = field(
        default=False, metadata={"help": "weigh relations by the inverse root of their number in training (run_re.py)"}
    )


@dataclass
class MixtureArguments:
    """How experts are mixed (--retrieval moe)."""

    experts: list[str] = field(
        default_factory=list, metadata={"help": "experts to mix: folders of earlier runs, or Hub ids"}
    )
    gate_data: str = field(
        default="holdout",
        metadata={
            "help": "posts the gate learns from: those the experts held out (--holdout_fraction), all training posts "
            "with experts trained anew on the other folds, or all although the experts know them",
            "choices": ["holdout", "crossfit", "train"],
        },
    )
    crossfit_folds: int = field(default=5, metadata={"help": "folds of --gate_data crossfit"})
    gate: str = field(
        default="post", metadata={"help": "one weight per expert and post, or per word", "choices": ["post", "word"]}
    )
    gate_images: bool = field(
        default=True, metadata={"help": "let the gate see the posts' images, where there are any"}
    )
    gate_epochs: int = field(default=40, metadata={"help": "epochs of the gate over the experts' cached outputs"})
    gate_batch_size: int = field(default=32, metadata={"help": "posts of a batch of the gate"})
    gate_learning_rate: float = field(default=1e-3, metadata={"help": "of the gate"})
    image_dropout: float = field(default=0.1, metadata={"help": "share of images hidden from the gate in training"})
    load_balancing: float = field(default=0.0, metadata={"help": "weight of the term that evens out the experts' use"})
    gate_entropy: float = field(default=0.0, metadata={"help": "weight of the gate's entropy in the loss"})
    decoding: str = field(
        default="viterbi",
        metadata={
            "help": "tags of entities: the best valid sequence, or each word's best (the paper); both are scored",
            "choices": ["viterbi", "word"],
        },
    )
    train_experts: bool = field(
        default=False, metadata={"help": "train the experts along, for --num_train_epochs at --learning_rate"}
    )
    copy_experts: bool = field(
        default=True, metadata={"help": "save the experts with the mixture, instead of their names"}
    )
    cache_expert_outputs: bool = field(default=True, metadata={"help": "keep the experts' outputs for later runs"})


@dataclass
class RunArguments:
    """What to do, and where to publish it."""

    do_train: bool = field(default=True, metadata={"help": "train (with --no_do_train: only score the given model)"})
    do_predict: bool = field(
        default=False, metadata={"help": "predict --predict_file; alone, without --dataset, only that"}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "let a training delete the run that its folder holds"}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "upload model, processor, scores and card at the end"})
    push_predictions: bool = field(
        default=False, metadata={"help": "upload the predictions, too: they hold the posts' words"}
    )
    hub_model_id: str | None = field(default=None, metadata={"help": "ORG/NAME to upload to"})
    hub_private: bool = field(
        default=False, metadata={"help": "create that repository private; else as the account or organisation has it"}
    )


Arguments = tuple[DataArguments, ModelArguments, TrainingArguments, RunArguments, MixtureArguments]


GROUPS: Any = (DataArguments, ModelArguments, TrainingArguments, RunArguments, MixtureArguments)
TYPES = {one.name: str(one.type) for group in GROUPS for one in fields(group)}
#: values that options may have, by the names of those that are alike; not a number is none of them
RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("gate_learning_rate kl_temperature", lambda value: value > 0, "above 0"),
    ("learning_rate crf_learning_rate", lambda value: value >= 0, "at least 0 (0: these parts stay as they are)"),
    ("weight_decay max_grad_norm", lambda value: value >= 0, "at least 0"),
    ("warmup_ratio nll_weight", lambda value: 0 <= value <= 1, "between 0 and 1"),
    ("head_dropout word_dropout image_dropout", lambda value: 0 <= value < 1, "at least 0 and below 1"),
    (
        "max_tokens_per_batch knowledge_words top_k early_stopping_patience gate_batch_size max_length",
        lambda value: value >= 1,
        "at least 1",
    ),
    ("crossfit_folds", lambda value: value >= 2, "at least 2"),
    ("load_balancing gate_entropy gate_epochs", lambda value: value >= 0, "at least 0"),
)


def check_values(args: Arguments) -> None:
    """ValueError for an option whose value can't be."""
    given = {name: value for part in args for name, value in vars(part).items()}
    for names, fits, said in RANGES:
        for name in names.split():
            value = given[name]
            if value is not None and not (math.isfinite(value) and fits(value)):
                raise ValueError(f"--{name} is {value}, it must be {said}")
    if twice := [seed for seed, count in Counter(given["seeds"]).items() if count > 1]:
        raise ValueError(f"--seeds holds {twice[0]} twice, each must be another one")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Defaults beside each option that has one, and the examples of the description line by line."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, []) else super()._get_help_string(action)


class _Parser(NamingParser, HfArgumentParser):
    """Errors in one sentence; no option is abbreviated."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def parse_arguments(argv: list[str] | None, description: str) -> Arguments:
    """Read the arguments: command line over YAML file (`run_ner.py my.yaml --seed 1`) over the recipe of `--dataset`
    and `--retrieval` over the defaults.

    Raises:
        SystemExit: with one sentence, for arguments that can't be.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(list(GROUPS), description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
    parser.set_defaults(output_dir=None)  # that it is given shows; the default depends on what is done
    own: dict[str, Any] = {}
    try:
        if argv and argv[0].endswith((".yaml", ".yml", ".json")):
            own = read_options(Path(argv.pop(0)))
            _set_defaults(parser, own)
        known, _ = parser.parse_known_args(argv)
        recipe = read_recipe(known.dataset, known.retrieval)
        _set_defaults(parser, recipe | own)
        parsed: Any
        *parsed, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
        parser.check_known(unknown)
        check_values(tuple(parsed))
        if not parsed[2].output_dir:
            parsed[2].output_dir = default_output_dir(tuple(parsed))
        return tuple(parsed)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


def read_recipe(dataset: str | None, retrieval: str) -> dict[str, Any]:
    """The options of the paper for a data set and a retrieval; empty where the paper has none."""
    path = files("modeling_more") / "recipes" / f"{dataset}_{retrieval}.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def read_options(path: Path) -> dict[str, Any]:
    """Options of a YAML (or JSON) file: a mapping of argument names.

    Raises:
        FileNotFoundError: when the file is missing.
        ValueError: when it is no such mapping.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no options file {path}")
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise ValueError(f"{path} must hold a mapping of options, like `learning_rate: 1e-5`")
    return options


def _set_defaults(parser: HfArgumentParser, options: dict[str, Any]) -> None:
    actions = {action.dest: action for action in parser._actions}
    for name, value in options.items():
        if name not in actions:
            raise ValueError(f"option {name!r} is unknown{nearest(name, actions) or ', see --help for the names'}")
        parser.set_defaults(**{name: _converted(actions[name], value)})


def _converted(action: argparse.Action, value: Any) -> Any:
    """A value of an options file as the command line would have it: argparse takes defaults as they are."""
    wanted = TYPES.get(action.dest, "str")
    if value is None and "None" in wanted:
        return None
    if wanted == "bool" and not isinstance(value, bool):
        raise ValueError(f"option {action.dest!r} is {value!r}, it must be true or false")
    if wanted == "bool":
        return value
    for one in value if isinstance(value, list) else [value]:
        if one is None or (isinstance(one, bool) and action.choices is None):
            raise ValueError(f"option {action.dest!r} can't be {json.dumps(one)}: leave it out for its default")
    read = action.type if callable(action.type) else str
    several = action.nargs in ("+", "*")
    if isinstance(value, list) and not several:
        raise ValueError(f"option {action.dest!r} is a list, it must be one value")
    found = []
    for one in value if isinstance(value, list) else [value]:
        try:
            found.append(read(str(one)))  # YAML reads 1e-5 as a string
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"option {action.dest!r} is {one!r}: {error}") from None
        if action.choices is not None and found[-1] not in action.choices:
            raise ValueError(f"option {action.dest!r} {no_choice(action, one).removeprefix('it ')}")
    return found if several else found[0]
