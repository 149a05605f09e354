"""What a training remembers: damaged, altered and foreign checkpoints are refused in a sentence, nothing is lost."""

import json
import random
import resource
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file

from modeling_more import files
from modeling_more.files import file_digest, replace_folder, whole_folder, write_manifest
from modeling_more.training import checkpoints
from modeling_more.training.arguments import Arguments, DataArguments, TrainingArguments
from modeling_more.training.checkpoint_files import load_random_state, random_state
from modeling_more.training.checkpoints import CheckpointError, TrainingState, check_checkpoint, launched
from modeling_more.training.setup import make_accelerator, running
from short_trainings import SCORES, run, same, scores

STATE = "training_state.json"


class Stopped(BaseException):
    """What ends a training as Ctrl-C does."""


def stop_in(epoch, first=1, before=lambda: None):
    score = scores(first)

    def evaluate(model):
        if (found := score(model)) == SCORES[epoch - 1]:
            before()
            raise Stopped
        return found

    return evaluate


@pytest.fixture(scope="module")
def interrupted(tiny_encoder, tmp_path_factory):
    """A function from a new folder to a training in it that ended in its third epoch, and the unbroken one."""
    place = tmp_path_factory.mktemp("trainings")
    whole = run(tiny_encoder("bert"), place / "whole")
    assert whole[0]["best_epoch"] == 3
    with pytest.raises(Stopped):
        run(tiny_encoder("bert"), place / "run", stop_in(3))

    def copy(folder):
        shutil.copytree(place / "run", folder)
        return folder / "checkpoints"

    return copy, whole


def sign(folder: Path) -> None:
    """Write both manifests and the digest between them as a training does, as a stranger can."""
    for name in ("best", "last"):
        if name == "last":
            change(folder / "last" / STATE, best=file_digest(folder / "best" / "manifest.json"))
        (folder / name / "manifest.json").unlink()
        write_manifest(folder / name, [path.name for path in (folder / name).iterdir()])


def change(file: Path, **entries: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def refusal(tiny_encoder, folder: Path, **options: object) -> str:
    with pytest.raises(CheckpointError) as error:
        run(tiny_encoder("bert"), folder, scores(1), resume_from_checkpoint="latest", **options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500
    return str(error.value)


def test_what_was_interrupted_goes_on_bit_for_bit(interrupted, tiny_encoder, tmp_path):
    copy, whole = interrupted
    folder = copy(tmp_path / "run")
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds == {".json", ".safetensors"}
    assert same(whole, run(tiny_encoder("bert"), tmp_path / "run", resume_from_checkpoint="latest"))


@pytest.mark.parametrize("kind", ["roberta", "xlm-roberta", "deberta-v2", "modernbert"])
def test_every_encoder_goes_on(kind, tiny_encoder, tmp_path):
    whole = run(tiny_encoder(kind), tmp_path / "whole", num_train_epochs=2)
    with pytest.raises(Stopped):
        run(tiny_encoder(kind), tmp_path / "run", stop_in(2), num_train_epochs=2)
    again = run(tiny_encoder(kind), tmp_path / "run", num_train_epochs=2, resume_from_checkpoint="latest")
    assert same(whole, again)


@pytest.mark.parametrize("name", ["last/model", "last/optimizer", "last/random_states", f"last/{STATE}", "best/model",
                                  "best/config", "last/manifest", "best/manifest"])  # fmt: skip
def test_damaged_files_are_named(name, interrupted, tiny_encoder, tmp_path):
    folder = interrupted[0](tmp_path / "run")
    [file] = folder.glob(f"{name}*")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    for damaged in (content, content[: len(content) // 2], b"", None):
        file.unlink()
        if damaged is not None:
            file.write_bytes(damaged)
        said = refusal(tiny_encoder, tmp_path / "run")
        assert str(file) in said or file.name in said or "folder best" in said
        file.write_bytes(content)


def renamed(tensors):
    return {f"{name}s": value for name, value in tensors.items()}


def broadcast(tensors):
    return {name: value if value.dim() == 0 else value.flatten()[:1].clone() for name, value in tensors.items()}


def halved(tensors):
    return {name: value.half() for name, value in tensors.items()}


def fewer(tensors):
    return dict(sorted(tensors.items())[1:])


def more(tensors):
    return tensors | {"classifier.weight.other": torch.zeros(1)}


@pytest.mark.parametrize("changed", [renamed, broadcast, halved, fewer, more])
@pytest.mark.parametrize("name", ["model", "optimizer"])
def test_tensors_of_another_training_are_refused_though_the_digest_fits(
    name, changed, interrupted, tiny_encoder, tmp_path
):
    folder = interrupted[0](tmp_path / "run")
    file = folder / "last" / f"{name}.safetensors"
    tensors = changed(load_file(file))
    file.unlink()
    save_file(tensors, file)
    sign(folder)
    assert str(file) in refusal(tiny_encoder, tmp_path / "run")


STATES = {
    "no made_of": (lambda state: state.pop("made_of"), "lacks the entry 'made_of'"),
    "null for made_of": (lambda state: state.update(made_of=None), "the entry 'made_of' is None"),
    "a list for made_of": (lambda state: state.update(made_of=[]), "'made_of' is []"),
    "other options": (lambda state: state["made_of"].update(seed=7), "of a run with other seed (7; here None)"),
    "other processes": (lambda state: state["made_of"].update(num_processes=2), "other num_processes (2; here 1)"),
    "other accumulation": (lambda state: state["made_of"].update(gradient_accumulation_steps=4), "other gradient_acc"),
    "an epoch too many": (lambda state: state.update(epoch=3), "3 epochs are told to be done, the history has 2"),
    "a negative epoch": (lambda state: state.update(epoch=-1), "-1 epochs are told"),
    "true for an epoch": (lambda state: state.update(epoch=True), "'epoch' is True"),
    "no epochs": (lambda state: state.update(epoch=0, history=[]), "0 epochs are told"),
    "a word in the history": (lambda state: state["history"][1].update(dev_f1="9"), "row 2 of the history"),
    "a list in the history": (lambda state: state["history"].append([]), "row 3 of the history"),
    "no loss": (lambda state: state["history"][0].pop("loss"), "row 1 of the history"),
    "infinity": (lambda state: state["history"][0].update(loss=float("inf")), "row 1 of the history"),
    "another best epoch": (lambda state: state.update(best_epoch=1), "the best epoch and its score"),
    "a best epoch that is not": (lambda state: state.update(best_epoch=9), "the best epoch and its score"),
    "another best score": (lambda state: state.update(best_score=99.0), "the best epoch and its score"),
    "another schedule": (lambda state: state["schedule"].update(base_lrs=[1.0]), "of another schedule"),
    "a schedule of words": (lambda state: state["schedule"].update(last_epoch="1"), "of another schedule"),
    "a schedule with more": (lambda state: state["schedule"].update(step=1), "of another schedule"),
    "another optimizer": (lambda state: state["optimizer"][0].update(betas=[0.0, 0.0]), "of another optimizer"),
    "no groups": (lambda state: state.update(optimizer=[]), "of another optimizer"),
    "groups of words": (lambda state: state.update(optimizer=["x"]), "of another optimizer"),
    "a rate that is none": (lambda state: state["optimizer"][0].update(lr=float("nan")), "of another optimizer"),
    "a scaler": (lambda state: state.update(scaler={"scale": 1.0}), "of another precision"),
    "no step": (lambda state: state.pop("step"), "lacks the entry 'step'"),
    "a digest of nothing": (lambda state: state.update(best=3), "'best' is 3"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_that_no_training_wrote_is_refused_though_the_digest_fits(name, interrupted, tiny_encoder, tmp_path):
    folder, (alter, refused) = interrupted[0](tmp_path / "run"), STATES[name]
    file = folder / "last" / STATE
    state = json.loads(file.read_text())
    alter(state)
    file.write_text(json.dumps(state))
    (folder / "last" / "manifest.json").unlink()
    write_manifest(folder / "last", [path.name for path in (folder / "last").iterdir()])
    said = refusal(tiny_encoder, tmp_path / "run")
    assert refused in said and str(folder / "last") in said


RANDOM = {
    "NumPy's place past its words": lambda one: one["numpy"].__setitem__(2, 100_000),
    "NumPy's place before them": lambda one: one["numpy"].__setitem__(2, -1),
    "few words of NumPy": lambda one: one["numpy"][1].pop(),
    "large words of NumPy": lambda one: one["numpy"][1].__setitem__(0, 2**32),
    "another generator": lambda one: one["numpy"].__setitem__(0, "PCG64"),
    "few words of Python": lambda one: one["python"][1].pop(0),
    "broken words of Python": lambda one: one["python"][1].__setitem__(0, 0.5),
    "no state of torch": lambda one: one.update(torch=""),
    "another state of torch": lambda one: one.update(torch="ff" * (len(one["torch"]) // 2)),
    "no hexadecimal digits": lambda one: one.update(torch="xyz"),
    "nothing": lambda one: one.clear(),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_states_that_are_none_are_refused(name):
    before = random_state(torch.device("cpu"))
    drawn = random.random(), np.random.rand(), torch.rand(1).item()
    assert load_random_state(before, torch.device("cpu"), "here")
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())
    RANDOM[name](before)
    with pytest.raises(ValueError, match="here holds no state of random generators"):
        load_random_state(before, torch.device("cpu"), "here")
    load_random_state(random_state(torch.device("cpu")), torch.device("cpu"), "")


def test_other_processes_and_other_models(interrupted, tiny_encoder, tmp_path):
    folder = interrupted[0](tmp_path / "run")
    file = folder / "last" / "random_states.json"
    states = json.loads(file.read_text())["processes"]
    change(file, processes=[*states, *states])
    sign(folder)
    assert f"{file} is of 2 processes, here are 1" in refusal(tiny_encoder, tmp_path / "run")
    # a best model that would load others
    folder = interrupted[0](tmp_path / "other")
    change(folder / "best" / "config.json", model_type="more-mixture", copy_experts=False, expert_sources=["a/b"])
    sign(folder)
    assert f"{folder / 'best' / 'config.json'} is not the conf" in refusal(tiny_encoder, tmp_path / "other")


def test_fewer_epochs_than_are_done(interrupted, tiny_encoder, tmp_path):
    interrupted[0](tmp_path / "run")
    args = TrainingArguments(str(tmp_path / "run"), num_train_epochs=1, resume_from_checkpoint="latest", use_cpu=True)
    with pytest.raises(ValueError, match="has 2 epochs done, --num_train_epochs 1 is fewer"):
        check_checkpoint(args, launched(make_accelerator(args)))
    assert "has 2 epochs done" in refusal(tiny_encoder, tmp_path / "run", num_train_epochs=1)


def test_files_of_others_stay(interrupted, tiny_encoder, tmp_path):
    folder = interrupted[0](tmp_path / "run")
    (folder / "last" / "notes.txt").write_text("mine")
    # they neither hinder a run nor are lost by it
    with pytest.raises(Stopped):
        stop = stop_in(4, 3, before=lambda: (folder / "best" / "plots").mkdir())
        run(tiny_encoder("bert"), tmp_path / "run", stop, resume_from_checkpoint="latest")
    assert (folder / "last" / "notes.txt").read_text() == "mine"
    assert json.loads((folder / "last" / STATE).read_text())["epoch"] == 3
    # a model is loaded from whatever lies beside it: that is asked about
    assert f"{folder / 'best'} holds plots" in refusal(tiny_encoder, tmp_path / "run")
    # nor does a new run delete them, or folders that are of no training

    def refused(strange, **options):
        with pytest.raises(CheckpointError, match=f"{folder / strange} is "):
            run(tiny_encoder("bert"), tmp_path / "run", scores(1), **options)

    before = {path for path in folder.rglob("*")}
    refused("last")
    assert before == {path for path in folder.rglob("*")}
    shutil.rmtree(folder / "last")  # then there is nothing to go on from
    refused("best/plots", resume_from_checkpoint="latest")
    (folder / "best" / "plots").rmdir()
    (folder / "best" / "manifest.json").unlink()  # as a model that its owner saved there
    refused("best", resume_from_checkpoint="latest")
    assert {"config.json", "model.safetensors"} == {path.name for path in (folder / "best").iterdir()}


@pytest.mark.parametrize("name", ["model", "optimizer"])
def test_a_full_disk_leaves_the_last_checkpoint(name, tiny_encoder, tmp_path):
    """No file may be as large as this one from the third epoch on, whose model is the best."""
    whole = run(tiny_encoder("bert"), tmp_path / "whole")
    room = (tmp_path / "whole" / "checkpoints" / "last" / f"{name}.safetensors").stat().st_size - 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    score = scores(1)

    def fill(model):
        if (found := score(model)) == SCORES[2]:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        return found

    try:
        with pytest.raises(CheckpointError) as error:
            run(tiny_encoder("bert"), tmp_path / "run", fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = str(error.value)
    assert "epoch 3 can't be saved (that of the epoch before is kept" in said and "large" in said and "\n" not in said
    folder = tmp_path / "run" / "checkpoints"
    left = {path.name: sum(one.stat().st_size for one in path.iterdir()) for path in folder.iterdir()}
    assert all(size < 1000 for name, size in left.items() if name not in ("last", "best"))
    assert same(whole, run(tiny_encoder("bert"), tmp_path / "run", resume_from_checkpoint="latest"))


def test_what_ctrl_c_says_is_so(interrupted, tmp_path, capsys):
    def said(folder, **options):
        args = Arguments(
            DataArguments(dataset="demo"), training=TrainingArguments(str(folder), use_cpu=True, **options)
        )
        with pytest.raises(SystemExit) as ended, running(args, make_accelerator(args.training)):
            raise KeyboardInterrupt
        assert ended.value.code == 130 and capsys.readouterr().err == f"{ended.value}\n"
        return str(ended.value)

    (tmp_path / "empty").mkdir()
    assert (
        said(tmp_path / "empty") == "\ninterrupted before the first epoch was complete: nothing is kept to go on from"
    )
    assert "nothing is kept to go on from, for --no_save_checkpoints" in said(
        tmp_path / "empty", save_checkpoints=False
    )
    interrupted[0](tmp_path / "older")
    subprocess.run(["touch", "-d", "2001-01-01", tmp_path / "older" / "checkpoints" / "last"], check=True)
    assert "nothing is kept" in said(tmp_path / "older")  # of this run
    goes_on = "the last complete epoch is kept: add --resume_from_checkpoint latest to go on"
    assert goes_on in said(tmp_path / "older", resume_from_checkpoint="latest")
    (tmp_path / "folds" / "crossfit" / "text-0").mkdir(parents=True)
    (tmp_path / "folds" / "crossfit" / "text-0" / "made_of.txt").write_text("")
    assert "the folds' experts that were finished are kept" in said(tmp_path / "folds")
    args = Arguments(training=TrainingArguments(str(tmp_path / "empty"), use_cpu=True))
    with pytest.raises(SystemExit, match=r"^\ninterrupted$"), running(args, make_accelerator(args.training)):
        raise KeyboardInterrupt  # in predict mode


@pytest.mark.parametrize("kind", [DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.XLA])
def test_sharding_that_needs_pickles_is_refused_before_training(kind, tmp_path):
    elsewhere = SimpleNamespace(distributed_type=kind, is_fsdp2=False)
    for options in ({}, {"save_checkpoints": False, "resume_from_checkpoint": "latest"}):
        with pytest.raises(CheckpointError, match="without pickles: give --no_save_checkpoints"):
            checkpoints.resume(elsewhere, TrainingArguments(str(tmp_path), **options), {}, None, None, None)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_that_is_replaced_is_there_all_the_time(exchange, tmp_path, monkeypatch):
    if not exchange:  # as on systems that can't
        monkeypatch.setattr(files, "_exchange", lambda *_: False)
    for name in ("new", "old", "old.outgoing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "name").write_text(name)
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old" / "name").read_text() == "new"
    # killed between the two renames
    (tmp_path / "old").rename(tmp_path / "old.outgoing")
    assert (whole_folder(tmp_path / "old") / "name").read_text() == "new"
    (tmp_path / "newer").mkdir()
    replace_folder(tmp_path / "newer", tmp_path / "old")
    assert whole_folder(tmp_path / "old") == tmp_path / "old" and not (tmp_path / "old.outgoing").exists()


def test_patience_and_scores_are_of_the_record():
    state = TrainingState()
    assert [state.add({"loss": 1.0}, f1, 0) for f1 in (5.0, 7.0, 7.0, 6.0)] == [True, True, False, False]
    assert state.best_epoch == 2 and state.is_out_of_patience(2) and not state.is_out_of_patience(3)
