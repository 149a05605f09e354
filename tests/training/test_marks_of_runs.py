"""Nothing is deleted that carries no mark of a run, nor a crashed run or its folds that nobody said to replace."""

import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import run_ner
from modeling_more.training.arguments import TrainingArguments
from modeling_more.training.checkpoints import CheckpointError, resume
from ner_runs import contents, told, training


@pytest.mark.parametrize(
    "name", ["last/weights.bin", "best/model.safetensors", "best.incoming/x.pt", "last.outgoing/a"]
)
def test_checkpoints_of_others_that_are_called_like_ours_stay(name, here, capsys):
    file = Path("project/checkpoints", name)
    file.parent.mkdir(parents=True)
    file.write_text("mine")
    for more in ([], ["--overwrite_output_dir"], ["--seeds", "1", "2"]):
        said = told(capsys, training(here, "project", *more))
        assert "project" in said and ("is of no run" in said or "holds no run" in said), said
        assert file.read_text() == "mine"
    if name.startswith("last."):  # beside our own
        shutil.copytree("project/checkpoints", "plain/checkpoints", dirs_exist_ok=True)
        said = told(capsys, training(here, "plain", "--overwrite_output_dir"))
        assert f"plain/checkpoints/{name.split('/')[0]}" in said and "is of none: move it" in said
        assert Path("plain/checkpoints", name).read_text() == "mine" and Path("plain/config.json").exists()


def test_a_file_of_others_inside_a_checkpoint_is_not_deleted(here, capsys):
    Path("plain/checkpoints/last/notes.txt").write_text("mine")
    said = told(capsys, training(here, "plain", "--overwrite_output_dir"))
    assert "plain/checkpoints/last/notes.txt is of none" in said
    assert Path("plain/checkpoints/last/notes.txt").exists() and Path("plain/config.json").exists()


@pytest.mark.parametrize("parts", [("best", "last"), ("best",), ("best.outgoing", "last.outgoing")])
def test_a_crashed_run_that_is_started_again_deletes_nothing(parts, here, capsys):
    """Killed in its second epoch, without checkpoints to go on from, and between two renames."""
    Path("out").mkdir()
    shutil.copy("plain/arguments.json", "out/begun.json")
    for part in parts:
        shutil.copytree(Path("plain/checkpoints") / part.split(".")[0], Path("out/checkpoints") / part)
    before = contents("out")
    said = told(capsys, training(here, "out"))
    assert (
        "out holds an unfinished run" in said and "--overwrite_output_dir" in said and "another --output_dir" in said
    )
    assert ("--resume_from_checkpoint latest" in said) == (len(parts) == 2)
    assert contents("out") == before
    with pytest.raises(CheckpointError, match="is of an earlier training"):  # as a notebook calls it
        resume(Accelerator(cpu=True), TrainingArguments(output_dir="out"), {}, torch.nn.Linear(1, 1), None, None)
    assert contents("out") == before


def test_the_folds_of_a_crashed_mixture_stay(here, capsys):
    mixed = ["--retrieval", "moe", "--experts", "plain", "plain", "--gate_data", "crossfit", "--crossfit_folds", "2"]
    mixed += ["--train_file", here["train"], "--validation_file", here["dev"], "--use_cpu", "--output_dir", "mixed"]
    mixed += ["--cache_dir", here["cache"]]
    shutil.copytree("plain", "mixed/crossfit/text-0", ignore=shutil.ignore_patterns("checkpoints"))
    Path("mixed/crossfit/text-0/made_of.txt").write_text("0")
    before = contents("mixed")
    said = told(capsys, mixed)
    assert "mixed holds an unfinished run" in said and "--resume_from_checkpoint latest" in said
    assert contents("mixed") == before
    # what is there under the name of a fold
    shutil.rmtree("mixed")
    Path("mixed/crossfit/text-0").mkdir(parents=True)
    Path("mixed/crossfit/text-0/diary.txt").write_text("mine")
    assert "mixed/crossfit/text-0 is of no run" in told(capsys, mixed)


def test_a_folder_of_others_that_is_called_like_one_of_a_seed(here, capsys):
    Path("out/seed-1").mkdir(parents=True)
    Path("out/seed-1/README.md").write_text("mine")
    assert "README.md, which is of no run" in told(capsys, training(here, "out", "--seeds", "1", "2"))
    assert Path("out/seed-1/README.md").read_text() == "mine"


def test_scores_leave_an_unfinished_run_what_it_is(here):
    Path("out").mkdir()
    shutil.copy("plain/arguments.json", "out/begun.json")
    run_ner.main(["--model_name_or_path", "plain", "--no_do_train", "--test_file", here["other"], "--use_cpu",
                  "--output_dir", "out"])  # fmt: skip
    assert sorted(contents("out")) == ["begun.json", "manifest.json", "predictions/test-c.jsonl", "scores-c.json"]


def test_a_file_that_came_while_training_is_not_written_over(here, capsys, monkeypatch):
    save = run_ner.save_run

    def save_beside(*given):
        Path("out/training_curve.png").write_text("mine")
        save(*given)

    monkeypatch.setattr(run_ner, "save_run", save_beside)
    said = told(capsys, training(here, "out"))
    assert "out/training_curve.png is of no run" in said and "--resume_from_checkpoint latest" in said
    assert Path("out/training_curve.png").read_text() == "mine" and not Path("out/config.json").exists()
    Path("out/training_curve.png").unlink()
    monkeypatch.setattr(run_ner, "save_run", save)
    run_ner.main(training(here, "out", "--resume_from_checkpoint", "latest"))
    assert Path("out/config.json").exists()
