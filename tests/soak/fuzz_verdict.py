"""Judge how a reader takes bytes: rows, or an error of the input in one sentence that names the file."""

import json
import re
import resource
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[2]
CRASHES = Path(__file__).with_name("crashes")
MOST_CHARACTERS = 1_000  # of a sentence
MOST_SECONDS = 5  # of computing
MOST_GROWTH = 500_000  # KB of memory that one input may cost


class Target(NamedTuple):
    """A reader to be tried.

    Attributes:
        run: takes bytes and an empty folder to work in; raises whatever is wrong.
        seeds: inputs to begin with, by a name.
        words: that its inputs consist of, for the fuzzer to put in.
        share: of a hundred inputs, so many go here.
        longest: bytes of an input.
    """

    run: Callable[[bytes, Path], None]
    seeds: Callable[[], Mapping[str, bytes]]
    words: tuple[str, ...]
    share: float
    longest: int = 2048


class WrongResult(AssertionError):
    """An error for a reader that gave what no input should give, or said badly what is wrong with it."""


class Crash(NamedTuple):
    """What is wrong, and a key that is the same for crashes at the same place."""

    what: str
    key: str


@contextmanager
def told_well(*names: str) -> Iterator[None]:
    """Accept an error of the input, ValueError or OSError, that is one sentence and holds one of the names."""
    try:
        yield
    except (ValueError, OSError) as error:
        said = str(error)
        faults = {
            "names no file": bool(names) and not any(name in said for name in names),
            "is long": len(said) > MOST_CHARACTERS,
            "shows a traceback": "Traceback" in said,
            "is empty": not said.strip(),
        }
        for fault, found in faults.items():
            if found:
                raise WrongResult(f"the {type(error).__name__} {fault}: {said:.200}") from error


def judge(target: Target, data: bytes, folder: Path) -> Crash | None:
    """Return what is wrong with how the target takes these bytes; None where nothing is."""
    began = time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        target.run(data, folder)
    except Exception as error:
        place = _place(error.__cause__ or error)
        last = " ".join(traceback.format_exception_only(error)).strip()
        kind = str(error).partition(":")[0] if isinstance(error, WrongResult) else type(error).__name__
        return Crash(f"{last:.300} at {place}", f"{kind} {place}")
    if (seconds := time.process_time() - began) > MOST_SECONDS:
        return Crash(f"it takes {seconds:.1f} s", "slow")
    if (grown := resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) > MOST_GROWTH:
        return Crash(f"the memory grew by {grown} KB", "memory")
    return None


def _place(error: BaseException) -> str:
    """Return file and line of the innermost call in this repository."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename.startswith(str(ROOT / "modeling_more"))] or frames[-1:]
    return f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "nowhere"


def safe_name(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def as_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
