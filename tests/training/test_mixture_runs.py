"""--retrieval moe as its users run it: gate data, cache, scores beside the experts', one and two processes."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoProcessor

import ner_runs
import run_ner
import run_re
from dataset_scripts.demo_tower import make_tower, save_tower
from modeling_more import predict
from modeling_more.data_collator import MoReDataCollator
from modeling_more.encoding import encode_posts
from modeling_more.training import expert_outputs as mixture
from modeling_more.training import mixture_runs
from modeling_more.training.arguments import DataArguments
from modeling_more.training.checks import check_retrieval
from modeling_more.training.experts import load_experts
from modeling_more.training.posts import post_digest
from ner_runs import ROOT, read, read_lines
from re_runs import options as re_options
from re_runs import write_files


@pytest.fixture(scope="module")
def experts(tmp_path_factory, tiny_encoder):
    return ner_runs.train_experts(tmp_path_factory.mktemp("experts"), tiny_encoder)


def mix(files: dict, out: Path, *more: str) -> list[str]:
    return [
        "--train_file", files["train"], "--validation_file", files["dev"], "--test_file", files["test"],
        "--retrieval", "moe", "--experts", files["text"], files["none"], "--gate_epochs", "5", "--use_cpu",
        "--gate_inputs", "text", "image",  # the paper's gate; that with evidence: test_evidence_runs.py
        "--cache_dir", files["cache"], "--output_dir", str(out), *more,
    ]  # fmt: skip


def comparable(results):
    """The same without temperatures, which are fitted to a training's posts, and without what a cache held."""
    none = dict.fromkeys(("temperature", "tempered_error", "tempered_bins"))
    found = results | {"calibration": [row | none for row in results["calibration"]]}
    if "retrieval_report" in results:
        reports = results["retrieval_report"].items()
        found["retrieval_report"] = {name: one | {"cached": None} for name, one in reports}
    return found


def test_train_score_reload(experts, tmp_path):
    results = run_ner.main(mix(experts, tmp_path / "out"))
    # untrained, the gate is the average (and the same decoding of it); training keeps the better epoch on dev
    assert results["history"][0]["dev_f1"] == results["dev_average_f1"] <= results["dev_f1"]
    held = [set(json.loads(Path(experts[name], "holdout_ids.json").read_text())) for name in ("text", "none")]
    assert held[0] == held[1] and results["gate_posts"] == len(held[0]) > 5
    assert [row["epoch"] for row in results["history"]] == list(range(6))
    assert results["experts"] == {n: experts[n] for n in ("text", "none")}
    # an expert inside the mixture scores as it did alone
    for name in ("text", "none"):
        alone = json.loads(Path(experts[name], "all_results.json").read_text())
        for split in ("dev", "test"):
            assert results[f"{split}_expert_{name}_f1"] == pytest.approx(alone[f"{split}_f1"])
    best = max(("text", "none"), key=lambda name: results[f"dev_expert_{name}_f1"])
    assert results["best_expert"] == best and results["test_best_expert_f1"] == results[f"test_expert_{best}_f1"]
    for key in ("test_f1", "test_word_decoding_f1", "test_average_f1", "dev_average_f1"):
        assert 0 <= results[key] <= 100
    gain = results["test_f1_minus_average"]
    assert gain["difference"] == pytest.approx(results["test_f1"] - results["test_average_f1"])
    assert gain["low"] <= gain["difference"] <= gain["high"]
    table = results["gate"]
    assert table[0]["number"] == 9 == table[1]["number"] + table[2]["number"]
    assert table[0]["text"] + table[0]["none"] == pytest.approx(1, abs=1e-5)

    out = tmp_path / "out"
    card = (out / "README.md").read_text()
    for told in ("What the gate adds", "How the gate weighs", "test, average", "expert text"):
        assert told in card, told
    calibrated = {row["system"]: row for row in results["calibration"]}
    assert list(calibrated) == ["text", "none", "mixture"] and "## Calibration" in card
    assert calibrated["mixture"]["error"] == results["test_calibration_error"]
    assert calibrated["text"]["temperature"] > 0 and (out / "reliability.png").exists()
    assert "expert of each post, chosen with the labels, has a test F1 of" in card
    # what weighs all posts alike has no plot
    drawn = table[0]["standard deviation"] > 1e-6
    assert (out / "gate_weights.png").exists() == ("(gate_weights.png)" in card) == drawn
    rows = [json.loads(line) for line in (out / "predictions" / "test.jsonl").read_text().splitlines()]
    assert set(rows[0]["experts"]) == set(rows[0]["expert_weights"]) == {"text", "none"}

    # the saved mixture says the same where the experts' folders are not needed
    model = AutoModelForTokenClassification.from_pretrained(out)
    processor = AutoProcessor.from_pretrained(out)
    from modeling_more.knowledge import BM25Retriever, load_knowledge

    retriever = BM25Retriever.from_corpus(load_knowledge([experts["knowledge"]], cache_dir=experts["cache"]))
    found = retriever.search([" ".join(row["tokens"]) for row in rows], top_k=1)
    posts = [{"tokens": row["tokens"], "knowledge_text": e} for row, e in zip(rows, found, strict=True)]
    for row, again in zip(rows, predict(model, processor, posts), strict=True):
        assert [e["text"] for e in again["entities"]] == [e["text"] for e in row["entities"]]
        assert [e["score"] for e in again["entities"]] == pytest.approx(
            [e["score"] for e in row["entities"]], abs=1e-4
        )
        assert again["expert_weights"] == pytest.approx(row["expert_weights"], abs=1e-5)
    code = card.split("```python\n")[1].split("```")[0].replace("'out'", repr(str(out)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0 and "'text':" in done.stdout, done.stderr[-2000:]


def test_cached_and_uncached_runs_are_equal(experts, tmp_path, monkeypatch):
    """A second run reads the experts' outputs from the cache: no expert's encoder runs while the gate trains."""
    first = run_ner.main(mix(experts, tmp_path / "one", "--cache_dir", str(tmp_path / "cache"), "--gate", "word"))
    files = list((tmp_path / "cache" / "mixture").glob("*.safetensors"))
    assert len(files) == 3  # gate data, dev, test

    from modeling_more.modeling_more import MoRePreTrainedModel

    calls = []
    encode = MoRePreTrainedModel.encode
    monkeypatch.setattr(MoRePreTrainedModel, "encode", lambda self, *a, **k: calls.append(1) or encode(self, *a, **k))
    again = run_ner.main(mix(experts, tmp_path / "two", "--cache_dir", str(tmp_path / "cache"), "--gate", "word"))
    assert not calls
    fresh = run_ner.main(
        mix(
            experts,
            tmp_path / "three",
            "--cache_dir",
            str(tmp_path / "c2"),
            "--gate",
            "word",
            "--no_cache_expert_outputs",
        )
    )
    assert calls and not (tmp_path / "c2" / "mixture").exists()
    for other in (again, fresh):
        for one, two in zip(first["history"], other["history"], strict=True):
            assert one.get("loss") == pytest.approx(two.get("loss"), abs=1e-5) and one["dev_f1"] == two["dev_f1"]
        assert first["test_f1"] == other["test_f1"]


def test_gate_data_and_training_the_experts(experts, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"held no training posts out for the gate: train it with --holdout_fraction"):
        bare = tmp_path / "bare"
        shutil.copytree(experts["text"], bare)
        (bare / "holdout_ids.json").write_text("[]")
        (bare / "manifest.json").unlink()
        run_ner.main(mix({**experts, "text": str(bare)}, tmp_path / "x"))
    arguments = mix(experts, tmp_path / "train", "--gate_data", "train")
    place = arguments.index("--test_file")
    everything = run_ner.main(arguments[:place] + arguments[place + 2 :])
    assert everything["gate_posts"] == 48
    # without a test set the card tells what the gate adds on dev
    gain = everything["dev_f1_minus_average"]
    assert gain["difference"] == pytest.approx(everything["dev_f1"] - everything["dev_average_f1"])
    assert "dev F1 of the mixture minus" in (tmp_path / "train" / "README.md").read_text()

    seen = []
    train_gate = mixture_runs.train_gate
    monkeypatch.setattr(mixture_runs, "train_gate", lambda *given: (seen.append(given[:2]), train_gate(*given))[1])
    folded = run_ner.main(mix(experts, tmp_path / "folds", "--gate_data", "crossfit", "--crossfit_folds", "2"))
    assert folded["gate_posts"] == 48
    monkeypatch.undo()
    # the gate sees what the experts of a post's fold say of it, by their own CRFs
    [(model, features)] = seen
    differing = 0
    for fold in (0, 1):
        expert = AutoModelForTokenClassification.from_pretrained(tmp_path / "folds" / "crossfit" / f"none-{fold}")
        processor = AutoProcessor.from_pretrained(tmp_path / "folds" / "crossfit" / f"none-{fold}")
        order = [expert.config.label2id[model.config.id2label[label]] for label in range(len(model.config.id2label))]
        for row, post in enumerate(ner_runs.posts(48)):
            if post_digest(post) % 2 != fold:
                continue
            batch = MoReDataCollator(processor)(encode_posts([post], processor))
            with torch.no_grad():
                logits = expert(**{key: value for key, value in batch.items() if key != "index"}).logits
                own = expert.log_marginals(logits, batch["word_mask"])[0][:, order]
            assert torch.allclose(features.expert_log_probs[row][1], own, atol=1e-4)
            differing += not torch.allclose(features.expert_logits[row][1].log_softmax(-1), own, atol=1e-2)
    assert differing > 40
    fold = json.loads((tmp_path / "folds" / "crossfit" / "text-0" / "all_results.json").read_text())
    other = json.loads((tmp_path / "folds" / "crossfit" / "text-1" / "all_results.json").read_text())
    assert fold["train_posts"] + other["train_posts"] == 48 and fold["held_out_posts"] == 0
    # again, the folds' experts are kept; other folds need others
    kept = tmp_path / "folds" / "crossfit" / "text-0" / "model.safetensors"
    made = kept.stat().st_mtime_ns
    arguments = [experts, tmp_path / "folds", "--resume_from_checkpoint", "latest"]
    arguments += ["--gate_data", "crossfit", "--gate_epochs", "1", "--crossfit_folds"]
    run_ner.main(mix(*arguments, "2"))
    assert kept.stat().st_mtime_ns == made
    run_ner.main(mix(*arguments, "2", "--max_train_samples", "40"))
    assert kept.stat().st_mtime_ns > made
    with pytest.raises(SystemExit, match="choose --gate_data holdout or train"):
        run_ner.main(mix(experts, tmp_path / "x", "--gate_data", "crossfit", "--train_experts"))
    shutil.copytree(experts["none"], tmp_path / "silent")
    (tmp_path / "silent" / "arguments.json").unlink()
    with pytest.raises(SystemExit, match=r"expert none .* does not tell how it was trained"):
        run_ner.main(mix({**experts, "none": str(tmp_path / "silent")}, tmp_path / "x", "--gate_data", "crossfit"))

    extra = [
        "--train_experts",
        "--num_train_epochs",
        "1",
        "--learning_rate",
        "1e-3",
        "--per_device_train_batch_size",
        "4",
    ]
    tuned = run_ner.main(mix(experts, tmp_path / "tuned", *extra))
    assert len(tuned["history"]) == 1
    on = run_ner.main(
        mix(experts, tmp_path / "tuned", *extra, "--num_train_epochs", "2", "--resume_from_checkpoint", "latest")
    )
    assert on["history"][0] == tuned["history"][0] and len(on["history"]) == 2
    alone = AutoModelForTokenClassification.from_pretrained(experts["text"]).state_dict()
    inside = AutoModelForTokenClassification.from_pretrained(tmp_path / "tuned").experts[0].state_dict()
    assert any(not torch.equal(alone[name], inside[name]) for name in alone)


def test_experts_trained_along_are_scored_as_they_are_saved(experts, tmp_path, monkeypatch):
    """Training returns the model of the best epoch, another object than the one that it was given."""
    train = mixture_runs.train

    def best_is_silent(accelerator, model, *more, **options):
        trained, result = train(accelerator, model, *more, **options)
        trained = copy.deepcopy(trained)
        for expert in trained.experts:
            for parameter in expert.classifier.parameters():
                parameter.data.zero_()
            expert.classifier.bias.data[expert.config.label2id["O"]] = 50.0
        return trained, result

    monkeypatch.setattr(mixture_runs, "train", best_is_silent)
    tuned = run_ner.main(mix(experts, tmp_path / "tuned", "--train_experts", "--num_train_epochs", "1"))
    assert tuned["dev_f1"] == tuned["test_f1"] == tuned["test_expert_text_f1"] == 0.0


def test_seeds_and_predictions_of_a_mixture(experts, tmp_path, caplog):
    out = tmp_path / "out"
    posts = Path(tmp_path / "posts.jsonl")
    rows = [{"id": row["id"], "tokens": row["tokens"]} for row in ner_runs.posts(9, 70)]
    ner_runs.write_jsonl(posts, rows)
    predict = ["--do_predict", "--predict_file", str(posts)]
    results = run_ner.main(mix(experts, out, "--seeds", "1", "2", *predict))
    card = (out / "README.md").read_text()
    for told in ("What the gate adds", "How the gate weighs", "Scores per type", "expert_weights", "±"):
        assert told in card, told
    assert len(results["runs"]) == 2
    # the same posts as the test set: each expert retrieves for them as in its training
    best = max((1, 2), key=lambda seed: results["runs"][seed - 1]["dev_f1"])
    test, found = (
        [
            json.loads(line)
            for line in (out / f"seed-{best}" / "predictions" / f"{name}.jsonl").read_text().splitlines()
        ]
        for name in ("test", "predict")
    )
    for row, one in zip(test, found, strict=True):
        assert one["expert_weights"] == pytest.approx(row["expert_weights"], abs=1e-5)
        assert [e["text"] for e in one["entities"]] == [e["text"] for e in row["entities"]]
        assert {n: [e["text"] for e in own] for n, own in one["experts"].items()} == {
            n: [e["text"] for e in own] for n, own in row["experts"].items()
        }
    # alone, and without their knowledge, which is told
    again = ["--model_name_or_path", str(out), *predict, "--use_cpu", "--output_dir"]
    run_ner.main([*again, str(tmp_path / "alone"), "--retrieval", "moe", "--experts", experts["text"], experts["none"],
                  "--cache_dir", experts["cache"]])  # fmt: skip
    alone = [json.loads(line) for line in (tmp_path / "alone" / "predictions" / "predict.jsonl").open()]
    assert [row["entities"] for row in alone] == [row["entities"] for row in found]
    assert "no post has knowledge_text" not in caplog.text
    with pytest.raises(SystemExit, match="--experts names 1 experts, the mixture has 2"):
        run_ner.main([*again, str(tmp_path / "x"), "--retrieval", "moe", "--experts", experts["text"],
                      "--cache_dir", experts["cache"]])  # fmt: skip
    # by itself it retrieves as its experts did
    run_ner.main([*again, str(tmp_path / "bare")])
    bare = [json.loads(line) for line in (tmp_path / "bare" / "predictions" / "predict.jsonl").open()]
    assert bare == alone and any(row["knowledge"]["text"] for row in bare)
    assert "no post has knowledge_text" not in caplog.text


def test_a_saved_mixture_is_scored_as_it_is(experts, tmp_path):
    """On the posts that it was made with it scores as then; on others it needs no dev set."""
    out = tmp_path / "out"
    trained = run_ner.main(mix(experts, out))
    saved = ["--no_do_train", "--model_name_or_path", str(out)]
    again = run_ner.main(mix(experts, tmp_path / "again", *saved))
    # what the gate's training alone tells
    assert trained.keys() - again.keys() == {"gate_data", "gate_posts", "gate_inputs", "best_epoch", "history"}
    assert {key: comparable(trained)[key] for key in again} == comparable(again)
    assert "What the gate adds" in (tmp_path / "again" / "README.md").read_text()

    arguments = mix(experts, tmp_path / "test", *saved)[4:]
    tested = run_ner.main(arguments)
    assert {key: value for key, value in tested.items() if key.startswith("test_")} == {
        key: value for key, value in trained.items() if key.startswith("test_") and "best_expert" not in key
    }
    card = (tmp_path / "test" / "README.md").read_text()
    assert "the plain average" in card and "best expert on dev" not in card
    with pytest.raises(SystemExit, match="scores a saved mixture, .*text is more: give the mixture's folder"):
        run_ner.main([*arguments[:-1], experts["text"]])
    swapped = {**experts, "text": experts["none"], "none": experts["text"]}
    with pytest.raises(SystemExit, match="name the experts that it mixes, in its order"):
        run_ner.main(mix(swapped, tmp_path / "x", *saved))
    with pytest.raises(SystemExit, match="nothing to score: no validation or test split"):
        run_ner.main([*arguments[2:], "--train_file", experts["train"]])
    with pytest.raises(SystemExit, match="training needs a train split"):
        run_ner.main([*(one for one in arguments if one != "--no_do_train"), "--output_dir", str(tmp_path / "x")])


def test_ids_and_splits_join_the_experts_of_a_folder(experts, tmp_path):
    """Configurations of one data set: without ids, and with other splits, they can't be joined."""

    def publish(folder, ids, splits):
        for config, column in (("none", {}), ("text", {"knowledge_text": [[]] * 48})):
            posts = ner_runs.posts(48)
            rows = {"tokens": [p["tokens"] for p in posts], "ner_tags": [p["tags"] for p in posts]} | column
            rows |= {"id": [p["id"] for p in posts]} if ids else {}
            (folder / config).mkdir(parents=True, exist_ok=True)
            for split in splits[config]:
                Dataset.from_dict(rows).to_parquet(folder / config / f"{split}.parquet")
        configs = "".join(
            f"- config_name: {config}\n  data_files:\n"
            + "".join(f"  - {{split: {s}, path: {config}/{s}.parquet}}\n" for s in splits[config])
            for config in splits
        )
        (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
        return ["--dataset", str(folder)]

    own = tmp_path / "text"  # reads the configuration text, instead of searching itself
    shutil.copytree(experts["text"], own)
    options_file = own / "arguments.json"
    options_file.write_text(json.dumps(json.loads(options_file.read_text()) | {"knowledge": []}))
    arguments = mix({**experts, "text": str(own)}, tmp_path / "x")[6:]
    both = {"none": ["train", "validation"], "text": ["train", "validation"]}
    with pytest.raises(SystemExit, match="have no column id"):
        run_ner.main([*publish(tmp_path / "a", False, both), *arguments])
    more = both | {"text": ["train", "validation", "test"]}
    with pytest.raises(SystemExit, match="expert none has the splits train, validation, text has train, val.*, test"):
        run_ner.main([*publish(tmp_path / "b", True, more), *arguments])


def test_experts_search_files_that_lie_elsewhere_now(experts):
    text, none = load_experts([experts["text"], experts["none"]])
    moved = DataArguments(retrieval="moe", knowledge=["moved.jsonl"], captions="other.json")
    assert text.data(moved).knowledge == ["moved.jsonl"] and none.data(moved).knowledge == []
    assert text.data(DataArguments(retrieval="moe")).knowledge == [experts["knowledge"]]
    check_retrieval(moved)
    text.options["query"] = "caption"
    assert text.data(moved).captions == "other.json" and not none.data(moved).captions


def test_ids_join_the_experts(experts, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(experts["text"], other)
    assert [e.name for e in load_experts([experts["text"], str(other), experts["none"]])] == ["text", "text_2", "none"]
    with pytest.raises(SystemExit, match="no saved expert"):
        run_ner.main(mix({**experts, "text": str(tmp_path)}, tmp_path / "x"))
    with pytest.raises(SystemExit, match="needs --experts"):
        run_ner.main([*mix(experts, tmp_path / "x")[:6], "--retrieval", "moe", "--use_cpu"])
    rows = [json.loads(line) for line in Path(experts["train"]).read_text().splitlines()]
    rows[1]["id"] = rows[0]["id"]
    (tmp_path / "twice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit, match=f"have the id {rows[0]['id']} twice"):
        run_ner.main(mix({**experts, "train": str(tmp_path / "twice.jsonl")}, tmp_path / "x"))


def test_one_and_two_processes_agree(experts, tmp_path):
    """Also where two processes share the cache of the experts' outputs, which one of them writes."""
    one = run_ner.main(mix(experts, tmp_path / "one", "--no_cache_expert_outputs"))
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--config_file"),
        *(str(ROOT / "accelerate_configs" / "cpu_2_processes.yaml"), str(ROOT / "run_ner.py")),
        *mix(experts, tmp_path / "two", "--cache_dir", str(tmp_path / "cache")),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "cache" / "mixture").glob("*.safetensors"))) == 3
    two = json.loads((tmp_path / "two" / "all_results.json").read_text())
    for key in ("dev_f1", "test_f1", "test_average_f1", "best_epoch"):
        assert one[key] == pytest.approx(two[key]), key


def test_relations_and_images(tiny_encoder, tmp_path, monkeypatch, caplog):
    """Posts with images, one of them broken: the gate sees them, the mixture trains and reloads."""
    save_tower(make_tower(1), tmp_path / "tower")
    (tmp_path / "pairs").mkdir()
    files = write_files(tmp_path / "pairs")
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "dev", "test"):
        rows = [json.loads(line) for line in Path(files[split]).read_text().splitlines()]
        for number, row in enumerate(rows):
            row["image_id"] = row["id"]
            if number % 3:
                Image.fromarray(rng.integers(0, 255, (20, 24, 3), dtype=np.uint8)).save(images / f"{row['id']}.png")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (images / "pair-40.png").write_bytes(b"no picture")
    for retrieval in ("none", "text"):
        arguments = re_options(files, tiny_encoder("bert"), "--holdout_fraction", "0.5", retrieval=retrieval)
        run_re.main([*arguments, "--output_dir", str(tmp_path / retrieval)])
    arguments = re_options(files, "unused", "--image_dir", str(images), "--image_model", str(tmp_path / "tower"))
    arguments += ["--retrieval", "moe", "--experts", str(tmp_path / "none"), str(tmp_path / "text")]
    arguments += ["--gate_epochs", "3", "--gate_inputs", "text", "image"]
    results = run_re.main(arguments)
    assert {"test_average_f1", "test_expert_text_accuracy", "test_best_expert_f1"} <= results.keys()
    groups = {row["test posts"]: row["number"] for row in results["gate"]}
    assert groups["with image"] == 10 and groups["without image"] == 5
    model = AutoModelForSequenceClassification.from_pretrained(files["out"])
    assert model.config.image_dim > 0
    saved = list(arguments)
    del saved[saved.index("--image_model") : saved.index("--image_model") + 2]  # the saved gate names its tower
    saved += ["--no_do_train", "--model_name_or_path", files["out"], "--output_dir", str(tmp_path / "scored")]
    scored = run_re.main(saved)
    assert {key: comparable(results)[key] for key in scored} == comparable(scored) and scored["gate"] == results[
        "gate"
    ]
    # a gate that reads the text alone asks for no images
    place = arguments.index("image", arguments.index("--gate_inputs"))
    blind = [*arguments[:place], *arguments[place + 1 :], "--output_dir", str(tmp_path / "blind")]
    assert "with image" not in {row["test posts"] for row in run_re.main(blind)["gate"]}
    row = read_lines(files, "predictions/test.jsonl")[0]
    assert set(row["experts"]) == {"none", "text"} and sum(row["expert_weights"].values()) == pytest.approx(1)
    assert read(files, "all_results.json")["experts"]["text"] == str(tmp_path / "text")
    # in predict mode the gate sees the images, too, by the tower that the checkpoint names, a few at a time
    monkeypatch.setattr(mixture, "IMAGES_AT_ONCE", 3)
    test = [json.loads(line) for line in Path(files["test"]).read_text().splitlines()]
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "relation"}) + "\n" for row in test))
    run_re.main(["--model_name_or_path", files["out"], "--do_predict", "--predict_file", str(asked), "--use_cpu",
                 "--image_dir", str(images), "--output_dir", str(tmp_path / "predicted")])  # fmt: skip
    found = [json.loads(line) for line in (tmp_path / "predicted" / "predictions" / "predict.jsonl").open()]
    assert "5 of 15 posts have no image in" in caplog.text
    for row, one in zip(read_lines(files, "predictions/test.jsonl"), found, strict=True):
        (pair,) = one["relations"]
        assert pair["expert_weights"] == pytest.approx(row["expert_weights"], abs=1e-5)
        assert (pair["relation"], pair["experts"]) == (row["relation"], row["experts"])
