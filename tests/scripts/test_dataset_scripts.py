"""The builders: where files are found, downloads, configurations, counts, and a cache that never gives stale rows."""

import functools
import re
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dataset_scripts import NAMES, RETRIEVALS, load
from dataset_scripts._archives import archive_url, find_splits
from modeling_more.data.tasks import ENTITIES
from modeling_more.training.arguments import DataArguments
from modeling_more.training.posts import load_posts

RAW = {
    "train": "IMGID:1\nAda\tB-PER\nwon\tO\n\nIMGID:2\nOslo\tB-LOC\nUnited\tI-LOC\n\nIMGID:3\nAda\tB-PER\nwon\tO",
    "valid": "IMGID:4\nAcme\tB-ORG\n:\tO\n",
    "test": "IMGID:5\nthe\tO\nGames\tB-MISC\n\nIMGID:6\nBabbage\tI-PER\n",
}
WORDS = {
    "train": [["Ada", "won"], ["Oslo", "United"], ["Ada", "won"]],
    "validation": [["Acme", ":"]],
    "test": [["the", "Games"], ["Babbage"]],
}


def archived(text: str, kind: str) -> str:
    """The form of the authors' archives: no ids, and after the words `<EOS>` and the knowledge, CRLF."""
    posts = ["\n".join(line for line in post.split("\n") if "\t" in line) for post in text.strip().split("\n\n")]
    if kind:
        posts = [f"{post}\n<EOS>\tX\n{kind}\tX\nabout\tX\n{number}\tX" for number, post in enumerate(posts)]
    return "\n\n".join(posts).replace("\n", "\r\n")


def write_raw(folder: Path, texts: dict[str, str] = RAW) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, text in texts.items():
        (folder / f"{split}.txt").write_bytes(text.encode())
    return folder


def write_zip(path: Path, kind: str, names: dict[str, str], texts: dict[str, str] = RAW) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for split, name in names.items():
            archive.writestr(name, archived(texts[split], kind))
        archive.writestr("__MACOSX/._train.txt", "nothing")
        archive.writestr("data/labels.txt", "O\nB-PER\n")
    return path


def at_depth(inner: str, dev: str = "dev", suffix: str = ".txt") -> dict[str, str]:
    return {"train": f"{inner}train{suffix}", "valid": f"{inner}{dev}{suffix}", "test": f"{inner}test{suffix}"}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, list[str]]]:
    """A folder served over HTTP as $MORE_DATA_URL, and the paths that were asked for."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            asked.append(self.path)

    running = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=running.serve_forever, daemon=True).start()
    monkeypatch.setenv("MORE_DATA_URL", f"http://127.0.0.1:{running.server_port}/sets")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield folder / "sets", asked
    running.shutdown()
    running.server_close()


def tags(dataset: Any, split: str) -> list[list[str]]:
    names = dataset[split].features["ner_tags"].feature
    return [names.int2str(row) for row in dataset[split][:]["ner_tags"]]


def test_raw_folder(tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = load("twitter17", "none", write_raw(tmp_path / "raw"), cache)
    assert {split: rows[:]["tokens"] for split, rows in dataset.items()} == WORDS
    assert tags(dataset, "test") == [["O", "B-MISC"], ["I-PER"]]
    assert dataset["train"][:]["image_id"] == dataset["train"][:]["id"] == ["1", "2", "3"]
    assert dataset["train"].features["ner_tags"].feature.names == (
        ["O", "B-PER", "I-PER", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-MISC", "I-MISC"]
    )
    assert "3 / 1 / 2 posts in train / validation / test, where Twitter-2017 has 3373 / 723 / 723" in caplog.text


@pytest.mark.parametrize(
    ("retrieval", "suffix", "kind"), [("none", "", ""), ("text", "-txt", "T"), ("image", "-img", "I")]
)
def test_archives_are_downloaded_once(
    server: tuple[Path, list[str]], cache: Path, retrieval: str, suffix: str, kind: str
) -> None:
    folder, asked = server
    for name, texts in (("twitter2017", ""), ("twitter2017-txt", "T"), ("twitter2017-img", "I")):
        write_zip(folder / f"{name}.zip", texts, at_depth(f"{name}/deep/"))
    dataset = load("twitter17", retrieval, cache_dir=cache)
    again = load("twitter17", retrieval, cache_dir=cache)
    assert len(asked) == 1 and asked[0] == f"/sets/twitter2017{suffix}.zip"
    assert {split: rows[:]["tokens"] for split, rows in again.items()} == WORDS
    assert tags(dataset, "train")[1] == ["B-LOC", "I-LOC"]
    assert dataset["validation"][:]["id"] == ["validation-0"] and dataset["validation"][:]["image_id"] == [None]
    knowledge = [name for name in dataset["train"].column_names if name.startswith("knowledge")]
    assert knowledge == ([f"knowledge_{retrieval}"] if kind else [])
    if kind:
        entry = {
            "title": "",
            "text": f"{kind} about 1",
            "score": 0,
            "scale": 0,
            "source": "archive",
            "match_start": 0,
            "match_end": 0,
        }
        assert dataset["train"][1][knowledge[0]] == [entry]


@pytest.mark.parametrize("name", ["twitter15", "twitter17", "snap", "wikidiverse"])
def test_each_set_asks_for_its_archive(server: tuple[Path, list[str]], cache: Path, name: str) -> None:
    folder, asked = server
    archive = {"twitter15": "twitter2015", "twitter17": "twitter2017", "snap": "snap", "wikidiverse": "WikiDiverseNER"}
    texts = {split: re.sub("-(ORG|MISC)", "-PER", text) for split, text in RAW.items()}  # a type of the training split
    write_zip(folder / f"{archive[name]}-txt.zip", "T", at_depth(""), texts)
    dataset = load(name, "text", cache_dir=cache)
    assert asked == [f"/sets/{archive[name]}-txt.zip"] and dataset["test"][:]["tokens"] == WORDS["test"]


@pytest.mark.parametrize(
    "names",
    [
        at_depth(""),
        at_depth("a/b/c/", "valid", ".conll"),
        at_depth("twitter2017/bio_", "val"),
        {"train": "x/train/train.txt", "valid": "x/dev/dev.txt", "test": "x/test/test.txt"},
        {"train": "x/twitter.train.conll", "valid": "x/twitter.validation.conll", "test": "x/twitter.test.conll"},
    ],
)
def test_inner_names_of_archives(tmp_path: Path, cache: Path, names: dict[str, str]) -> None:
    archive = write_zip(tmp_path / "own.zip", "T", names)
    dataset = load("twitter17", "text", archive, cache)
    assert {split: rows[:]["tokens"] for split, rows in dataset.items()} == WORDS


def test_data_dir_may_be_zip_folder_of_zip_or_unpacked(tmp_path: Path, cache: Path) -> None:
    archive = write_zip(tmp_path / "zips" / "twitter2017-txt.zip", "T", at_depth("in/"))
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(tmp_path / "unpacked")
    found = [
        load("twitter17", "text", data_dir, cache)["train"][:]
        for data_dir in (archive, tmp_path / "zips", tmp_path / "unpacked")
    ]
    assert found[0] == found[1] == found[2] and found[0]["knowledge_text"][0][0]["text"] == "T about 0"


def test_archive_without_retrieval_drops_the_knowledge(tmp_path: Path, cache: Path) -> None:
    archive = write_zip(tmp_path / "twitter2017-txt.zip", "T", at_depth(""))
    dataset = load("twitter17", "none", archive, cache)
    assert dataset["train"].column_names == ["id", "image_id", "tokens", "ner_tags"]
    assert dataset["train"][:]["tokens"] == WORDS["train"]


def test_ids_come_from_the_raw_file_where_it_is_at_hand(tmp_path: Path, cache: Path) -> None:
    write_zip(tmp_path / "sets" / "twitter2017-txt.zip", "T", at_depth("in/"))
    write_raw(tmp_path / "sets" / "twitter2017")
    beside = load("twitter17", "text", tmp_path / "sets", cache)
    assert beside["train"][:]["image_id"] == beside["train"][:]["id"] == ["1", "2", "3"]
    archive, raw = tmp_path / "sets/twitter2017-txt.zip", tmp_path / "sets/twitter2017"
    named = load("twitter17", "text", archive, cache, raw_dir=raw)
    assert named["train"][:] == beside["train"][:]
    alone = load("twitter17", "text", archive, cache)
    assert alone["train"][:]["id"] == ["train-0", "train-1", "train-2"]


def test_fourth_type_of_twitter_2015(tmp_path: Path, cache: Path) -> None:
    other = write_raw(tmp_path / "other", {split: text.replace("MISC", "OTHER") for split, text in RAW.items()})
    assert load("twitter15", "none", other, cache)["test"].features["ner_tags"].feature.names[-2:] == [
        "B-OTHER",
        "I-OTHER",
    ]
    mapped = load("twitter15", "none", other, cache, other_as_misc=True)
    assert tags(mapped, "test")[0] == ["O", "B-MISC"]
    copy = load("twitter15", "none", write_raw(tmp_path / "copy"), cache)
    assert tags(copy, "test")[0] == ["O", "B-MISC"]
    both = write_raw(tmp_path / "both", {**RAW, "train": RAW["train"] + "\nx\tB-OTHER"})
    with pytest.raises(ValueError, match="the labels hold OTHER and MISC, which are one type; other_as_misc"):
        load("twitter15", "none", both, cache)


def test_wikidiverse_takes_its_types_from_training(tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "wiki"
    folder.mkdir()
    mentions = '["Oslo", "Location", 7, 11, "u"], ["Ada", "Person", 0, 3, "u"]'
    row = f'["Ada in Oslo", "http://x.example/a.svg", "t", [{mentions}]]'
    for name in ("train_w_10cands", "valid_w_10cands", "test_w_10cands"):
        (folder / f"{name}.json").write_text(f"[{row}]")
    dataset = load("wikidiverse", "none", folder, cache)
    assert tags(dataset, "train") == [["B-Person", "O", "B-Location"]]
    (folder / "test_w_10cands.json").write_text(f"[{row.replace('Person', 'Persona')}]")
    with pytest.raises(ValueError, match="item 1: unknown label 'B-Persona'; the types are Person, Location"):
        load("wikidiverse", "none", folder, cache)


def test_the_splitter_reaches_sets_of_raw_sentences(tmp_path: Path, cache: Path) -> None:
    """What is saved with the expert as its splitter is what split its training posts."""
    row = '["#Ada in Oslo!", "", "t", [["Oslo", "Location", 8, 12, "u"]]]'
    for name in ("train_w_10cands", "valid_w_10cands", "test_w_10cands"):
        (tmp_path / f"{name}.json").write_text(f"[{row}]")
    for splitter, words in (("twitter17", "# Ada in Oslo !"), ("twitter15", "#Ada in Oslo !")):
        args = DataArguments(dataset="wikidiverse", data_dir=str(tmp_path), cache_dir=str(cache), splitter=splitter)
        splits, _, _ = load_posts(args, ENTITIES, load, NAMES)
        assert splits["test"][0]["tokens"] == words.split()


def test_cache_follows_changed_files(tmp_path: Path, cache: Path) -> None:
    folder = write_raw(tmp_path / "raw")
    assert load("twitter17", "none", folder, cache)["train"][0]["tokens"] == ["Ada", "won"]
    write_raw(folder, {"train": RAW["train"].replace("won", "ran")})
    assert load("twitter17", "none", folder, cache)["train"][0]["tokens"] == ["Ada", "ran"]
    archive = write_zip(tmp_path / "twitter2017-txt.zip", "T", at_depth(""))
    assert load("twitter17", "text", archive, cache)["train"][0]["knowledge_text"][0]["text"] == "T about 0"
    write_zip(archive, "U", at_depth(""))
    assert load("twitter17", "text", archive, cache)["train"][0]["knowledge_text"][0]["text"] == "U about 0"


def test_relative_data_dir(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, word in (("one", "won"), ("two", "ran")):
        write_raw(tmp_path / name / "raw", {**RAW, "train": RAW["train"].replace("won", word)})
        monkeypatch.chdir(tmp_path / name)
        assert load("twitter17", "none", "raw", cache)["train"][0]["tokens"] == ["Ada", word]


# --- bad input


def test_no_knowledge_in_raw_files(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ValueError, match="raw: the posts hold no knowledge; give --knowledge with the files"):
        load("twitter17", "text", write_raw(tmp_path / "raw"), cache)


def test_knowledge_of_the_other_retrieval(tmp_path: Path, cache: Path) -> None:
    archive = write_zip(tmp_path / "twitter2017-img.zip", "I", at_depth(""))
    with pytest.raises(ValueError, match="holds the knowledge of image retrieval; --retrieval image reads it"):
        load("twitter17", "text", archive, cache)


def test_missing_folder_split_or_zip(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match="gone: no such folder or zip file; --data_dir should be"):
        load("twitter17", "none", tmp_path / "gone", cache)
    folder = write_raw(tmp_path / "raw")
    (folder / "valid.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"raw: no validation split; a file dev\.txt or valid\.txt or"):
        load("twitter17", "none", folder, cache)
    with pytest.raises(ValueError, match=r"train\.txt: neither a folder nor a zip file"):
        load("twitter17", "none", folder / "train.txt", cache)
    (tmp_path / "bad.zip").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"bad\.zip: not a zip file that can be unpacked"):
        load("twitter17", "none", tmp_path / "bad.zip", cache)


def test_ambiguous_folders(tmp_path: Path, cache: Path) -> None:
    write_raw(tmp_path / "sets" / "a")
    write_raw(tmp_path / "sets" / "b")
    with pytest.raises(ValueError, match="both hold train, dev and test; give --data_dir one of them"):
        load("twitter17", "none", tmp_path / "sets", cache)
    (tmp_path / "sets" / "a" / "train.conll").write_text("a\tO\n")
    with pytest.raises(ValueError, match=r"train\.conll and train\.txt both look like the train split"):
        find_splits(tmp_path / "sets" / "a")


def test_bad_line_is_named_by_the_loader(tmp_path: Path, cache: Path) -> None:
    folder = write_raw(tmp_path / "raw", {**RAW, "test": "a\tO\nb\tB-PERSON\n"})
    with pytest.raises(
        ValueError, match=r"test\.txt, line 2: unknown label 'B-PERSON'; the types are PER, LOC, ORG, MISC"
    ):
        load("twitter17", "none", folder, cache)


def test_download_that_fails_names_address_and_data_dir(
    server: tuple[Path, list[str]], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = server
    with pytest.raises(
        ConnectionError, match=r"/sets/twitter2017\.zip \(HTTP 404 .*\); give --data_dir a folder or zip"
    ):
        load("twitter17", "none", cache_dir=cache)
    folder.mkdir()
    (folder / "twitter2017.zip").write_bytes(b"<html>please log in</html>")
    with pytest.raises(ValueError, match=r"/sets/twitter2017\.zip: what came is no zip file; give --data_dir"):
        load("twitter17", "none", cache_dir=cache)
    assert not [path for path in cache.rglob("*") if path.is_file()]
    for base in ("http://127.0.0.1:9", "no address"):
        monkeypatch.setenv("MORE_DATA_URL", base)
        with pytest.raises(ConnectionError, match=f"from {base}/twitter2017.zip .*; give --data_dir a folder or zip"):
            load("twitter17", "none", cache_dir=cache)


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MORE_DATA_URL", raising=False)
    assert archive_url("snap-txt").startswith("https://") and archive_url("snap-txt").endswith("FilePath=snap-txt.zip")
    for base in ("http://h/x", "http://h/x/"):
        monkeypatch.setenv("MORE_DATA_URL", base)
        assert archive_url("snap") == "http://h/x/snap.zip"


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="data set 'conll03' is unknown: give one of twitter15, twitter17, snap"):
        load("conll03")
    with pytest.raises(ValueError, match="retrieval 'both' is unknown: give one of none, text, image"):
        load("twitter17", "both")
    assert set(NAMES) >= {"twitter15", "twitter17", "snap", "wikidiverse", "demo"} and len(RETRIEVALS) == 3


# --- the real sets


@pytest.mark.parametrize(
    ("name", "folder", "counts", "words"),
    [
        ("twitter15", "twitter2015", [4000, 1000, 3257], [64439, 16178, 52822]),
        ("twitter17", "twitter2017", [3373, 723, 723], [53007, 11309, 11330]),
    ],
)
def test_real_sets_load_whole(
    shared_data: Path,
    cache: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    folder: str,
    counts: list[int],
    words: list[int],
) -> None:
    dataset = load(name, "none", shared_data / folder, cache)
    assert [len(dataset[split]) for split in ("train", "validation", "test")] == counts
    assert [sum(map(len, dataset[split][:]["tokens"])) for split in ("train", "validation", "test")] == words
    assert "another copy" not in caplog.text


def test_real_archive_equals_the_raw_set_row_by_row(
    shared_data: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    raw = load("twitter17", "none", shared_data / "twitter2017", cache)
    archive = load("twitter17", "text", shared_data / "twitter2017-txt", cache)
    bare = load("twitter17", "none", shared_data / "twitter2017-txt", cache)
    matched = load("twitter17", "text", shared_data, cache)
    for split in ("train", "validation", "test"):
        for column in ("tokens", "ner_tags"):
            assert archive[split][:][column] == raw[split][:][column] == bare[split][:][column]
        assert all(len(entries) == 1 and entries[0]["text"] for entries in archive[split][:]["knowledge_text"])
        assert archive[split][:]["id"] == [f"{split}-{row}" for row in range(len(raw[split]))]
        assert matched[split][:]["image_id"] == raw[split][:]["image_id"]
    assert bare["train"].column_names == raw["train"].column_names
    assert "another copy" not in caplog.text
