"""A training that is killed at any step of saving an epoch goes on to what the unbroken one gives, bit for bit."""

import json
import os
import subprocess
import sys

import pytest

from ner_runs import ROOT

SCRIPT = """
import json, os, shutil, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
import torch
torch.set_num_threads(1)
import short_trainings
from modeling_more import files
if sys.argv[5] == "renames":  # as on systems that can't exchange two folders in one step
    files._exchange = lambda *_: False
from modeling_more.training.checkpoints import CheckpointError

encoder, place = sys.argv[2], Path(sys.argv[3])
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
watched = {"from": False, "left": None, "seen": []}

def watch(event, arguments):
    if not watched["from"] or event not in CHANGES or "checkpoints" not in os.fspath(arguments[0]):
        return
    if event == "os.mkdir" and os.path.exists(arguments[0]):
        return
    watched["seen"].append(event)
    if len(watched["seen"]) == watched["left"]:
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)

def evaluate(scores, seen=None):
    left = iter(scores)
    def by_turn(model):
        if seen is not None:
            seen.append({name: value.clone() for name, value in model.state_dict().items()})
        score = next(left)
        watched["from"] = score == 60  # the second epoch is saved from here on
        return score
    return by_turn

def run(folder, scores, seen=None, **options):
    options = {"num_train_epochs": 3, "lr_decay": "epoch"} | options
    return short_trainings.run(encoder, folder, evaluate(scores, seen), **options)

seen = []
whole = run(place / "whole", [40, 60, 50], seen)
steps, watched["seen"], watched["from"] = list(watched["seen"]), [], False
found = []
for step in range(1, len(steps) + 1):
    folder = place / str(step)
    if not (child := os.fork()):
        watched.update({"from": False, "left": step, "seen": []})
        run(folder, [40, 60, 50])
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    shutil.copytree(folder, place / "fewer")
    try:  # the epoch that was not recorded is given up
        record, weights = run(place / "fewer", [], num_train_epochs=1, resume_from_checkpoint="latest")
        fewer = record["best_epoch"] == 1 and all(torch.equal(weights[name], seen[0][name]) for name in weights)
    except CheckpointError as error:
        fewer = "is fewer" in str(error)
    shutil.rmtree(place / "fewer")
    state = json.loads((folder / "checkpoints" / "last.outgoing" / "training_state.json").read_text()
        if not (folder / "checkpoints" / "last").exists()
        else (folder / "checkpoints" / "last" / "training_state.json").read_text())
    again = run(folder, [40, 60, 50][state["epoch"]:], resume_from_checkpoint="latest")
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    found.append([steps[step - 1], killed, fewer, short_trainings.same(whole, again), left, state["epoch"]])
Path(sys.argv[4]).write_text(json.dumps(found))
"""


@pytest.mark.parametrize("way", ["exchange", "renames"])
def test_every_step_of_replacing_both_folders(way, tiny_encoder, tmp_path):
    place = [str(ROOT / "tests"), tiny_encoder("bert"), str(tmp_path / "runs"), str(tmp_path / "found.json"), way]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *place], env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found) > 15 and [row[0] for row in found].count("os.rename") >= 4
    for number, (step, killed, fewer, whole, left, _) in enumerate(found, 1):
        assert killed and fewer and whole, f"killed before step {number}, {step}"
        assert left == ["best", "last"]
    assert {row[-1] for row in found} == {1, 2}  # killed before and after the point at which the new epoch counts
