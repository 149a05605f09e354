"""Retrieval of texts beyond BM25 over the post's words: captions, predicted entities, and how options choose."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, DatasetDict

from dataset_scripts import _publish
from knowledge_rows import LAKE_ARTICLES, bm25_scores
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus
from modeling_more.knowledge.captions import degenerate_captions, read_captions
from modeling_more.knowledge.dense import DenseRetriever, FusedRetriever, SentenceEncoder
from modeling_more.knowledge.entities import EntityRetriever, entity_query, read_predictions
from modeling_more.training.arguments import DataArguments
from modeling_more.training.retrieval import add_knowledge
from ner_runs import write_jsonl


@pytest.fixture
def corpus(tmp_path: Path) -> KnowledgeCorpus:
    return KnowledgeCorpus.from_files(write_jsonl(tmp_path / "wiki.jsonl", LAKE_ARTICLES), tmp_path / "cache")


@pytest.fixture(scope="module")
def encoder(tiny_encoder: Callable[[str], str]) -> SentenceEncoder:
    return SentenceEncoder(tiny_encoder("bert"), batch_size=3)


# ---------------------------------------------------------------- captions


def test_captions_of_both_forms(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = tmp_path / "blip.txt"
    lines.write_text(
        "\ufeffa_1.jpg :a man : in\u2028snow\n\nb.png :  a  dog \r\nc :\nd.x :no no, No no no no\n", encoding="utf-8"
    )
    expected = {"a_1": "a man : in snow", "b": "a dog", "d.x": "no no, No no no no"}
    assert read_captions(lines) == expected
    assert "1 images have an empty caption" in caplog.text and "1 repeat one or two words" in caplog.text
    rows = [{"image_id": key, "caption": value} for key, value in expected.items()]
    assert read_captions(write_jsonl(tmp_path / "c.jsonl", [*rows, rows[0]])) == expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("c.txt", "a.jpg :x\na man in the snow\n", "line 2: not of the form"),
        ("c.txt", "a.jpg :x\na.png :y\n", "line 2: image a has another caption"),
        ("c.txt", " :x\n", "line 1: the caption has no image id"),
        ("c.txt", "\n", "holds no caption"),
        ("c.txt", b"a :\xff\n", "line 1: not UTF-8"),
        ("c.jsonl", '{"image_id": "a"}\n', 'line 1: "image_id" and "caption"'),
        ("c.jsonl", "a.jpg :x\n", "line 1: not JSON"),
        ("c.jsonl", "[1]\n", "line 1: not a JSON object"),
    ],
)
def test_bad_captions_name_file_and_line(tmp_path: Path, name: str, content: str | bytes, expected: str) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=f"{re.escape(str(file))}.*{expected}"):
        read_captions(file)
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        read_captions(tmp_path / "nowhere.txt")


def test_captions_of_real_images(shared_data: Path) -> None:
    captions = read_captions(shared_data / "captions" / "BLIP2_17.txt")
    assert len(captions) == 4819
    assert degenerate_captions(captions) == (30, 358)


# ---------------------------------------------------------------- dense


# ---------------------------------------------------------------- both


# ---------------------------------------------------------------- predicted entities


@pytest.mark.parametrize("entities", [[], ["Oslo"], ["Lindau", "the town Oslo"], ["Nobody"]])
def test_titles_searched_with_entities_equal_brute_force(corpus: KnowledgeCorpus, entities: list[str]) -> None:
    retriever = EntityRetriever.from_corpus(corpus)
    text = "a harbour town in Oslo"
    titles = bm25_scores([article["title"] for article in LAKE_ARTICLES], " ".join(entities))
    by_id = {article["id"]: score for article, score in zip(LAKE_ARTICLES, titles, strict=True)}
    rows = [corpus[row] for row in range(len(corpus))]
    scores = bm25_scores([row["key"] for row in rows], text) + 2.0 * np.array([by_id[row["id"]] for row in rows])
    best: dict[tuple[str, str], float] = {}
    for row, score in zip(rows, scores.tolist(), strict=True):
        best[row["title"], row["value"]] = max(score, best.get((row["title"], row["value"]), 0.0))
    expected = sorted((score for score in best.values() if score > 0), reverse=True)
    (entries,) = retriever.search([entity_query(text, entities)], top_k=100)
    assert [entry["score"] for entry in entries] == pytest.approx(expected, rel=1e-5)
    assert all(entry["score"] == pytest.approx(best[entry["title"], entry["text"]], rel=1e-5) for entry in entries)
    if not entities:
        assert retriever.search([text]) == BM25Retriever.from_corpus(corpus).search([text])


def test_an_article_is_found_by_its_title_alone(corpus: KnowledgeCorpus) -> None:
    (entries,) = EntityRetriever.from_corpus(corpus).search([entity_query("zzz", ["Bay"])])
    assert [entry["text"] for entry in entries] == ["Water.", "More water. Cold water."]
    assert EntityRetriever.from_corpus(corpus).fingerprint != BM25Retriever.from_corpus(corpus).fingerprint
    assert entity_query("a\x1fb", ["c\x1fd"]).count("\x1f") == 1


def test_titles_without_a_word(tmp_path: Path) -> None:
    rows = [{"id": "1", "title": "…", "text": "Oslo is a city."}]
    corpus = KnowledgeCorpus.from_files(write_jsonl(tmp_path / "w.jsonl", rows), tmp_path / "cache")
    assert len(EntityRetriever.from_corpus(corpus).search([entity_query("Oslo", ["Oslo"])])[0]) == 1


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"entities": []}], 'line 1: no "id"'),
        ([{"id": "1", "entities": ["Oslo"]}], 'line 1: "entities" must be'),
        ([{"id": "1", "entities": []}, {"id": "1", "entities": [{"text": "Oslo"}]}], "line 2: post 1 has other"),
    ],
)
def test_bad_predictions_name_file_and_line(tmp_path: Path, rows: list[dict[str, Any]], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        read_predictions([write_jsonl(tmp_path / "p.jsonl", rows)])
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        read_predictions([tmp_path / "nowhere.jsonl"])


# ---------------------------------------------------------------- the index


def test_scores_of_the_index_equal_those_of_bm25s(corpus: KnowledgeCorpus) -> None:
    import bm25s

    retriever = BM25Retriever.from_corpus(corpus)
    ids = [retriever.word_ids(key) for key in corpus.keys()]
    other = bm25s.BM25(k1=1.2, b=0.75, method="lucene")
    other.index((ids, retriever.vocabulary), create_empty_token=False, show_progress=False)
    for name in ("data", "indices", "indptr"):
        assert np.allclose(retriever.index.scores[name], other.scores[name], rtol=1e-6, atol=0), name


# ---------------------------------------------------------------- the options


def posts() -> dict[str, Dataset]:
    def rows(*texts: str, first: int) -> Dataset:
        return Dataset.from_list(
            [
                {"id": f"p{number}", "image_id": f"i{number}.jpg" if number else None, "tokens": text.split()}
                for number, text in enumerate(texts, first)
            ]
        )

    return {"train": rows("Oslo today", "phones", first=0), "test": rows("a town", first=2)}


def arguments(tmp_path: Path, **options: Any) -> DataArguments:
    given: dict[str, Any] = {
        "retrieval": "text", "knowledge": [str(write_jsonl(tmp_path / "wiki.jsonl", LAKE_ARTICLES))], "top_k": 3,
        "cache_dir": str(tmp_path / "cache"),
    }  # fmt: skip
    return DataArguments(**(given | options))


def test_captions_as_queries(tmp_path: Path, corpus: KnowledgeCorpus) -> None:
    captions = write_jsonl(tmp_path / "c.jsonl", [{"image_id": "i1.png", "caption": "the sea"}])
    splits, report = add_knowledge(arguments(tmp_path, query="caption", captions=str(captions)), posts())
    assert (report["posts"], report["posts_without_caption"], report["captions"]) == (3, 2, 1)
    expected = BM25Retriever.from_corpus(corpus).search(["the sea"], 3)[0]
    assert [e["text"] for e in splits["train"]["knowledge_text"][1]] == [e["text"] for e in expected]
    assert splits["train"]["knowledge_text"][0] == splits["test"]["knowledge_text"][0] == []
    assert report["without_knowledge"] == 2


def test_entities_as_queries(tmp_path: Path, corpus: KnowledgeCorpus) -> None:
    rows = [{"id": "p0", "tokens": ["Oslo", "today"], "entities": [{"text": "Oslo", "type": "LOC"}]}]
    file = write_jsonl(tmp_path / "p.jsonl", [*rows, {"id": "p2", "entities": []}])
    splits, report = add_knowledge(arguments(tmp_path, query="entities", entities=[str(file)]), posts())
    assert (report["posts_without_predictions"], report["predicted_entities"]) == (1, 1)
    expected = EntityRetriever.from_corpus(corpus).search([entity_query("Oslo today", ["Oslo"]), "phones"], 3)
    assert [[e["text"] for e in entries] for entries in splits["train"]["knowledge_text"]] == [
        [e["text"] for e in entries] for entries in expected
    ]
    foreign = write_jsonl(tmp_path / "f.jsonl", [{"id": "p2", "tokens": ["other"], "entities": []}])
    with pytest.raises(ValueError, match="f.jsonl, line 1: these are not the words of test post p2"):
        add_knowledge(arguments(tmp_path, query="entities", entities=[str(foreign)]), posts())
    half = write_jsonl(tmp_path / "half.jsonl", rows)  # training would read other knowledge than the test
    with pytest.raises(ValueError, match="has predictions for none of the 1 test posts"):
        add_knowledge(arguments(tmp_path, query="entities", entities=[str(half)]), posts())


@pytest.mark.parametrize("retriever", ["dense", "both"])
def test_dense_and_both(retriever: str, tmp_path: Path, corpus: KnowledgeCorpus, encoder: SentenceEncoder) -> None:
    options = {"retriever": retriever, "text_model": encoder.name}
    splits, report = add_knowledge(arguments(tmp_path, **options), posts())
    dense = DenseRetriever.from_corpus(corpus, SentenceEncoder(encoder.name))
    engine = dense if retriever == "dense" else FusedRetriever([BM25Retriever.from_corpus(corpus), dense])
    assert report["retriever"] == retriever and report["entries"] == 9
    for entry, expected in zip(splits["test"]["knowledge_text"][0], engine.search(["a town"], 3)[0], strict=True):
        assert (entry["text"], entry["match_start"]) == (expected["text"], expected["match_start"])
    _, again = add_knowledge(arguments(tmp_path, **options), posts())
    assert again["cached"] == 3


def test_titles_in_the_keys(tmp_path: Path) -> None:
    splits, _ = add_knowledge(arguments(tmp_path, title_in_key=True), {"test": posts()["train"].select([0])})
    titles = [entry["title"] for entry in splits["test"]["knowledge_text"][0]]
    plain, _ = add_knowledge(arguments(tmp_path), {"test": posts()["train"].select([0])})
    assert titles != [entry["title"] for entry in plain["test"]["knowledge_text"][0]]
    KnowledgeCorpus.from_files(tmp_path / "wiki.jsonl", tmp_path / "cache").save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="saved with keys without the title"):
        add_knowledge(arguments(tmp_path, title_in_key=True, knowledge=[str(tmp_path / "saved")]), posts())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"query": "caption"}, "--query caption needs --captions FILE"),
        ({"query": "entities"}, "nothing is trained here that could predict them: give --entities FILE"),
        ({"captions": "c.jsonl"}, "--captions is read with --query caption only"),
        ({"entities": ["p.jsonl"], "query": "words"}, "--entities is read with --query entities only"),
        ({"query": "caption", "captions": "{tmp}/nowhere.txt"}, "nowhere.txt does not exist"),
        ({"query": "caption", "captions": "{tmp}/strange.jsonl"}, "no caption for any of the 3 posts"),
        ({"query": "entities", "entities": ["{tmp}/strange.jsonl"]}, 'no "id"'),
        ({"query": "entities", "entities": ["p.jsonl"], "retriever": "both"}, "use --retriever bm25, not both"),
        ({"query": "caption", "captions": "c.jsonl", "knowledge": []}, "--query is for searching texts"),
        ({"retriever": "dense", "retrieval": "image"}, "--retriever is for searching texts"),
        ({"title_in_key": True, "knowledge": []}, "--title_in_key is for searching texts"),
        ({"retriever": "dense", "text_model": "{tmp}/nomodel"}, "nomodel can't be loaded"),
        ({"knowledge": []}, "posts have no column knowledge_text"),
        ({"knowledge": ["milvus:x.db"], "retriever": "both"}, "--retriever is for corpora that are searched here"),
        ({"knowledge": ["milvus:x.db", "wiki.jsonl"]}, "a Milvus database is searched alone"),
    ],
)
def test_options_that_can_not_be_end_with_one_sentence(tmp_path: Path, options: dict[str, Any], expected: str) -> None:
    write_jsonl(tmp_path / "strange.jsonl", [{"image_id": "else", "caption": "a dog"}])

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(one) for one in value]
        return value.format(tmp=tmp_path) if isinstance(value, str) else value

    with pytest.raises((ValueError, FileNotFoundError)) as error:
        add_knowledge(arguments(tmp_path, **{name: filled(value) for name, value in options.items()}), posts())
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_knowledge_in_milvus(tmp_path: Path, corpus: KnowledgeCorpus) -> None:
    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    from modeling_more.knowledge.milvus import MilvusTextRetriever

    spec = f"milvus:{tmp_path / 'more.db'}"
    MilvusTextRetriever.from_corpus(corpus, spec)
    splits, report = add_knowledge(arguments(tmp_path, knowledge=[spec]), posts())
    expected, _ = add_knowledge(arguments(tmp_path), posts())
    for split in splits:
        for ours, theirs in zip(splits[split]["knowledge_text"], expected[split]["knowledge_text"], strict=True):
            assert {(e["title"], e["text"]) for e in ours} == {(e["title"], e["text"]) for e in theirs}
    assert report["posts"] == 3 and report["entries"] > 0


@pytest.fixture(scope="module")
def tiny_tower(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a random CLIP image tower and its processor."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 16, "num_hidden_layers": 2}
    config = CLIPVisionConfig(**sizes, num_attention_heads=4, image_size=32, patch_size=8)
    folder = tmp_path_factory.mktemp("tower")
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return str(folder)


def test_posts_find_knowledge_by_their_images(tmp_path: Path, tiny_tower: str) -> None:
    from PIL import Image

    rows, images = [], tmp_path / "pictures"
    images.mkdir()
    for number, color in enumerate([(200, 30, 30), (30, 200, 30), (30, 30, 200)]):
        picture = Image.new("RGB", (48, 48), color)
        picture.paste((255, 255, 255), (4 + 10 * number, 4, 20 + 10 * number, 40))
        picture.save(tmp_path / f"{number}.png")
        picture.save(images / f"i{number}.jpg")
        rows.append({"id": f"e{number}", "title": f"T{number}", "text": f"Text {number}.", "image": f"{number}.png"})
    options = {"retrieval": "image", "image_model": tiny_tower, "image_dir": str(images), "top_k": 1}
    file = write_jsonl(tmp_path / "flags.jsonl", rows)
    splits, report = add_knowledge(arguments(tmp_path, knowledge=[str(file)], **options), posts())
    found = [[e["title"] for e in entries] for split in splits.values() for entries in split["knowledge_image"]]
    assert found == [[], ["T1"], ["T2"]]  # the first post has no image id
    assert report["posts"] == 3 and report["without_knowledge"] == 1

    pytest.importorskip("pymilvus")
    pytest.importorskip("milvus_lite")
    from modeling_more.knowledge.image import ImageEncoder
    from modeling_more.knowledge.milvus import MilvusImageRetriever

    spec = f"milvus:{tmp_path / 'more.db'}"
    corpus = KnowledgeCorpus.from_files(file, tmp_path / "cache")
    MilvusImageRetriever.from_corpus(corpus, ImageEncoder(tiny_tower), spec)
    there, _ = add_knowledge(arguments(tmp_path, knowledge=[spec], **options), posts())
    again = [[e["title"] for e in entries] for split in there.values() for entries in split["knowledge_image"]]
    assert again == found
    search = _publish.Search([spec], image_model=tiny_tower, image_dir=str(images), top_k=1)
    published, told = _publish._by_image(DatasetDict(posts()), search, tmp_path / "cache")
    assert "By image" in told and "3 images" in told
    assert [[e["title"] for e in row] for split in published.values() for row in split["knowledge_image"]] == found


def test_posts_without_the_column_that_is_looked_up(tmp_path: Path) -> None:
    captions = write_jsonl(tmp_path / "c.jsonl", [{"image_id": "i1", "caption": "the sea"}])
    bare = {"test": posts()["test"].remove_columns(["id", "image_id"])}
    with pytest.raises(ValueError, match="test posts have no column image_id"):
        add_knowledge(arguments(tmp_path, query="caption", captions=str(captions)), bare)
    file = write_jsonl(tmp_path / "p.jsonl", [{"id": "p2", "entities": []}])
    with pytest.raises(ValueError, match="test posts have no column id"):
        add_knowledge(arguments(tmp_path, query="entities", entities=[str(file)]), bare)
