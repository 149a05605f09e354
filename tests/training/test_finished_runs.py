"""A finished run appears whole: killed at any file operation of its end, the old model is loaded or none."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

import run_ner
from modeling_more.data.tasks import ENTITIES
from modeling_more.training.arguments import ModelArguments
from modeling_more.training.models import load_expert, load_processor
from ner_runs import ROOT, contents, training

# a run that copies its folder before each file operation of its last step, as it is if the run is killed there; and
# does that step in another copy before, where it is killed indeed
KILL = """
import os, shutil, signal, sys
import run_ner, modeling_more.training.mixture_runs as mixture_runs

home, at, count, counted = os.getcwd(), int(sys.argv[1]), 0, None

def hook(event, given):
    global count, counted
    if counted is None or event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
        return
    if event == "open" and not given[2] & (os.O_WRONLY | os.O_RDWR):
        return
    do, counted, count = counted, None, count + 1
    do()
    counted = do

sys.addaudithook(hook)

def copy():
    shutil.copytree(home, f"{home}-{count}", symlinks=True)

def kill():
    if count == at:
        os.kill(os.getpid(), signal.SIGKILL)

def killed_and_not(save):
    def save_twice(*given):
        global counted
        if (child := os.fork()) == 0:
            shutil.copytree(home, f"{home}-killed", symlinks=True)
            os.chdir(f"{home}-killed")
            counted = kill
            save(*given)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        counted = copy
        save(*given)
        counted = None
        print("operations", count, flush=True)
    return save_twice

run_ner.save_run = mixture_runs.save_run = killed_and_not(run_ner.save_run)
run_ner.main(sys.argv[2:])
"""
AT = 40  # the operation at which the run is killed indeed


def killed_at_every_operation(home: Path, arguments: list[str]) -> int:
    """Run in a folder, and leave copies `home-1` … of it, of runs that were killed at each operation of their end."""
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(AT), *arguments], cwd=home, capture_output=True, text=True, timeout=500,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert "operations" in done.stdout, done.stderr
    killed, copied = (
        {re.sub("[0-9a-f]{8}[.]tmp", "tmp", name): content for name, content in contents(folder).items()}
        for folder in (home.with_name("home-killed"), home.with_name(f"home-{AT}"))
    )
    assert killed.keys() == copied.keys()
    kinds = (".json", ".safetensors", ".jsonl")
    assert all(killed[name] == copied[name] for name in killed if name.endswith(kinds) and name != "out/.lock.json")
    return int(done.stdout.split("operations ")[1])


def loaded(folder: Path) -> dict[str, torch.Tensor] | str:
    """The weights as score and predict mode load them, with the processor, or why nothing is loaded."""
    name = ModelArguments(model_name_or_path=str(folder))
    try:
        load_processor(ENTITIES, name, Accelerator(cpu=True))
        return dict(load_expert(ENTITIES, name, Accelerator(cpu=True)).state_dict())
    except (OSError, ValueError) as error:
        return str(error)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_kill_in_the_final_save_leaves_the_old_model_or_none(here, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    given = ["--holdout_fraction", "0.33", "--use_cpu"]
    run_ner.main([*training(here, "out"), *given])
    old, more = loaded(home / "out"), ["--resume_from_checkpoint", "latest", "--num_train_epochs", "2"]
    operations = killed_at_every_operation(home, [*training(here, "out"), *given, *more])
    new = loaded(home / "out")
    assert operations > AT and not isinstance(new, str) and not isinstance(old, str) and not same(old, new)
    whole = contents("out")
    seen, before, found = set(), {}, old
    for number in range(1, operations + 1):
        folder = tmp_path / f"home-{number}" / "out"
        there = {name: content for name, content in contents(folder).items() if ".tmp" not in name}
        if there != before:  # many operations only touch what is beside
            before, found = there, loaded(folder)
        seen.add("none" if isinstance(found, str) else "old" if same(found, old) else "new")
        if not isinstance(found, str):
            # the files that tell of the model are those of this model
            epochs = json.loads((folder / "arguments.json").read_text())["num_train_epochs"]
            results = json.loads((folder / "all_results.json").read_text())
            assert same(found, {1: old, 2: new}[epochs]) and len(results["history"]) == epochs, number
            assert (folder / "holdout_ids.json").exists()
        if number % 8 == 0 or number == operations:
            monkeypatch.chdir(folder.parent)
            run_ner.main([*training(here, "out"), *given, *more])
            again = contents(folder)
            assert again.keys() == whole.keys(), number
            for name in ("model.safetensors", "config.json", "manifest.json", "holdout_ids.json", "tokenizer.json"):
                assert again[name] == whole[name], (number, name)
            for name in ("predictions/dev.jsonl", "predictions/test.jsonl", "arguments.json"):
                assert again[name] == whole[name], (number, name)
        shutil.rmtree(folder.parent)
    assert {"old", "none"} <= seen
