"""Paths of pictures in the rows of corpora and posts: they stay in the folder that the user named."""

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from datasets import Image as ImageFeature

from dataset_scripts import corpus as own
from image_knowledge import make
from modeling_more.knowledge import ImageEncoder, KnowledgeCorpus, attach_image_knowledge
from modeling_more.knowledge.pictures import ImageError, find_image, image_file, require_images
from modeling_more.training.expert_outputs import image_features
from pictures import noise
from wikipedia_rows import read


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with one picture of its own and every way out of it."""
    folder = tmp_path / "home"
    folder.mkdir()
    noise(0).save(folder / "own.png")
    noise(1).save(tmp_path / "private.png")
    (tmp_path / "elsewhere").mkdir()
    noise(2).save(tmp_path / "elsewhere" / "p.png")
    (folder / "link.png").symlink_to(tmp_path / "private.png")
    (folder / "deep").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    return folder


def ways_out(home: Path) -> list[str]:
    private = home.parent / "private.png"
    return [str(private), "../private.png", "x/../../private.png", "link.png", "deep/p.png", "zero.png", "/dev/zero"]


def write(home: Path, images: list[Any], name: str = "k.jsonl") -> Path:
    rows = [{"id": f"Q{n}", "title": f"T{n}", "text": f"Thing {n}.", "image": image} for n, image in enumerate(images)]
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), home / name)
    else:
        (home / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return home / name


@pytest.mark.parametrize("form", ["strings in JSONL", "strings in Parquet", "structs in Parquet", "objects in JSONL"])
def test_a_corpus_takes_no_picture_from_outside(
    home: Path, tmp_path: Path, form: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Private pictures entered a published corpus; a device filled the memory, a pipe hung."""
    names = ["own.png", "pipe.png", *ways_out(home)]
    structs = [{"bytes": None, "path": name} for name in names]
    images: list[Any] = names if form.startswith("strings") else structs
    file = write(home, images, "k.jsonl" if form.endswith("JSONL") else "k.parquet")
    corpus = KnowledgeCorpus.from_files(file, tmp_path / "cache")
    assert corpus.images is not None and corpus.images["id"][:] == ["Q0"]
    assert corpus.info.unusable_images == len(names) - 1
    assert f"{len(names) - 2} outside the folder (Q2" in caplog.text and "1 missing (Q1)" in caplog.text
    assert "move it there, or give its folder" in caplog.text


def test_a_folder_that_the_user_names_is_inside(home: Path, tmp_path: Path) -> None:
    """Images of articles lie in one place, the articles in another."""
    elsewhere = tmp_path / "elsewhere"
    file = write(home, ["own.png", str(elsewhere / "p.png"), str(tmp_path / "private.png")])
    assert KnowledgeCorpus.from_files(file, tmp_path / "cache").info.images == 1
    for _ in range(2):
        corpus = KnowledgeCorpus.from_files(file, tmp_path / "cache", image_dirs=[elsewhere])
        assert corpus.images is not None and corpus.images["id"][:] == ["Q0", "Q1"]
    assert KnowledgeCorpus.from_files(file, tmp_path / "cache").info.images == 1


def test_a_picture_that_is_moved_in_is_taken(home: Path, tmp_path: Path) -> None:
    file = write(home, ["own.png", "link.png"])
    assert KnowledgeCorpus.from_files(file, tmp_path / "cache").info.images == 1
    (home / "link.png").unlink()
    noise(1).save(home / "link.png")
    assert KnowledgeCorpus.from_files(file, tmp_path / "cache").info.images == 2


@pytest.mark.usefixtures("own_cache")
def test_the_builder_of_corpora_reads_pictures_of_its_folders_only(
    home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write(home, ["own.png", *ways_out(home)])
    given = ["--data_dir", str(file), "--image_column", "image", "--output_dir"]
    assert own.run([*given, str(tmp_path / "one")]) == 0
    assert read(tmp_path / "one").info.images == 1 and "7 outside the folder (Q1" in caplog.text
    absolute = write(home, [str(tmp_path / "elsewhere" / "p.png"), str(home / "own.png"), "p.png"], "a.jsonl")
    given = ["--data_dir", str(absolute), "--image_column", "image", "--image_dir", str(tmp_path / "elsewhere")]
    assert own.run([*given, "--output_dir", str(tmp_path / "two")]) == 0
    corpus = read(tmp_path / "two")
    assert corpus.images is not None and corpus.images["id"][:] == ["Q0", "Q2"]


def test_the_images_of_posts_stay_in_their_folder(
    home: Path, tmp_path: Path, encoder: ImageEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    ids = ["own", "own.png", *ways_out(home), "deep/p", "pipe", "gone"]
    outside = len(ids) - 4
    for image_id in ids[2:]:
        assert find_image(home, image_id) is None
    with pytest.raises(ImageError, match="outside the folder .'link.png' leads out of"):
        image_file(home, "link.png")
    tokens = [[f"post{number}"] for number in range(len(ids))]
    posts = Dataset.from_dict({"tokens": tokens, "image_id": ids})
    retriever = make(tmp_path, encoder)
    attached, report = attach_image_knowledge(posts, retriever, 1, image_dir=home, cache_dir=tmp_path / "attached")
    assert (report.outside_the_folder, report.missing, report.unusable) == (outside, 2, outside + 2)
    assert [len(found) for found in attached["knowledge_image"]] == [1, 1] + [0] * (outside + 2)
    assert f"{outside} outside the folder" in report.reasons and f"{outside} outside the folder" in caplog.text
    _, usable = image_features(posts, home, encoder)
    assert usable.tolist() == [True, True] + [False] * (outside + 2)
    with pytest.raises(ValueError, match="the image of none of the 2 test posts: outside the folder"):
        require_images(home, {"test": ["../private.png", "link.png"]})


def test_a_path_in_a_row_of_posts_is_not_opened(home: Path, tmp_path: Path, encoder: ImageEncoder) -> None:
    """A data set of the Hub may hold any path of this machine where others hold bytes."""
    private = (tmp_path / "private.png").read_bytes()
    images = [{"bytes": private, "path": "gone.png"}, {"bytes": None, "path": str(tmp_path / "private.png")}]
    posts = Dataset.from_dict({"tokens": [["a"], ["b"]], "image": images}).cast_column("image", ImageFeature())
    attached, report = attach_image_knowledge(posts, make(tmp_path, encoder), 1, cache_dir=tmp_path / "attached")
    assert (report.outside_the_folder, report.unusable) == (1, 1)
    assert [len(found) for found in attached["knowledge_image"]] == [1, 0]
    assert image_features(posts, None, encoder)[1].tolist() == [True, False]
