"""Trainings of a benchmark: finished ones are kept, interrupted ones go on, the commits that made them are told."""

import argparse
import json
import subprocess

import pytest

import _runs
from _runs import command_of, commits_of, finished, run_missing

SCRIPT = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1])
if "--resume_from_checkpoint" not in sys.argv and folder.name == "seed-2":
    (folder / "checkpoints").mkdir()
    sys.exit(3)
(folder / "all_results.json").write_text(json.dumps({"seed": int(folder.name[5:]), "words": sys.argv[2:]}))
"""


def test_runs_go_on_and_name_their_commits(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    args = argparse.Namespace(systems=["a"], seeds=[1, 2], precision="float32", data="", work_dir=tmp_path / "runs")

    def command(system, seed, data, folder):
        return [str(script), str(folder)]

    def row(system, precision, runs):
        return {"system": system, "precision": precision, "words": [run["words"] for run in runs]}

    monkeypatch.setattr(_runs, "commit", lambda: "first")
    with pytest.raises(subprocess.CalledProcessError):
        run_missing(args, command)
    assert finished(args, ["a"], row) == [{"system": "a", "precision": "float32", "words": [[]]}]
    assert commits_of(args, ["a"]) == "first"
    kept = tmp_path / "runs" / "a-float32" / "seed-1" / "all_results.json"
    kept.write_text(json.dumps({"seed": 1, "words": ["kept"]}))

    monkeypatch.setattr(_runs, "commit", lambda: "second")
    run_missing(args, command)
    assert finished(args, ["a"], row)[0]["words"] == [["kept"], ["--resume_from_checkpoint", "latest"]]
    run_missing(argparse.Namespace(**vars(args) | {"systems": ["b"], "seeds": [1]}), command)
    assert commits_of(args, ["a", "b"]) == "first (a float32), second (a float32, b float32)"
    assert command_of("x.py", args, ["a", "b"]) == (
        "python benchmarks/x.py --precision float32 --systems a b --seeds 1 2"
    )
