"""The readers of single files as targets of the fuzzer, with seeds that are all invented."""

import gzip
import io
import shutil
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import ner_runs
import re_runs
from fuzz_verdict import Target, WrongResult, as_json, told_well
from modeling_more.data.archives import extract_archive
from modeling_more.data.entity_formats import read_labelled, read_posts
from modeling_more.data.relation_formats import read_pairs, read_relations
from modeling_more.knowledge.articles import read_articles
from modeling_more.knowledge.captions import read_captions
from modeling_more.knowledge.entities import read_predictions
from modeling_more.knowledge.pictures import open_image
from pictures import encoded, noise

Reader = Callable[[Path], Any]
POSTS, PAIRS = ner_runs.posts(3), re_runs.pairs(3)
CONLL = "".join(f"{t}\t{tag}\n" for t, tag in zip(POSTS[0]["tokens"], POSTS[0]["tags"], strict=True))
WIKIDIVERSE = [
    [
        "Rivera met Ada in Oslo",
        "https://up/a.svg",
        "news",
        [["Rivera", "PER", 0, 6, "u"], ["Oslo", "LOC", 18, 22, "u"]],
    ],
    ["It snows", None, "news", []],
]
ARTICLE = {
    "id": "a",
    "title": "Oslo",
    "text": "Oslo is a city.\nIt lies in Norway.",
    "lead": "A city.",
    "image": "a.png",
}
PIXELS = 1_000_000  # that a fuzzed picture may have


def readers(**given: Iterable[Reader]) -> Callable[[bytes, Path], None]:
    """Return a run that writes the bytes under each name (`_` for a dot) and calls the readers with it."""

    def run(data: bytes, folder: Path) -> None:
        for name, functions in given.items():
            file = folder / name.replace("_", ".")
            file.write_bytes(data)
            for function in functions:
                with told_well(file.name):
                    function(file)

    return run


def _articles(file: Path) -> None:
    for article in read_articles([file], images=False):
        article.title.encode(), article.text.encode()


def _rows_are_whole(read: Callable[[Path], list[dict[str, Any]]], length_of: str = "") -> Reader:
    """Return a reader that also checks that every row's words, labels and offsets fit each other."""

    def check(file: Path) -> None:
        for row in read(file):
            tokens, text = row["tokens"], row.get("text")
            if length_of and row.get(length_of) is not None and len(row[length_of]) != len(tokens):
                raise WrongResult(f"{len(tokens)} words, {len(row[length_of])} labels")
            if text is not None and [text[a:b] for a, b in row["offsets"]] != tokens:
                raise WrongResult("the words do not stand at their offsets")
            spans = [row[name] for name in ("head", "tail") if name in row] + row.get("entities", [])
            if any(not 0 <= start < end <= len(tokens) for start, end in spans):
                raise WrongResult(f"a span of {spans} is outside of {len(tokens)} words")
            "".join(tokens).encode()

    return check


ENTITIES, UNLABELLED = _rows_are_whole(read_labelled, "ner_tags"), _rows_are_whole(read_posts)
RELATIONS, UNPAIRED = _rows_are_whole(read_relations), _rows_are_whole(read_pairs)


def _lines(rows: Iterable[Any]) -> bytes:
    return b"".join(as_json(row) + b"\n" for row in rows)


def _table(rows: list[dict[str, Any]], kind: str) -> bytes:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), stream, compression=kind)
    return stream.getvalue()


def _spans(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": "t",
        "text": " ".join(row["tokens"]),
        "spans": [{"start": 0, "end": 3, "type": "PER"}],
        "image_id": "a.jpg",
    }


def _zip(*files: tuple[str, bytes], kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return stream.getvalue()


def _unpack(data: bytes, folder: Path) -> None:
    archive, out = folder / "posts.zip", folder / "unpacked"
    archive.write_bytes(data)
    with told_well("posts.zip", "unpacked"):
        extract_archive(archive, out, max_bytes=1 << 20, max_files=50)
    if any(path.is_symlink() for path in out.rglob("*")):
        raise WrongResult("a link was unpacked")
    shutil.rmtree(out, ignore_errors=True)
    if beside := {path.name for path in folder.iterdir()} - {"posts.zip"}:
        shutil.rmtree(folder)
        folder.mkdir()
        raise WrongResult(f"something was left beside the folder: {beside}")


def _open_picture(data: bytes, folder: Path) -> None:
    with told_well():  # the caller names the picture
        image = open_image(data, max_pixels=PIXELS)
        if image.mode != "RGB" or not 0 < image.width * image.height <= PIXELS:
            raise WrongResult(f"an image {image.mode} of {image.size}")


def _pictures() -> Mapping[str, bytes]:
    small = noise(1, (12, 9))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [noise(2, (12, 9))]}
    return {
        "jpeg": encoded(small, "JPEG", exif=exif), "progressive": encoded(small, "JPEG", progressive=True),
        "png": encoded(small), "palette": encoded(small.convert("P"), transparency=3),
        "png16": encoded(Image.new("I;16", (5, 4), 900)), "gif": encoded(small, "GIF", **frames),
        "webp": encoded(small, "WEBP"), "moving": encoded(small, "WEBP", **frames), "bmp": encoded(small, "BMP"),
        "tiff": encoded(small, "TIFF"), "ppm": encoded(small, "PPM"), "ico": encoded(noise(1, (16, 16)), "ICO"),
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(1) print\n",
    }  # fmt: skip


FILES: dict[str, Target] = {
    "conll": Target(
        readers(posts_conll=[ENTITIES, UNLABELLED], posts_txt=[UNLABELLED, RELATIONS]),
        lambda: {
            "two": CONLL.encode() + b"\n" + CONLL.encode(),
            "archive": f"IMGID:7\n{CONLL}<EOS>\tX\nLake\tX\n".encode(),
            "index": b"1 Ada _ B-PER\n2 sings _ O\n",
            "conllu": b"# sent_id = 1\n1\tAda\t_\n\n# text = x\n1\tOslo\t_\n",
            "bioes": b"-DOCSTART- -X- O O\n\nAda NNP I-NP S-PER\n", "marked": re_runs.marked_lines(PAIRS[0]).encode(),
            "crlf": CONLL.replace("\n", "\r\n").encode(), "mark": b"\xef\xbb\xbfAda\tB-PER\n",
        },
        ("IMGID:", "\tB-PER\n", "\tI-PER\n", "\tE-LOC\n", "\tO\n", "\tX\n", "<EOS>\tX\n", "-DOCSTART-", "# id ",
         "\n\n",
         "<E>\t/per/x\n", "</E>\tO\n", "<O>\tO\n", "</O>\tO\n", "\xa0", "\r\n", "\u2028", "\ufeff"),
        18,
    ),
    "mnre": Target(
        readers(pairs_txt=[RELATIONS, UNPAIRED]),
        lambda: {
            "lines": "\n".join(map(re_runs.mnre_line, PAIRS)).encode(),
            "marked": "\n".join(map(re_runs.marked_lines, PAIRS)).encode(),
            "jsonl": _lines(PAIRS),
            "text": as_json({"text": "Ada in Oslo", "h": [0, 3], "t": [7, 11], "relation": "x"}),
        },
        ("{'token': [", "'h': {", "'pos': [", "'t': {", "'img_id': ", "'relation': ", "None", "-1", "[[[[", "1e999",
         "1j", "b'", "\\ud800", "lambda: ", "__import__"),
        14,
    ),
    "jsonl": Target(
        readers(posts_jsonl=[ENTITIES, UNLABELLED, RELATIONS, UNPAIRED]),
        lambda: {
            "tags": _lines(POSTS), "spans": _lines(map(_spans, POSTS)), "pairs": _lines(PAIRS),
            "list": as_json([_spans(POSTS[0])]), "hidden": as_json({"tokens": ["a"], "ner_tags": [-1]}),
            "found": as_json({"text": "Ada in Oslo", "entities": [{"start": 0, "end": 3}, [7, 11]]}),
            "knowledge": as_json({**_spans(POSTS[0]), "knowledge_text": [{"title": "t", "text": "x", "score": 1.5}]}),
        },
        ('"tokens": [', '"ner_tags": [', '"spans": [', '"text": "', '"knowledge_text": [', '"score": ', '"offsets": [',
         '"match_start": ', "NaN", "Infinity", "1e999", "-1", "null", "true", "\\ud800", "[[", "{}", '"head": [',
         '"relation": ', '"entities": [', '"image": ', "9" * 40),
        18,
    ),
    "wikidiverse": Target(
        readers(posts_json=[ENTITIES, UNLABELLED]),
        lambda: {"list": as_json(WIKIDIVERSE), "lines": _lines(WIKIDIVERSE), "row": as_json(WIKIDIVERSE[0])},
        ('[["', '", "', "null", "[]", ', "PER", 0, 6, ', "NaN", "1e999", "\\ud800", "-1", "1.0", "true"),
        14,
    ),
    "tables": Target(
        readers(posts_csv=[ENTITIES, UNLABELLED], posts_tsv=[RELATIONS, UNLABELLED]),
        lambda: {
            "csv": b'id,text,spans\n1,"Ada, x","[[0, 3, ""PER""]]"\n',
            "words": b"tokens,ner_tags\nAda sings,B-PER O\n",
            "tsv": b'tokens\thead\ttail\trelation\n["Ada", "Oslo"]\t[0, 1]\t[1, 2]\tx\n',
            "semicolon": b"text;id\nAda;1\n",
            "python": b"tokens\tner_tags\n['Ada', 'in']\t['B-PER', 'O']\n",
        },
        ("tokens", "ner_tags", "text", "spans", "head", "tail", "relation", '""', '"\n', "\t", "[[", "-1", "\r",
         "{'a': "),
        10,
    ),
    "parquet": Target(
        readers(posts_parquet=[ENTITIES, UNLABELLED, RELATIONS]),
        lambda: {
            "tags": _table(POSTS, "none"), "snappy": _table([_spans(row) for row in POSTS], "snappy"),
            "pairs": _table([{k: v for k, v in row.items() if k != "knowledge_text"} for row in PAIRS], "none"),
        },
        ("PAR1",), 3, 8192,
    ),
    "captions": Target(
        readers(captions_txt=[read_captions], captions_jsonl=[read_captions, lambda file: read_predictions([file])]),
        lambda: {
            "lines": b"1.jpg :a dog\n2.jpg :a dog dog dog dog dog dog\n",
            "jsonl": _lines([{"image_id": "1", "caption": "a"}]),
            "found": _lines([{"id": "1", "entities": [{"text": "Ada"}], "tokens": ["Ada"]}]),
        },
        (" :", ".jpg", '"image_id": "', '"caption": "', '"entities": [', '"text": ', "\\ud800", "NaN", "[[[["),
        6,
    ),
    "articles": Target(
        readers(wiki_jsonl=[_articles], wiki_jsonl_gz=[_articles], wiki_parquet=[_articles]),
        lambda: {
            "jsonl": _lines([ARTICLE, {**ARTICLE, "id": 2}]), "gz": gzip.compress(_lines([ARTICLE]), mtime=0),
            "parquet": _table([{"title": "Oslo", "text": "A city."}], "none"),
        },
        ('"title": "', '"text": "', '"id": ', '"image": {"bytes": ', '"path": ', "\\ud800", "null", "NaN", "[[[["),
        6,
    ),
    "archive": Target(
        _unpack,
        lambda: {
            "two": _zip(("a/train.txt", b"Ada\tO\n" * 9), ("b.txt", b"x")),
            "stored": _zip(("a", b"x"), kind=zipfile.ZIP_STORED),
            "folder": _zip(("a/", b""), ("a/b", b"x")), "bz2": _zip(("a", b"x" * 99), kind=zipfile.ZIP_BZIP2),
            "lzma": _zip(("a", b"x" * 99), kind=zipfile.ZIP_LZMA), "out": _zip(("../a", b"x")),
        },
        ("PK\x01\x02", "PK\x03\x04", "PK\x05\x06", "../", "/", "C:", "\\"), 5,
    ),
    "images": Target(_open_picture, _pictures, ("IHDR", "IDAT", "Exif\0\0", "RIFF", "ANIM", "GIF89a"), 4, 4096),
}  # fmt: skip
