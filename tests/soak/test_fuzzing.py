"""Inputs at which readers once failed, and a sample of what the fuzzer tries."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fuzz_damage import edited, simple_edits
from fuzz_targets import TARGETS
from fuzz_verdict import CRASHES, Target, WrongResult, judge, told_well
from replay import target_of

HERE = Path(__file__).resolve().parent
KEPT = sorted(file for file in CRASHES.glob("*") if file.suffix != ".md")
SAMPLE = 150  # changed seeds of each target


def replayed(*arguments: str) -> dict[str, Any]:
    """What `replay.py` says of each input."""
    done = subprocess.run(
        [sys.executable, str(HERE / "replay.py"), *arguments],
        capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return {row["input"]: row for row in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def kept() -> dict[str, Any]:
    return replayed(*map(str, KEPT)) if KEPT else {}


@pytest.fixture(scope="module")
def sample() -> dict[str, Any]:
    return replayed("--changed", str(SAMPLE))


@pytest.mark.parametrize("file", KEPT, ids=lambda file: file.name)
def test_an_input_that_once_failed_does_no_more(file: Path, kept: dict[str, Any]) -> None:
    assert target_of(file) in TARGETS and kept[file.name]["what"] is None


@pytest.mark.parametrize("name", TARGETS)
def test_changed_inputs_give_rows_or_one_sentence(name: str, sample: dict[str, Any]) -> None:
    assert sample[name]["what"] is None and sample[name]["tried"] >= SAMPLE


def test_the_judge_sees_what_is_wrong(tmp_path: Path) -> None:
    def target(error: Exception | None, *names: str) -> Target:
        def run(data: bytes, folder: Path) -> None:
            with told_well(*names):
                if error:
                    raise error

        return Target(run, dict, (), 1)

    assert judge(target(None), b"", tmp_path) is None
    assert judge(target(ValueError("posts.txt, line 1: no word"), "posts.txt"), b"", tmp_path) is None
    cases = {
        "KeyError": KeyError("posts.txt"), "names no file": ValueError("no word"), "RecursionError": RecursionError(),
        "is long": ValueError("posts.txt" * 500), "a traceback": OSError("posts.txt: Traceback (most recent"),
        "a span": WrongResult("a span"),
    }  # fmt: skip
    for expected, error in cases.items():
        crash = judge(target(error, "posts.txt"), b"", tmp_path)
        assert crash is not None and expected in crash.what, expected


def test_edits_change_a_file_in_each_way() -> None:
    content = bytes(range(64))
    found = {edited(content, bytes([kind, 128, 0, 5, 65, 66]), False) for kind in range(8)}
    assert len(found) == 8 and content not in found
    assert b"\xff" * 4 in edited(content, bytes([2, 128, 0, 2, 0, 0]), False)
    assert edited(b'{"a": 1}', bytes([0, 0, 0, 0, 0, 0]), True) == b'{"a": null}'
    assert len(simple_edits(2)) == 32
