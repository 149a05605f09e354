"""A gate that learns from somebody else's expert sees pictures by their tower, whose name stays one of theirs."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from audit import watched

from hub_server import Repo
from image_knowledge import write_corpus
from mixture_experts import save_expert
from modeling_more.knowledge import KnowledgeCorpus
from modeling_more.provenance import HubName, is_own
from modeling_more.training.arguments import Arguments, DataArguments, ModelArguments, TrainingArguments
from modeling_more.training.results import remember_options
from ner_runs import ROOT, posts, write_jsonl
from pictures import noise, save_tiny_tower

#: loads a mixture under two caches, of which the first one remembers what its runs wrote, and shows it a picture
LATER = """
import json, os, sys
from modeling_more import MoReMixtureForTokenClassification, MoReMixtureProcessor, predict
mixture, picture, *caches = sys.argv[1:]
told = []
for cache in caches:
    os.environ["MORE_CACHE"] = cache
    model = MoReMixtureForTokenClassification.from_pretrained(mixture)
    processor = MoReMixtureProcessor.from_pretrained(mixture)
    try:
        told.append(predict(model, processor, [{"tokens": ["Ada"], "image": picture}])[0]["expert_weights"] and "fine")
    except ValueError as error:
        told.append(str(error))
print(json.dumps(told))
"""


@pytest.fixture
def published(hub, tmp_path):
    """A tower and a corpus of pictures on the Hub, as `evil/tower` and `evil/corpus`."""
    save_tiny_tower(tmp_path / "tower")
    corpus = KnowledgeCorpus.from_files(write_corpus(tmp_path / "k"), tmp_path / "cache of k")
    corpus.save_pretrained(tmp_path / "corpus")
    for kind, name in (("model", "tower"), ("dataset", "corpus")):
        folder = tmp_path / name
        content = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        hub.repos[kind, f"evil/{name}"] = Repo()
        hub.repos[kind, f"evil/{name}"].commit(content, "main")
    return hub


@pytest.mark.parametrize("more", [[], ["--train_experts", "--num_train_epochs", "1"]], ids=["gate", "all"])
def test_a_gate_keeps_the_tower_of_a_stranger_as_theirs(more, published, tiny_encoder, tmp_path):
    experts = [
        save_expert(tmp_path / "experts" / name, "entities", tiny_encoder("bert"), knowledge_column=column)
        for name, column in (("image", "knowledge_image"), ("none", None))
    ]
    told = {"retrieval": "image", "knowledge": ["evil/corpus"], "image_model": "evil/tower", "top_k": 1}
    Path(experts[0], "arguments.json").write_text(json.dumps(told))
    images = tmp_path / "images"
    images.mkdir()
    for split, rows in (("train", posts(6)), ("dev", posts(2, 8))):
        write_jsonl(tmp_path / f"{split}.jsonl", [{**row, "image_id": row["id"]} for row in rows])
        for number, row in enumerate(rows):
            noise(number).save(images / f"{row['id']}.png")
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    hosts = [published.endpoint.removeprefix("http://")]
    env = published.env | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MORE_CACHE": str(tmp_path / "mine")}
    command = [
        sys.executable, str(ROOT / "run_ner.py"), "--train_file", "../train.jsonl",
        "--validation_file", "../dev.jsonl", "--image_dir", str(images),
        "--retrieval", "moe", "--experts", *experts, "--gate_data", "train", "--gate_epochs", "1", "--use_cpu",
        "--gate_inputs", "text", "image",
        "--cache_dir", str(tmp_path / "cache"), "--output_dir", "mixture", *more,
    ]  # fmt: skip
    seen = watched(command, env, hosts=hosts, cwd=here)
    assert seen.done.returncode == 0, seen.done.stderr[-3000:]
    assert any("evil/tower" in path for path in published.requests)
    assert not published.with_token
    assert not [one for one in seen.found if one["event"] in ("socket.connect", "open")], seen.found
    mixture = here / "mixture"
    assert json.loads((mixture / "config.json").read_text())["image_model"] == "evil/tower"

    # a folder of that name, wherever the mixture is loaded later: of this user, or of another one
    shutil.copytree(tmp_path / "tower", there / "evil" / "tower")
    picture = next(images.iterdir())
    later = [sys.executable, "-c", LATER, str(mixture), str(picture), str(tmp_path / "mine"), str(tmp_path / "theirs")]
    published.requests.clear()
    seen = watched(later, env, [there / "evil"], hosts, cwd=there)
    assert seen.done.returncode == 0, seen.done.stderr[-3000:]
    for one in json.loads(seen.done.stdout):
        assert one.startswith("'evil/tower' is not opened: a downloaded file names it"), one
    assert not [one for one in seen.found if one["event"] in ("socket.connect", "open")], seen.found
    assert not published.requests
    # where nothing has that name it is the one on the Hub, without the token
    seen = watched(later, env, hosts=hosts, cwd=here)
    assert json.loads(seen.done.stdout) == ["fine", "fine"], seen.done.stderr[-3000:]
    assert any("evil/tower" in path for path in published.requests)
    assert not published.with_token


def test_options_with_a_name_of_somebody_else_are_not_remembered_as_own(own_cache, tmp_path):
    """The experts of the folds are trained here by options that a stranger's expert names."""
    data, training = DataArguments(), TrainingArguments(output_dir=str(tmp_path))
    for encoder, own in (("org/mine", True), (HubName("org/theirs"), False)):
        args = Arguments(data, ModelArguments(model_name_or_path=encoder), training)
        remember_options(tmp_path, args)
        assert json.loads((tmp_path / "arguments.json").read_text())["model_name_or_path"] == encoder
        assert is_own(tmp_path / "arguments.json") == own
