"""The command `more`: what it prints for people and for pipes, what it writes, and what it refuses in one sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ner_runs
from image_knowledge import write_corpus
from modeling_more import cli

CALL = "import sys; sys.argv[0] = 'more'; from modeling_more.cli import main; sys.exit(main())"


def more(*arguments):
    """The command in a process of its own, as its console script starts it."""
    command = [sys.executable, "-c", CALL, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


def test_help_waits_for_no_library():
    wrong = ["predict", "--imge", "x"]
    for arguments in (["--help"], ["predict", "--help"], ["search", "--help"], ["page", "--help"], wrong):
        command = [sys.executable, "-X", "importtime", "-c", CALL, *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        names = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
        assert "argparse" in names and not names & {"torch", "transformers", "numpy", "datasets", "huggingface_hub"}
        if arguments is wrong:
            assert done.returncode == 2
        else:
            assert done.returncode == 0 and "usage: more" in done.stdout
    done = more("predict", "out", "Ada", "--imge", "x")
    assert done.returncode == 2 and "there is no option --imge: did you mean --image?" in done.stderr


def test_one_post_in_a_pipe_and_on_a_terminal(trained, capsys, monkeypatch):
    root, files = trained
    text = "Ada Lovelace met in Lindau !"
    done = more("predict", root / "plain", text)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found["text"] == text and len(found["knowledge"]) == 1 and "Traceback" not in done.stderr
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["predict", str(root / "plain"), text, "--knowledge", files["knowledge"]]) == 0
    shown = capsys.readouterr().out
    for entity in found["entities"]:
        assert any(entity["type"] in row and entity["text"] in row for row in shown.splitlines())
    assert "read:" in shown and found["knowledge"][0]["title"] in shown
    assert cli.main(["predict", str(root / "plain"), text, "--no_retrieve", "--threshold", "1"]) == 0
    assert capsys.readouterr().out.strip() == "nothing is found"


def test_a_file_of_posts_goes_on_where_it_was(trained, tmp_path):
    root, _ = trained
    posts = [{"id": str(n), "text": " ".join(post["tokens"])} for n, post in enumerate(ner_runs.posts(7))]
    file, out = ner_runs.write_jsonl(tmp_path / "posts.jsonl", posts), tmp_path / "new" / "found.jsonl"
    done = more("predict", root / "plain", "--file", file, "--output", out)
    assert done.returncode == 0 and f"7 posts: {out}" in done.stderr, done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == [post["id"] for post in posts] and all(row["knowledge"] for row in rows)
    assert [path.name for path in out.parent.iterdir()] == ["found.jsonl"]
    one = json.loads(more("predict", root / "plain", posts[3]["text"]).stdout)
    assert [e["text"] for e in one["entities"]] == [e["text"] for e in rows[3]["entities"]]


def test_a_search_by_words_and_by_an_image(trained, tmp_path, towers):
    _, files = trained
    done = more("search", files["knowledge"], "Lake Constance", "--top_k", "2")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 2 and rows[0]["title"] == "Lake Constance" and rows[0]["score"] >= rows[1]["score"]
    corpus = write_corpus(tmp_path / "pictures")
    picture = sorted(path for path in corpus.parent.rglob("*") if path.suffix in (".png", ".jpg"))[0]
    done = more("search", corpus, "--image", picture, "--image_model", towers["clip"], "--top_k", "1")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1, done.stderr
    assert json.loads(done.stdout)["score"] == pytest.approx(1, abs=1e-3)


def test_words_of_others_do_not_steer_a_terminal():
    entry = {"title": "\x1b[2Jred\x07", "sentence": "a\r\nb \x9b31m", "score": 1.0, "source": "\x1b]0;x\x07"}
    result = {"entities": [{"type": "PER", "text": "\x1b[31mAda", "score": 0.5}], "knowledge": [entry]}
    assert all(line.isprintable() for line in cli.table(result))


def test_what_is_refused_is_one_sentence(trained, tmp_path):
    root, files = trained
    model = str(root / "plain")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    for arguments, told in (
        (["predict", model], "give a post"),
        (["predict", model, "Ada", "--file", files["train"]], "give a post"),
        (["predict", model, "--file", files["train"]], "--file needs --output OUT.jsonl"),
        (["predict", model, "Ada", "--output", "x.jsonl"], "--output is not for a single post"),
        (["predict", model, "Ada", "--image", "none.png"], "--image none.png: there is no such file"),
        (["predict", model, "Ada", "--image", str(broken)], "not an image"),
        (["predict", model, "Ada", "--threshold", "3"], "threshold is 3.0, it must lie between 0 and 1"),
        (["predict", model, "Ada", "--entity_model", model], "--entity_model is for models of relations"),
        (["predict", model, "Ada", "--knowledge", "none.jsonl"], "none.jsonl"),
        (["predict", model, "--file", "none.jsonl", "--output", "x.jsonl"], "none.jsonl"),
        (["predict", files["encoder"], "Ada"], "not a saved expert or mixture"),
        (["predict", str(tmp_path / "nowhere" / "deep"), "Ada"], "there is no such folder"),
        (["search", files["knowledge"]], "give a corpus and a query"),
        (["search", "none.jsonl", "Ada"], "none.jsonl"),
        (["search", files["knowledge"], "--image", str(broken)], "not an image"),
    ):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert told in str(ended.value) and str(ended.value).startswith("error: ") and "\n" not in str(ended.value)
    assert not Path("x.jsonl").exists()
