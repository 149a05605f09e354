"""A model is loaded as it was saved, or not at all: what `manifest.json` vouches for, and what may be changed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import run_ner
from modeling_more import MoReForTokenClassification, MoReProcessor
from modeling_more.training.experts import load_experts
from modeling_more.training.results import published
from ner_runs import ROOT, contents, options, run_script, told, training


def flip(file: Path, place: int = -1) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def uses(here: dict, model: str) -> list[list[str]]:
    """Command lines that load a model: to score it, to predict, to train it further, to mix it."""
    files = ["--train_file", here["train"], "--validation_file", here["dev"], "--use_cpu"]
    return [
        ["--model_name_or_path", model, "--no_do_train", "--test_file", here["other"], "--use_cpu"],
        ["--model_name_or_path", model, "--do_predict", "--predict_file", here["other"], "--use_cpu"],
        [*files, "--model_name_or_path", model, "--output_dir", "on"],
        [*files, "--retrieval", "moe", "--experts", model, model, "--output_dir", "mixed"],
    ]


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_changed_file_of_a_model_is_not_loaded(name, here, capsys):
    if name == "config.json":  # as valid JSON, with the labels in another order
        config = json.loads(Path("plain", name).read_text())
        labels = list(config["id2label"].values())
        config["id2label"] = {str(place): label for place, label in enumerate(reversed(labels))}
        config["label2id"] = {label: place for place, label in enumerate(reversed(labels))}
        Path("plain", name).write_text(json.dumps(config))
    else:
        flip(Path("plain", name), -2)
    for arguments in uses(here, "plain"):
        said = told(capsys, arguments)
        assert f"plain/{name} " in said and "saved" in said, said
    Path("plain", name).unlink()
    assert name in told(capsys, uses(here, "plain")[0])


def test_what_loading_does_not_read_may_be_changed_and_older_models_have_no_manifest(here):
    Path("plain/README.md").write_text("better words")
    Path("plain/notes.txt").write_text("mine")
    run_ner.main(uses(here, "plain")[0])
    Path("plain/manifest.json").unlink()
    flip(Path("plain/model.safetensors"))
    run_ner.main(uses(here, "plain")[1])


@pytest.mark.parametrize("part", ["model", "processor"])
def test_saving_over_a_finished_run_locks_nobody_out(part, here, capsys):
    before = contents("plain")["manifest.json"]
    if part == "model":
        model = MoReForTokenClassification.from_pretrained("several")
        model.save_pretrained("plain")
    else:
        processor = MoReProcessor.from_pretrained("plain")
        processor.top_k = 3
        processor.save_pretrained("plain")
    run_ner.main(uses(here, "plain")[0])
    after = contents("plain")["manifest.json"]
    assert after.items() < before.items()
    flip(Path("plain/holdout_ids.json"))  # what was not replaced is checked as before
    assert "plain/holdout_ids.json is not the file that was saved" in told(capsys, uses(here, "plain")[3])


def test_an_interrupted_run_leaves_ids_and_options_of_the_model_that_is_there(here, monkeypatch):
    """A gate would learn from posts that the model knows."""
    shutil.rmtree("plain/checkpoints")
    Path("plain/all_results.json").unlink()  # as a run that was killed in its end left it
    before = contents("plain")
    monkeypatch.setattr(run_ner, "predict_dev", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_ner.main(training(here, "plain", "--holdout_fraction", "0.9"))
    after = contents("plain")
    for name in ("holdout_ids.json", "arguments.json", "model.safetensors"):
        assert after[name] == before[name], name
    (expert,) = load_experts(["plain"])
    assert expert.options["holdout_fraction"] == 0.33


UPLOAD = """
import sys
from huggingface_hub import HfApi
HfApi().upload_file(path_or_fileobj=sys.argv[1], path_in_repo="model.safetensors", repo_id="org/pushed")
"""


def test_a_model_from_the_hub_is_checked_too(files, hub, tiny_encoder, tmp_path):
    push = ["--push_to_hub", "--hub_model_id", "org/pushed", "--num_train_epochs", "1"]
    done = run_script(options(files, tiny_encoder("bert"), *push), env=hub.env)
    assert done.returncode == 0, done.stderr
    told = json.loads(hub.files("org/pushed")["manifest.json"])
    assert told.keys() == {"files"}  # no names of what stays at home
    assert {"config.json", "model.safetensors", "tokenizer.json", "processor_config.json"} <= told["files"].keys()
    score = ["--model_name_or_path", "org/pushed", "--no_do_train", "--test_file", files["test"], "--use_cpu"]
    score += ["--output_dir", str(tmp_path / "scored")]
    done = run_script(score, env=hub.env)
    assert done.returncode == 0, done.stderr
    weights = tmp_path / "out" / "model.safetensors"
    flip(weights)
    done = subprocess.run([sys.executable, "-c", UPLOAD, str(weights)], env={**os.environ, **hub.env}, cwd=ROOT)
    assert done.returncode == 0
    done = run_script(score, env=hub.env)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "model.safetensors is not the file that was saved" in done.stderr


def test_the_experts_inside_a_mixture_are_checked(here, capsys):
    files = [
        "--train_file",
        here["train"],
        "--validation_file",
        here["dev"],
        "--use_cpu",
        "--cache_dir",
        here["cache"],
    ]
    run_ner.main(
        [*files, "--retrieval", "moe", "--experts", "plain", "plain", "--gate_epochs", "1", "--output_dir", "m"]
    )
    predict = ["--model_name_or_path", "m", "--do_predict", "--predict_file", here["other"], "--use_cpu"]
    run_ner.main(predict)
    for name in ("m/experts/text/tokenizer.json", "m/experts/text_2/processor_config.json"):
        flip(Path(name), -3)
        assert f"{name} is not the file that was saved" in told(capsys, predict)
        flip(Path(name), -3)
    run_ner.main(predict)


def test_a_strangers_manifest_deletes_and_uploads_nothing_outside(here, tmp_path):
    outside = [tmp_path / "mine.txt", Path(here["train"]).resolve()]
    outside[0].write_text("mine")
    Path("plain/link.json").symlink_to(outside[0])
    manifest = json.loads(Path("plain/manifest.json").read_text())
    names = ["../mine.txt", str(outside[1]), "link.json", "experts/../../mine.txt", "bad\0name"]
    manifest["written"] |= dict.fromkeys(names, "")
    Path("plain/manifest.json").write_text(json.dumps(manifest))
    assert not set(names) & set(published(Path("plain"), predictions=True))
    given = ["--holdout_fraction", "0.33", "--knowledge", here["knowledge"], "--top_k", "1", "--retrieval", "text"]
    run_ner.main(training(here, "plain", *given, "--resume_from_checkpoint", "latest"))
    assert all(file.exists() for file in outside) and Path("plain/link.json").is_symlink()
    assert not set(names) & set(json.loads(Path("plain/manifest.json").read_text())["written"])
