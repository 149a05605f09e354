"""Runs of the builders of knowledge corpora: killed, given wrong input, from the Hub and to it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dataset_scripts import _knowledge, wikipedia_images, wikipedia_text
from dataset_scripts import corpus as own
from dataset_scripts._knowledge import write_shards
from hub_server import NOW, LocalHub
from wikipedia_rows import numbered, picture, read, shard_rows, text_plan, write_jsonl

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_killed_run_continues_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = numbered(tmp_path)
    whole, whole_counts = write_shards(text_plan(folder), tmp_path / "whole", size=9)
    script = f"""
import os, signal
from pathlib import Path
from dataset_scripts import _knowledge
from wikipedia_rows import text_plan
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
    assert own.run([*arguments, str(tmp_path / "out")]) == 0
    assert read(tmp_path / "out").paragraphs["id"][:] == [f"article-{number}" for number in (1, 2, 3, 4)]
    assert f"{files[0]}, line 1: no id: all articles are numbered; --id_column names another column" in caplog.text
    write_jsonl(files[1], [{"id": "7", **rows[0]}])
    caplog.clear()
    assert own.run([*arguments, str(tmp_path / "mixed")]) == 1
    assert "two.jsonl, line 1: an id, while the first article has none" in caplog.text
    assert own.run([*arguments, str(tmp_path / "named"), "--id_column", "code"]) == 1
    assert "one.jsonl, line 1: no column code, only title, text; --id_column names" in caplog.text
    write_jsonl(files[0], [{"id": "", **rows[0]}, {"id": "7", **rows[1]}])
    assert own.run([*arguments, str(tmp_path / "blank"), "--id_column", "id"]) == 1
    assert "one.jsonl, line 1: the column id is empty" in caplog.text


def test_own_articles_of_one_id_are_told_and_none_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An article with two images is one article; two articles of one id are two, and that is said."""
    for name in ("red", "blue"):
        (tmp_path / f"{name}.png").write_bytes(picture(name))
    red = {"id": "1", "title": "Red", "text": "Red is.", "image": "red.png"}
    source = write_jsonl(tmp_path / "rows.jsonl", [red, {**red, "image": "blue.png"}])
    given = ["--data_dir", str(source), "--image_column", "image", "--output_dir"]
    assert own.run([*given, str(tmp_path / "one")]) == 0
    assert read(tmp_path / "one").paragraphs["value"][:] == ["Red is."] and "earlier" not in caplog.text
    write_jsonl(source, [red, {**red, "title": "Blue", "text": "Blue is.", "image": "blue.png"}])
    assert own.run([*given, str(tmp_path / "two")]) == 0
    assert read(tmp_path / "two").paragraphs["value"][:] == ["Red is.", "Blue is."]
    assert "1 of 2 knowledge articles have the id of an earlier one" in caplog.text


def test_a_corpus_of_images_without_any_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    row = {"id": "1", "title": "A", "text": "B is.", "image": "a.png"}
    source = write_jsonl(tmp_path / "rows.jsonl", [row, {**row, "id": "2", "image": "b.png"}, {**row, "id": "3"}])
    given = ["--data_dir", str(source), "--image_column", "image", "--output_dir", str(tmp_path / "out")]
    (tmp_path / "elsewhere").mkdir()
    assert own.run([*given, "--image_dir", str(tmp_path / "elsewhere")]) == 1
    assert "corpus: none of the 3 images of the articles can be used" in caplog.text
    assert not (tmp_path / "out").exists()
    (tmp_path / "b.png").write_bytes(picture("red"))
    caplog.clear()
    assert own.run(given) == 0
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
        (own, ["--data_dir", str(tmp_path / "rows.csv")], "rows.csv: not a .jsonl or .jsonl.gz file"),
        (own, ["--data_dir", str(rows)], "rows.jsonl, line 1: no column title, only id, name, text"),
        (own, ["--data_dir", str(nested)], "nested.jsonl, line 1: the column text holds a list, not a text"),
        (own, ["--data_dir", str(tmp_path / "bad.jsonl"), "--title_column", "id"], "bad.jsonl, line 2: not JSON"),
        (own, ["--data_dir", str(empty)], "holds no text"),
        (own, ["--data_dir", str(rows), "--output_dir", str(tmp_path / "taken")], "holds something that is no know"),
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
