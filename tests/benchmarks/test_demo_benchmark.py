"""`make demo` at a small size: every system is trained, the tables are complete, the page shows the predictions."""

import argparse
import functools
import json
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import demo as benchmark
import pytest
from PIL import Image

import _common
from dataset_scripts import demo, demo_relations
from modeling_more import page as page_of_models
from modeling_more.page_reading import AS_TRAINED, PageReader
from ner_runs import ROOT

SYSTEMS = {
    "entities": ["none", "shuffled", "text", "shuffled image", "image", "average", "mixture"],
    "relations": ["none", "shuffled", "text", "image", "average", "mixture"],
}


@pytest.fixture
def small(monkeypatch):
    """Few posts and one epoch; nothing is written to the repository's results."""
    few = functools.partial(demo.make_demo, train_posts=32, validation_posts=16, test_posts=32)
    monkeypatch.setattr(demo, "make_demo", few)
    pairs = functools.partial(demo_relations.make_demo_relations, train_posts=36, validation_posts=18, test_posts=36)
    monkeypatch.setattr(demo_relations, "make_demo_relations", pairs)

    monkeypatch.setattr("dataset_scripts._demo.TOWER_STEPS", 2)

    def shorter(task: benchmark.Task) -> benchmark.Task:
        options = list(task.options)
        options[options.index("--num_train_epochs") + 1] = "1"
        return task._replace(options=tuple(options))

    monkeypatch.setattr(benchmark, "TASKS", tuple(map(shorter, benchmark.TASKS)))


def test_the_demo_trains_every_system_and_shows_it(small, tiny_encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        benchmark, "write_result", functools.partial(_common.write_result, results_dir=tmp_path / "results")
    )
    output = tmp_path / "out"
    arguments = ["--output_dir", str(output), "--model_name_or_path", tiny_encoder("bert"), "--use_cpu"]
    killed = output / "seed-1" / ".cache.0123abcd.tmp" / "made"  # a demo was killed there
    killed.mkdir(parents=True)
    runs = benchmark.main([*arguments, "--seeds", "1"])
    assert {path.name for path in (output / "seed-1").iterdir()} == set(SYSTEMS)

    for task, systems in SYSTEMS.items():
        own = [run for run in runs if run["task"] == task]
        assert [run["system"] for run in own] == [*systems, "shuffled evidence"]  # the record has its control
        gold = [[row["gold"] for row in run["predictions"].values()] for run in own]
        assert all(rows == gold[0] for rows in gold)  # all systems are scored on the same posts
        folder = output / "seed-1" / task / "shuffled"
        assert json.loads((folder / "arguments.json").read_text())["shuffle_knowledge"] is True
    assert len(gold[0]) == 36
    for run in runs:
        assert (run["folder"] / "model.safetensors").is_file() and (run["folder"] / "README.md").is_file()
        assert not (run["folder"] / "checkpoints").exists()

    page = (output / "index.html").read_text()
    assert page.count('class="post"') == 18 and page.count("data:image/png;base64,") > 18 * 2
    assert "http://" not in page and "https://" not in page  # self-contained
    printed = capsys.readouterr().out
    for system in SYSTEMS["entities"]:
        assert f"| {system} |" in printed
    assert "index.html" in printed

    # the last line opens the page; its options are those of the page, and what it names is there
    command = shlex.split(printed.strip().splitlines()[-1])
    assert command[:2] == ["python", "spaces/more/app.py"] and (ROOT / command[1]).is_file()
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", nargs="+")
    page_of_models.add_options(parser)
    given = parser.parse_args(command[2:])
    examples = page_of_models.read_examples(given.examples)
    assert len(examples) == 4 and all(text and picture.width > 1 for text, picture in examples)
    # the mixture searches what its experts searched
    found = PageReader.open(given.model, given.relation_model).read("mixture", AS_TRAINED, "just saw it", None)
    assert "No corpus is open here" not in found.evidence

    written = json.loads((tmp_path / "results" / "demo.json").read_text())
    assert [(row["task"], row["system"]) for row in written["rows"]] == [
        (task, system) for task, systems in SYSTEMS.items() for system in [*systems, "shuffled evidence", "oracle"]
    ]
    assert [row["least − none"] for row in written["rows"] if row["system"] == "none"] == [0, 0]


def test_the_demo_s_encoder_is_the_first_layers_of_the_real_one(minilm, tmp_path):
    from transformers import AutoModel

    small = AutoModel.from_pretrained(benchmark.small_encoder(tmp_path / "encoder"))
    whole = AutoModel.from_pretrained(minilm)
    assert len(small.encoder.layer) == benchmark.LAYERS < len(whole.encoder.layer)
    for name, weight in small.encoder.named_parameters():
        assert (weight == whole.encoder.get_parameter(name)).all(), name


def test_marked_words_say_right_or_wrong():
    from _demo_page import _marked, _related

    prediction = {
        "tokens": ["see", "Velmo", "<b>", "now"],
        "gold": ["O", "B-PER", "I-PER", "O"],
        "entities": [{"type": "PER", "start": 1, "end": 3}],
    }
    assert _marked(prediction) == 'see <mark class="right">Velmo &lt;b&gt;<small>PER</small></mark> now'
    for entity in ({"type": "LOC", "start": 1, "end": 3}, {"type": "PER", "start": 1, "end": 2}):
        assert 'class="wrong"' in _marked({**prediction, "entities": [entity]})

    pair = {"tokens": ["Velmo", "met", "A", "B"], "head": [2, 4], "tail": [0, 1], "relation": "x", "gold": "x"}
    assert _related(pair) == (
        '<mark>Velmo<small>tail</small></mark> met <mark>A B<small>head</small></mark> <mark class="right">x</mark>'
    )
    assert '<mark class="wrong">x</mark>' in _related({**pair, "gold": "y"})


def a_turn(number: int, text: float, said: tuple[str, str], scores: tuple[float | None, float | None]) -> dict:
    """A post that the gate weighed, as the predictions file has it."""
    entries = [[] if score is None else [{"title": "A <b>", "score": score}] for score in scores]
    return {
        "id": f"post-{number}", "tokens": ["A", "met", "B"], "head": [0, 1], "tail": [2, 3], "gold": "x",
        "relation": said[0], "expert_weights": {"text": text, "image": 1 - text},
        "experts": dict(zip(("text", "image"), said, strict=True)),
        "knowledge": dict(zip(("text", "image"), entries, strict=True)),
    }  # fmt: skip


def of_mixture(rows: list[dict]) -> dict:
    posts = [SimpleNamespace(id=row["id"], picture=lambda: Image.new("RGB", (4, 4))) for row in rows]
    predictions = {row["id"]: row for row in rows}
    return {"predictions": predictions, "demo": SimpleNamespace(posts={"test": posts}), "seed": 1}


def test_posts_in_which_the_gate_turns_to_an_expert_and_why():
    from _demo_page import _turns

    rows = [
        a_turn(0, 0.97, ("x", "y"), (8.0, 0.2)),
        a_turn(1, 0.99, ("x", "x"), (9.0, 0.1)),  # both say the same
        a_turn(2, 0.95, ("x", "y"), (7.0, 0.9)),
        a_turn(3, 0.04, ("y", "x"), (None, 0.8)),
        a_turn(4, 0.55, ("y", "x"), (5.0, 0.8)),  # nearly equal
        a_turn(5, 0.20, ("y", "x"), (1.0, 0.7)),
    ]
    head, *parts = _turns(of_mixture(rows), "relations")
    shown = "\n".join(parts)
    assert head == "<h2>Relations: where the gate turns to one expert, seed 1</h2>"
    told = [part for part in parts if part.startswith("<p>The gate turns to")]
    # for each expert in turn, the furthest from equal first
    assert [re.findall(r"to (\w+) \(([\d.]+) against", one)[0] for one in told] == [
        ("text", "0.97"), ("image", "0.96"), ("text", "0.95"),
    ]  # fmt: skip
    assert told[0] == (
        "<p>The gate turns to text (0.97 against 0.03): the best entry of text, “A &lt;b&gt;”, has a search score of "
        "8.00 (median over the test posts: 7.00); the best entry of image, “A &lt;b&gt;”, has a search score of 0.20 "
        "(median over the test posts: 0.75).</p>"
    )
    assert told[1].endswith("; text found nothing.</p>")
    assert shown.count('class="post turn"') == 3 and shown.count('class="system"') == 9
    assert shown.count('<mark class="right">x</mark>') == 5 and shown.count('<mark class="wrong">y</mark>') == 4

    # of weights that look the same, where the searches differ more
    first, second = (_turns(of_mixture([rows[2], a_turn(6, 0.951, ("x", "y"), (7.0, score))]), "relations")
                     for score in (0.1, 1.9))  # fmt: skip
    assert "score of 0.10" in first[2] and "score of 0.90" in second[2]

    # an expert that searches nothing; and only posts that are weighed nearly alike
    alone = [{**row, "knowledge": {**row["knowledge"], "image": []}} for row in rows]
    assert "; image reads the post alone.</p>" in "".join(_turns(of_mixture(alone), "relations"))
    _, words = _turns(of_mixture([rows[4], {**rows[1], "id": "other"}]), "relations")
    assert words == "<p>Wherever the experts disagree, the gate weighs them nearly alike.</p>"


def test_entities_that_differ_in_score_alone_are_no_disagreement():
    from _demo_page import _turns

    def found(type_: str, score: float) -> list[dict]:
        return [{"type": type_, "start": 0, "end": 1, "score": score}]

    rows = []
    for number, other in enumerate(("PER", "LOC")):
        row = a_turn(number, 0.9, ("", ""), (1.0, 1.0)) | {"gold": ["B-PER", "O", "O"], "entities": found("PER", 0.9)}
        del row["relation"]
        rows.append(row | {"experts": {"text": found("PER", 0.9), "image": found(other, 0.4)}})
    shown = "".join(_turns(of_mixture([*rows, a_turn(3, 0.5, ("x", "x"), (1.0, 1.0))]), "entities"))
    assert shown.count('class="post turn"') == 1
    assert shown.count('<mark class="right">A<small>PER') == 2 and shown.count('<mark class="wrong">A<small>LOC') == 1


def test_a_gate_that_weighs_every_post_alike_turns_to_nobody():
    from _demo_page import _turns

    rows = [a_turn(number, 0.5, ("x", "y"), (8.0, 0.2)) for number in range(3)]
    told = "<p>The gate weighs every post alike (text 0.50, image 0.50): it turns to no expert.</p>"
    assert _turns(of_mixture(rows), "relations") == [told]


BY_NAME_AND_FROM_THE_HUB = """
import functools, json, sys
import run_ner
from dataset_scripts import _demo, demo

_demo.TOWER_STEPS = 2
demo.make_demo = functools.partial(demo.make_demo, train_posts=32, validation_posts=16, test_posts=32)
encoder, folder = sys.argv[1:]
published = ["--retrieval", "image", "--output_dir", folder + "/data", "--cache_dir", folder + "/made"]
assert demo.main([*published, "--push_to_hub", "org/demo"]) == 0
found = []
for name, dataset in (("name", "demo"), ("hub", "org/demo")):
    options = ["--dataset", dataset, "--retrieval", "image", "--model_name_or_path", encoder, "--use_cpu"]
    options += ["--top_k", "1", "--max_length", "64", "--num_train_epochs", "1", "--cache_dir", folder]
    results = run_ner.main([*options, "--output_dir", folder + "/" + name])
    found.append([results["history"][0]["loss"], results["dev_f1"], results["test_f1"]])
print(json.dumps(found))
"""


def test_the_demo_by_name_and_from_the_hub_score_alike(tiny_encoder, tmp_path, hub):
    # one process for all: the environment that names the Hub has to be set before the libraries are imported
    script = [sys.executable, "-c", BY_NAME_AND_FROM_THE_HUB, tiny_encoder("bert"), str(tmp_path)]
    done = subprocess.run(script, env=hub.env, capture_output=True, text=True, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    by_name, from_hub = json.loads(done.stdout.splitlines()[-1])
    assert by_name == from_hub and by_name[0] > 0
