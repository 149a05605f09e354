"""The card says what was measured, can be read back by huggingface_hub, and never holds a secret."""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from modeling_more.markdown import markdown_table
from modeling_more.tagging import bioes_labels
from modeling_more.training.model_card import (
    CURVE,
    draw_training_curve,
    scrub_command,
    write_model_card,
)

SECRET = "hf_" + "aB3" * 11
RESULTS: dict[str, Any] = {
    "test_f1": 83.6512,
    "test_precision": 82.5,
    "test_recall": 84.75,
    "test_strict_f1": 83.1,
    "test_no_knowledge_f1": 82.9,
    "dev_f1": 81.0,
    "test_f1_per_type": {
        "PER": {"precision": 90.0, "recall": 92.0, "f1": 90.99, "support": 621},
        "LOC": {"precision": 80.0, "recall": 70.0, "f1": 74.67, "support": 178},
    },
    "best_epoch": 2,
}
CONFIG: dict[str, Any] = {
    "dataset": "org/posts",
    "retrieval": "text",
    "model_name_or_path": "FacebookAI/xlm-roberta-large",
    "hub_model_id": "org/posts-more",
    "hub_token": SECRET,
    "learning_rate": 1e-5,
    "max_tokens_per_batch": 4096,
}
HISTORY = [
    {"epoch": 1, "loss": 3.0, "dev_f1": 70.0},
    {"epoch": 2, "loss": 1.5, "dev_f1": 81.0},
    {"epoch": 3, "loss": 0.9, "dev_f1": 80.0},
]
COMMAND = f"HF_TOKEN={SECRET} accelerate launch run_ner.py --dataset org/posts --retrieval text --hub_token {SECRET}"


def write(folder: Path, **changes: Any) -> str:
    given = {"results": RESULTS, "config": CONFIG, "command": COMMAND, "history": HISTORY} | changes
    return write_model_card(folder, **given).read_text()


def test_card_holds_scores_command_versions_and_curve(tmp_path: Path) -> None:
    text = write(tmp_path)
    patterns = [
        r"\| split \| F1 \| precision \| recall \| strict F1 \|",
        r"\| test \| 83\.65 \| 82\.50 \| 84\.75 \| 83\.10 \|",
        r"\| test, without knowledge \| 82\.90 \| – \| – \| – \|",
        r"\| dev \| 81\.00 \|",
        r"\| PER \| 90\.99 \| 90\.00 \| 92\.00 \| 621 \|",
        r"accelerate launch run_ner\.py --dataset org/posts --retrieval text --hub_token",
        r"\| torch \| 2\.\d+",
        r"max_tokens_per_batch: 4096",
        rf"!\[[^]]+\]\({CURVE}\)",
        r"pipeline\('more-ner', model='org/posts-more'\)",
        r"own knowledge_text",
        r"arxiv\.org/abs/2212\.01612",
    ]
    for pattern in patterns:
        assert re.search(pattern, text), pattern
    assert (tmp_path / CURVE).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".eval_results", "README.md", CURVE]


def test_card_reads_back(tmp_path: Path) -> None:
    write(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0",
        "transformers",
        "token-classification",
    )
    assert data.base_model == "FacebookAI/xlm-roberta-large" and data.datasets == ["org/posts"]
    assert data.model_name == "org/posts-more"
    scores = {(entry.dataset_split, entry.metric_name): entry.metric_value for entry in data.eval_results}
    assert scores["test", "test F1"] == 83.6512
    assert scores["test", "test F1 (no knowledge)"] == 82.9
    assert scores["validation", "dev F1"] == 81.0
    assert len(scores) == 6
    entries = yaml.safe_load((tmp_path / ".eval_results" / "posts.yaml").read_text())
    assert entries[0]["dataset"] == {"id": "org/posts", "task_id": "text"} and entries[0]["value"] == 83.6512


def test_local_sets_and_encoders_stay_out_of_the_metadata(tmp_path: Path) -> None:
    config = {"dataset": "twitter17", "retrieval": "none", "model_name_or_path": str(tmp_path)}
    text = write(tmp_path / "my_model", config=config)
    data = ModelCard.load(tmp_path / "my_model" / "README.md").data
    assert data.get("base_model") is None and data.get("datasets") is None
    assert data.eval_results[0].dataset_name == "twitter17" and data.model_name == "my_model"
    assert not (tmp_path / "my_model" / ".eval_results").exists()
    assert "on `twitter17`" in text and "knowledge_text" not in text
    (tmp_path / "sets" / "tw").mkdir(parents=True)
    text = write(tmp_path / "my_model", config={**config, "dataset": str(tmp_path / "sets" / "tw")})
    entry = ModelCard.load(tmp_path / "my_model" / "README.md").data.eval_results[0]
    assert (entry.dataset_type, entry.dataset_name) == ("tw", "tw") and "on `tw`" in text


def test_no_secret_reaches_the_card(tmp_path: Path) -> None:
    config = CONFIG | {"report_to": [SECRET], "nested": {"wandb_api_key": "k123"}, "url": "http://me:pw77@host/x"}
    write(tmp_path, config=config)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(secret in content for secret in (SECRET.encode(), b"k123", b"pw77")), path


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (f"a.py --hub_token {SECRET} --seed 1", "a.py --hub_token <secret> --seed 1"),
        ("a.py --hub_token=abc --seed 1", "a.py --hub_token=<secret> --seed 1"),
        ("WANDB_API_KEY=abc a.py --token --seed 1", "WANDB_API_KEY=<secret> a.py --token --seed 1"),
        ("a.py --max_tokens_per_batch 9 --tokenizer_name x", "a.py --max_tokens_per_batch 9 --tokenizer_name x"),
        (["a.py", "--train_file", "my posts.txt", "--x", SECRET], "a.py --train_file 'my posts.txt' --x <secret>"),
    ],
)
def test_scrub_command(command: str | list[str], expected: str) -> None:
    assert scrub_command(command) == expected


def test_relations_and_mixtures_use_the_same_card(tmp_path: Path) -> None:
    results = {
        "test_f1": 70.0,
        "test_accuracy": 80.0,
        "test_expert_image_f1": 66.5,
        "test_f1_per_type": {"/per/org/member": {"precision": 1.0, "recall": 2.0, "f1": 1.33, "support": 3}},
    }
    text = write(tmp_path, results=results, task="text-classification", usage="print('mine')", history=[])
    assert re.search(r"\| test \| 70\.00 \| 80\.00 \|", text) and re.search(
        r"\| test, expert image \| 66\.50 \|", text
    )
    assert "## Scores per relation" in text and "print('mine')" in text
    assert CURVE not in text and not (tmp_path / CURVE).exists()
    assert ModelCard.load(tmp_path / "README.md").data.pipeline_tag == "text-classification"
    with pytest.raises(ValueError, match="task is 'ner'"):
        write(tmp_path, task="ner")


def test_several_seeds_show_their_deviation(tmp_path: Path) -> None:
    results = RESULTS | {"test_f1_std": 0.214, "seeds": [42, 43, 44]}
    history = [{**row, "seed": seed} for seed in (42, 43, 44) for row in HISTORY]
    text = write(tmp_path, results=results, history=history)
    assert "| test | 83.65 ± 0.21 | 82.50 |" in text and "over the seeds 42, 43, 44" in text


def test_curve_takes_gaps(tmp_path: Path) -> None:
    path = tmp_path / "curve.png"
    draw_training_curve([{"epoch": 1, "loss": float("nan"), "dev_f1": None}, {"epoch": 2, "dev_f1": 3}], path)
    width, height = struct.unpack(">II", path.read_bytes()[16:24])
    assert width > 1000 and height > 400


def test_markdown_table() -> None:
    table = markdown_table([{"a|b": "x|y", "n": 1.0, "m": "1.00 ± 0.10"}, {"a|b": None, "n": 2, "m": "2.00 ± 0.10"}])
    assert table.splitlines() == [
        "| a\\|b | n | m |",
        "|---|---:|---:|",
        "| x\\|y | 1.00 | 1.00 ± 0.10 |",
        "| – | 2 | 2.00 ± 0.10 |",
    ]
    assert markdown_table([]) == ""


@pytest.mark.parametrize("retrieval", ["none", "text", "image"])
@pytest.mark.parametrize("task", ["entities", "relations"])
def test_the_code_on_the_card_runs(
    task: str,
    retrieval: str,
    tmp_path: Path,
    tiny_encoder: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mixture_experts import save_expert

    column = None if retrieval == "none" else f"knowledge_{retrieval}"
    out = tmp_path / "out"
    labels = bioes_labels(["PER", "ORG"]) if task == "entities" else ["None", "/per/org/member"]
    save_expert(out, task, tiny_encoder("bert"), labels, knowledge_column=column)
    be_sure(out, task, "S-ORG" if task == "entities" else labels[1])
    text = write(
        out, config={"dataset": "demo", "retrieval": retrieval}, task=TASK[task],
    )  # fmt: skip
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert ("knowledge_" in code) == (retrieval != "none")
    monkeypatch.chdir(tmp_path)  # the card names the folder
    exec(code, {})
    said = "ORG Rivera 1.0" if task == "entities" else "Rivera /per/org/member Northfield United 1.0"
    assert said in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("task", ["entities", "relations"])
def test_the_code_on_a_mixtures_card_runs(
    task: str,
    tmp_path: Path,
    tiny_encoder: Callable[[str], str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mixture_experts import CLASSES, NAMES, save_expert
    from modeling_more import MoReMixtureProcessor, MoReProcessor
    from modeling_more.training.mixture_report import card_parts

    labels = bioes_labels(["PER", "ORG"]) if task == "entities" else ["None", "/per/org/member"]
    folders = []
    for name in NAMES:
        folders.append(save_expert(
            tmp_path / name, task, tiny_encoder("bert"), labels, knowledge_column=f"knowledge_{name}"
        ))  # fmt: skip
        be_sure(tmp_path / name, task, "S-ORG" if task == "entities" else labels[1])
    mixture = CLASSES[task][1].from_experts(folders, NAMES, image_dim=4)
    mixture.save_pretrained(tmp_path / "out")
    MoReMixtureProcessor([MoReProcessor.from_pretrained(folder) for folder in folders], NAMES).save_pretrained(
        tmp_path / "out"
    )
    results = {**RESULTS, "experts": dict(zip(NAMES, folders, strict=True))}
    config = {"dataset": "demo", "retrieval": "moe"}
    text = write(
        tmp_path / "out", results=results, config=config, task=TASK[task], **card_parts(results, TASK[task], "out")
    )
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    printed = capsys.readouterr().out
    assert ("ORG Rivera 1.0" if task == "entities" else "Rivera /per/org/member Northfield United 1.0") in printed
    assert re.search(r"\{'text': 0\.\d+, 'image': 0\.\d+\}", printed)


TASK = {"entities": "token-classification", "relations": "text-classification"}


def be_sure(folder: Path, task: str, label: str) -> None:
    """Let a saved expert say this label of everything, so that the code finds something to print."""
    import torch

    from mixture_experts import CLASSES

    model = CLASSES[task][0].from_pretrained(folder)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias[model.config.label2id[label]] += 50.0
    model.save_pretrained(folder)
