"""The scripts may be changed: the diffs of docs/architecture.md apply and run. Their loop is the package's."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import set_seed
from safetensors.torch import load_file

import re_runs
import run_ner
import run_re
from modeling_more import MoReProcessor
from modeling_more.data.tasks import ENTITIES, RELATIONS
from modeling_more.encoding import EXPERT_KNOWLEDGE, encode_posts
from modeling_more.training.arguments import DataArguments, TrainingArguments
from modeling_more.training.command_line import read_arguments
from modeling_more.training.experts import load_experts
from modeling_more.training.loop import train
from modeling_more.training.mixture_posts import load_mixture_posts
from modeling_more.training.setup import make_accelerator
from ner_runs import KNOWLEDGE, ROOT, options, read, read_lines, write_jsonl

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FOCAL, COSINE, LOOKUP = re.findall(r"```diff\n(.*?)```", PAGE, flags=re.DOTALL)


def apply(diff: str, folder: Path) -> None:
    shutil.copy(ROOT / "run_ner.py", folder)
    subprocess.run(["git", "apply", "-"], input=diff, text=True, cwd=folder, check=True)


def run(folder: Path, arguments: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, "run_ner.py", *arguments], cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("diff", [FOCAL, COSINE], ids=["focal", "cosine"])
def test_loss_and_schedule_are_changed_in_the_script_alone(diff, files, tiny_encoder, tmp_path):
    arguments = options(files, tiny_encoder("bert"), "--warmup_ratio", "0.2", "--save_checkpoints", "false")
    run_ner.main(arguments)
    before, plain = read(files, "all_results.json"), load_file(Path(files["out"]) / "model.safetensors")
    folder = tmp_path / "changed"
    folder.mkdir()
    apply(diff, folder)
    run(folder, [*arguments, "--overwrite_output_dir"])
    after, changed = read(files, "all_results.json"), load_file(Path(files["out"]) / "model.safetensors")
    assert not torch.equal(plain["classifier.weight"], changed["classifier.weight"])
    if diff == FOCAL:  # what the model is sure of counts less
        assert 0 < after["history"][0]["loss"] < before["history"][0]["loss"]


def test_a_retriever_of_ones_own_is_a_file_and_an_option(files, tiny_encoder, tmp_path, monkeypatch):
    folder = tmp_path / "changed"
    folder.mkdir()
    apply(LOOKUP, folder)
    corpus = write_jsonl(tmp_path / "wiki.jsonl", KNOWLEDGE)
    own = ["--knowledge", str(corpus), "--retriever", "title_lookup.py:TitleLookup", "--top_k", "3"]
    arguments = options(files, tiny_encoder("bert"), *own, retrieval="text")
    log = run(folder, arguments)
    assert "Error" not in log and read(files, "all_results.json")["retrieval_report"]["entries"] > 0
    assert read(files, "arguments.json")["retriever"] == "title_lookup.py:TitleLookup"
    # a mixture runs an expert's file only where the user names it
    [expert] = load_experts([files["out"]])
    with pytest.raises(ValueError, match="searches by code of its own: give --retriever title_lookup.py:TitleLookup"):
        expert.data(DataArguments())
    assert expert.data(DataArguments(retriever="title_lookup.py:TitleLookup")).retriever.endswith("TitleLookup")
    monkeypatch.chdir(folder)
    mix = [
        *options(files, "unused", retrieval="moe"),
        "--experts",
        files["out"],
        "--gate_data",
        "train",
        "--output_dir",
        str(tmp_path / "mix"),
    ]
    mix[mix.index("unused")] = files["out"]
    args = read_arguments([*mix, "--retriever", "title_lookup.py:TitleLookup"], "")
    found, _, _ = load_mixture_posts(ENTITIES, args, dict, [])
    assert any(entry["source"] == "lookup" for post in found["test"] for entry in post[EXPERT_KNOWLEDGE][0])
    with pytest.raises(ValueError, match="searches by code of its own"):
        load_mixture_posts(ENTITIES, read_arguments(mix, ""), dict, [])
    with pytest.raises(SystemExit):  # argparse's
        run_ner.main([*arguments, "--retriever", "bm52"])
    for told, reason in (("none.py:TitleLookup", "there is no file none.py"),
                         (f"{folder}/title_lookup.py:Lookup", "has no class Lookup")):  # fmt: skip
        with pytest.raises(SystemExit, match=reason):
            run_ner.main([*arguments, "--overwrite_output_dir", "--retriever", told])
    assert read_lines(files, "predictions/test.jsonl")


@pytest.mark.parametrize("task", [ENTITIES, RELATIONS], ids=["entities", "relations"])
def test_the_loop_of_the_script_is_that_of_the_package(task, files, tiny_encoder, tmp_path):
    """So that what the tests of `train` show of its steps holds for the scripts: the same weights, bit for bit."""
    encoder, own = tiny_encoder("bert"), ["--gradient_accumulation_steps", "2", "--max_grad_norm", "1"]
    if task is ENTITIES:
        run_ner.main(options(files, encoder, *own))
    else:
        files = re_runs.write_files(tmp_path)
        run_re.main(re_runs.options(files, encoder, *own, "--class_weights"))
    told, config = read(files, "arguments.json"), task.model_class.config_class.from_pretrained(files["out"])
    arguments = {key: told[key] for key in vars(TrainingArguments())} | {"output_dir": str(tmp_path / "again")}
    args = TrainingArguments(**arguments)
    accelerator = make_accelerator(args)
    set_seed(args.seed)
    processor = MoReProcessor.from_encoder_pretrained(
        encoder, max_length=told["max_length"], knowledge_column=None, markers=task.markers
    )
    names = ("id2label", "head_dropout", "class_weights", *(("head", "word_dropout") if task is ENTITIES else ()))
    model = task.model_class.from_encoder_pretrained(
        encoder, **{name: getattr(config, name) for name in names},
        num_tokens=len(processor.tokenizer) if task.markers else 0,
    )  # fmt: skip
    rows, dev = (task.read(files[split], None, told["splitter"], "knowledge_none") for split in ("train", "dev"))
    encoded = encode_posts(rows, processor, model.config.label2id, truncate=True)

    def evaluate(candidate):
        pipeline = task.pipeline_class(candidate, processor, accelerator)
        return task.score(pipeline.forward(pipeline.preprocess(dev)), dev, told["none_relation"])["f1"]

    best, state = train(accelerator, model, processor, encoded, evaluate, args)
    history = [{**row, "seconds": 0} for row in read(files, "all_results.json")["history"]]
    assert [{**row, "seconds": 0} for row in state.history] == history
    expected = load_file(Path(files["out"]) / "model.safetensors")
    for name, value in best.state_dict().items():
        assert torch.equal(value, expected[name]), name
