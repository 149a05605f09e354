"""Attaching what the posts' images find: counts, caches, leaks, runs that are killed."""

import signal
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, Features, List, Value
from datasets import Image as ImageFeature

from image_knowledge import make, run, write_corpus
from modeling_more.knowledge import (
    KNOWLEDGE_FEATURE,
    ImageAttachReport,
    ImageEncoder,
    ImageRetriever,
    KnowledgeCorpus,
    attach_image_knowledge,
)
from pictures import encoded, noise


def posts(*images: Any, ids: list[str] | None = None) -> Dataset:
    """Posts with an Image column, or with image ids."""
    tokens = [["Look", "at", "this", str(number)] for number in range(len(ids or images))]
    features = {"id": Value("string"), "tokens": List(Value("string"))}
    rows: dict[str, Any] = {"id": [f"p{number}" for number in range(len(tokens))], "tokens": tokens}
    if ids is not None:
        return Dataset.from_dict({**rows, "image_id": ids}, Features({**features, "image_id": Value("string")}))
    contents = [None if image is None else {"bytes": image, "path": None} for image in images]
    return Dataset.from_dict({**rows, "image": contents}, Features({**features, "image": ImageFeature()}))


def test_attach_adds_the_column_and_counts(
    tmp_path: Path, encoder: ImageEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    retriever = make(tmp_path, encoder)
    good = [encoded(noise(number), "JPEG", quality=90) for number in range(3)]
    splits = DatasetDict(
        {
            "train": posts(good[0], None, good[1], good[1][:200], b"<html>"),
            "test": posts(good[2]),
        }
    )
    options: dict[str, Any] = {"top_k": 2, "cache_dir": tmp_path / "attached", "shard_size": 2}
    attached, report = attach_image_knowledge(splits, retriever, **options)
    counts = {"missing": 1, "truncated": 1, "not_an_image": 1}
    assert report == ImageAttachReport(posts=6, entries=6, without_knowledge=3, **counts)
    assert attached["train"].features["knowledge_image"] == KNOWLEDGE_FEATURE
    assert attached["train"].features["image"] == ImageFeature()
    found = [[entry["source"] for entry in row] for row in attached["train"]["knowledge_image"]]
    assert [row[:1] for row in found] == [["Q0"], [], ["Q1"], [], []]
    assert attached["test"][0]["knowledge_image"][0]["text"] == "Thing 2 is one."
    assert "3 post's images can't be used: 1 missing (p1); 1 truncated (p3); 1 not an image (p4)" in caplog.text
    again, report = attach_image_knowledge(splits, retriever, **options)
    assert report == ImageAttachReport(posts=6, entries=6, without_knowledge=3, cached=6, **counts)
    assert again["train"]["knowledge_image"][:] == attached["train"]["knowledge_image"][:]
    with pytest.raises(ValueError, match="have a column knowledge_image already"):
        attach_image_knowledge(attached, retriever, **options)
    with pytest.raises(ValueError, match="no column image, only id, tokens: give image_dir"):
        attach_image_knowledge(splits["test"].remove_columns("image"), retriever, **options)


def test_posts_without_images_are_refused_and_a_half_without_is_said(
    tmp_path: Path, encoder: ImageEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    """An expert "for images" that never saw one must not be trained."""
    retriever = make(tmp_path, encoder)
    options: dict[str, Any] = {"top_k": 1, "cache_dir": tmp_path / "attached"}
    good, folder = encoded(noise(0)), tmp_path / "posts"
    folder.mkdir()
    (folder / "1.png").write_bytes(good)
    (folder / "2.png").write_bytes(b"<html>404</html>")
    with pytest.raises(
        ValueError, match=r"no image of the 3 training posts can be used \(2 missing, 1 not an image\)"
    ):
        attach_image_knowledge(DatasetDict(train=posts(None, None, b"<html>"), test=posts(good)), retriever, **options)
    with pytest.raises(ValueError, match=r"no image of the 2 posts can be used \(2 missing\)"):
        attach_image_knowledge(posts(None, None), retriever, **options)
    with pytest.raises(ValueError, match="no image of the 2 posts can be used .1 missing, 1 not an image."):
        attach_image_knowledge(posts(ids=["2", "3"]), retriever, image_dir=folder, **options)
    with pytest.raises(ValueError, match="posts holds the image of none of the 2 posts"):
        attach_image_knowledge(posts(ids=["7", "8"]), retriever, image_dir=folder, **options)

    caplog.clear()
    splits = DatasetDict(
        train=posts(ids=["1", "1", "3"]), test=posts(ids=["1", "2", "3"]), validation=posts(ids=["3"])
    )
    for _ in range(2):  # told when all is cached, too
        caplog.clear()
        attach_image_knowledge(splits, retriever, image_dir=folder, **options)
        assert "2 of 3 test posts have no image that can be used (1 missing, 1 not an image)" in caplog.text
        assert "1 of 1 validation posts have no image that can be used (1 missing)" in caplog.text
        assert "train posts have no image" not in caplog.text


def test_attach_from_a_folder(tmp_path: Path, encoder: ImageEncoder) -> None:
    retriever = make(tmp_path, encoder)
    folder = tmp_path / "posts"
    folder.mkdir()
    noise(4).save(folder / "17.png")
    noise(5).save(folder / "18_06.jpg")
    noise(6).save(tmp_path / "outside.png")
    rows = posts(ids=["17", "18_06.jpg", "19", "../outside"])
    options: dict[str, Any] = {"top_k": 1, "image_dir": folder, "cache_dir": tmp_path / "attached"}
    attached, report = attach_image_knowledge(rows, retriever, **options)
    assert [[entry["source"] for entry in row] for row in attached["knowledge_image"]] == [["Q4"], ["Q5"], [], []]
    assert (report.missing, report.outside_the_folder, report.posts) == (1, 1, 4)
    noise(7).save(folder / "17.png")  # another picture under the same name
    changed, report = attach_image_knowledge(rows, retriever, **options)
    assert changed["knowledge_image"][0][0]["source"] == "Q7" and report.cached == 0
    shuffled, _ = attach_image_knowledge(rows.select([3, 1, 0, 2]), retriever, **options)
    assert shuffled["image_id"][:] != rows["image_id"][:]
    sources = {row["image_id"]: [entry["source"] for entry in row["knowledge_image"]] for row in shuffled}
    assert sources == {"17": ["Q7"], "18_06.jpg": ["Q5"], "19": [], "../outside": []}
    empty, report = attach_image_knowledge(rows.select([]), retriever, **options)
    assert report == ImageAttachReport() and empty.features["knowledge_image"] == KNOWLEDGE_FEATURE
    with pytest.raises(ValueError, match="no column image_id"):
        attach_image_knowledge(rows.remove_columns("image_id"), retriever, **options)
    with pytest.raises(FileNotFoundError, match="none of the posts' images does not exist"):
        attach_image_knowledge(rows, retriever, image_dir=tmp_path / "none")


def test_labels_change_no_entry_and_leaks_are_dropped(tmp_path: Path, encoder: ImageEncoder) -> None:
    text = "One post whose very own words stand in an article"
    leak = {"id": "L", "title": "Leak", "text": f"It says: {text}.", "image": "0.png"}
    corpus = KnowledgeCorpus.from_files(write_corpus(tmp_path / "k", 11, [leak]), tmp_path / "cache")
    retriever = ImageRetriever.from_corpus(corpus, encoder)
    image = {"bytes": encoded(noise(0)), "path": None}
    features = Features({"tokens": List(Value("string")), "image": ImageFeature(), "label": Value("int64")})
    found = []
    for label, words in ((0, text), (1, text), (0, "other words")):
        rows = {"tokens": [words.split()], "image": [image], "label": [label]}
        attached, report = attach_image_knowledge(
            Dataset.from_dict(rows, features), retriever, top_k=12, cache_dir=tmp_path / f"{label}"
        )
        found.append([entry["source"] for entry in attached[0]["knowledge_image"]])
        assert report.dropped_as_leak == (words == text)
    assert found[0] == found[1] and "L" not in found[0] and len(found[0]) == 11
    assert "L" in found[2]


ATTACHED = """
import os, signal, sys
from datasets import load_from_disk
from modeling_more.knowledge import ImageEncoder, ImageRetriever, KnowledgeCorpus, attach_image_knowledge

class Killed(ImageRetriever):
    calls = 0
    def search(self, images, top_k=10):
        Killed.calls += 1
        if Killed.calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().search(images, top_k)

tower, folder, index, cache, dataset = sys.argv[1:]
retriever = Killed(KnowledgeCorpus(folder), ImageEncoder(tower, batch_size=4), index)
attach_image_knowledge(load_from_disk(dataset), retriever, cache_dir=cache, shard_size=2)
"""


def test_a_killed_run_continues_with_the_same_result(
    tmp_path: Path, encoder: ImageEncoder, towers: dict[str, str]
) -> None:
    retriever = make(tmp_path, encoder)
    rows = posts(*(encoded(noise(number)) for number in range(9)))
    rows.save_to_disk(tmp_path / "posts")
    unbroken, _ = attach_image_knowledge(rows, retriever, cache_dir=tmp_path / "unbroken", shard_size=2)
    process = run(
        ATTACHED, towers["clip"], retriever.corpus.folder, retriever.index_dir, tmp_path / "broken", tmp_path / "posts"
    )
    _, error = process.communicate()
    assert process.returncode == -signal.SIGKILL, error
    continued, report = attach_image_knowledge(rows, retriever, cache_dir=tmp_path / "broken", shard_size=2)
    assert (report.posts, report.cached) == (9, 4)
    assert continued["knowledge_image"][:] == unbroken["knowledge_image"][:]
