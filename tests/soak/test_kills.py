"""A sample of the kills: a run that is killed and started again leaves what an unbroken one leaves.

All operations of all runs: `make soak`.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kill_points import KillPoints
from kill_runs import RUNS, difference, without_passing

HERE = Path(__file__).resolve().parent
#: which operations of a run are tried: the first, and each n-th after it
SAMPLE = {
    "training of entities": (40, 23), "gate": (7, 31), "corpus": (9, 29), "publisher": (11, 37), "scoring": (4, 9),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE)
def test_a_killed_run_that_is_started_again_ends_as_an_unbroken_one(name: str) -> None:
    first, every = SAMPLE[name]
    done = subprocess.run(
        [sys.executable, str(HERE / "kills.py"), "--runs", name, "--first", str(first), "--every", str(every)],
        capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (found,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert found["kills"] >= 2, found["operations"]
    assert not found["failed"], "\n".join(found["failed"])


ACTIONS = """
import os, pathlib, sys, tempfile
root, log, at, half = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "half"
sys.path.insert(0, sys.argv[5])
import numpy, pyarrow, safetensors.numpy, safetensors.torch, torch
from kill_points import KillPoints
points = KillPoints(root, log, at, half)
points.install()
(root / "folder").mkdir()
(root / "folder" / "a").write_bytes(b"0123456789")
os.replace(root / "folder" / "a", root / "b")
(root.parent / "outside").write_text("not counted")
(root / "b").read_bytes()
safetensors.torch.save_file({"w": torch.zeros(9)}, root / "c")
torch.save([1], root / "d")
with pyarrow.OSFile(str(root / "e"), "wb") as file:
    file.write(b"01234567")
(root / "b").unlink()
import shutil
shutil.rmtree(root / "folder")
points.finish()
"""
SEEN = ["mkdir folder", "write folder/a", "rename b", "write c", "write d", "write e", "remove b", "rmdir folder"]


def run(root: Path, at: int, half: bool = False) -> tuple[int, list[str], dict[str, bytes]]:
    """Do the actions above, killed at one of them: exit code, operations, and the files that are left."""
    root.mkdir()
    log = root.with_suffix(".log")
    how = "half" if half else "whole"
    done = subprocess.run([sys.executable, "-c", ACTIONS, str(root), str(log), str(at), how, str(HERE)])
    seen = [line.split(" ", 1)[1] for line in log.read_text().splitlines()]
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return done.returncode, seen, files


def test_every_operation_is_seen_and_killed_before_or_half_way(tmp_path: Path) -> None:
    code, seen, files = run(tmp_path / "all", 0)
    assert code == 0 and seen == SEEN and set(files) == {"c", "d", "e"}
    assert run(tmp_path / "third", 3) == (-signal.SIGKILL, SEEN[:3], {"folder/a": b"0123456789"})
    assert run(tmp_path / "half", 2, half=True) == (-signal.SIGKILL, SEEN[:2], {"folder/a": b"01234"})
    code, seen, files = run(tmp_path / "arrow", 6, half=True)
    assert code == -signal.SIGKILL and seen == SEEN[:6] and files["e"] == b"0123"
    code, seen, _ = run(tmp_path / "last", 8, half=True)  # which opens no file: before it
    assert code == -signal.SIGKILL and seen == SEEN


def test_locks_and_other_folders_are_no_operations(tmp_path: Path) -> None:
    points = KillPoints(tmp_path / "root", tmp_path / "log")
    points.operation("write", str(tmp_path / "root" / "a"))
    points.operation("write", str(tmp_path / "root" / "a.lock"))
    points.operation("write", str(tmp_path / "rooted"))
    points.operation("read", str(tmp_path / "root" / "a"), writes=False)
    points.request("GET", "/api")
    points.request("POST", "/api")
    assert points.count == 2


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"a": b"1"}, "lacks: b"), ({"a": b"1", "b": b"2", ".c.tmp": b""}, "left over: .c.tmp"),
        ({"a": b"1", "b": b"3"}, "other content: b"), ({"a": b"1", "b": b"2"}, ""),
    ],
)  # fmt: skip
def test_differences_are_told(found: dict[str, bytes], told: str) -> None:
    assert difference(found, {"a": b"1", "b": b"2"}) == told


def test_only_the_passing_is_left_out() -> None:
    def left(value: Any, name: str = "x.json") -> bytes:
        return without_passing(name, value if isinstance(value, bytes) else json.dumps(value).encode())

    assert left({"seconds": 1.5, "f1": 2}) == left({"seconds": 3, "f1": 2}) != left({"seconds": 3, "f1": 3})
    assert left({"resume_from_checkpoint": "latest", "a": 1}) == left({"resume_from_checkpoint": None, "a": 1})
    card = (
        b"python run_ner.py --top_k 2 --resume_from_checkpoint latest\n```\nresume_from_checkpoint: latest\nseed: 1\n"
    )
    assert left(card, "README.md") == b"python run_ner.py --top_k 2\n```\nseed: 1\n"
    assert left(b"3 s", "x.safetensors") == b"3 s"
    manifests = [{"files": {"a.json": number, "b.safetensors": 5}} for number in (1, 2)]
    assert left(manifests[0], "manifest.json") == left(manifests[1], "manifest.json") != left({}, "manifest.json")
    assert set(SAMPLE) <= set(RUNS)
