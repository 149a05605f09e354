"""The builders of knowledge corpora, on rows in the schemas of their sources."""

import shutil
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from PIL import Image as Pictures

from dataset_scripts import corpus as own
from dataset_scripts import wikipedia_images, wikipedia_text
from dataset_scripts.wikipedia_text import in_copy
from modeling_more.knowledge import BM25Retriever
from wikipedia_rows import WIKI, WIT, WIT_ROWS, picture, read, shard_rows, write_jsonl

pytestmark = pytest.mark.usefixtures("own_cache")


def test_wikipedia_text_from_a_local_copy(tmp_path: Path, wiki: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--data_dir", str(wiki), "--date", "20231101", "--language", "en", "--output_dir", str(out)]
    assert wikipedia_text.run(arguments) == 0
    corpus = read(out)
    assert corpus.paragraphs["title"][:] == ["Oslo", "Oslo", "Oslo", "Ada"]
    assert corpus.paragraphs["id"][:] == ["enwiki:12"] * 3 + ["enwiki:41"]
    assert BM25Retriever.from_corpus(corpus).search(["who won"], 1)[0][0]["text"] == "Ada wrote programs. She won."
    card = (out / "README.md").read_text()
    assert "license: cc-by-sa-4.0" in card and "20231101" in card and "language `en`" in card
    assert "| without id or title | 1 |" in card and "| without text | 2 |" in card and "| articles | 2 |" in card
    assert str(tmp_path) not in card and "wikipedia_text.py --data_dir wiki --date 20231101" in card
    assert wikipedia_text.run(arguments) == 1  # never over what is there
    again = [*arguments, "--overwrite_output_dir", "--max_articles", "1", "--title_in_key"]
    assert wikipedia_text.run([*again, "--date", "20220301", "--language", "de"]) == 0
    assert read(out)[0]["key"] == "Oslo Oslo is a city." and read(out).info.language == "de"
    assert read(out)[0]["id"] == "dewiki:12" and "license: cc-by-sa-3.0" in (out / "README.md").read_text()


def test_wikipedia_text_from_json_lines(tmp_path: Path, wiki: Path) -> None:
    file = write_jsonl(tmp_path / "copy" / "part.jsonl", WIKI)
    for name, source in (("parquet", wiki), ("jsonl", file)):
        assert wikipedia_text.run(["--data_dir", str(source), "--output_dir", str(tmp_path / name)]) == 0
    assert read(tmp_path / "jsonl").fingerprint == read(tmp_path / "parquet").fingerprint
    assert "not stated" in (tmp_path / "jsonl" / "README.md").read_text()  # no date was given


def test_a_copy_with_several_dumps_is_read_for_one(tmp_path: Path, wiki: Path) -> None:
    copy = tmp_path / "copy"
    for name in ("20231101.de", "20231101.en", "20240101.de"):
        shutil.copytree(wiki, copy / name)
    assert in_copy(str(copy), None, "en") == (copy / "20231101.en", "20231101")
    assert in_copy(str(copy), "20240101", "de") == (copy / "20240101.de", "20240101")
    assert in_copy(str(wiki), None, "de") == (wiki, None)
    for date, language in ((None, "de"), ("20240101", "en"), (None, "fr")):
        with pytest.raises(ValueError, match=r"holds 20231101\.de, 20231101\.en, 20240101\.de; --date and --language"):
            in_copy(str(copy), date, language)
    arguments = ["--data_dir", str(copy), "--language", "en", "--output_dir", str(tmp_path / "out")]
    assert wikipedia_text.run(arguments) == 0 and read(tmp_path / "out").info.articles == 2
    assert "20231101" in (tmp_path / "out" / "README.md").read_text()
    assert wikipedia_text.run([*arguments[:2], "--language", "fr", "--output_dir", str(tmp_path / "fr")]) == 1


def test_pages_of_parallel_lists() -> None:
    assert list(wikipedia_images.pages(None)) == [] == list(wikipedia_images.pages({"language": None}))
    lists = {"language": ["en", "de"], "page_title": ["A"], "is_main_image": None}
    assert list(wikipedia_images.pages(lists)) == [
        {"language": "en", "page_title": "A"},
        {"language": "de", "page_title": None},
    ]
    assert list(wikipedia_images.pages([{"language": "en"}, None])) == [{"language": "en"}]


def test_articles_of_an_image_in_the_wanted_language(tmp_path: Path, wit: Path) -> None:
    rows, counts = shard_rows(wit, tmp_path)
    assert [(row["title"], row["lead"], row["text"]) for row in rows] == [
        ("Red colour", "Red is.", "Red is."),
        ("Sea", "The sea is blue.", "The sea is blue."),
        ("Sky", "The sky is.", "The sky is."),
        ("Sea", "The sea is blue.", ""),  # the second image of the article: its text is there already
        ("Broken", "It is broken.", "It is broken."),
    ]
    assert rows[0]["id"] == "https://en.wikipedia.org/wiki/Red_colour" and rows[4]["id"] == "enwiki:Broken"
    assert rows[0]["image"] == {"bytes": picture("red"), "path": "a.png"}
    assert counts == {
        "rows read": 8,
        "in other languages only": 2,
        "pages without title or lead text": 2,
        "without image": 1,
        "articles": 5,
    }
    german, _ = shard_rows(wit, tmp_path, "--language", "de")
    assert [row["title"] for row in german] == ["Rot"]
    main, counts = shard_rows(wit, tmp_path, "--main_images")
    assert [row["title"] for row in main] == ["Red colour", "Sea"] and counts["main image of no article"] == 3


def test_images_are_made_smaller(tmp_path: Path, wit: Path) -> None:
    rows, counts = shard_rows(wit, tmp_path, "--max_side", "10")
    sizes = [Pictures.open(BytesIO(row["image"]["bytes"])).size for row in rows]
    assert sizes == [(13, 10)] * 4 and counts["image not an image"] == 1


def test_wikipedia_images_as_a_corpus(tmp_path: Path, wit: Path) -> None:
    out = tmp_path / "out"
    assert wikipedia_images.run(["--data_dir", str(wit), "--date", "2021-09", "--output_dir", str(out)]) == 0
    corpus = read(out)
    assert corpus.images is not None
    assert corpus.images["title"][:] == ["Red colour", "Sea", "Sky", "Sea"]
    assert corpus.images["value"][3] == "The sea is blue." and corpus.images[3]["image"].size == (40, 30)
    assert corpus.info.unusable_images == 1
    assert corpus.paragraphs["title"][:].count("Sea") == 1
    card = (out / "README.md").read_text()
    assert "license: cc-by-sa-4.0" in card and "2021-09" in card
    assert "a face fills by more than a tenth" in card and "6.5 million images" in card


def test_the_embedding_is_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "wit"
    folder.mkdir()
    table = Dataset.from_list(WIT_ROWS[:1], WIT).data.table
    broken = table.set_column(table.schema.get_field_index("embedding"), "embedding", pa.array(["no vector"]))
    pq.write_table(broken.replace_schema_metadata(None), folder / "train.parquet")
    assert len(shard_rows(folder, tmp_path)[0]) == 1


def test_columns_are_mapped(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"code": 7, "name": "Red", "about": "Red is.", "file": "red.png", "types": ["a"]},
        {"code": "b", "name": "Gone", "about": None, "file": "gone.png"},
        {"code": "c", "name": "Bare", "about": "No picture.", "file": None, "types": "mixed"},
    ]
    (tmp_path / "red.png").write_bytes(picture("red"))
    file = write_jsonl(tmp_path / "own.jsonl", rows)
    mapped = ["--id_column", "code", "--title_column", "name", "--text_column", "about", "--image_column", "file"]
    arguments = ["--data_dir", str(file), *mapped, "--license", "cc0-1.0", "--description", "Colours.", "--output_dir"]
    assert own.run([*arguments, str(tmp_path / "out")]) == 0
    corpus = read(tmp_path / "out")
    assert corpus.paragraphs["id"][:] == ["7", "c"] and corpus.paragraphs["title"][:] == ["Red", "Bare"]
    assert corpus.images is not None and corpus.images["id"][:] == ["7"] and corpus.images["value"][:] == ["Red is."]
    assert corpus.info.unusable_images == 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Colours." in card and "license: cc0-1.0" in card and "| without image | 1 |" in card
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "gone.png").write_bytes(picture("blue"))
    assert own.run([*arguments, str(tmp_path / "out2"), "--image_dir", str(elsewhere)]) == 0
    found = read(tmp_path / "out2").images
    assert found is not None and found["id"][:] == ["b"]


def test_flags(tmp_path: Path, shared_data: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--data_dir", str(shared_data / "images" / "flags.jsonl"), "--output_dir", str(out)]
    assert own.run([*arguments, "--id_column", "code", "--image_column", "file", "--max_articles", "40"]) == 0
    corpus = read(out)
    assert corpus.images is not None and len(corpus.images) == 40
    entry = BM25Retriever.from_corpus(corpus).search(["landlocked Principality in the Pyrenees"], 1)[0][0]
    assert (entry["title"], entry["source"]) == ("Andorra", "AD")
