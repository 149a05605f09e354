"""Runs whose posts hide their labels, and what the predictions' files hold: entities, relations, mixtures."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

import run_ner
import run_re
from dataset_scripts import load
from mixture_experts import save_expert
from modeling_more.data.tasks import ENTITIES
from modeling_more.training.arguments import DataArguments
from modeling_more.training.posts import load_posts
from ner_runs import posts, publish_folder, read_lines, write_jsonl
from re_runs import RELATIONS, pairs

NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
TEXT = "I saw  Angela Merkel's car, in Berlin!"
ENTITY_ROWS = {"features": {"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=NAMES))}}


def tagged(number: int, offset: int = 0, hidden: bool = False) -> Dataset:
    rows = posts(number, offset)
    tags = [[-1 if hidden else NAMES.index(tag) for tag in row["tags"]] for row in rows]
    features = Features(
        {"id": Value("string"), "tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=NAMES))}
    )
    columns = {"id": [row["id"] for row in rows], "tokens": [row["tokens"] for row in rows], "ner_tags": tags}
    return Dataset.from_dict(columns, features)


def related(number: int, offset: int = 0, hidden: bool = False) -> Dataset:
    rows = pairs(number, offset)
    names = [*RELATIONS, "/last"]
    spans = {name: List(Value("int32")) for name in ("head", "tail")}
    features = Features(
        {"id": Value("string"), "tokens": List(Value("string")), **spans, "relation": ClassLabel(names=names)}
    )
    columns: dict[str, list[Any]] = {name: [row[name] for row in rows] for name in ("id", "tokens", "head", "tail")}
    columns["relation"] = [-1 if hidden else names.index(row["relation"]) for row in rows]
    return Dataset.from_dict(columns, features)


def train(script: Any, data: list[str], encoder: str, out: Path, *more: str) -> dict[str, Any]:
    results: dict[str, Any] = script.main(
        [*data, "--model_name_or_path", encoder, "--num_train_epochs", "1", "--max_length", "64",
         "--cache_dir", str(out.parent / "cache"), "--output_dir", str(out), "--use_cpu", *more]
    )  # fmt: skip
    return results


def scores(results: dict[str, Any], split: str) -> list[str]:
    return [key for key in results if key.startswith(f"{split}_") and key != f"{split}_cut_knowledge"]


@pytest.mark.parametrize("task", ["entities", "relations"])
def test_a_hidden_split_is_predicted_and_not_scored(
    task: str, tmp_path: Path, tiny_encoder: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    script: Any = run_ner if task == "entities" else run_re
    make = tagged if task == "entities" else related
    folder = publish_folder(
        tmp_path / "data", {"train": make(12), "validation": make(6, 30), "test": make(7, 50, hidden=True)}
    )
    files = {"out": str(tmp_path / "out")}
    results = train(script, ["--dataset", folder], tiny_encoder("bert"), tmp_path / "out", "--seeds", "1", "2")
    assert not scores(results, "test") and "dev_f1" in results
    assert "the test posts have no labels" in caplog.text
    rows = read_lines(files, "predictions/test.jsonl")
    assert [row["id"] for row in rows] == make(7, 50)["id"] and not any("gold" in row for row in rows)
    assert all("gold" in row for row in read_lines(files, "predictions/dev.jsonl"))
    assert "test F1" not in (tmp_path / "out" / "README.md").read_text()
    # a saved expert predicts such a split alone, of a file as well
    row = {"id": "x", "tokens": ["Ada", "in", "Oslo"], "head": [0, 1], "tail": [2, 3], "relation": None}
    row = row if task == "relations" else {"id": "x", "tokens": ["Ada", "in", "Oslo"], "ner_tags": None}
    file = write_jsonl(tmp_path / "test.jsonl", [row])
    again = [*("--test_file", str(file)), "--no_do_train"]
    results = train(script, again, files["out"], tmp_path / "again")
    [found] = read_lines({"out": str(tmp_path / "again")}, "predictions/test.jsonl")
    assert not scores(results, "test") and found["id"] == "x" and "gold" not in found


@pytest.mark.parametrize(
    ("hidden", "told"),
    [("validation", "the validation posts have no labels"), ("train", "the train posts have no labels")],
)
def test_training_needs_labels(hidden: str, told: str, tmp_path: Path, tiny_encoder: Callable[[str], str]) -> None:
    splits = {"train": tagged(8), "validation": tagged(4, 30)}
    folder = publish_folder(tmp_path / "data", splits | {hidden: tagged(4, 30, hidden=True)})
    with pytest.raises(SystemExit, match=f"error: {told}"):
        train(run_ner, ["--dataset", folder], tiny_encoder("bert"), tmp_path / "out")
    rows = {split: write_jsonl(tmp_path / f"{split}.jsonl", posts(4)) for split in ("train", "validation")}
    write_jsonl(rows[hidden], [{**row, "tags": None} for row in posts(4)])
    files = ["--train_file", str(rows["train"]), "--validation_file", str(rows["validation"])]
    with pytest.raises(SystemExit, match=f"error: {told}"):
        train(run_ner, files, tiny_encoder("bert"), tmp_path / "out")
    with pytest.raises(SystemExit, match=f"error: {told}"):
        mixed = ["--retrieval", "moe", "--gate_data", "train", "--experts", save(tmp_path, tiny_encoder, "one")]
        train(run_ner, [*files, *mixed], tiny_encoder("bert"), tmp_path / "out")


def save(folder: Path, tiny_encoder: Callable[[str], str], name: str, task: str = "entities", seed: int = 0) -> str:
    return save_expert(folder / name, task, tiny_encoder("bert"), seed=seed, max_length=64, knowledge_column=None)


@pytest.mark.parametrize("task", ["entities", "relations"])
def test_a_mixture_predicts_a_hidden_split(task: str, tmp_path: Path, tiny_encoder: Callable[[str], str]) -> None:
    script: Any = run_ner if task == "entities" else run_re
    make = tagged if task == "entities" else related
    experts = [save(tmp_path, tiny_encoder, name, task, seed) for seed, name in enumerate(("one", "two"))]
    splits = {"train": make(12), "validation": make(6, 30), "test": make(7, 50, hidden=True)}
    if task == "relations":  # the experts know no more
        splits = {
            split: rows.cast_column("relation", ClassLabel(names=list(RELATIONS))) for split, rows in splits.items()
        }
    folder = publish_folder(tmp_path / "data", splits)
    mix = ["--dataset", folder, "--retrieval", "moe", "--experts", *experts, "--gate_data", "train"]
    results = train(script, mix, "unused", tmp_path / "out", "--gate_epochs", "2")
    assert not scores(results, "test") and {"dev_f1", "dev_f1_minus_average", "best_expert"} <= results.keys()
    rows = read_lines({"out": str(tmp_path / "out")}, "predictions/test.jsonl")
    assert len(rows) == 7 and all("gold" not in row and row["expert_weights"] for row in rows)
    alone = publish_folder(tmp_path / "alone", {"test": splits["test"]})
    mix[1] = alone
    results = train(script, mix, str(tmp_path / "out"), tmp_path / "again", "--no_do_train")
    assert not scores(results, "test") and "best_expert" not in results
    assert read_lines({"out": str(tmp_path / "again")}, "predictions/test.jsonl") == rows


def test_a_mixture_limits_each_expert_to_the_same_posts(
    tmp_path: Path, tiny_encoder: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    """Experts may read configurations whose rows stand in another order: the posts are those of the first."""
    rows = [{**row, "knowledge_text": [{"text": f"about {row['id']}"}]} for row in posts(12)]
    for config, own in (("none", rows), ("text", rows[::-1])):
        columns = ["id", "tokens", "tags"] + ["knowledge_text"] * (config == "text")
        (tmp_path / "data" / config).mkdir(parents=True)
        for split in ("train", "validation"):
            data = Dataset.from_list([{name: row[name] for name in columns} for row in own])
            data.to_parquet(tmp_path / "data" / config / f"{split}.parquet")
    configs = "".join(
        f"- config_name: {config}\n  data_files:\n"
        + "".join(f"  - {{split: {s}, path: {config}/{s}.parquet}}\n" for s in ("train", "validation"))
        for config in ("none", "text")
    )
    (tmp_path / "data" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    experts = [
        save(tmp_path, tiny_encoder, "none"),
        save_expert(tmp_path / "text", "entities", tiny_encoder("bert"), seed=1, max_length=64),
    ]
    from modeling_more.encoding import EXPERT_KNOWLEDGE
    from modeling_more.training.command_line import parse_arguments
    from modeling_more.training.mixture_posts import load_mixture_posts

    given = ["--dataset", str(tmp_path / "data"), "--retrieval", "moe", "--experts", *experts, "--gate_data", "train",
             "--no_gate_images", "--max_train_samples", "3",
             "--max_eval_samples", "2", "--cache_dir", str(tmp_path / "c")]  # fmt: skip
    found, _, _ = load_mixture_posts(ENTITIES, parse_arguments(given, ""), load, [])
    assert {split: [row["id"] for row in own] for split, own in found.items()} == {
        "train": ["post-0", "post-1", "post-2"], "validation": ["post-0", "post-1"],
    }  # fmt: skip
    for row in found["train"]:
        none, text = row[EXPERT_KNOWLEDGE]
        assert none is None and text[0]["text"] == f"about {row['id']}"


def test_predictions_refer_to_the_text_and_have_one_scheme(tmp_path: Path, tiny_encoder: Callable[[str], str]) -> None:
    """The same post in training's predictions, in predict mode and, of relations, with its pairs."""
    rows = [{"text": TEXT, "spans": [[7, 20, "PER"], [31, 37, "LOC"]]}] * 8
    file = str(write_jsonl(tmp_path / "a.jsonl", rows))
    out = {"out": str(tmp_path / "out")}
    given = ["--train_file", file, "--validation_file", file, "--test_file", file]
    train(run_ner, given, tiny_encoder("bert"), tmp_path / "out", "--learning_rate", "5e-3", "--num_train_epochs", "9",
          "--do_predict", "--predict_file", file)  # fmt: skip
    for name in ("dev", "test", "predict"):
        for row in read_lines(out, f"predictions/{name}.jsonl"):
            assert row["text"] == TEXT
            places = [(entity["char_start"], entity["char_end"], entity["type"]) for entity in row["entities"]]
            assert places == [(7, 20, "PER"), (31, 37, "LOC")]
            assert [entity["text"] for entity in row["entities"]] == ["Angela Merkel", "Berlin"]
            assert name == "predict" or row["tags"] == row["gold"]

    pair = {"text": TEXT, "head": [7, 20], "tail": [31, 37], "relation": "/a"}
    file = str(write_jsonl(tmp_path / "b.jsonl", [pair, {**pair, "relation": "None"}]))
    given = ["--train_file", file, "--validation_file", file, "--test_file", file]
    found = str(tmp_path / "out" / "predictions" / "test.jsonl")  # what run_ner.py says of the post
    train(run_re, given, tiny_encoder("bert"), tmp_path / "pairs", "--do_predict", "--predict_file", found)
    for name in ("dev", "test"):
        for row in read_lines({"out": str(tmp_path / "pairs")}, f"predictions/{name}.jsonl"):
            assert (row["text"], row["head"], row["head_chars"], row["tail_chars"]) == (
                TEXT,
                [2, 4],
                [7, 20],
                [31, 37],
            )
            assert (row["head_text"], row["tail_text"]) == ("Angela Merkel", "Berlin")
    row = read_lines({"out": str(tmp_path / "pairs")}, "predictions/predict.jsonl")[0]
    assert row["text"] == TEXT and [one["head_chars"] for one in row["relations"]] == [[7, 20], [31, 37]]


def test_named_sets_keep_text_and_hidden_labels(tmp_path: Path) -> None:
    """WikiDiverse's sentences are text; a copy of a set may hide the labels of its test split."""
    mentions = '[["Ada", "Person", 0, 3, "u"], ["Oslo", "Location", 8, 12, "u"]]'
    (tmp_path / "wiki").mkdir()
    for name in ("train", "valid", "test"):
        (tmp_path / "wiki" / f"{name}.json").write_text(f'[["Ada in  Oslo", "u.svg", "t", {mentions}]]')
    args = DataArguments(dataset="wikidiverse", data_dir=str(tmp_path / "wiki"), cache_dir=str(tmp_path / "cache"))
    splits, _, _ = load_posts(args, ENTITIES, load, ["wikidiverse"])
    assert splits["test"][0]["text"] == "Ada in  Oslo" and splits["test"][0]["offsets"][2] == [8, 12]

    (tmp_path / "own").mkdir()
    for split, tags in (("train", ["B-PER"]), ("valid", ["O"]), ("test", None)):
        write_jsonl(tmp_path / "own" / f"{split}.jsonl", [{"tokens": ["Ada"], "ner_tags": tags}])
    data = load("twitter17", "none", tmp_path / "own", tmp_path / "cache")
    assert data["test"][0]["ner_tags"] == [-1]
    pair = {"tokens": ["a", "b"], "head": [0, 1], "tail": [1, 2]}
    for split, relation in (("train", "None"), ("valid", "None"), ("test", None)):
        write_jsonl(tmp_path / "own" / f"{split}.jsonl", [pair | {"relation": relation}])
    assert load("mnre", "none", tmp_path / "own", tmp_path / "cache")["test"][0]["relation"] == -1


def test_a_set_with_half_hidden_labels_ends_the_run(tmp_path: Path, tiny_encoder: Callable[[str], str]) -> None:
    rows = tagged(4).to_list()
    rows[2]["ner_tags"] = [-1] * len(rows[2]["tokens"])
    mixed = Dataset.from_list(rows, features=tagged(1).features)
    folder = publish_folder(tmp_path / "data", {"train": tagged(8), "validation": tagged(4), "test": mixed})
    with pytest.raises(SystemExit, match="split test, row 2: no label"):
        train(run_ner, ["--dataset", folder], tiny_encoder("bert"), tmp_path / "out")


def test_empty_posts_are_in_the_output(tmp_path: Path, tiny_encoder: Callable[[str], str]) -> None:
    """With their ids, also where each post is searched for, and where all are empty."""
    expert = save_expert(tmp_path / "expert", "entities", tiny_encoder("bert"), max_length=64)
    wiki = write_jsonl(tmp_path / "wiki.jsonl", [{"id": "1", "title": "Ada", "text": "Ada sings ."}])
    for rows in ([{"id": "a", "text": ""}, {"id": "b", "text": "Ada"}, {"id": "c", "text": " \n"}], [{"text": ""}]):
        file = write_jsonl(tmp_path / "p.jsonl", rows)
        given = ["--do_predict", "--predict_file", str(file), "--knowledge", str(wiki), "--retrieval", "text"]
        train(run_ner, given, expert, tmp_path / "out")
        found = read_lines({"out": str(tmp_path / "out")}, "predictions/predict.jsonl")
        assert [row["id"] for row in found] == [row.get("id", "p-0") for row in rows]
        assert [row["entities"] for row, post in zip(found, rows, strict=True) if not post["text"].strip()] == [
            [] for post in rows if not post["text"].strip()
        ]
    (tmp_path / "p.txt").write_text("\nAda\n\nBo\n")
    train(run_ner, ["--do_predict", "--predict_file", str(tmp_path / "p.txt")], expert, tmp_path / "lines")
    assert [row["id"] for row in read_lines({"out": str(tmp_path / "lines")}, "predictions/predict.jsonl")] == [
        "p-2",
        "p-4",
    ]


def test_tables_train_and_are_predicted_for(tmp_path: Path, tiny_encoder: Callable[[str], str]) -> None:
    """The script's own way: CSV to train on, Parquet for dev, TSV to predict for."""
    rows = posts(8)
    lines = ["id,tokens,ner_tags", *(f"{r['id']},{' '.join(r['tokens'])},{' '.join(r['tags'])}" for r in rows)]
    (tmp_path / "train.csv").write_text("\n".join(lines))
    Dataset.from_list(rows).to_parquet(tmp_path / "dev.parquet")
    (tmp_path / "p.tsv").write_text("text\tid\nAda in Oslo\t7\n")
    given = ["--train_file", str(tmp_path / "train.csv"), "--validation_file", str(tmp_path / "dev.parquet")]
    given += ["--do_predict", "--predict_file", str(tmp_path / "p.tsv")]
    results = train(run_ner, given, tiny_encoder("bert"), tmp_path / "out")
    assert results["train_posts"] == 8
    [row] = read_lines({"out": str(tmp_path / "out")}, "predictions/predict.jsonl")
    assert (row["id"], row["text"], row["tokens"]) == ("7", "Ada in Oslo", ["Ada", "in", "Oslo"])
    assert json.loads((tmp_path / "out" / "holdout_ids.json").read_text()) == []


def test_sets_whose_splits_differ(tmp_path: Path) -> None:
    """A split without the column of labels hides them; one with labels of other classes is told."""

    def rows(folder: str) -> list[dict[str, Any]]:
        args = DataArguments(dataset=folder, cache_dir=str(tmp_path / "cache"))
        return load_posts(args, ENTITIES, lambda *_, **__: DatasetDict(), [])[0]["test"]

    bare = tagged(4).remove_columns(["ner_tags"])
    folder = publish_folder(tmp_path / "a", {"train": tagged(4), "test": bare})
    assert {row["ner_tags"] for row in rows(folder)} == {None}
    strings = Dataset.from_list([{"id": "1", "tokens": ["Ada"], "ner_tags": ["B-QUX"]}])
    with pytest.raises(ValueError, match=r"--dataset .* can't be loaded"):
        rows(publish_folder(tmp_path / "b", {"train": tagged(4), "test": strings}))
