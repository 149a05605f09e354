"""`make demo` at a small size: every system is trained, the table is complete, the page shows the predictions."""

import functools
import json

import demo as benchmark
import pytest

import _common
from dataset_scripts import demo as demo_set


@pytest.fixture
def small(monkeypatch):
    """Few posts and one epoch; nothing is written to the repository's results."""
    few = functools.partial(demo_set.make_demo, train_posts=32, validation_posts=16, test_posts=32)
    monkeypatch.setattr(demo_set, "make_demo", few)
    options = list(benchmark.OPTIONS)
    options[options.index("--num_train_epochs") + 1] = "1"
    monkeypatch.setattr(benchmark, "OPTIONS", tuple(options))


def test_the_demo_trains_every_system_and_shows_it(small, tiny_encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        benchmark, "write_result", functools.partial(_common.write_result, results_dir=tmp_path / "results")
    )
    output = tmp_path / "out"
    arguments = ["--output_dir", str(output), "--model_name_or_path", tiny_encoder("bert"), "--use_cpu"]
    runs = benchmark.main([*arguments, "--seeds", "1"])

    assert [run["system"] for run in runs] == ["none", "shuffled", "text"]
    gold = [[row["gold"] for row in run["predictions"].values()] for run in runs]
    assert gold[0] == gold[1] == gold[2] and len(gold[0]) == 32  # all systems are scored on the same posts
    assert json.loads((output / "seed-1" / "shuffled" / "arguments.json").read_text())["shuffle_knowledge"] is True
    for run in runs:
        assert (run["folder"] / "model.safetensors").is_file() and (run["folder"] / "README.md").is_file()
        assert not (run["folder"] / "checkpoints").exists()

    page = (output / "index.html").read_text()
    assert page.count('class="post"') == 9 and "data:image/png;base64," in page
    assert "http://" not in page and "https://" not in page  # self-contained
    printed = capsys.readouterr().out
    assert "| none |" in printed and "| shuffled |" in printed and "| text |" in printed and "index.html" in printed

    written = json.loads((tmp_path / "results" / "demo.json").read_text())
    assert [row["system"] for row in written["rows"]] == ["none", "shuffled", "text"]
    assert written["rows"][0]["least − none"] == 0


def test_marked_words_say_right_or_wrong():
    from _demo_page import _marked

    prediction = {
        "tokens": ["see", "Velmo", "<b>", "now"],
        "gold": ["O", "B-PER", "I-PER", "O"],
        "entities": [{"type": "PER", "start": 1, "end": 3}],
    }
    assert _marked(prediction) == 'see <mark class="right">Velmo &lt;b&gt;<small>PER</small></mark> now'
    for entity in ({"type": "LOC", "start": 1, "end": 3}, {"type": "PER", "start": 1, "end": 2}):
        assert 'class="wrong"' in _marked({**prediction, "entities": [entity]})
