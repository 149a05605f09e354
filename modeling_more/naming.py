"""Check what users name: folders and Hub ids, options, data sets and labels that may be misspelt."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

REDACTED = "<secret>"
SECRETS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "MILVUS_TOKEN")  # variables of the environment that hold some
_SECRET = re.compile(
    r"\b(?:hf|api_org|ghp|gho|ghs|github_pat|glpat|sk|xox[bp])[_-][A-Za-z0-9_-]{8,}\b"  # well-known prefixes
    r"|\bBearer\s+\S+"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # user:password@host
)
_HUB_ID = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `: did you mean X?` for the known name that is most like a misspelt one; empty where none is like it."""
    spelt, given = {one.lower(): one for one in known}, name.lower()
    begun = sorted((one for one in spelt if len(given) > 3 and one.startswith(given)), key=len)  # cut short
    ended = [one for one in spelt if one.endswith(f"_{given.lstrip('-')}")]  # --epochs: the first, most used option
    found = begun or ended or get_close_matches(given, spelt, n=1, cutoff=0.6)
    return f": did you mean {spelt[found[0]]}?" if found and spelt[found[0]] != name else ""


class NamingParser(argparse.ArgumentParser):
    """A parser whose errors name the nearest right option or choice."""

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, no_choice(action, value))

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        try:
            self.check_known(unknown)
        except ValueError as error:
            self.error(str(error))
        return parsed

    def check_known(self, words: Sequence[str]) -> None:
        """Raise ValueError for words that belong to no option."""
        known = [option for action in self._actions for option in action.option_strings]
        for word in words:
            option = word.split("=")[0]
            if word.startswith("-"):
                raise ValueError(f"there is no option {option}{nearest(option, known) or ', see --help'}")
        if words:
            raise ValueError(f"{words[0]!r} belongs to no option, see --help")


def no_choice(action: argparse.Action, value: Any) -> str:
    """Return what is said of a value that is none of an option's choices."""
    choices = [str(choice) for choice in action.choices or ()]
    return f"it is {value!r}, it must be one of {', '.join(choices)}{nearest(str(value), choices)}"


def missing_source(value: str | Path) -> str:
    """Return why a name is neither that of a folder nor can be an id of the Hub; empty where it is or can be."""
    path = Path(value)
    if path.is_dir():
        return ""
    if path.exists():
        return "it is a file, give a folder or an id of the Hub"
    return "" if _HUB_ID.fullmatch(str(value)) else f"there is no such folder{nearest_folder(path)}"


def check_source(told: str, value: str | Path) -> None:
    """Check that a name is that of a folder, or can be an id of the Hub.

    Args:
        told: what gives the name, such as `--model_name_or_path`.

    Raises:
        FileNotFoundError: when it can only be a folder, and there is none.
    """
    if reason := missing_source(value):
        raise FileNotFoundError(f"{told} {value}: {reason}")


@contextmanager
def loaded_from(told: str, value: str | Path) -> Iterator[None]:
    """Raise FileNotFoundError where a name is no folder here and the block can't load it from the Hub either.

    Args:
        told: what gives the name, see `check_source`.
    """
    check_source(told, value)
    try:
        yield
    except OSError as error:
        if Path(value).is_dir():
            raise
        reason = " ".join(str(error).split()).split(". ")[0].rstrip(".")
        raise FileNotFoundError(
            f"{told} {value}: there is no such folder here, and the Hub does not give it ({reason})"
            f"{nearest_folder(Path(value))}"
        ) from error


def nearest_folder(path: Path) -> str:
    """Return what `nearest` says of the folders (or, with a suffix, files) beside a missing one."""
    try:
        beside = [one.name for one in path.parent.iterdir() if one.is_dir() or path.suffix]
    except OSError:
        return ""
    found = nearest(path.name, beside)
    where = "" if str(path.parent) == "." else f"{path.parent}/"
    return found.replace("mean ", f"mean {where}", 1)


def without_folder(value: Any, name: str = "") -> Any:
    """Return what is published of a value, list or mapping: the names of files, not their places on a machine.

    Args:
        name: the option that has the value; labels of relations look like paths, and stay.
    """
    if isinstance(value, dict):
        return {key: without_folder(one, str(key)) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [without_folder(one, name) for one in value]
    if not isinstance(value, str) or name == "none_relation":
        return value
    option, equals, rest = value.partition("=")
    if option.startswith("--") and equals:
        return f"{option}={without_folder(rest, option[2:])}"
    prefix = "milvus:" if value.startswith("milvus:") else ""
    path = value.removeprefix(prefix)
    return prefix + (Path(path).name if path.startswith(("/", "~", "..")) or Path(path).is_absolute() else path)


def without_secrets(text: str) -> str:
    """Return a text in which tokens, passwords of addresses and the secrets of the environment are hidden."""
    for name in SECRETS:
        secret = os.environ.get(name, "")
        for part in (secret, secret.partition(":")[2]):  # Milvus has USER:PASSWORD
            if len(part) >= 4:
                text = text.replace(part, REDACTED)
    return _SECRET.sub(REDACTED, text)
