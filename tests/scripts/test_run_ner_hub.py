"""What run_ner.py uploads, what comes back from the Hub, and what is never published."""

import json
import os
import subprocess
import sys
from pathlib import Path

from modeling_more import MoReForTokenClassification
from ner_runs import (
    ROOT,
    options,
    read,
    run_script,
)


def test_push_and_reload_from_the_hub(files, hub, tiny_encoder):
    arguments = options(
        files, tiny_encoder("bert"), "--push_to_hub", "--hub_model_id", "org/more-tiny", "--seeds", "1", "2"
    )
    done = run_script(arguments, env=hub.env)
    assert done.returncode == 0, done.stderr
    uploaded = set(hub.files("org/more-tiny"))
    assert {"README.md", "config.json", "model.safetensors", "processor_config.json", "all_results.json",
            "training_curve.png", "modeling_more.py", "processing_more.py"} <= uploaded  # fmt: skip
    assert not [name for name in uploaded if name.startswith(("checkpoints", "seed-", "logs", "predictions/"))]
    # the predictions' words are other people's; whether it is private is for the account or organisation to say
    assert hub.privacy["model", "org/more-tiny"] is None
    (told,) = [line for line in done.stderr.splitlines() if "uploading to org/more-tiny" in line]
    assert [name for name in uploaded - {".gitattributes"} if name not in told] == []
    assert "--push_predictions" in told and "default" in told
    assert hub.env["HF_TOKEN"] not in done.stderr + done.stdout or len(hub.env["HF_TOKEN"]) < 4
    code = (
        "import sys, modeling_more, json; from transformers import AutoModelForTokenClassification, AutoProcessor\n"
        "model = AutoModelForTokenClassification.from_pretrained('org/more-tiny')\n"
        "processor = AutoProcessor.from_pretrained('org/more-tiny')\n"
        "rows = [json.loads(line) for line in open(sys.argv[1])]\n"
        "found = modeling_more.predict(model, processor, [{'tokens': row['tokens']} for row in rows])\n"
        "for row, one in zip(rows, found, strict=True):\n"
        "    drop = lambda entities: [{**e, 'score': 0} for e in entities]\n"
        "    assert drop(one['entities']) == drop(row['entities'])\n"
    )
    again = subprocess.run(
        [sys.executable, "-c", code, str(Path(files["out"]) / "predictions" / "test.jsonl")],
        env={**os.environ, **hub.env}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr


def test_predictions_and_privacy_are_pushed_where_that_is_asked_for(files, hub, tiny_encoder):
    push = ["--push_to_hub", "--hub_model_id", "org/words", "--num_train_epochs", "1", "--overwrite_output_dir"]
    given = options(files, tiny_encoder("bert"), *push)
    done = run_script([*given, "--push_predictions", "--hub_private"], env=hub.env)
    assert done.returncode == 0, done.stderr
    assert {"predictions/dev.jsonl", "predictions/test.jsonl"} <= set(hub.files("org/words"))
    assert hub.privacy["model", "org/words"] in (True, "private")
    (told,) = [line for line in done.stderr.splitlines() if "uploading to org/words" in line]
    assert "predictions/test.jsonl" in told and "--push_predictions" not in told and "private" in told
    # what belongs to the model before doesn't stay beside another one; what is of nobody's does
    older = ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "experts/a/config.json")
    hub.repos["model", "org/words"].commit(dict.fromkeys((*older, "NOTES.md"), b"{}"), "main")
    done = run_script([*given, "--seed", "2"], env=hub.env)
    assert done.returncode == 0, done.stderr
    left = hub.files("org/words")
    assert not [name for name in left if name.startswith("predictions/")] and not set(older) & left.keys()
    assert "NOTES.md" in left and "model.safetensors" in left


def test_nothing_of_the_machine_and_of_others_is_uploaded(files, hub, tiny_encoder):
    out = Path(files["out"])
    for name in (".env", "notes.txt", "notes/a.model", "experts/readme.txt"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    encoder = tiny_encoder("bert")
    done = run_script(
        options(files, encoder, "--push_to_hub", "--hub_model_id", "org/clean", "--num_train_epochs", "1"), env=hub.env
    )
    assert done.returncode == 0, done.stderr
    uploaded = hub.files("org/clean")
    assert not [name for name in uploaded if "notes" in name or "env" in name or name.startswith("experts")]
    for name, content in uploaded.items():
        for folder in (out.parent, Path(encoder), Path(encoder).parent):
            assert str(folder).encode() not in content, name
    assert json.loads(uploaded["arguments.json"])["train_file"] == Path(files["train"]).name
    assert read(files, "arguments.json")["train_file"] == files["train"]  # which repeats the run
    assert "_name_or_path" not in (out / "config.json").read_text()


def test_failed_upload_loses_nothing(files, tiny_encoder):
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_secretsecretsecret", "HF_HUB_DISABLE_XET": "1"}
    done = run_script(
        options(files, tiny_encoder("bert"), "--push_to_hub", "--hub_model_id", "org/x", "--num_train_epochs", "1"),
        env=env,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "hf upload org/x" in done.stderr and "hf_secret" not in done.stderr
    assert "--exclude 'predictions/*'" in done.stderr and "--private" not in done.stderr
    MoReForTokenClassification.from_pretrained(files["out"])
