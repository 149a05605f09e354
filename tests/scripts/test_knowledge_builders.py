"""The builders of knowledge corpora, on rows in the schemas of their sources; runs that are killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, Features, Image, Sequence, Value
from PIL import Image as Pictures

from dataset_scripts import _knowledge, jsonl, wikipedia_images, wikipedia_text
from dataset_scripts._knowledge import Plan, write_shards
from dataset_scripts.wikipedia_text import in_copy
from hub_server import NOW, LocalHub
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus

ROOT = Path(__file__).resolve().parents[2]
WIKI: list[dict[str, Any]] = [
    {"id": "12", "url": "u", "title": "Oslo", "text": "Oslo is a city. It lies in Norway.\n\nHistory\n\nIt is old."},
    {"id": "25", "url": "u", "title": "Empty", "text": " \n"},
    {"id": "39", "url": "u", "title": None, "text": "No title."},
    {"id": "40", "url": "u", "title": "None", "text": None},
    {"id": "41", "url": "u", "title": "Ada", "text": "Ada wrote programs. She won."},
]
SLOT = {
    "language": "string",
    "page_title": "string",
    "page_url": "string",
    "context_page_description": "string",
    "context_section_description": "string",
    "is_main_image": "bool",
}
WIT = Features(
    {
        "image": Image(),
        "image_url": Value("string"),
        "embedding": Sequence(Value("float64")),
        "caption_attribution_description": Value("string"),
        "wit_features": Sequence({name: Value(kind) for name, kind in SLOT.items()}),
    }
)


def picture(colour: str, size: tuple[int, int] = (40, 30)) -> bytes:
    stream = BytesIO()
    Pictures.new("RGB", size, colour).save(stream, "PNG")
    return stream.getvalue()


def page(
    language: str | None, title: str | None, lead: str | None, main: bool | None = None, **more: Any
) -> list[Any]:
    url = more.get("url", f"https://{language}.wikipedia.org/wiki/{title}" if title else None)
    return [language, title, url, lead, None, main]


def wit_row(content: bytes | None, name: str | None, *pages: list[Any]) -> dict[str, Any]:
    lists: list[Any] = list(zip(*pages, strict=True)) if pages else [[] for _ in SLOT]
    return {
        "image": None if content is None else {"bytes": content, "path": None},
        "image_url": name and f"https://upload.wikimedia.org/{name}",
        "embedding": [0.5] * 4,
        "caption_attribution_description": None,
        "wit_features": {key: list(values) for key, values in zip(SLOT, lists, strict=True)},
    }


WIT_ROWS = [
    wit_row(picture("red"), "a.png", page("de", "Rot", "Rot ist."), page("en", "Red_colour", "Red is.", True)),
    wit_row(picture("blue"), "b.png", page("en", "Sea", "The sea is blue.", False), page("en", "Sky", "The sky is.")),
    wit_row(picture("black"), "c.png", page("fr", "Noir", "Noir est.")),
    wit_row(
        picture("green"), "d.png", page("en", "Sea", "The sea is blue.", True), page("en", "Sea", "The sea is blue.")
    ),
    wit_row(picture("white"), "e.png", page("en", "Snow", None), page("en", None, "Nameless."), page(None, "X", "Y")),
    wit_row(None, "f.png", page("en", "Gone", "It is gone.")),
    wit_row(b"no picture", None, page("en", "Broken", "It is broken.", url=None)),
    wit_row(picture("gray"), "g.png"),
]


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def wiki(tmp_path: Path) -> Path:
    folder = tmp_path / "wiki"
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(WIKI[:3]), folder / "train-00000-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(WIKI[3:]), folder / "train-00001-of-00002.parquet")
    return folder


@pytest.fixture
def wit(tmp_path: Path) -> Path:
    folder = tmp_path / "wit"
    folder.mkdir()
    for number, rows in enumerate((WIT_ROWS[:3], WIT_ROWS[3:])):
        Dataset.from_list(rows, WIT).to_parquet(str(folder / f"train-{number}.parquet"))
    return folder


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORE_CACHE", str(tmp_path / "more"))


def read(folder: Path) -> KnowledgeCorpus:
    return KnowledgeCorpus.from_pretrained(folder)


# ---------------------------------------------------------------- text


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


# ---------------------------------------------------------------- images


def shard_rows(data_dir: Path, tmp_path: Path, *more: str) -> tuple[list[dict[str, Any]], dict[str, int]]:
    made = _knowledge.parser("wikipedia_images", "")
    _knowledge.add_image_options(made)
    made.add_argument("--data_dir")
    made.add_argument("--main_images", action="store_true")
    made.add_argument("--max_side", type=int)
    given = made.parse_args(["--data_dir", str(data_dir), "--output_dir", "-", *more])
    files, counts = write_shards(wikipedia_images.plan(given), tmp_path / "shards")
    return [row for file in files for row in pq.read_table(file).to_pylist()], dict(counts)


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


# ---------------------------------------------------------------- your own


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
    assert jsonl.run([*arguments, str(tmp_path / "out")]) == 0
    corpus = read(tmp_path / "out")
    assert corpus.paragraphs["id"][:] == ["7", "c"] and corpus.paragraphs["title"][:] == ["Red", "Bare"]
    assert corpus.images is not None and corpus.images["id"][:] == ["7"] and corpus.images["value"][:] == ["Red is."]
    assert corpus.info.unusable_images == 1
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Colours." in card and "license: cc0-1.0" in card and "| without image | 1 |" in card
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "gone.png").write_bytes(picture("blue"))
    assert jsonl.run([*arguments, str(tmp_path / "out2"), "--image_dir", str(elsewhere)]) == 0
    found = read(tmp_path / "out2").images
    assert found is not None and found["id"][:] == ["b"]


def test_flags(tmp_path: Path, shared_data: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--data_dir", str(shared_data / "images" / "flags.jsonl"), "--output_dir", str(out)]
    assert jsonl.run([*arguments, "--id_column", "code", "--image_column", "file", "--max_articles", "40"]) == 0
    corpus = read(out)
    assert corpus.images is not None and len(corpus.images) == 40
    entry = BM25Retriever.from_corpus(corpus).search(["landlocked Principality in the Pyrenees"], 1)[0][0]
    assert (entry["title"], entry["source"]) == ("Andorra", "AD")


# ---------------------------------------------------------------- killed, wrong, published


def numbered(tmp_path: Path, count: int = 60) -> Path:
    folder = tmp_path / "numbered"
    folder.mkdir(exist_ok=True)
    for part in range(3):
        rows = [
            {"id": str(row), "url": "", "title": f"Title {row}" if row % 7 else "", "text": f"Number {row} is here."}
            for row in range(part * count // 3, (part + 1) * count // 3)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"part-{part}.parquet", row_group_size=4)
    return folder


def text_plan(data_dir: Path) -> Plan:
    given = _knowledge.parser("wikipedia_text", "").parse_args(["--output_dir", "-"])
    given.data_dir = str(data_dir)
    return wikipedia_text.plan(given)


def test_a_killed_run_continues_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = numbered(tmp_path)
    whole, whole_counts = write_shards(text_plan(folder), tmp_path / "whole", size=9)
    script = f"""
import os, signal
from pathlib import Path
from dataset_scripts import _knowledge
from tests.test_knowledge_builders import text_plan
plan = text_plan(Path({str(folder)!r}))
convert, seen = plan.convert, []
def killed(row, counts):
    seen.append(row)
    if len(seen) == 35:
        os.kill(os.getpid(), signal.SIGKILL)
    return convert(row, counts)
plan.convert = killed
_knowledge.write_shards(plan, Path({str(tmp_path / "broken")!r}), size=9)
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, capture_output=True, timeout=300
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    plan = text_plan(folder)
    converted: list[str] = []
    convert = plan.convert
    plan.convert = lambda row, counts: converted.append(row["id"]) or convert(row, counts)  # type: ignore[func-returns-value]
    files, counts = write_shards(plan, tmp_path / "broken", size=9)
    assert len(converted) == 60 - 32, "three shards of nine articles, made of 32 rows, are kept"
    assert counts == whole_counts and counts["articles"] == 51 and counts["without id or title"] == 9
    assert [file.read_bytes() for file in files] == [file.read_bytes() for file in whole]
    assert {file.name for file in files[0].parent.iterdir()} == {"progress.json", *(file.name for file in files)}
    converted.clear()
    plan.source = text_plan(folder).source
    assert write_shards(plan, tmp_path / "broken", size=9)[1] == counts and not converted


def test_a_text_that_stands_in_a_finished_shard_is_not_repeated(tmp_path: Path, wit: Path) -> None:
    given = ["--data_dir", str(wit)]
    expected = shard_rows(wit, tmp_path)[0]

    class Stop(Exception):
        pass

    made = _knowledge.parser("wikipedia_images", "")
    _knowledge.add_image_options(made)
    for option in ("--data_dir", "--main_images", "--max_side"):
        made.add_argument(option)
    plan = wikipedia_images.plan(made.parse_args([*given, "--output_dir", "-"]))
    convert, calls = plan.convert, []

    def stopping(row: Any, counts: Any) -> Any:
        calls.append(row)
        if len(calls) == 4:
            raise Stop
        return convert(row, counts)

    plan.convert = stopping
    with pytest.raises(Stop):
        write_shards(plan, tmp_path / "broken", size=1)
    again = wikipedia_images.plan(made.parse_args([*given, "--output_dir", "-"]))
    files, _ = write_shards(again, tmp_path / "broken", size=1)
    assert [row for file in files for row in pq.read_table(file).to_pylist()] == expected


def test_changed_sources_and_options_make_new_shards(tmp_path: Path) -> None:
    folder = numbered(tmp_path)
    first = text_plan(folder).digest
    assert text_plan(folder).digest == first
    os.utime(folder / "part-1.parquet", ns=(1, 1))
    assert text_plan(folder).digest != first
    limited = [
        write_shards(text_plan(folder), tmp_path / "limit", limit, size=9)[1]["articles"] for limit in (1, 9, 10)
    ]
    assert limited == [1, 9, 10]


def test_own_articles_without_ids_are_numbered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"title": name, "text": f"{name} is."} for name in ("A", "B")]
    files = [write_jsonl(tmp_path / f"{name}.jsonl", rows) for name in ("one", "two")]
    arguments = ["--data_dir", *map(str, files), "--output_dir"]
    assert jsonl.run([*arguments, str(tmp_path / "out")]) == 0
    assert read(tmp_path / "out").paragraphs["id"][:] == [f"article-{number}" for number in (1, 2, 3, 4)]
    assert f"{files[0]}, line 1: no id: all articles are numbered; --id_column names another column" in caplog.text
    write_jsonl(files[1], [{"id": "7", **rows[0]}])
    caplog.clear()
    assert jsonl.run([*arguments, str(tmp_path / "mixed")]) == 1
    assert "two.jsonl, line 1: an id, while the first article has none" in caplog.text
    assert jsonl.run([*arguments, str(tmp_path / "named"), "--id_column", "code"]) == 1
    assert "one.jsonl, line 1: no column code, only title, text; --id_column names" in caplog.text
    write_jsonl(files[0], [{"id": "", **rows[0]}, {"id": "7", **rows[1]}])
    assert jsonl.run([*arguments, str(tmp_path / "blank"), "--id_column", "id"]) == 1
    assert "one.jsonl, line 1: the column id is empty" in caplog.text


def test_own_articles_of_one_id_are_told_and_none_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An article with two images is one article; two articles of one id are two, and that is said."""
    for name in ("red", "blue"):
        (tmp_path / f"{name}.png").write_bytes(picture(name))
    red = {"id": "1", "title": "Red", "text": "Red is.", "image": "red.png"}
    source = write_jsonl(tmp_path / "rows.jsonl", [red, {**red, "image": "blue.png"}])
    given = ["--data_dir", str(source), "--image_column", "image", "--output_dir"]
    assert jsonl.run([*given, str(tmp_path / "one")]) == 0
    assert read(tmp_path / "one").paragraphs["value"][:] == ["Red is."] and "earlier" not in caplog.text
    write_jsonl(source, [red, {**red, "title": "Blue", "text": "Blue is.", "image": "blue.png"}])
    assert jsonl.run([*given, str(tmp_path / "two")]) == 0
    assert read(tmp_path / "two").paragraphs["value"][:] == ["Red is.", "Blue is."]
    assert "1 of 2 knowledge articles have the id of an earlier one" in caplog.text


def test_a_corpus_of_images_without_any_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = {"id": "1", "title": "A", "text": "B is.", "image": "a.png"}
    source = write_jsonl(tmp_path / "rows.jsonl", [row, {**row, "id": "2", "image": "b.png"}, {**row, "id": "3"}])
    given = ["--data_dir", str(source), "--image_column", "image", "--output_dir", str(tmp_path / "out")]
    (tmp_path / "elsewhere").mkdir()
    assert jsonl.run([*given, "--image_dir", str(tmp_path / "elsewhere")]) == 1
    assert "jsonl: none of the 3 images of the articles can be used" in caplog.text
    assert not (tmp_path / "out").exists()
    (tmp_path / "b.png").write_bytes(picture("red"))
    caplog.clear()
    assert jsonl.run(given) == 0
    assert "2 of 3 images of the articles can't be used" in caplog.text


def test_bad_input_ends_in_one_sentence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = ["--output_dir", str(tmp_path / "out")]
    rows = write_jsonl(tmp_path / "rows.jsonl", [{"id": "1", "name": "A", "text": "B."}])
    nested = write_jsonl(tmp_path / "nested.jsonl", [{"id": "1", "title": "A", "text": ["B."]}])
    empty = write_jsonl(tmp_path / "empty.jsonl", [{"id": "1", "title": "A", "text": ""}])
    (tmp_path / "bad.jsonl").write_text('{"id": 1}\n{"id":')
    (tmp_path / "rows.csv").write_text("id\n")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("dear")
    cases: list[tuple[Any, list[str], str]] = [
        (wikipedia_text, ["--data_dir", str(tmp_path / "gone")], "gone: no such file or folder"),
        (wikipedia_text, ["--data_dir", str(tmp_path / "taken")], "taken: holds no Parquet or JSON Lines file"),
        (wikipedia_images, ["--data_dir", str(rows), "--max_articles", "0"], "--max_articles must be at least 1"),
        (jsonl, ["--data_dir", str(tmp_path / "rows.csv")], "rows.csv: not a .jsonl or .jsonl.gz file"),
        (jsonl, ["--data_dir", str(rows)], "rows.jsonl, line 1: no column title, only id, name, text"),
        (jsonl, ["--data_dir", str(nested)], "nested.jsonl, line 1: the column text holds a list, not a text"),
        (jsonl, ["--data_dir", str(tmp_path / "bad.jsonl"), "--title_column", "id"], "bad.jsonl, line 2: not JSON"),
        (jsonl, ["--data_dir", str(empty)], "holds no text"),
        (jsonl, ["--data_dir", str(rows), "--output_dir", str(tmp_path / "taken")], "holds something that is no know"),
    ]
    for script, arguments, message in cases:
        caplog.clear()
        assert script.run([*out, *arguments]) == 1, message
        assert message in caplog.text and not (tmp_path / "out").exists()
    assert (tmp_path / "taken" / "letter.txt").exists()


HUB = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi
from dataset_scripts import wikipedia_text
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus

copy, out = sys.argv[1:]
api = HfApi()
api.create_repo("wikimedia/wikipedia", repo_type="dataset")
api.upload_folder(repo_id="wikimedia/wikipedia", repo_type="dataset", folder_path=copy)
arguments = ["--date", "20240101", "--language", "nl", "--output_dir", out, "--push_to_hub", "org/wiki"]
assert wikipedia_text.run(arguments) == 0
retrievers = [BM25Retriever.from_corpus(KnowledgeCorpus.from_pretrained(where)) for where in (out, "org/wiki")]
found = [each.search(["Oslo", "programs"], 3) for each in retrievers]
assert found[0] == found[1]
assert wikipedia_text.run(["--language", "xx", "--output_dir", out + "-none"]) == 1
print(json.dumps(found[0]))
"""


def test_streamed_from_the_hub_and_pushed(tmp_path: Path, wiki: Path, hub: LocalHub) -> None:
    copy = tmp_path / "copy"
    (copy / "20240101.nl").mkdir(parents=True)
    for file in wiki.iterdir():
        (copy / "20240101.nl" / file.name).write_bytes(file.read_bytes())
    (copy / "20240101.fy").mkdir()
    (copy / "20240101.fy" / "train.parquet").write_bytes(b"another language")
    (copy / "wikipedia.py").write_text("raise SystemExit")  # an old script beside the files must not matter
    script = [sys.executable, "-c", HUB, str(copy), str(tmp_path / "out")]
    done = subprocess.run(script, env=hub.env, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert [entries[0]["source"] for entries in found] == ["nlwiki:12", "nlwiki:41"]
    assert "wikimedia/wikipedia holds no Parquet files of 20231101.xx" in done.stderr
    card = hub.files("org/wiki", "dataset")["README.md"].decode()
    assert "license: cc-by-sa-4.0" in card and "20240101" in card


IMAGES = """
import sys
import torch
from huggingface_hub import HfApi
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection
from dataset_scripts import wikipedia_images
from modeling_more.knowledge import ImageEncoder, ImageRetriever, KnowledgeCorpus
from modeling_more.knowledge import image as image_module

copy, out, tower = sys.argv[1:]
torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
config = CLIPVisionConfig(**sizes, image_size=32, patch_size=8, projection_dim=8)
CLIPVisionModelWithProjection(config).save_pretrained(tower)
square = {"height": 32, "width": 32}
CLIPImageProcessorPil(size=square, crop_size=square).save_pretrained(tower)
api = HfApi()
api.create_repo("wikimedia/wit_base", repo_type="dataset")
api.upload_folder(repo_id="wikimedia/wit_base", repo_type="dataset", folder_path=copy)
arguments = ["--output_dir", out, "--push_to_hub", "org/pictures"]
assert wikipedia_images.run([*arguments, "--image_index", "HNSW8"]) == 1  # of which tower?
assert wikipedia_images.run([*arguments, "--image_model", tower, "--image_index", "HNSW8"]) == 0
image_module.embed_in_shards = None  # the index came with the corpus
corpus = KnowledgeCorpus.from_pretrained("org/pictures")
retriever = ImageRetriever.from_corpus(corpus, ImageEncoder(tower))
assert retriever.factory == "HNSW8" and "snapshots" in str(retriever.index_dir)
(found,) = retriever.search([corpus.images[0]["image"]], 1)
print(found[0]["title"])
"""


def test_images_streamed_from_the_hub_are_pushed_with_their_index(tmp_path: Path, wit: Path, hub: LocalHub) -> None:
    script = [sys.executable, "-c", IMAGES, str(wit), str(tmp_path / "out"), str(tmp_path / "tower")]
    done = subprocess.run(script, env=hub.env, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1] == "Red colour"
    assert "--image_index needs --image_model" in done.stderr
    assert "enwiki:Broken can't be used" in done.stderr
    files = hub.files("org/pictures", "dataset")
    assert any(name.startswith("faiss/") and name.endswith("index.faiss") for name in files)
    assert read(tmp_path / "out").images["title"][:] == ["Red colour", "Sea", "Sky", "Sea"]
    assert NOW[:10] in files["README.md"].decode()  # the day on which the source last changed
