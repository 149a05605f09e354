"""One's own posts pushed to the Hub, private, and read back by its id; and what is left without a network."""

import json
import os
import subprocess
import sys
from pathlib import Path

from huggingface_hub import DatasetCard

from hub_server import LocalHub
from ner_runs import KNOWLEDGE, ROOT, posts, write_jsonl

ROUND_TRIP = """
import json, os, sys
from datasets import get_dataset_default_config_name, load_dataset
from dataset_scripts import load
from dataset_scripts.posts import main
from modeling_more.data.tasks import ENTITIES
from modeling_more.knowledge import KnowledgeCorpus
from modeling_more.training.arguments import DataArguments
from modeling_more.training.posts import load_posts

train, test, articles, out = sys.argv[1:]
KnowledgeCorpus.from_files(articles).push_to_hub("org/wiki", license="cc0-1.0", description="Two.", date="20260101")
given = ["--train_file", train, "--test_file", test, "--name", "Ours", "--license", "cc0-1.0", "--retrieval", "text"]
given += ["--knowledge", "org/wiki", "--output_dir", out, "--push_to_hub", "org/posts", "--private"]
token = os.environ.pop("HF_TOKEN")
assert main(given) == 1 and os.path.isfile(f"{out}/README.md")
os.environ["HF_TOKEN"] = token
assert main([*given, "--overwrite_output_dir"]) == 0
assert get_dataset_default_config_name("org/posts") == "none"
for name in ("none", "text"):
    pushed, written = load_dataset("org/posts", name), load_dataset(out, name)
    assert all(pushed[split][:] == written[split][:] for split in ("train", "test"))

def rows(**options):
    return load_posts(DataArguments(**options), ENTITIES, load, [])[:2]

direct = rows(train_file=train, test_file=test, retrieval="text", knowledge=[articles])
assert rows(dataset="org/posts", retrieval="text") == rows(dataset=out, retrieval="text") == direct
print(json.dumps(direct[0]["train"][1]["knowledge_text"]))
"""


def test_pushed_and_read_back_from_the_hub(tmp_path: Path, hub: LocalHub) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", posts(6))
    test = write_jsonl(tmp_path / "test.jsonl", posts(4, 20))
    articles = write_jsonl(tmp_path / "articles.jsonl", KNOWLEDGE)
    # a process of its own: the environment that names the Hub has to be set before the libraries are imported
    words = map(str, (train, test, articles, tmp_path / "out"))
    done = subprocess.run(
        [sys.executable, "-c", ROUND_TRIP, *words], env=hub.env, capture_output=True, text=True, cwd=ROOT, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Rivera" in [entry["title"] for entry in json.loads(done.stdout)]
    card = DatasetCard(hub.files("org/posts", "dataset")["README.md"].decode())
    assert card.data.license == "cc0-1.0" and card.data.pretty_name == "Ours" and "from `org/wiki`: " in card.text
    assert hub.privacy["dataset", "org/posts"] and 'load_dataset("org/posts", "text")' in card.text
    assert (again := f"hf upload org/posts {tmp_path / 'out'} --repo-type dataset --private") in done.stderr, again
    assert hub.env["HF_TOKEN"] not in done.stderr + str(card)


def test_without_a_network_nothing_is_lost(tmp_path: Path) -> None:
    train = write_jsonl(tmp_path / "train.jsonl", posts(2))
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_" + "x" * 34}
    words = ["--train_file", str(train), "--name", "N", "--output_dir", str(tmp_path / "out"), "--license", "mit"]
    knowledge, push = ["--retrieval", "text", "--knowledge", "org/wiki"], ["--push_to_hub", "org/posts"]
    code = f"""
import os
from dataset_scripts.posts import main
assert main({[*words, *knowledge]}) == 1 and not os.path.exists({str(tmp_path / "out")!r})
assert main({[*words, *push]}) == 1 and os.path.exists({str(tmp_path / "out" / "none")!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **nowhere}, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    first, second = (line for line in done.stderr.splitlines() if line.startswith("ERROR"))
    assert "org/wiki is neither a folder nor a data set repository that can be had from the Hub" in first
    assert "The upload to org/posts failed" in second and nowhere["HF_TOKEN"] not in done.stderr
