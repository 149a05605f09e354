"""Folders that are gone, full, or hold other things than they should: one sentence each; strays of killed runs."""

import os
import resource
import shutil
from pathlib import Path

import pytest

import run_ner
from ner_runs import contents, options, run_script, told, training


def test_a_full_disk_at_the_final_save_is_told_and_keeps_the_checkpoint(here, capsys, monkeypatch):
    save, limits = run_ner.save_run, resource.getrlimit(resource.RLIMIT_FSIZE)

    def save_on_full_disk(*given):
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        try:
            save(*given)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(run_ner, "save_run", save_on_full_disk)
    said = told(capsys, training(here, "out"))
    assert "the run in out has ended" in said and "arge" in said and "--resume_from_checkpoint latest" in said
    assert set(os.listdir("out")) == {"begun.json", "checkpoints"}
    monkeypatch.setattr(run_ner, "save_run", save)
    run_ner.main(training(here, "out", "--resume_from_checkpoint", "latest"))
    assert Path("out/model.safetensors").exists()


def test_a_folder_that_is_gone_is_told(here, capsys, monkeypatch):
    score = run_ner.score_splits

    def score_without(*given):
        shutil.rmtree("out")
        return score(*given)

    monkeypatch.setattr(run_ner, "score_splits", score_without)
    said = told(capsys, training(here, "out"))
    assert "the run in out has ended" in said and "No such file or directory" in said
    assert not Path("out").exists()


@pytest.mark.parametrize("name", ["predictions", "checkpoints", "logs", "experts", ".lock"])
def test_a_file_where_a_folder_belongs_is_told_at_once(name, here, capsys):
    Path("out").mkdir()
    if name == ".lock":
        Path("out/.lock").mkdir()
    else:
        Path("out", name).write_text("mine")
    predict = ["--model_name_or_path", "plain", "--do_predict", "--predict_file", here["other"], "--use_cpu"]
    for arguments in (training(here, "out"), [*predict, "--output_dir", "out"]):
        assert f"out/{name}" in told(capsys, arguments)
    assert os.listdir("out") == [name]


def test_what_killed_runs_left_is_removed_by_the_next(here):
    strays = (
        *(
            ".README.md.12345678.tmp",
            ".run.00000000.tmp/config.json",
            ".tmpaB3xY9",
            "predictions/.dev.jsonl.0a1b2c3d.tmp",
        ),
    )
    for name in strays:
        Path("plain", name).parent.mkdir(exist_ok=True)
        Path("plain", name).write_text('{"history": [], "epoch": 0}')
    mine = (".notes.tmp", ".draft.txt.tmp", "predictions/.mine.tmp")
    for name in mine:
        Path("plain", name).write_text("mine")
    before = contents("plain")
    predict = ["--model_name_or_path", "plain", "--do_predict", "--predict_file", here["other"], "--use_cpu"]
    run_ner.main([*predict, "--output_dir", "plain"])
    assert before.keys() - contents("plain").keys() == set(strays)
    # an older checkpoint that is the only one is none
    shutil.move("plain/checkpoints/last", "plain/checkpoints/last.outgoing")
    run_ner.main([*predict, "--output_dir", "plain"])
    assert Path("plain/checkpoints/last.outgoing/training_state.json").exists()


def test_a_refused_run_leaves_no_folder(here, capsys):
    given = training(here, "deep/out", "--model_name_or_path", "plain", "--columns", "9", "9")
    assert told(capsys, given) and not Path("deep").exists()


OTHERS = (
    *(".env", "secret.model", "tokenizer_notes.json", "vocab.mine.txt", "scores-mine.json", "gate_weights-mine.png"),
    *("experts/readme.txt", "experts/text/tokenizer.json", "predictions/diary.jsonl", ".eval_results/mine.yaml"),
    *("model-of-mine.safetensors", "my.jinja"),
)


def test_only_what_the_run_wrote_is_uploaded(files, hub, tiny_encoder):
    out = Path(files["out"])
    others = [name for name in OTHERS if name != "experts/text/tokenizer.json"]  # with which no run begins
    for name in others:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    push = ["--push_to_hub", "--push_predictions", "--hub_model_id", "org/own", "--num_train_epochs", "1"]
    done = run_script(options(files, tiny_encoder("bert"), *push), env=hub.env)
    assert done.returncode == 0, done.stderr
    uploaded = hub.files("org/own")
    assert not uploaded.keys() & set(others)
    assert {"predictions/dev.jsonl", "config.json", "manifest.json"} <= uploaded.keys()
    assert f"left out: {len(others)} files" in done.stderr
    (told,) = [line for line in done.stderr.splitlines() if "uploading to org/own" in line]
    assert f"model.safetensors ({(out / 'model.safetensors').stat().st_size / 1000:.1f} kB)" in told
    assert all((out / name).read_text() == "mine" for name in others)


@pytest.mark.parametrize("name", OTHERS)
def test_overwriting_deletes_no_file_that_is_called_like_one_of_a_run(name, here, capsys):
    path = Path("plain", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("mine")
    said = told(capsys, training(here, "plain", "--overwrite_output_dir"))
    assert f"plain/{name.split('/')[0]}" in said and "is of none: move it" in said
    assert path.read_text() == "mine" and Path("plain/model.safetensors").exists()
