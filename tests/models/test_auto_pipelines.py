"""The pipelines more-ner and more-re: retrieval that travels with the model, evidence, what they refuse."""

import io
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoProcessor, pipeline

import ner_runs
import re_runs
import run_ner
import run_re
from modeling_more.provenance import HubName, places_of
from modeling_more.retrieval_settings import RetrievalSettings
from modeling_more.training.folder_contents import strange_path
from saved_models import train_models


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_encoder, towers):
    """Folders of trained models: entities by text, by image, both mixed, relations by text; and their files."""
    return train_models(tmp_path_factory.mktemp("saved"), tiny_encoder("bert"), towers["clip"])


@pytest.fixture
def other_machine(tmp_path, monkeypatch):
    """The cache of somebody else."""
    monkeypatch.setenv("MORE_CACHE", str(tmp_path / "theirs"))


def settings_in(folder):
    return json.loads(Path(folder, "processor_config.json").read_text()).get("retrieval")


def test_one_line_gives_entities_with_their_evidence(saved):
    pipe = pipeline("more-ner", model=saved["text"])
    found = pipe("Ada Lovelace met in Lindau today!")
    assert found["text"] == "Ada Lovelace met in Lindau today!" and found["entities"]
    for entity in found["entities"]:
        assert found["text"][entity["char_start"] : entity["char_end"]] == entity["text"]
        assert 0 < entity["score"] <= 1
    assert 1 <= len(found["knowledge"]) <= 2
    best = found["knowledge"][0]
    assert best.keys() == {"title", "sentence", "score", "source"} and best["score"] > 0
    article = next(row for row in ner_runs.KNOWLEDGE if row["title"] == best["title"])
    assert best["sentence"] in article["text"] and best["source"] == article["id"]
    assert found["knowledge"][0]["score"] >= found["knowledge"][-1]["score"]
    assert len(pipe("Ada Lovelace met in Lindau today!", top_k=1)["knowledge"]) == 1
    assert len(pipe("Ada Lovelace met in Lindau today!")["knowledge"]) == len(found["knowledge"])
    alone = pipe("Ada Lovelace met in Lindau today!", retrieve=False)
    assert alone["knowledge"] == [] and alone["entities"] != found["entities"]
    assert pipe("Ada met", threshold=1.0)["entities"] == []


def rounded(results):
    """The same with numbers of four places: another padding changes the last ones."""
    return json.loads(json.dumps(results), parse_float=lambda number: round(float(number), 4))


def test_all_kinds_of_posts(saved):
    pipe = pipeline("more-ner", model=saved["text"], batch_size=4)
    texts = ["Ada met in Oslo!", "Rivera met in Lindau today today!", "Charles Babbage met in London!"]
    one_by_one = [pipe(text) for text in texts]
    assert rounded(pipe(texts)) == rounded(one_by_one)
    assert rounded(list(pipe(text for text in texts))) == rounded(one_by_one)
    assert rounded(list(pipe(Dataset.from_dict({"text": texts})["text"]))) == rounded(one_by_one)
    assert rounded(list(pipe({"text": text} for text in texts))) == rounded(one_by_one)
    assert pipe([]) == []
    tokens = pipe({"tokens": ["Ada", "met", "in", "Oslo", "!"], "id": "7"})
    assert tokens["id"] == "7" and [e["type"] for e in tokens["entities"]] == [
        e["type"] for e in one_by_one[0]["entities"]
    ]
    # knowledge that a post brings is read instead
    given = pipe({"text": texts[0], "knowledge_text": "Oslo is a place ."})
    assert [one["sentence"] for one in given["knowledge"]] == ["Oslo is a place ."]
    assert pipe({"text": texts[0], "knowledge_text": []})["knowledge"] == []
    nothing = pipe(" ")
    assert nothing["entities"] == [] and nothing["knowledge"] == []
    long = pipe("Ada met in Oslo today ! " * 300)  # in windows, which leave no room for knowledge
    assert len(long["tokens"]) == 1800 and long["knowledge"] == []


def test_images_find_knowledge_too(saved):
    pipe = pipeline("more-ner", model=saved["image"])
    file = Path(saved["images"]) / "3.png"
    text = "Ada met in Oslo!"
    found = pipe({"text": text, "image": str(file)})
    assert len(found["knowledge"]) == 2 and {"image", "title", "score"} <= found["knowledge"][0].keys()
    for image in (Image.open(file), file.read_bytes()):
        assert pipe({"text": text, "image": image})["knowledge"] == found["knowledge"]
    retrieval = pipe.reader.knowledge.retrievals[0]
    row = retrieval.retriever.corpus.images[found["knowledge"][0]["image"]]
    assert row["title"] == found["knowledge"][0]["title"]
    assert pipe(text)["knowledge"] == []
    broken = io.BytesIO(file.read_bytes()[:60]).getvalue()
    assert pipe({"text": text, "image": broken})["knowledge"] == []


def test_a_mixture_shows_weights_opinions_and_evidence_of_each(saved, caplog):
    pipe = pipeline("more-ner", model=saved["mixture"])
    found = pipe({"text": "Ada Lovelace met in Lindau!", "image": str(Path(saved["images"]) / "1.png")})
    assert found["expert_weights"].keys() == found["experts"].keys() == found["knowledge"].keys() == {"text", "image"}
    assert sum(found["expert_weights"].values()) == pytest.approx(1, abs=1e-5)
    assert all(len(entries) == 2 for entries in found["knowledge"].values())
    tower = pipe.reader.image_encoder
    pipe({"text": "Ada", "image": str(Path(saved["images"]) / "2.png")})
    assert tower is not None and pipe.reader.image_encoder is tower  # loaded once
    without = pipe("Ada Lovelace met in Lindau!")
    assert without["knowledge"]["image"] == [] and without["knowledge"]["text"] == found["knowledge"]["text"]
    with pytest.raises(ValueError, match="knowledge is given for 'picture', the experts are text, image"):
        pipe("Ada", knowledge={"picture": [saved["wiki"]]})


def test_relations_of_given_and_of_found_entities(saved):
    pipe = pipeline("more-re", model=saved["relations"])
    text = "Ada Lovelace met Rivera in Oslo !"
    one = pipe({"text": text, "head": [0, 12], "tail": [17, 23]})
    assert len(one["relations"]) == 1 and one["relations"][0]["head_text"] == "Ada Lovelace" and one["knowledge"]
    all_pairs = pipe({"text": text, "entities": [[0, 12], [17, 23], [27, 31]]})
    assert len(all_pairs["relations"]) == 6
    with pytest.raises(ValueError, match="post 0"):
        pipe(text)
    triples = pipeline("more-re", model=saved["relations"], entity_model=saved["text"], none_relation="no such")
    found = triples([text, "Oslo"])
    number = len(found[0]["entities"])
    assert len(found[0]["relations"]) == number * (number - 1)
    entities = pipeline("more-ner", model=saved["text"])
    again = pipeline("more-re", model=saved["relations"], entity_model=entities)(text)
    assert "None" not in [pair["relation"] for pair in again["relations"]]
    assert [e["text"] for e in again["entities"]] == [e["text"] for e in entities(text)["entities"]]


def test_pipeline_and_predict_mode_agree(saved, tmp_path):
    """The same scores within 1e-6 of 200 posts, in batches of 1 and of 64, where each searches their knowledge."""
    posts = [{"id": str(n), "text": " ".join(post["tokens"])} for n, post in enumerate(ner_runs.posts(200))]
    for number, post in enumerate(posts):
        post["image"] = f"{number % 33}.png"
    asked = [{"id": str(n), **{key: pair[key] for key in ("tokens", "head", "tail")}}
             for n, pair in enumerate(re_runs.pairs(200))]  # fmt: skip
    pictured = [{**post, "image": str(Path(saved["images"]) / post["image"])} for post in posts]
    for name, task, main, given, written in (
        ("text", "more-ner", run_ner.main, pictured, posts),
        ("mixture", "more-ner", run_ner.main, pictured, posts),
        ("relations", "more-re", run_re.main, asked, asked),
    ):
        file = ner_runs.write_jsonl(tmp_path / f"{name}.jsonl", written)
        out = ["--output_dir", str(tmp_path / name)]
        main(["--model_name_or_path", saved[name], "--do_predict", "--predict_file", str(file), "--use_cpu", *out,
              *(["--image_dir", saved["images"]] if task == "more-ner" else [])])  # fmt: skip
        rows = [json.loads(line) for line in (tmp_path / name / "predictions" / "predict.jsonl").open()]
        assert len(rows) == 200
        for size in (1, 64):
            found = pipeline(task, model=saved[name], batch_size=size)(given)
            for row, one in zip(rows, found, strict=True):
                assert_equal(row, one)


def assert_equal(one, other):
    """Two results are the same, but for the last places of numbers."""
    if isinstance(one, dict):
        # what is kept on disk has no rows of pictures; files of words get a text, and characters in it, when read
        assert one.keys() ^ other.keys() <= {"image", "text", "head_chars", "tail_chars"}
        for key in one.keys() & other.keys():
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_equal(first, second)
    else:
        assert one == (pytest.approx(other, abs=1e-6, rel=1e-6) if isinstance(one, float) else other)


def test_what_is_saved_names_no_folder_of_the_machine(saved, tmp_path):
    assert settings_in(saved["text"]) == {
        "kind": "text", "corpora": ["wiki.jsonl"], "fingerprint": settings_in(saved["text"])["fingerprint"],
        "retriever": "bm25", "query": "words", "title_in_key": False,
    }  # fmt: skip
    assert settings_in(saved["image"])["image_model"] == "image_tower"
    home = Path(saved["text"]).parent
    for name in ("text", "image", "mixture", "relations"):
        described = json.loads(Path(saved[name], "manifest.json").read_text())["files"]
        assert name != "mixture" or {
            "image_tower/model.safetensors",
            "experts/image/image_tower/model.safetensors",
        } <= (described.keys())
        for file in described:
            content = Path(saved[name], file).read_bytes()
            for folder in (home, Path(saved["encoder"]).parent, Path(saved["tower"])):
                assert str(folder).encode() not in content, file
        assert strange_path(Path(saved[name])) is None  # so that a second run may overwrite it
    # saved again elsewhere the tower goes along
    processor = AutoProcessor.from_pretrained(saved["image"])
    processor.save_pretrained(tmp_path / "copy")
    assert settings_in(tmp_path / "copy") == settings_in(saved["image"])
    assert (tmp_path / "copy" / "image_tower" / "model.safetensors").is_file()


def test_on_another_machine(saved, tmp_path, other_machine, caplog):
    """A corpus that is not there is told once, and may be given; a tower beside the model is used."""
    moved = shutil.copytree(saved["text"], tmp_path / "moved")
    pipe = pipeline("more-ner", model=str(moved))
    with caplog.at_level(logging.WARNING):
        assert pipe("Ada met in Oslo!")["knowledge"] == []
        pipe("Ada met in Oslo!")
    told = [one for one in caplog.messages if "wiki.jsonl" in one]
    assert len(told) == 1 and "is not known here: give it as knowledge" in told[0]
    caplog.clear()
    assert pipe("Ada met in Oslo!", knowledge=saved["wiki"])["knowledge"]
    assert not any("another corpus" in one for one in caplog.messages)
    other = ner_runs.write_jsonl(tmp_path / "other.jsonl", ner_runs.KNOWLEDGE[:6])
    assert pipe("Ada met in Oslo!", knowledge=[str(other)])["knowledge"]
    fingerprint = settings_in(moved)["fingerprint"]
    assert any(fingerprint in one and "another corpus" in one for one in caplog.messages)
    with pytest.raises(FileNotFoundError, match="nothing.jsonl"):
        pipe("Ada", knowledge="nothing.jsonl")
    image = pipeline(
        "more-ner", model=shutil.copytree(saved["image"], tmp_path / "image"), knowledge=saved["pictures"]
    )
    assert image({"text": "Ada", "image": str(Path(saved["images"]) / "0.png")})["knowledge"]


def test_strangers_settings_open_nothing_here(saved, tmp_path, other_machine):
    """Encoders and corpora that a stranger's file names are names at the Hub, whatever lies here."""
    private = shutil.copytree(saved["tower"], tmp_path / "image_tower")
    folder = shutil.copytree(saved["image"], tmp_path / "theirs")
    shutil.rmtree(folder / "image_tower")
    config = json.loads((folder / "processor_config.json").read_text())
    for named in (str(private), "image_tower"):
        config["retrieval"] |= {"image_model": named, "corpora": [saved["pictures"]]}
        (folder / "processor_config.json").write_text(json.dumps(config))
        (folder / "manifest.json").unlink(missing_ok=True)
        processor = AutoProcessor.from_pretrained(folder)
        assert isinstance(processor.retrieval.image_model, HubName)
        assert processor.retrieval.sources() is None
        # the second one is a plausible name at the Hub, which has nothing there
        with pytest.raises((ValueError, FileNotFoundError), match="is not opened: a downloaded|can't be loaded"):
            processor.load_retriever([saved["pictures"]])
    assert places_of(config["retrieval"]["fingerprint"]) is None


@pytest.mark.parametrize(
    "change, told",
    [
        ({"kind": "video"}, "kind of the retrieval is 'video', it must be one of text, image"),
        ({"corpora": "wiki"}, "they must be a list of names"),
        ({"corpora": [3]}, "they must be a list of names"),
        ({"fingerprint": "../../x"}, "it must be that of a corpus"),
        ({"fingerprint": None}, "it must be that of a corpus"),
        ({"query": 1}, "it must be one of words, caption, entities"),
        ({"title_in_key": "yes"}, "it must be true or false"),
        ({"image_model": {}}, "it must be the name of an encoder"),
        ({"retriever": ""}, "it must be one of bm25, dense, both"),
    ],
)
def test_damaged_settings_are_one_sentence(change, told):
    whole = {"kind": "text", "corpora": ["a"], "fingerprint": "f"}
    assert RetrievalSettings.from_dict(whole).saved().items() >= whole.items()
    with pytest.raises(ValueError, match=told):
        RetrievalSettings.from_dict(whole | change)


def test_wrong_calls_are_one_sentence(saved):
    pipe = pipeline("more-ner", model=saved["text"])
    for options, told in (
        ({"top_k": 0}, "top_k is 0, it must be a whole number from 1 on"),
        ({"threshold": 2}, "threshold is 2, it must lie between 0 and 1"),
        ({"batch_size": "4"}, "batch_size is '4'"),
        ({"tresh": 1}, "'tresh' is no option of this pipeline: there are batch_size"),
    ):
        with pytest.raises(ValueError, match=told):
            pipe("Ada", **options)
        with pytest.raises(ValueError, match=told):
            pipeline("more-ner", model=saved["text"], **options)
    with pytest.raises(ValueError, match="post 1 is a int"):
        pipe(["Ada", 3])
    with pytest.raises(ValueError, match="post 513 has neither text nor tokens"):
        pipe([*["Ada"] * 513, {"image": "x.png"}])
    with pytest.raises(ValueError, match="this model finds relations: use the pipeline more-re"):
        model = pipeline("more-re", model=saved["relations"])
        type(pipe)(model=model.model, processor=model.processor)
    with pytest.raises(ValueError, match="give the processor"):
        type(pipe)(model=pipe.model)


def test_a_pipeline_is_saved_whole(saved, tmp_path):
    pipe = pipeline("more-ner", model=saved["mixture"])
    pipe.save_pretrained(tmp_path / "again")
    again, text = pipeline("more-ner", model=str(tmp_path / "again")), "Ada met in Oslo!"
    assert again(text) == pipe(text)
    assert torch.equal(again.model.gate.output.weight, pipe.model.gate.output.weight)


PUSH = """
import sys
from pathlib import Path
from modeling_more.knowledge import KnowledgeCorpus
from modeling_more.training.results import push

model, wiki = sys.argv[1:]
push(Path(model), "org/mixture", False)
KnowledgeCorpus.from_files(wiki).push_to_hub("org/wiki", license="cc0-1.0")
"""
THREE_LINES = """
import modeling_more
from transformers import pipeline
pipe = pipeline("more-ner", model="org/mixture")
found = pipe("Ada Lovelace met in Lindau!")
import json
print(json.dumps([found, pipe("Ada Lovelace met in Lindau!", knowledge={"text": "org/wiki"})]))
"""


def test_three_lines_from_the_hub(saved, hub, tmp_path):
    """What was pushed names no folder of this machine and works in an empty folder of another one."""

    def run(code, *arguments, **env):
        env = {**os.environ, **hub.env, "OMP_NUM_THREADS": "1", **env}
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    run(PUSH, saved["mixture"], saved["wiki"])
    uploaded = hub.files("org/mixture")
    assert {"image_tower/model.safetensors", "experts/image/image_tower/model.safetensors"} <= uploaded.keys()
    for name, content in uploaded.items():
        for folder in (
            Path(saved["text"]).parent,
            Path(saved["encoder"]).parent,
            os.environ["MORE_CACHE"],
            Path.home(),
        ):
            assert str(folder).encode() not in content, name
    elsewhere = {"HF_HOME": str(tmp_path / "theirs"), "MORE_CACHE": str(tmp_path / "more"), "HF_TOKEN": ""}
    done = run(THREE_LINES, **elsewhere)
    alone, found = json.loads(done.stdout)
    assert alone["knowledge"] == {"text": [], "image": []} and alone["expert_weights"].keys() == {"text", "image"}
    assert done.stderr.count("is not known here") == 2  # once for each of the experts
    assert len(found["knowledge"]["text"]) == 2 and found["knowledge"]["image"] == []
