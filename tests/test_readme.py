"""The README's example runs, and every option, file and target that it names exists."""

import os
import re
import subprocess
import sys
from pathlib import Path

from transformers import HfArgumentParser

import run_ner
from dataset_scripts import posts
from modeling_more.training.arguments import (
    DataArguments,
    HubArguments,
    MixtureArguments,
    ModelArguments,
    TrainingArguments,
)

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_examples_run(tiny_encoder, tmp_path, capsys):
    post = '{"tokens": ["Rivera", "joins", "Northfield", "United"], "tags": ["B-PER", "O", "B-ORG", "I-ORG"]}\n'
    (tmp_path / "posts.jsonl").write_text(post * 8)
    (tmp_path / "articles.jsonl").write_text('{"id": "1", "title": "Rivera", "text": "Rivera is a player ."}\n')
    run_ner.main(
        ["--train_file", str(tmp_path / "posts.jsonl"), "--validation_file", str(tmp_path / "posts.jsonl"),
         "--retrieval", "text", "--knowledge", str(tmp_path / "articles.jsonl"), "--max_length", "64",
         "--model_name_or_path", tiny_encoder("bert"), "--learning_rate", "5e-3", "--num_train_epochs", "15",
         "--cache_dir", str(tmp_path / "cache"), "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    )  # fmt: skip
    codes = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(codes) == 2
    for code, more in zip(codes, ("'title': 'Rivera'", ""), strict=True):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "'text': 'Rivera'" in done.stdout and "'text': 'Northfield United'" in done.stdout
        assert more in done.stdout  # what was read


def test_options_of_run_ner_exist():
    groups = [DataArguments, ModelArguments, TrainingArguments, HubArguments, MixtureArguments]
    parsers = (HfArgumentParser(groups), posts.parser())
    known = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    known |= {"--file", "--output", "--image"}  # of `more`, see test_cli.py
    of_accelerate = {"--config_file", "--num_cpu_threads_per_process"}
    named = set(re.findall(r"--[a-z_0-9]+", README))
    assert named - known <= of_accelerate and len(named) > 15


def test_files_and_targets_exist():
    for path in re.findall(r"`((?:modeling_more|dataset_scripts|accelerate_configs|docs)/[\w./]*)`", README):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(([\w./]+)\)", README):
        assert (ROOT / path).exists(), path
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", README, re.MULTILINE)) == {"demo", "test"} <= targets
