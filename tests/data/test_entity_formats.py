"""Readers: every format, the odd things real files hold, and one clear sentence for every bad input."""

import json
import stat
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from modeling_more.data.archives import extract_archive
from modeling_more.data.entity_formats import (
    read_jsonl,
    read_labelled,
    read_posts,
    read_wikidiverse,
    wikidiverse_image,
)
from modeling_more.tagging import tags_to_spans


def write(folder: Path, text: str, name: str = "train.txt") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


# --- JSONL


def jsonl(folder: Path, *rows: Any) -> Path:
    return write(folder, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "train.jsonl")


def test_tokens_and_tags(tmp_path: Path) -> None:
    knowledge = [{"title": "Ada", "text": "Ada was …", "score": 2.5}]
    path = jsonl(
        tmp_path,
        {
            "id": 5,
            "image": "a.jpg",
            "tokens": ["Ada", "\u00a0"],
            "ner_tags": ["B-PER", "O"],
            "knowledge_text": knowledge,
        },
        {"tokens": ["Oslo"], "ner_tags": ["S-LOC"]},
    )
    told = {"title": "Ada", "text": "Ada was …", "score": 2.5}
    entry = {**told, "scale": 0.0, "source": "", "match_start": 0, "match_end": 0}
    assert read_labelled(path) == [
        {
            "id": "5",
            "image_id": "a.jpg",
            "tokens": ["Ada", "\u00a0"],
            "ner_tags": ["B-PER", "O"],
            "knowledge_text": [entry],
        },
        {"id": "train-1", "image_id": None, "tokens": ["Oslo"], "ner_tags": ["B-LOC"], "knowledge_text": []},
    ]


def test_text_and_spans(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "Ada (@ada_l) left New York."
    path = jsonl(
        tmp_path,
        {"text": text, "spans": [[0, 3, "PER"], {"start": 18, "end": 26, "label": "LOC"}]},
        {"text": "Nordic-wide", "spans": [{"start": 0, "end": 3, "type": "MISC"}]},
    )
    rows = read_labelled(path)
    assert rows[0]["tokens"] == ["Ada", "(", "@", "ada_l", ")", "left", "New", "York", "."]
    assert rows[0]["ner_tags"] == ["B-PER", "O", "O", "O", "O", "O", "B-LOC", "I-LOC", "O"]
    assert rows[1]["ner_tags"] == ["B-MISC", "O", "O"]
    assert "1 of 3 mentions begin or end inside a word" in caplog.text
    assert read_jsonl(path, splitter="twitter15")[1]["ner_tags"] == ["B-MISC"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "ner_tags": ["O"]}, "2 tokens but 1 labels; give one label for each token."),
        ({"tokens": ["a"], "ner_tags": ["Q-PER"]}, "unknown label 'Q-PER'"),
        ({"tokens": ["a"], "ner_tags": [0]}, 'a list of names such as "O" and "B-PER"'),
        ({"tokens": ["a"]}, 'no "ner_tags"; a row has "tokens" and "ner_tags", or "text" and "spans".'),
        ({"text": "a"}, 'no "spans"; a row has'),
        ({"words": ["a"]}, 'no "tokens"; a row has'),
        ({"tokens": [], "ner_tags": []}, '"tokens" is empty; a post has at least one word.'),
        ({"tokens": ["a", ""], "ner_tags": ["O", "O"]}, "none of them empty"),
        ({"tokens": "a b", "ner_tags": ["O", "O"]}, '"tokens" should be a list of words'),
        ({"text": "Ada", "spans": [[0, 9, "PER"]]}, "span [0, 9] is empty or outside the text of 3 characters."),
        ({"text": "Ada", "spans": [["0", 2, "PER"]]}, "a span should be [start, end, type]"),
        ({"text": "Ada", "spans": [[0, 2]]}, "a span should be [start, end, type]"),
        ({"text": " ", "spans": []}, '"text" holds no word.'),
        ({"tokens": ["a"], "ner_tags": ["O"], "knowledge_text": "Ada"}, '"knowledge_text" should be a ranked list'),
        ({"token": ["a"], "h": {}, "t": {}, "relation": "None"}, "this is relation data, use run_re.py."),
        (["a", "O"], "a list; a row is an object with"),
    ],
)
def test_bad_jsonl_is_named_with_its_line(tmp_path: Path, row: Any, message: str) -> None:
    path = jsonl(tmp_path, {"tokens": ["a"], "ner_tags": ["O"]}, row)
    with pytest.raises(ValueError) as error:
        read_labelled(path)
    assert f"{path}, line 2: " in str(error.value) and message in str(error.value)


def test_line_that_is_not_json(tmp_path: Path) -> None:
    path = write(tmp_path, '{"tokens": ["a"], "ner_tags": ["O"]}\n\n{"tokens": ["a"\n', "dev.jsonl")
    with pytest.raises(ValueError, match=r"dev\.jsonl, line 3: not JSON \(Expecting"):
        read_labelled(path)


def test_json_list_of_rows(tmp_path: Path) -> None:
    row = {"tokens": ["a"], "ner_tags": ["O"]}
    assert len(read_labelled(write(tmp_path, json.dumps([row, row], indent=1), "train.json"))) == 2
    with pytest.raises(ValueError, match=r"train\.json: the list is empty"):
        read_labelled(write(tmp_path, "[]\n", "train.json"))
    with pytest.raises(ValueError, match='item 2: no "ner_tags"'):
        read_labelled(write(tmp_path, json.dumps([row, {"tokens": ["a"]}], indent=1), "train.json"))


# --- WikiDiverse


def test_wikidiverse(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "Ada Lovelace's house in Oslo."
    mentions = [["Ada Lovelace", "Person", 0, 12, "wiki/Ada"], ["Oslo", "Location", 24, 28, "wiki/Oslo"]]
    data = [[text, "https://up.example/a/Ada.house.svg", "history", mentions], ["Nothing here", "", "news", []]]
    path = write(tmp_path, json.dumps(data), "train.json")
    rows = read_labelled(path)
    assert rows == read_wikidiverse(path)
    assert rows[0]["tokens"] == ["Ada", "Lovelace", "'", "s", "house", "in", "Oslo", "."]
    assert rows[0]["ner_tags"] == ["B-Person", "I-Person", "O", "O", "O", "O", "B-Location", "O"]
    assert rows[0]["image_id"] == wikidiverse_image("x/Ada.house.svg")
    assert rows[1]["image_id"] is None and not caplog.text
    lines = write(tmp_path, "\n".join(json.dumps(row) for row in data), "dev.json")
    assert [row["tokens"] for row in read_labelled(lines)] == [row["tokens"] for row in rows]


def test_wikidiverse_image_names() -> None:
    assert wikidiverse_image("https://up.example/a/b.JPG") == "dd3a386d7dbf44d9295a84fc49877b8e.JPG"
    assert wikidiverse_image("b.svg") == wikidiverse_image("https://up.example/b.svg")
    assert wikidiverse_image("b.svg").endswith(".png")


def test_wikidiverse_oddities_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mentions = [["York", "Location", 0, 8, "u"], ["New York", "Location", 4, 8, "u"]]
    rows = read_wikidiverse(write(tmp_path, json.dumps([["New York", "u", "t", mentions]]), "train.json"))
    assert rows[0]["ner_tags"] == ["B-Location", "I-Location"]
    assert "1 of 2 mentions overlap a longer one" in caplog.text
    assert "2 of 2 mentions are spelt otherwise" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["a", "u", "t"], "item 2: a row should be [sentence, image_url, topic"),
        (["a", "u", "t", [["a", "Person", 0]]], "item 2: a mention should be [mention, type, start, end"),
        (["a", "u", "t", [["a", "Person", 0, 4, "u"]]], "item 2: span [0, 4] is empty or outside"),
    ],
)
def test_bad_wikidiverse_is_named_with_its_row(tmp_path: Path, row: Any, message: str) -> None:
    path = write(tmp_path, json.dumps([["a", "u", "t", []], row]), "train.json")
    with pytest.raises(ValueError) as error:
        read_labelled(path)
    assert message in str(error.value)


# --- posts without labels


def test_posts_from_text_jsonl_and_conll(tmp_path: Path) -> None:
    lines = read_posts(write(tmp_path, "Ada in #Oslo\r\n\r\nBye.", "posts.txt"))
    assert [row["tokens"] for row in lines] == [["Ada", "in", "#", "Oslo"], ["Bye", "."]]
    assert [row["id"] for row in lines] == ["posts-1", "posts-3"] and lines[0]["text"] == "Ada in #Oslo"
    entry = {"title": "Oslo", "text": "A city.", "score": 1.0}
    objects = jsonl(tmp_path, {"text": "Ada in #Oslo", "id": "x"}, {"tokens": ["Ada", "."], "knowledge_text": [entry]})
    rows = read_posts(objects, splitter="twitter15")
    assert rows[0] == {
        "id": "x",
        "image_id": None,
        "tokens": ["Ada", "in", "#Oslo"],
        "text": "Ada in #Oslo",
        "offsets": [[0, 3], [4, 6], [7, 12]],
    }
    assert rows[1]["text"] == "Ada ." and rows[1]["knowledge_text"][0]["title"] == "Oslo"
    conll = read_posts(write(tmp_path, "IMGID:7\nAda\tB-PER\n.\tO\n<EOS>\tX\nk\tX\n", "posts2.txt"))
    assert conll[0]["tokens"] == ["Ada", "."] and conll[0]["id"] == "7"
    assert conll[0]["knowledge_text"][0]["text"] == "k" and "ner_tags" not in conll[0]
    for row in [*lines, *rows, *conll]:
        assert [row["text"][start:end] for start, end in row["offsets"]] == row["tokens"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("posts.txt", "", "the file is empty"),
        ("posts.jsonl", '{"text": "a"}\n{"txt": "a"}', 'line 2: no "text"; a post has "text" or "tokens".'),
        ("posts.jsonl", '{"text": "a"}\n{"text"', "line 2: not JSON"),
        ("posts.jsonl", '{"text": 5}\n', 'line 1: "text" should be a string.'),
    ],
)
def test_bad_posts_are_named_with_their_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        read_posts(write(tmp_path, text, name))
    assert message in str(error.value) and name in str(error.value)


# --- zip


def make_zip(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def test_archive_is_unpacked_whole_or_not_at_all(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"a/b/train.txt": "x\tO\n", "a/empty/": ""})
    folder = extract_archive(archive, tmp_path / "out" / "a")
    assert (folder / "a/b/train.txt").read_text() == "x\tO\n"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
    assert extract_archive(archive, folder) == folder


@pytest.mark.parametrize("name", ["../evil.txt", "a/../../evil.txt", "/evil.txt", "..\\evil.txt", "C:\\evil.txt"])
def test_archive_cannot_write_outside(tmp_path: Path, name: str) -> None:
    archive = make_zip(tmp_path / "a.zip", {"good.txt": "x", name: "evil"})
    with pytest.raises(ValueError, match="leads out of the folder"):
        extract_archive(archive, tmp_path / "out" / "a")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.zip", "out"]


def test_archive_with_link_or_too_much_is_refused(tmp_path: Path) -> None:
    linked = tmp_path / "link.zip"
    with zipfile.ZipFile(linked, "w") as archive:
        info = zipfile.ZipInfo("train.txt")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, "/etc/hostname")
    with pytest.raises(ValueError, match=r"'train\.txt' is a link"):
        extract_archive(linked, tmp_path / "out")
    bomb = make_zip(tmp_path / "bomb.zip", {"a.txt": "0" * 5000, "b.txt": "0" * 5000})
    with pytest.raises(ValueError, match="more than 8000 bytes"):
        extract_archive(bomb, tmp_path / "out", max_bytes=8000)
    with pytest.raises(ValueError, match="2 files; at most 1"):
        extract_archive(bomb, tmp_path / "out", max_files=1)
    assert not (tmp_path / "out").exists()


def test_archive_that_is_none_or_damaged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        extract_archive(tmp_path / "gone.zip", tmp_path / "out")
    with pytest.raises(ValueError, match="not a zip file that can be unpacked"):
        extract_archive(write(tmp_path, "<html>", "a.zip"), tmp_path / "out")
    damaged = make_zip(tmp_path / "b.zip", {"a.txt": "some words " * 100})
    data = bytearray(damaged.read_bytes())
    data[40] ^= 0xFF
    damaged.write_bytes(data)
    with pytest.raises(ValueError, match="not a zip file that can be unpacked"):
        extract_archive(damaged, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the real sets: the tables of their README


COUNTS = {
    # sentences, tokens, entities B, {type: of these}, entities as seqeval reads them
    "twitter2015/train": (4000, 64439, 6166, {"PER": 2217, "LOC": 2091, "ORG": 927, "OTHER": 931}, 6352),
    "twitter2015/valid": (1000, 16178, 1541, {"PER": 552, "LOC": 522, "ORG": 247, "OTHER": 220}, 1594),
    "twitter2015/test": (3257, 52822, 5072, {"PER": 1816, "LOC": 1697, "ORG": 839, "OTHER": 720}, 5207),
    "twitter2017/train": (3373, 53007, 6049, {"PER": 2943, "LOC": 731, "ORG": 1674, "MISC": 701}, 6049),
    "twitter2017/valid": (723, 11309, 1324, {"PER": 626, "LOC": 173, "ORG": 375, "MISC": 150}, 1324),
    "twitter2017/test": (723, 11330, 1351, {"PER": 621, "LOC": 178, "ORG": 395, "MISC": 157}, 1351),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_of_the_real_sets(shared_data: Path, name: str) -> None:
    rows = read_labelled(shared_data / f"{name}.txt")
    tags = [row["ner_tags"] for row in rows]
    begun = Counter(tag[2:] for row in tags for tag in row if tag.startswith("B-"))
    lenient = sum(len(tags_to_spans(row)) for row in tags)
    assert (len(rows), sum(map(len, tags)), begun.total(), dict(begun), lenient) == COUNTS[name]
    assert sum(len(tags_to_spans(row, strict=True)) for row in tags) == begun.total()
    assert len({row["id"] for row in rows}) == len(rows)


def test_no_break_space_is_a_word_of_twitter_2015(shared_data: Path) -> None:
    row = next(row for row in read_labelled(shared_data / "twitter2015/valid.txt") if row["image_id"] == "73309")
    assert "\u00a0" in row["tokens"]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_knowledge_of_the_processed_copy(shared_data: Path, split: str) -> None:
    rows = read_labelled(shared_data / f"twitter2017-txt/{split}.txt", id_prefix=split)
    raw = read_labelled(shared_data / f"twitter2017/{split}.txt")
    assert [(row["tokens"], row["ner_tags"]) for row in rows] == [(row["tokens"], row["ner_tags"]) for row in raw]
    words = [len(entry["text"].split(" ")) for row in rows for entry in row["knowledge_text"]]
    mean, longest = {"train": (93.5, 172), "valid": (93.2, 166), "test": (92.0, 159)}[split]
    assert len(words) == len(rows) and max(words) == longest
    assert sum(words) / len(words) == pytest.approx(mean, abs=0.05)
    assert rows[-1]["id"] == f"{split}-{len(rows) - 1}"


def test_relation_data_is_refused(shared_data: Path) -> None:
    with pytest.raises(ValueError, match=r"test\.txt, line 1: this is relation data, use run_re\.py"):
        read_labelled(shared_data / "mnre/test.txt")
