"""Rows in the schemas of Wikipedia and WIT, for the tests of the builders of knowledge corpora."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image, Sequence, Value
from PIL import Image as Pictures

from dataset_scripts import _knowledge, wikipedia_images, wikipedia_text
from dataset_scripts._knowledge import Plan, write_shards
from modeling_more.knowledge import KnowledgeCorpus

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


def read(folder: Path) -> KnowledgeCorpus:
    return KnowledgeCorpus.from_pretrained(folder)


def shard_rows(data_dir: Path, tmp_path: Path, *more: str) -> tuple[list[dict[str, Any]], dict[str, int]]:
    made = _knowledge.parser("wikipedia_images", "")
    _knowledge.add_image_options(made)
    made.add_argument("--data_dir")
    made.add_argument("--main_images", action="store_true")
    made.add_argument("--max_side", type=int)
    given = made.parse_args(["--data_dir", str(data_dir), "--output_dir", "-", *more])
    files, counts = write_shards(wikipedia_images.plan(given), tmp_path / "shards")
    return [row for file in files for row in pq.read_table(file).to_pylist()], dict(counts)


def save_wiki(folder: Path) -> Path:
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(WIKI[:3]), folder / "train-00000-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(WIKI[3:]), folder / "train-00001-of-00002.parquet")
    return folder


def save_wit(folder: Path) -> Path:
    folder.mkdir()
    for number, rows in enumerate((WIT_ROWS[:3], WIT_ROWS[3:])):
        Dataset.from_list(rows, WIT).to_parquet(str(folder / f"train-{number}.parquet"))
    return folder


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
