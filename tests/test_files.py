"""Files and folders that appear whole, with the modes of the umask: the helper, and everything that is written."""

import json
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ner_runs
import run_ner
from dataset_scripts import _publish
from dataset_scripts import corpus as own
from dataset_scripts._archives import download
from modeling_more.data.archives import extract_archive
from modeling_more.files import (
    FolderInUseError,
    copy_folder,
    locked,
    new_file,
    new_folder,
    remove_strays,
    write_json,
    write_jsonl,
)
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus


@pytest.fixture(params=[0o022, 0o027, 0o002])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def wrong_modes(folder: Path, umask: int) -> dict[str, str]:
    """Files and folders below `folder` with other modes than those of the umask."""
    found = {}
    for path in folder.rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode != (0o777 if path.is_dir() else 0o666) & ~umask:
            found[str(path.relative_to(folder))] = oct(mode)
    return found


def test_what_appears_is_whole_and_open(tmp_path: Path, umask: int) -> None:
    with new_file(tmp_path / "deep" / "a.txt") as beside:
        beside.write_text("new")
        assert not (tmp_path / "deep" / "a.txt").exists() and beside.parent == tmp_path / "deep"
    with new_folder(tmp_path / "b") as beside:
        (beside / "inner").mkdir()
        (beside / "inner" / "file").write_text("x")
        assert not (tmp_path / "b").exists()
    (tmp_path / "b").chmod(0o700)  # as an earlier version left them
    (tmp_path / "b" / "inner").chmod(0o700)
    copy_folder(tmp_path / "b", tmp_path / "c")
    (tmp_path / "b").chmod(0o777 & ~umask)
    (tmp_path / "b" / "inner").chmod(0o777 & ~umask)
    write_json(tmp_path / "d.json", {"a": "é"})
    write_jsonl(tmp_path / "e" / "f.jsonl", [{"a": 1}, {"a": 2}])
    assert wrong_modes(tmp_path, umask) == {}
    assert (tmp_path / "c" / "inner" / "file").read_text() == "x"
    assert json.loads((tmp_path / "d.json").read_text()) == {"a": "é"}
    assert len((tmp_path / "e" / "f.jsonl").read_text().splitlines()) == 2


def test_a_failure_leaves_what_was_there_and_nothing_beside(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "file").write_text("old")
    for make, name in ((new_file, "a"), (new_folder, "b"), (new_folder, "c")):
        with pytest.raises(RuntimeError, match="stop"), make(tmp_path / name) as beside:
            (beside if make is new_file else beside / "file").write_text("half")
            raise RuntimeError("stop")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]
    assert (tmp_path / "a").read_text() == (tmp_path / "b" / "file").read_text() == "old"
    # a folder replaces another only where it is told to
    with pytest.raises(OSError), new_folder(tmp_path / "b") as beside:
        (beside / "file").write_text("new")
    with new_folder(tmp_path / "b", replace=True) as beside:
        (beside / "other").write_text("new")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["other"]
    long = tmp_path / ("ä" * 120)  # as long as a name may be
    with new_file(long) as beside:
        beside.write_text("x")
    assert long.read_text() == "x"


def test_all_that_a_run_writes(files: dict[str, str], tiny_encoder: Callable[[str], str], umask: int) -> None:
    extra = ["--knowledge", files["knowledge"], "--num_train_epochs", "1", "--do_predict", "--predict_file"]
    extra += [files["test"], "--seeds", "1", "2"]
    run_ner.main(ner_runs.options(files, tiny_encoder("bert"), *extra, retrieval="text"))
    for folder in ("out", "cache"):
        assert len(list(Path(files[folder]).rglob("*"))) > 5
        assert wrong_modes(Path(files[folder]), umask) == {}


def test_all_that_publishers_write(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch, tiny_encoder: Callable[[str], str]
) -> None:
    monkeypatch.setenv("MORE_CACHE", str(tmp_path / "more"))
    raw = tmp_path / "raw"
    raw.mkdir()
    for split in ("train", "dev", "test"):
        ner_runs.write_conll(raw / f"{split}.txt", ner_runs.posts(3))
    articles = ner_runs.write_jsonl(tmp_path / "articles.jsonl", ner_runs.KNOWLEDGE)
    arguments = ["--data_dir", str(raw), "--retrieval", "text", "--knowledge", str(articles)]
    arguments += ["--output_dir", str(tmp_path / "set"), "--cache_dir", str(tmp_path / "cache")]
    assert _publish.main("twitter17", arguments) == 0
    assert _publish.main("twitter17", [*arguments, "--overwrite_output_dir"]) == 0
    corpus = ["--data_dir", str(articles), "--cache_dir", str(tmp_path / "cache"), "--output_dir"]
    assert own.run([*corpus, str(tmp_path / "corpus")]) == 0
    BM25Retriever.from_corpus(KnowledgeCorpus.from_pretrained(tmp_path / "corpus", tmp_path / "other"))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(raw / "train.txt", "inner/train.txt")
    extract_archive(tmp_path / "a.zip", tmp_path / "unpacked")
    download((tmp_path / "a.zip").as_uri(), tmp_path / "downloaded")
    assert wrong_modes(tmp_path, umask) == {}


HOLD = """
import sys, time
from pathlib import Path
from modeling_more.files import locked
with locked(Path(sys.argv[1]), "trains with run_ner.py"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_held_by_one_process_and_freed_by_its_death(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(FolderInUseError, match=rf"process {holder.pid} on .* trains with run_ner.py there since"):
            with locked(tmp_path, "scores"):
                raise AssertionError("held twice")
        assert (tmp_path / ".lock.json").exists()  # who could not have it took nothing away
        holder.kill()
    (tmp_path / ".a.12ab34cd.tmp").mkdir()
    (tmp_path / "mine.tmp").touch()
    (tmp_path / ".mine.tmp").touch()
    with locked(tmp_path, "scores"):  # the killed process left its files
        assert remove_strays(tmp_path) == [".a.12ab34cd.tmp"]
        with pytest.raises(FolderInUseError, match="scores there"), locked(tmp_path, "scores"):
            pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.tmp", "mine.tmp"]


def test_what_a_killed_run_left_is_not_copied(tmp_path: Path) -> None:
    """An index whose builder was killed after its last file is copied into a saved corpus without the stray."""
    (tmp_path / "index").mkdir()
    for name in ("index.faiss", ".index.json.0123abcd.tmp", "index.lock", ".kept"):
        (tmp_path / "index" / name).write_text("x")
    copy_folder(tmp_path / "index", tmp_path / "saved")
    assert {path.name for path in (tmp_path / "saved").iterdir()} == {"index.faiss", ".kept"}
