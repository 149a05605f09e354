"""Saving a corpus: over a saved corpus only, whole or not at all, by one process at a time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from knowledge_rows import ARTICLES, make, random_rows
from modeling_more.files import FolderInUseError, locked
from modeling_more.knowledge import KnowledgeCorpus
from modeling_more.knowledge.corpus_tables import build_once
from ner_runs import write_jsonl

ROOT = str(Path(__file__).resolve().parents[2])


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "foreign", ["images/holiday.jpg", "sentences/mine.parquet", "bm25/notes.txt", "faiss/x/y.bin", "thesis.tex"]
)
@pytest.mark.parametrize("saved_before", [False, True])
def test_foreign_files_are_never_replaced(foreign: str, saved_before: bool, tmp_path: Path) -> None:
    corpus = make(tmp_path, ARTICLES).corpus
    folder = tmp_path / "mine"
    if saved_before:
        corpus.save_pretrained(folder)
    (folder / foreign).parent.mkdir(parents=True, exist_ok=True)
    (folder / foreign).write_bytes(b"a year's work")
    before = tree(folder)
    told = foreign if saved_before else foreign.split("/")[0]
    with pytest.raises(ValueError, match=rf"mine holds {told}.*nothing is saved there") as error:
        corpus.save_pretrained(folder)
    assert tree(folder) == before and len(str(error.value).splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "made.jsonl", "mine"]


def test_a_corpus_is_saved_over_one_and_into_empty_folders(tmp_path: Path) -> None:
    one, other = make(tmp_path, random_rows(1)).corpus, make(tmp_path, random_rows(2, articles=5)).corpus
    (tmp_path / "empty").mkdir()
    for name in ("empty", "new", "deep/er"):
        assert one.save_pretrained(tmp_path / name) == tmp_path / name
        assert other.save_pretrained(tmp_path / name) == tmp_path / name
        loaded = KnowledgeCorpus.from_pretrained(tmp_path / name, tmp_path / "cache")
        assert loaded.fingerprint == other.fingerprint
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".lock", ".lock.json"))]


KILLED = """
import json, os, signal, sys
from modeling_more.knowledge import KnowledgeCorpus

old, new = (KnowledgeCorpus.from_pretrained(source, sys.argv[4]) for source in sys.argv[1:3])
folder = sys.argv[3]
EVENTS = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "open", "ctypes.dlsym"}
calls = kill_at = 0

def hook(event, arguments):
    global calls
    if kill_at and event in EVENTS and (event != "open" or "w" in str(arguments[1]) or arguments[2] & 1):
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
new.save_pretrained(folder)  # what is made once is made
found = []
for point in range(1, 500):
    old.save_pretrained(folder)
    child = os.fork()
    if child == 0:
        kill_at = point
        new.save_pretrained(folder)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
    found.append(KnowledgeCorpus.from_pretrained(folder, sys.argv[4]).fingerprint)
old.save_pretrained(folder)
print(json.dumps(found))
"""


def test_a_killed_save_leaves_the_old_corpus_or_the_new_one(tmp_path: Path) -> None:
    """SIGKILL before each file operation of the save; then the save is done again."""
    old, new = make(tmp_path, random_rows(1, articles=5)).corpus, make(tmp_path, random_rows(2, articles=6)).corpus
    sources = [corpus.save_pretrained(tmp_path / name) for corpus, name in ((old, "old"), (new, "new"))]
    folder = tmp_path / "out" / "saved"
    command = [sys.executable, "-c", KILLED, *map(str, sources), str(folder), str(tmp_path / "cache")]
    run = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found) > 20 and set(found) == {old.fingerprint, new.fingerprint}
    assert found == sorted(found, key=[old.fingerprint, new.fingerprint].index)  # the old ones, then the new ones
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]  # what the killed ones left is gone


HOLDING = """
import sys, time
from pathlib import Path
from modeling_more.files import locked
from modeling_more.knowledge.corpus_tables import build_once

def build(into):
    (into / "half").write_text("half")
    print("holds", flush=True)
    time.sleep(600)

if sys.argv[1] == "save":
    with locked(Path(sys.argv[2]), "saves a knowledge corpus", beside=True):
        build(Path(sys.argv[2]).parent)
build_once(Path(sys.argv[2]), "whole.json", build)
"""


def held(what: str, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDING, what, str(folder)],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": ROOT}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "holds\n"
    return process


def test_one_process_saves_in_a_folder_and_its_death_frees_it(tmp_path: Path) -> None:
    corpus = make(tmp_path, ARTICLES).corpus
    process = held("save", tmp_path / "saved")
    try:
        with pytest.raises(FolderInUseError, match=f"saved is in use: process {process.pid} on .* saves a knowledge"):
            corpus.save_pretrained(tmp_path / "saved")
    finally:
        process.kill()
        process.wait()
    corpus.save_pretrained(tmp_path / "saved")
    with locked(tmp_path / "saved", "does something else", beside=True):
        pass


def test_a_killed_builder_frees_what_it_built_and_its_leftovers_go(tmp_path: Path) -> None:
    process = held("build", tmp_path / "built")
    assert list(tmp_path.glob(".built.*.tmp"))
    process.kill()
    process.wait()
    build_once(tmp_path / "built", "whole.json", lambda into: (into / "whole.json").write_text("{}"))
    assert [path.name for path in tmp_path.iterdir()] == ["built"]


def test_what_is_not_ours_is_not_built_over(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("a year's work")

    def build(into: Path) -> None:
        raise AssertionError("the work was done before it was seen that there is no place for it")

    with pytest.raises(ValueError, match=r"mine holds thesis\.tex, but no whole\.json: it is not replaced"):
        build_once(tmp_path / "mine", "whole.json", build)
    (tmp_path / "mine" / "whole.json").write_text("{}")
    with pytest.raises(ValueError, match=r"mine holds thesis\.tex, which does not belong to its whole\.json"):
        build_once(tmp_path / "mine", "whole.json", build, lambda: False, own=("whole.json",))
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "a year's work"


def test_an_index_of_another_program_is_not_replaced(tmp_path: Path) -> None:
    """Its index.json tells a version, too, and it may lie where a corpus's own index would."""
    corpus = KnowledgeCorpus.from_files(write_jsonl(tmp_path / "k.jsonl", ARTICLES), tmp_path / "cache")
    (corpus.folder / "bm25").mkdir()
    (corpus.folder / "bm25" / "index.json").write_text('{"version": 7}')
    (corpus.folder / "bm25" / "project.py").write_text("a year's work")
    with pytest.raises(ValueError, match=r"bm25 holds project\.py, which does not belong to its index\.json"):
        corpus.text_index()
    assert (corpus.folder / "bm25" / "project.py").read_text() == "a year's work"


FULL = """
import resource, sys
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus

def fill():
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, -1))  # no file may be larger

what, source, cache = sys.argv[1:]
try:
    if what == "build":
        fill()
    corpus = KnowledgeCorpus.from_files(source, cache)
    fill()
    BM25Retriever.from_corpus(corpus) if what == "index" else corpus.save_pretrained(cache + "-saved", index=False)
except (ValueError, OSError) as error:
    raise SystemExit(f"error: {error}")
"""


@pytest.mark.parametrize("what", ["build", "index", "save"])
def test_a_full_disk_is_told_in_one_sentence_and_leaves_nothing(what: str, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "k.jsonl", random_rows(3))
    command = [sys.executable, "-c", FULL, what, str(source), str(tmp_path / "cache")]
    run = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": ROOT}, capture_output=True, text=True, check=False
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr, run.stderr
    last = run.stderr.splitlines()[-1]
    assert last.startswith("error: ") and ("too large" in last or "is the disk full?" in last), run.stderr
    assert f": '{tmp_path / 'cache'}" in last  # the file, or the folder that it is written into
    assert not list(tmp_path.rglob("*.tmp")) and not (tmp_path / "cache-saved").exists()
    assert bool(list(tmp_path.glob("cache/corpora/*/knowledge.json"))) == (what != "build")
    assert not list(tmp_path.rglob("index.json"))
