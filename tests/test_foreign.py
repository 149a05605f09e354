"""Files that others made: what is refused before it is read, and in which words."""

import json
import os
from pathlib import Path

import pytest

from modeling_more.files import write_manifest
from modeling_more.foreign import check_manifest, read_json, read_object, require_regular, resolve_inside


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is no JSON"),
        (b'{"a": ', "is no JSON"),
        (b"\xff\xfe", "is not UTF-8: byte 0"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN is no number"),
        (b"[-Infinity]", "-Infinity is no number"),
        (b"1" * 5000, "digits"),
        (b" " * 2001, "has 2001 bytes, at most 2000 are read"),
    ],
)
def test_bad_json_is_one_sentence_that_names_the_file(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(file, max_bytes=2000 if content.startswith(b" ") else 10**6)
    assert str(file) in str(caught.value) and len(str(caught.value)) < 300


def test_objects_have_the_entries_that_are_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('﻿{"epoch": 3, "score": 0.5, "yes": true}', encoding="utf-8")
    assert read_object(file, epoch=int, score=(int, float), yes=bool)["epoch"] == 3
    for kinds, message in (
        ({"missing": int}, "lacks the entry 'missing'"),
        ({"yes": int}, "'yes' is True, it must be of type int"),
        ({"epoch": str}, "'epoch' is 3, it must be of type str"),
    ):
        with pytest.raises(ValueError, match=message):
            read_object(file, **kinds)
    file.write_text("[1]")
    with pytest.raises(ValueError, match="holds no JSON object but a list"):
        read_object(file)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match="not a file"):
            require_regular(path)
    with pytest.raises(FileNotFoundError):
        require_regular(tmp_path / "none")


def test_names_stay_inside_their_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "deep").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (home / "out").symlink_to(tmp_path / "secret")
    (home / "up").symlink_to("..")
    (home / "within").symlink_to("deep")
    for name in ("/etc/passwd", "../secret", "deep/../../secret", "..\\secret", "C:\\x", "\\\\host\\x", "out"):
        with pytest.raises(ValueError, match="leads out of"):
            resolve_inside(home, name)
    for name in ("up/secret", "", "a\0b", "x" * 90 + "/../../y"):
        with pytest.raises(ValueError, match="leads out of"):
            resolve_inside(home, name)
    for name in ("a.jpg", "deep/a.jpg", "within/a.jpg", "..a.jpg"):
        assert resolve_inside(home, name) == home / name


def test_a_manifest_tells_a_file_that_is_cut_changed_or_missing(tmp_path: Path) -> None:
    check_manifest(tmp_path)  # a folder without one is let through
    (tmp_path / "deep").mkdir()
    for name in ("a", "deep/b"):
        (tmp_path / name).write_text("content")
    write_manifest(tmp_path, ["a", "deep/b"])
    check_manifest(tmp_path)
    for change, message in (("contenT", "SHA-256"), ("cut", "3 bytes, 7 were saved"), (None, "lacks deep/b")):
        (tmp_path / "deep" / "b").unlink()
        if change is not None:
            (tmp_path / "deep" / "b").write_text(change)
        with pytest.raises(ValueError, match=message):
            check_manifest(tmp_path)
        check_manifest(tmp_path, ["a"])
    (tmp_path / "deep" / "b").write_text("content")
    told = json.loads((tmp_path / "manifest.json").read_text())
    told["files"]["../x"] = told["files"].pop("a")
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="leads out of"):
        check_manifest(tmp_path)


def test_a_snapshot_of_the_hub_holds_its_blobs_and_no_others(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1234"
    blobs = tmp_path / "models--a--b" / "blobs"
    for folder in (snapshot / "deep", blobs, tmp_path / "models--a--c" / "blobs"):
        folder.mkdir(parents=True)
        (folder / "x").write_text("x")
    (snapshot / "own").symlink_to("../../blobs/x")
    (snapshot / "deep" / "own").symlink_to("../../../blobs/x")
    (snapshot / "other").symlink_to("../../../models--a--c/blobs/x")
    assert resolve_inside(snapshot, "own").read_text() == "x"
    assert resolve_inside(snapshot / "deep", "own").read_text() == "x"
    with pytest.raises(ValueError, match="leads out of"):
        resolve_inside(snapshot, "other")
