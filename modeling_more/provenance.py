"""Tell files that this user's own runs wrote from those of others, whose names lead to the Hub and nowhere else."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .files import file_digest, user_data, write_json

logger = logging.getLogger(__name__)

_REPOSITORY = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*", re.ASCII)
#: endings of files, which an id of the Hub seldom has
_FILES = (".jsonl", ".json", ".gz", ".parquet", ".db", ".csv", ".tsv", ".txt", ".py", ".zip", ".safetensors")


class HubName(str):
    """A name that someone else's file gives: it is looked up on the Hub alone, and without the user's token.

    Whoever publishes a model must not choose which files of this machine are opened, nor where a credential goes.
    """

    at_hub_alone = True


def is_hub_name(name: Any) -> bool:
    """Return whether a name is a `HubName`: of this module, or of one that came with a model as its code."""
    return getattr(name, "at_hub_alone", False) is True


def of_others(value: str) -> HubName | None:
    """Return a name that someone else's file gives, or None where it can't be on the Hub or something here has it."""
    at_hub = _REPOSITORY.fullmatch(value) and not value.endswith(_FILES) and not os.path.lexists(value)
    return HubName(value) if at_hub else None


def hub_options(name: Any) -> dict[str, Any]:
    """Return the options with which a name is loaded: none, or no token for a `HubName`.

    Raises:
        ValueError: a `HubName` that something here has, or that can't be on the Hub.
    """
    if not is_hub_name(name):
        return {}
    if of_others(name) is None:
        raise ValueError(
            f"{str(name)!r} is not opened: a downloaded file names it, and it is no id of the Hub alone; name it "
            "yourself if you trust it"
        )
    return {"token": False}


def remember(file: Path, names: Iterable[Any] = ()) -> None:
    """Remember a file as written by this user, by its digest: whoever copies it can't change what it names.

    Args:
        names: what it names; if one is a `HubName`, the file is not remembered: the name is still somebody else's.
    """
    if any(is_hub_name(one) for name in names for one in (name if isinstance(name, list) else [name])):
        return
    record = _record_of(file)
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        record.touch()
    except OSError as error:
        logger.warning("%s can't be remembered as yours (%s): name its files again where it is used", file, error)


def is_own(file: Path) -> bool:
    """Return whether this user's runs wrote a file with this content on this machine."""
    return file.is_file() and _record_of(file).is_file()


def remember_places(fingerprint: str, sources: Sequence[str | Path]) -> None:
    """Remember where a corpus lies on this machine, by its fingerprint, which is all that saved models tell of it."""
    places = [str(Path(one).resolve()) if os.path.lexists(one) else str(one) for one in sources]
    try:
        write_json(_places_of(fingerprint), places)
    except OSError as error:
        logger.warning("where the corpus lies can't be remembered (%s): name it again where it is used", error)


def places_of(fingerprint: str) -> list[str] | None:
    """Return where this user's runs found the corpus of a fingerprint; None where they did not, or it is gone."""
    try:
        places = json.loads(_places_of(fingerprint).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    whole = all(os.path.lexists(one) or not os.path.isabs(one) for one in places)
    return [str(one) for one in places] if whole else None


def _places_of(fingerprint: str) -> Path:
    return user_data() / "own" / f"corpus-{fingerprint}.json"


def _record_of(file: Path) -> Path:
    return user_data() / "own" / file_digest(file)
