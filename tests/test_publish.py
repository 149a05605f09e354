"""The publisher: a folder that `load_dataset` reads, its card, and the round trip over a Hub."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from dataset_scripts import load
from dataset_scripts._publish import main
from hub_server import LocalHub

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = str(ROOT / "dataset_scripts" / "twitter17.py")
RAW = {
    "train": "IMGID:1\nAda\tB-PER\nwon\tO\n\nIMGID:2\nOslo\tB-LOC\nUnited\tI-LOC\n",
    "valid": "IMGID:3\nAcme\tB-ORG\n",
    "test": "IMGID:4\nthe\tO\nGames\tB-MISC\n\nIMGID:5\nBabbage\tI-PER\n\nIMGID:6\nnothing\tO\n",
}
ARTICLES = [
    {"id": "Q1", "title": "Oslo", "text": "Oslo is a city. It lies in Norway."},
    {"id": "Q2", "title": "Games", "text": "The Games are held in Oslo."},
    {"id": "Q3", "title": "Ada", "text": "Ada wrote programs. She won."},
]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for split, text in RAW.items():
        (folder / f"{split}.txt").write_text(text)
    return folder


@pytest.fixture
def knowledge(tmp_path: Path) -> Path:
    path = tmp_path / "articles.jsonl"
    path.write_text("".join(json.dumps(article) + "\n" for article in ARTICLES))
    return path


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORE_CACHE", str(tmp_path / "more"))


def test_folder_with_knowledge(tmp_path: Path, raw: Path, knowledge: Path) -> None:
    out, cache = tmp_path / "out", str(tmp_path / "cache")
    arguments = ["--data_dir", str(raw), "--retrieval", "text", "--knowledge", str(knowledge), "--top_k", "2"]
    arguments += ["--output_dir", str(out), "--cache_dir", cache]
    assert main("twitter17", arguments) == 0
    posts = load("twitter17", "none", raw, cache)
    text = load_dataset(str(out), "text", cache_dir=cache)
    none = load_dataset(str(out), cache_dir=cache)
    for split in ("train", "validation", "test"):
        assert none[split][:] == posts[split][:] and none[split].features == posts[split].features
        assert text[split].remove_columns("knowledge_text")[:] == posts[split][:]
    assert [entry["title"] for entry in text["test"][0]["knowledge_text"]] == ["Games"]
    assert text["test"][2]["knowledge_text"] == []
    assert max(len(row["knowledge_text"]) for row in text["train"]) <= 2
    card = (out / "README.md").read_text()
    assert "| test | 3 | 4 | 2 | 1 | 0 | 0 | 1 |" in card and "`articles.jsonl`" in card
    assert "| posts | 6 |" in card and str(tmp_path) not in card
    assert "--retrieval text --knowledge articles.jsonl --top_k 2" in card
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_folder_without_knowledge_and_overwriting(tmp_path: Path, raw: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "out"
    arguments = ["--data_dir", str(raw), "--output_dir", str(out), "--cache_dir", str(tmp_path / "cache")]
    assert main("twitter17", arguments) == 0
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "none"]
    assert main("twitter17", arguments) == 1 and "--overwrite_output_dir" in caplog.text
    (out / "none" / "stale.parquet").write_bytes(b"")
    assert main("twitter17", [*arguments, "--overwrite_output_dir"]) == 0
    assert not (out / "none" / "stale.parquet").exists()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    arguments[3] = str(tmp_path / "home")
    assert main("twitter17", [*arguments, "--overwrite_output_dir"]) == 1
    assert "holds something that is no published data set" in caplog.text and (tmp_path / "home/letter.txt").exists()


def test_bad_input_ends_in_one_sentence_and_writes_nothing(
    tmp_path: Path, raw: Path, knowledge: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (raw / "test.txt").write_text("Ada\tB-PER\nwon\n")
    out, cache = str(tmp_path / "out"), str(tmp_path / "cache")
    cases = [
        (["--data_dir", str(raw)], "test.txt, line 2: no label"),
        (["--data_dir", str(raw / "gone")], "gone: no such folder or zip file"),
        (["--data_dir", str(raw), "--retrieval", "text"], "test.txt, line 2: no label"),
        (["--data_dir", str(raw), "--knowledge", str(knowledge)], "--knowledge is for --retrieval text"),
    ]
    for arguments, message in cases:
        caplog.clear()
        assert main("twitter17", ["--output_dir", out, "--cache_dir", cache, *arguments]) == 1
        assert message in caplog.text and not (tmp_path / "out").exists()
    script = [sys.executable, SCRIPT, "--output_dir", out, "--cache_dir", cache, "--data_dir", str(raw)]
    done = subprocess.run(script, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 1 and cases[0][1] in done.stderr and "Traceback" not in done.stderr


ROUND_TRIP = """
import json, os, sys
from pathlib import Path
from datasets import get_dataset_default_config_name, load_dataset
from dataset_scripts._publish import main

raw, knowledge, out = sys.argv[1:]
options = ["--data_dir", raw, "--push_to_hub", "org/tweets", "--private", "--overwrite_output_dir", "--output_dir"]
with_text = [*options, out, "--retrieval", "text", "--knowledge", knowledge]
token = os.environ.pop("HF_TOKEN")
assert main("twitter17", with_text) == 1 and (Path(out) / "README.md").is_file()
os.environ["HF_TOKEN"] = token
assert main("twitter17", with_text) == 0
assert main("twitter17", [*options, out + "-none"]) == 0  # pushes only "none" again: "text" has to stay

def rows(*where):
    return {split: data[:] for split, data in load_dataset(*where).items()}

for name in ("none", "text"):
    assert rows("org/tweets", name) == rows(out, name), name
assert rows("org/tweets") == rows("org/tweets", "none")
assert get_dataset_default_config_name("org/tweets") == "none"
print(json.dumps(rows("org/tweets", "text")["test"]["knowledge_text"][0]))
"""


def test_push_and_load_again(tmp_path: Path, raw: Path, knowledge: Path, hub: LocalHub) -> None:
    # one process for all: the environment that names the Hub has to be set before the libraries are imported
    out = tmp_path / "out"
    script = [sys.executable, "-c", ROUND_TRIP, str(raw), str(knowledge), str(out)]
    done = subprocess.run(script, env=hub.env, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [entry["title"] for entry in json.loads(done.stdout)] == ["Games"]
    assert done.stderr.count("ERROR") == 1 and f"hf upload org/tweets {out} --repo-type dataset" in done.stderr
    card = DatasetCard(hub.files("org/tweets", "dataset")["README.md"].decode())
    configs = {config["config_name"]: config.get("default") for config in card.data.configs}
    assert configs == {"none": True, "text": None}
    assert card.data.pretty_name == "Twitter-2017" and "## Source and terms" in card.text
