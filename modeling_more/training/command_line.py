"""This module reads a run's options from the command line, an options file and the paper's recipes."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers.hf_argparser import HfArgumentParser

from ..naming import NamingParser, nearest, no_choice, without_secrets
from .arguments import Arguments, DataArguments, HubArguments, MixtureArguments, ModelArguments, TrainingArguments
from .checks import check_arguments, check_values
from .output_folders import default_output_dir

logger = logging.getLogger(__name__)

GROUPS: dict[str, Any] = {
    "posts and knowledge": DataArguments,
    "model": ModelArguments,
    "training": TrainingArguments,
    "mixture of experts (--retrieval moe)": MixtureArguments,
    "publishing": HubArguments,
}
#: the options that most people need
FIRST = (
    *("dataset", "train_file", "validation_file", "test_file", "predict_file", "retrieval", "knowledge", "experts"),
    *("model_name_or_path", "output_dir"),
)
TYPES = {one.name: str(one.type) for group in GROUPS.values() for one in fields(group)}


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """A help formatter that shows defaults, if any, and keeps the line breaks of the description."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, []) else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        shown = copy(action)
        shown.option_strings = [one for one in action.option_strings if "-" not in one[2:]]  # --top-k works, too
        return super()._format_action_invocation(shown)


class _Parser(NamingParser, HfArgumentParser):
    """A parser that reports errors in one sentence and groups its help, the most used options first."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")

    def format_help(self) -> str:
        options: dict[str, list[argparse.Action]] = {}  # a switch that is on by default has --name and --no_name
        for action in self._actions:
            options.setdefault(action.dest, []).append(action)
        groups: dict[str, Sequence[str]] = {"what most people need": FIRST}
        groups |= {title: [one.name for one in fields(part)] for title, part in GROUPS.items()}
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        formatter.add_text(f"{self.prog} [OPTIONS.yaml] [--option value ...]")
        done: set[str] = set()
        for title, names in groups.items():
            formatter.start_section(title)
            for name in names:
                if name not in done:
                    formatter.add_arguments(options[name])
            formatter.end_section()
            done |= set(names)
        return formatter.format_help()


def parse_arguments(argv: list[str] | None, description: str) -> Arguments:
    """Return the options of a run.

    The command line overrides a YAML file (`run_ner.py my.yaml --seed 1`), which overrides the recipe of `--dataset`
    and `--retrieval`, which overrides the defaults. Invalid options end the program with one sentence.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    groups = list(GROUPS.values())
    parser = _Parser(groups, description=description, formatter_class=_HelpFormatter, allow_abbrev=False)
    parser.set_defaults(output_dir=None)  # None: not given; the default depends on what is done
    own: dict[str, Any] = {}
    try:
        if argv and argv[0].endswith((".yaml", ".yml", ".json")):
            own = read_options(Path(argv.pop(0)))
            _set_defaults(parser, own)
        known, _ = parser.parse_known_args(argv)
        recipe = read_recipe(known.dataset, known.retrieval)
        _set_defaults(parser, recipe | own)
        *parts, unknown = parser.parse_args_into_dataclasses(argv, return_remaining_strings=True)
        parser.check_known(unknown)
        args = Arguments(*parts)
        check_values(args)
        if not args.training.output_dir:
            args.training.output_dir = default_output_dir(args)
        return args
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


def read_recipe(dataset: str | None, retrieval: str) -> dict[str, Any]:
    """Return the paper's options for a data set and a retrieval, or an empty dict if it has none."""
    path = files("modeling_more") / "recipes" / f"{dataset}_{retrieval}.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def read_options(path: Path) -> dict[str, Any]:
    """Return the options in a YAML (or JSON) file, which maps option names to values."""
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
    """Return a value of an options file converted as on the command line; argparse does not convert defaults."""
    wanted = TYPES.get(action.dest, "str")
    if value is None and "None" in wanted:
        return None
    if wanted == "bool":
        if not isinstance(value, bool):
            raise ValueError(f"option {action.dest!r} is {value!r}, it must be true or false")
        return value
    values = value if isinstance(value, list) else [value]
    for one in values:
        if one is None or (isinstance(one, bool) and action.choices is None):
            raise ValueError(f"option {action.dest!r} can't be {json.dumps(one)}: leave it out for its default")
    read = action.type if callable(action.type) else str
    several = action.nargs in ("+", "*")
    if isinstance(value, list) and not several:
        raise ValueError(f"option {action.dest!r} is a list, it must be one value")
    found = []
    for one in values:
        try:
            found.append(read(str(one)))  # YAML reads 1e-5 as a string
        except (ValueError, TypeError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"option {action.dest!r} is {one!r}: {error}") from None
        if action.choices is not None and found[-1] not in action.choices:
            raise ValueError(f"option {action.dest!r} {no_choice(action, one).removeprefix('it ')}")
    return found if several else found[0]


def read_arguments(
    argv: list[str] | None, description: str, foreign: Sequence[str] = (), foreign_data: str = ""
) -> Arguments:
    """Return the checked options of a script, or end the program with one sentence if they are invalid.

    Args:
        argv: the command line without the script; default: that of this program.
        foreign: the names of the other task's data sets.
        foreign_data: an error message that points to the other task's script.
    """
    args = parse_arguments(argv, description)
    with one_sentence_errors():
        if args.data.dataset in foreign:
            raise ValueError(f"--dataset {args.data.dataset}: {foreign_data}")
        check_arguments(args)
    return args


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """End the program with one sentence if the block raises ValueError or OSError, the errors of wrong input."""
    try:
        yield
    except (ValueError, OSError) as error:
        logger.debug("input error", exc_info=True)
        raise SystemExit(f"error: {without_secrets(' '.join(str(error).split()))}") from None


def command_of(script: str, argv: Sequence[str] | None, processes: int, mixed_precision: str) -> str:
    """Return the command that repeats this run; sharding set in a configuration file of accelerate is not in it."""
    words = sys.argv[1:] if argv is None else argv
    start = ["python", script]
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # accelerate launch sets it
        start = ["accelerate", "launch", *(["--num_processes", str(processes)] if processes > 1 else [])]
        start += ["--mixed_precision", mixed_precision] if mixed_precision != "no" and "--bf16" not in words else []
        start.append(script)
    return shlex.join([*start, *words])
