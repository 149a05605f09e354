"""Runs of --retrieval moe with evidence: what they choose, save, report, and what does not go together."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForTokenClassification, AutoProcessor

import ner_runs
import run_ner
from modeling_more import predict
from modeling_more.configuration_mixture import GATE_INPUTS
from modeling_more.training import gate_choice, mixture_runs
from modeling_more.training.arguments import MixtureArguments
from modeling_more.training.checks import check_gate


@pytest.fixture(scope="module")
def experts(tmp_path_factory, tiny_encoder):
    return ner_runs.train_experts(tmp_path_factory.mktemp("experts"), tiny_encoder)


def mix(files, out, *more):
    return [
        "--train_file", files["train"], "--validation_file", files["dev"], "--test_file", files["test"],
        "--retrieval", "moe", "--experts", files["text"], files["none"], "--use_cpu", "--cache_dir", files["cache"],
        "--output_dir", str(out), *more,
    ]  # fmt: skip


def the_gate(monkeypatch, *inputs):
    """Whatever cross-validation finds, the gate with these inputs acts, with a prior that lets it speak."""

    def run(self, candidates, progress=True):
        (chosen,) = [one for one in candidates if one.inputs == inputs]
        chosen.spread, chosen.chosen = 10.0, True
        self.set(chosen, range(self.number))
        return chosen

    monkeypatch.setattr(gate_choice.Choice, "run", run)


def rows_of(out, name="test"):
    return [json.loads(line) for line in (Path(out) / "predictions" / f"{name}.jsonl").read_text().splitlines()]


def knowledge_of(experts, rows):
    from modeling_more.knowledge import BM25Retriever, load_knowledge

    retriever = BM25Retriever.from_corpus(load_knowledge([experts["knowledge"]], cache_dir=experts["cache"]))
    return retriever.search([" ".join(row["tokens"]) for row in rows], top_k=2)  # as of a mixture


def test_what_acts_is_chosen_and_told(experts, tmp_path):
    out = tmp_path / "out"
    results = run_ner.main(mix(experts, out))
    names = [one["name"] for one in results["gate_candidates"]]
    assert names == [
        "average", "best expert", "average at temperatures", "gate: scores", "gate: confidence",
        "gate: scores, confidence", "gate: text", "gate: text, scores, confidence",
    ]  # fmt: skip
    (chosen,) = [one for one in results["gate_candidates"] if one["chosen"]]
    assert results["gate_inputs"] == chosen["inputs"]
    best = max(one["f1"] for one in results["gate_candidates"])
    assert best - chosen["f1"] == pytest.approx(chosen["behind"]) and chosen["behind"] <= chosen["standard_error"]
    assert max(results["test_expert_text_f1"], results["test_expert_none_f1"]) <= results["test_oracle_f1"] + 1e-9
    card = (out / "README.md").read_text()
    assert "What weighs the experts" in card and "cross-validation, in at most five folds" in card
    assert "chosen with the labels" in card and "Calibration" in card
    config = json.loads((out / "config.json").read_text())
    assert config["gate_inputs"] == chosen["inputs"] and config["image_dim"] == 0
    assert config["alone"] == ([0] if "confidence" in chosen["inputs"] else [])


def test_the_options_are_those_of_the_configuration():
    assert set(MixtureArguments.__dataclass_fields__["gate_inputs"].metadata["choices"]) == {"auto", *GATE_INPUTS}


def test_what_the_gate_does_not_read_is_not_computed_later(experts, tmp_path, monkeypatch):
    """A gate of scores alone needs no readings without knowledge, which would take as long again."""
    the_gate(monkeypatch, "scores")
    run_ner.main(mix(experts, tmp_path / "out"))
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert model.config.gate_inputs == ["scores"] and model.config.alone == [] and not processor.alone
    row = rows_of(tmp_path / "out")[0]
    (entries,) = knowledge_of(experts, [row])
    (again,) = predict(model, processor, [{"tokens": row["tokens"], "knowledge_text": entries}])
    assert again["expert_weights"] == pytest.approx(row["expert_weights"], abs=1e-5)


@pytest.mark.parametrize("more", [(), ("--abstain",), ("--gate", "word")], ids=["post", "abstain", "word"])
def test_the_saved_mixture_sees_what_its_gate_was_fitted_to(more, experts, tmp_path, monkeypatch):
    """Scored from the cache, by `predict` and by a scoring run, a post has the same weights."""
    the_gate(monkeypatch, "scores", "confidence")
    out = tmp_path / "out"
    results = run_ner.main(mix(experts, out, *more))
    rows = rows_of(out)
    weights = torch.tensor([list(row["expert_weights"].values()) for row in rows])
    assert weights.std(0).max() > 1e-5  # the gate speaks; the tiny experts often agree
    names = ["text", "none", *(["text_alone"] if more == ("--abstain",) else [])]
    assert list(rows[0]["expert_weights"]) == list(rows[0]["experts"]) == names
    assert results["gate"][0].keys() >= set(names)
    model, processor = AutoModelForTokenClassification.from_pretrained(out), AutoProcessor.from_pretrained(out)
    assert model.config.alone == [0] and processor.alone
    posts = [
        {"tokens": row["tokens"], "knowledge_text": entries}
        for row, entries in zip(rows, knowledge_of(experts, rows), strict=True)
    ]
    for row, again in zip(rows, predict(model, processor, posts), strict=True):
        assert again["expert_weights"] == pytest.approx(row["expert_weights"], abs=1e-5)
        assert [e["score"] for e in again["entities"]] == pytest.approx(
            [e["score"] for e in row["entities"]], abs=1e-4
        )
    saved = ["--no_do_train", "--model_name_or_path", str(out)]
    scored = run_ner.main(mix(experts, tmp_path / "scored", *saved))
    assert scored["test_f1"] == results["test_f1"] and scored["gate"] == results["gate"]


def test_folds_tell_how_sure_their_own_experts_are(experts, tmp_path, monkeypatch):
    """With crossfit the confidence is that of experts that did not train on a post, as what they say is."""
    seen = []
    known_of = mixture_runs.known_of

    def spy(model, features, labels):
        found = known_of(model, features, labels)
        seen.append((features, found))
        return found

    monkeypatch.setattr(mixture_runs, "known_of", spy)
    results = run_ner.main(mix(experts, tmp_path / "x", "--gate_data", "crossfit", "--crossfit_folds", "2"))
    assert results["gate_posts"] == 48
    assert "average at temperatures" not in [one["name"] for one in results["gate_candidates"]]
    ((features, (known, ready)),) = seen
    assert torch.equal(known.inputs["confidence"].nan_to_num(7), torch.stack(features.confidence).nan_to_num(7))
    assert all(torch.equal(a, b) for a, b in zip(ready.expert_log_probs, features.expert_log_probs, strict=True))


def test_a_gate_that_learns_from_dev_needs_no_posts_held_out(experts, tmp_path, caplog):
    results = run_ner.main(mix(experts, tmp_path / "x", "--gate_data", "dev", "--abstain", "--gate_epochs", "3"))
    assert "--gate_epochs: not used, a gate that may read evidence is fitted in one go" in caplog.text
    assert results["gate_posts"] == 8 and results["gate_data"] == "dev"
    assert {"test_expert_text_alone_f1", "test_oracle_f1"} <= results.keys()


def test_shuffled_evidence_is_another_posts(experts, tmp_path, monkeypatch):
    seen = []
    shuffled = mixture_runs.shuffled
    monkeypatch.setattr(mixture_runs, "shuffled", lambda *given: seen.append((given, shuffled(*given))) or seen[-1][1])
    results = run_ner.main(mix(experts, tmp_path / "x", "--shuffle_evidence"))
    (((known, ready, _), (other, changed)),) = seen
    for name in ("scores", "confidence"):
        before, after = known.inputs[name].nan_to_num(7), other.inputs[name].nan_to_num(7)
        assert not torch.equal(before, after) and torch.equal(before.sort(0).values, after.sort(0).values)
    assert torch.equal(known.inputs["text"], other.inputs["text"])
    assert not torch.equal(torch.stack(ready.confidence).nan_to_num(7), torch.stack(changed.confidence).nan_to_num(7))
    assert "gate_candidates" in results


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"gate_inputs": ["auto", "text"]}, "--gate_inputs auto compares all choices: give it alone"),
        ({"gate_inputs": ["scores"], "train_experts": True}, "--gate_inputs scores is fitted to experts as they are"),
        ({"abstain": True, "train_experts": True}, "--abstain is fitted to experts as they are"),
        ({"gate_inputs": ["text"], "gate_data": "dev"}, "the gate of text and image is chosen on the dev posts"),
        ({"shuffle_evidence": True, "gate_inputs": ["text"]}, "--shuffle_evidence is for a gate of evidence"),
        ({"gate_inputs": ["image"], "gate_images": False}, "--gate_inputs image needs the images"),
        ({"shuffle_evidence": True, "gate": "word"}, "--shuffle_evidence gives a post another one's evidence"),
    ],
)
def test_what_does_not_go_together(options, told):
    with pytest.raises(ValueError, match=told):
        check_gate(MixtureArguments(experts=["a"], **options))
