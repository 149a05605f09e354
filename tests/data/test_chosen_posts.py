"""Posts are chosen before anything is retrieved for them."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, Features, Image

from modeling_more.data.sources import Source
from modeling_more.data.tasks import ENTITIES, RELATIONS
from modeling_more.training.arguments import DataArguments
from modeling_more.training.posts import _searched, load_posts
from ner_runs import KNOWLEDGE, PEOPLE, posts, write_jsonl
from re_runs import pairs


def retrieved_for(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    from modeling_more.knowledge import BM25Retriever

    asked: list[str] = []
    search = BM25Retriever.search
    monkeypatch.setattr(
        BM25Retriever, "search", lambda self, queries, *a, **k: asked.extend(queries) or search(self, queries, *a, **k)
    )
    return asked


@pytest.mark.parametrize("shuffled", [False, True])
def test_knowledge_is_retrieved_for_the_posts_that_are_used(
    shuffled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few posts get what they would get among all; of shuffled knowledge the others' whose turn it would be."""
    rows = [
        {**row, "tokens": [*row["tokens"], f"n{n}"], "tags": [*row["tags"], "O"]} for n, row in enumerate(posts(20))
    ]
    file = str(write_jsonl(tmp_path / "x.jsonl", rows))
    wiki = str(write_jsonl(tmp_path / "wiki.jsonl", KNOWLEDGE))
    options: dict[str, Any] = {
        "train_file": file, "validation_file": file, "retrieval": "text", "knowledge": [wiki],
        "shuffle_knowledge": shuffled, "top_k": 2,
    }  # fmt: skip

    def load(cache: str, **more: Any) -> Any:
        given = DataArguments(**options, cache_dir=str(tmp_path / cache), **more)
        return load_posts(given, ENTITIES, DatasetDict, [])

    whole, types, _ = load("one")
    asked = retrieved_for(monkeypatch)
    few, few_types, report = load("two", max_train_samples=3, max_eval_samples=2)
    assert few == {"train": whole["train"][:3], "validation": whole["validation"][:2]} and types == few_types
    assert report["posts"] == 5 and len(set(asked)) == 3  # two of dev are posts of training
    assert any(name.split()[0] in row["knowledge_text"][0]["text"] for name in PEOPLE for row in few["train"])


def test_images_stay_beside_the_posts_that_are_used(tmp_path: Path) -> None:
    """What image retrieval sees of few posts, in their order."""
    rows = [{"id": str(n), "image_id": None, "tokens": ["a"], "ner_tags": ["O"]} for n in range(4)]
    pictures = [{"bytes": bytes([n]), "path": None} for n in range(4)]
    images = Dataset.from_dict({"image": pictures}, Features({"image": Image(decode=False)}))
    searched = _searched(Source({"test": rows}, [], {"test": images}, {"test": {"id"}}), "test", [3, 1])
    assert searched.column_names == ["id", "tokens", "image"] and searched["id"][:] == ["3", "1"]
    assert [picture["bytes"] for picture in searched["image"]] == [b"\3", b"\1"]


def test_the_pairs_of_a_file_are_chosen_before_retrieval(tmp_path: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "knowledge_text"} for row in pairs(9)]
    file = str(write_jsonl(tmp_path / "x.jsonl", rows))
    wiki = str(write_jsonl(tmp_path / "wiki.jsonl", KNOWLEDGE))
    args = DataArguments(
        train_file=file, retrieval="text", knowledge=[wiki], cache_dir=str(tmp_path / "c"), max_train_samples=4
    )
    found, _, report = load_posts(args, RELATIONS, DatasetDict, [])
    assert report["posts"] == 4 == len(found["train"]) and all("knowledge_text" in row for row in found["train"])
