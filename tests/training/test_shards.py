"""Predictions are never lost: written in shards as they are computed, and a run that was killed goes on from them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForTokenClassification

import run_ner
from mixture_experts import save_expert
from modeling_more.data.tasks import ENTITIES
from modeling_more.files import write_jsonl as write_rows
from modeling_more.pipelines import EntityPipeline
from modeling_more.processing_more import MoReProcessor
from modeling_more.training import shards
from ner_runs import ROOT, options, posts, run_script, write_jsonl


@pytest.fixture
def expert(tiny_encoder: Any, tmp_path: Path) -> str:
    return save_expert(tmp_path / "expert", "entities", tiny_encoder("bert"), max_length=64)


def arguments(expert: str, file: Path, output: Path, *more: str) -> list[str]:
    given = ["--model_name_or_path", expert, "--do_predict", "--predict_file", str(file), "--use_cpu"]
    return [*given, "--output_dir", str(output), *more]


def predictions(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "predictions" / "predict.jsonl").read_text().splitlines()]


def names(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "predictions").iterdir())


def alike(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> bool:
    """Whether predictions are equal but for the rounding of scores, which depends on what stands in a batch."""

    def rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "entities": [{**e, "score": round(e["score"], 4)} for e in row["entities"]]} for row in rows]

    return rounded(first) == rounded(second)


def test_a_killed_prediction_goes_on_where_it_was(
    expert: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_jsonl(tmp_path / "posts.jsonl", posts(2600))
    output = tmp_path / "predicted"
    running = subprocess.Popen(
        [sys.executable, str(ROOT / "run_ner.py"), *arguments(expert, file, output)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not list((output / "predictions").glob("predict.0*.jsonl")):
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (output / "predictions" / "predict.jsonl").exists()
    first = list((output / "predictions").glob("predict.0*.jsonl"))
    lines = [line for path in sorted(first) for line in path.read_text().splitlines()]
    marked = [json.dumps({**json.loads(line), "kept": True}) for line in min(first).read_text().splitlines()]
    min(first).write_text("\n".join(marked) + "\n")
    caplog.set_level("INFO")
    run_ner.main(arguments(expert, file, output))
    assert f"{len(lines)} of 2600 posts are predicted already" in caplog.text
    assert names(output) == ["predict.jsonl"]
    found = (output / "predictions" / "predict.jsonl").read_text().splitlines()
    assert found[: len(lines)] == [*marked, *lines[len(marked) :]]  # not computed again
    assert [json.loads(line)["id"] for line in found] == [f"post-{i}" for i in range(2600)]
    run_ner.main(arguments(expert, file, tmp_path / "whole"))
    assert predictions(tmp_path / "whole") == [
        {key: value for key, value in row.items() if key != "kept"} for row in predictions(output)
    ]


def test_what_was_begun_with_other_posts_or_another_model_is_not_kept(
    expert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(shards, "SHARD", 10)
    rows, output = posts(35), tmp_path / "predicted"
    interrupted(expert, write_jsonl(tmp_path / "posts.jsonl", rows), output, monkeypatch, after=2)
    kept = names(output)
    assert len(kept) == 2
    (output / "predictions" / "predict.notes.jsonl").write_text("mine\n")
    rows[12]["tokens"] = ["Rivera", "met", "Ada"]
    file = write_jsonl(tmp_path / "posts.jsonl", rows)
    caplog.clear()
    run_ner.main(arguments(expert, file, output))  # the first shard is as it was, the second is not
    assert "1 shards" in caplog.text and "10 of 35 posts are predicted already" in caplog.text
    assert names(output) == ["predict.jsonl", "predict.notes.jsonl"]
    assert predictions(output)[12]["tokens"] == rows[12]["tokens"]

    interrupted(expert, file, output, monkeypatch, after=2)
    model = AutoModelForTokenClassification.from_pretrained(expert)
    with torch.no_grad():
        model.classifier.bias += torch.randn(model.classifier.bias.shape) * 5
    model.save_pretrained(expert)
    caplog.clear()
    run_ner.main(arguments(expert, file, output))
    assert "2 shards" in caplog.text and "predicted already" not in caplog.text
    run_ner.main(arguments(expert, file, tmp_path / "again"))
    assert predictions(output) == predictions(tmp_path / "again")

    interrupted(expert, file, output, monkeypatch, after=3)
    damaged = output / "predictions" / names(output)[1]
    damaged.write_bytes(damaged.read_bytes()[:-40])
    caplog.clear()
    run_ner.main(arguments(expert, file, output))
    assert "20 of 35 posts are predicted already" in caplog.text
    assert predictions(output) == predictions(tmp_path / "again")


def interrupted(expert: str, file: Path, output: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Predict as if Ctrl-C were pressed when so many shards are written."""
    written = []

    def write(path: Path, rows: Any) -> None:
        if len(written) == after:
            raise KeyboardInterrupt
        write_rows(path, rows)
        written.append(path)

    with monkeypatch.context() as patched:
        patched.setattr(shards, "write_jsonl", write)
        with pytest.raises(SystemExit) as ended:
            run_ner.main(arguments(expert, file, output))
    assert "interrupted; " in str(ended.value) and "are predicted and kept: run again" in str(ended.value)


def test_two_processes_go_on_from_what_one_left(expert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, output = write_jsonl(tmp_path / "posts.jsonl", posts(1100)), tmp_path / "predicted"
    interrupted(expert, file, output, monkeypatch, after=1)
    launch = [
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--cpu",
    ]
    done = run_script(arguments(expert, file, output), launch=launch)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("512 of 1100 posts are predicted already") == 1 and names(output) == ["predict.jsonl"]
    run_ner.main(arguments(expert, file, tmp_path / "alone"))
    assert alike(predictions(output), predictions(tmp_path / "alone"))


def test_a_post_that_cannot_be_computed_is_named_and_the_others_stay(
    expert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged weight that one word alone reads."""
    monkeypatch.setattr(shards, "SHARD", 10)
    processor = MoReProcessor.from_pretrained(expert)
    rows = posts(45)
    [[pieces]] = processor._tokenize_words([["phone"]])
    usual = {piece for row in rows for word in processor._tokenize_words([row["tokens"]])[0] for piece in word}
    model = AutoModelForTokenClassification.from_pretrained(expert)
    with torch.no_grad():
        model.get_input_embeddings().weight[next(piece for piece in pieces if piece not in usual)] = 3e38
    model.save_pretrained(expert)
    rows[33]["tokens"] = ["Ada", "phone"]
    file = write_jsonl(tmp_path / "posts.jsonl", rows)
    with pytest.raises(SystemExit) as ended:
        run_ner.main(arguments(expert, file, tmp_path / "predicted"))
    told = str(ended.value)
    assert told.startswith(f"error: {file}: post 33 (id post-33): the model can't read it: its scores are no numbers")
    assert "; 30 of 45 posts are predicted and kept: run again" in told and len(names(tmp_path / "predicted")) == 3


def test_all_posts_are_checked_before_any_is_computed(
    expert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = EntityPipeline(
        AutoModelForTokenClassification.from_pretrained(expert), MoReProcessor.from_pretrained(expert)
    )
    monkeypatch.setattr(pipeline, "forward", None)
    path = tmp_path / "predictions" / "predict.jsonl"
    rows = [{"id": str(i), "tokens": ["Ada"]} for i in range(1300)]
    for bad, told in (
        ({"id": "\ud800", "tokens": ["Ada"]}, r'post 1250 \(id \\ud800\): "id" holds half a surrogate pair'),
        ({"id": b"x", "tokens": ["Ada"]}, r'post 1250 .*: "id" should be a string or a whole number, not a bytes'),
        ({"id": float("nan"), "tokens": ["Ada"]}, "not a float"),
        ({"id": "x", "tokens": ["Ada", ""]}, r'post 1250 \(id x\): "tokens" should be'),
    ):
        rows[1250] = bad
        with pytest.raises(ValueError, match=told):
            shards.predict_in_shards(path, pipeline, rows)
    assert not path.parent.exists()
    file = write_jsonl(tmp_path / "long.jsonl", [{"id": "a", "tokens": ["Ada"]}, {"id": "b", "tokens": ["Ada"] * 51}])
    with pytest.raises(SystemExit) as ended:
        run_ner.main(arguments(expert, file, tmp_path / "out", "--max_words", "50"))
    assert str(ended.value).startswith(f"error: {file}: post 1 (id b) has 51 words: split it")
    run_ner.main(arguments(expert, file, tmp_path / "out", "--max_words", "51"))


def test_predictions_of_a_split_are_written_before_they_are_scored(
    expert: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = []

    def fails(*_: Any) -> Any:
        there.extend(path.read_text().splitlines() for path in (tmp_path / "scored").rglob("test.jsonl"))
        raise MemoryError

    monkeypatch.setattr(type(ENTITIES), "score", fails)
    file = write_jsonl(tmp_path / "test.jsonl", posts(9))
    given = ["--test_file", str(file), "--model_name_or_path", expert, "--no_do_train", "--use_cpu"]
    with pytest.raises(MemoryError):
        run_ner.main([*given, "--output_dir", str(tmp_path / "scored")])
    [lines] = there
    assert len(lines) == 9


def test_shards_of_a_prediction_that_was_broken_off_hinder_no_training(
    expert: str, files: dict[str, str], tiny_encoder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "SHARD", 10)
    interrupted(expert, write_jsonl(tmp_path / "posts.jsonl", posts(25)), Path(files["out"]), monkeypatch, after=1)
    foreign = Path(files["out"]) / "predictions" / "mine.000000-0123456789abcdef.jsonl"
    foreign.touch()
    train = options(files, tiny_encoder("bert"), "--num_train_epochs", "1", "--overwrite_output_dir")
    with pytest.raises(SystemExit, match="mine.000000"):
        run_ner.main(train)
    foreign.unlink()
    run_ner.main(train)
    assert names(Path(files["out"])) == ["dev.jsonl", "test.jsonl"]


def test_numbers_that_json_lacks_are_not_written(tmp_path: Path) -> None:
    for bad in (float("nan"), float("inf"), b"x", "\ud800"):
        with pytest.raises(ValueError, match=r"x\.jsonl: row 1 can't be written: "):
            write_rows(tmp_path / "x.jsonl", [{"score": 1.0}, {"score": bad}])
    assert not any(tmp_path.iterdir())
