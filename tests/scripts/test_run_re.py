"""run_re.py as its users run it: train, score, reload, predict; each script knows its own data and experts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, AutoProcessor

import run_ner
import run_re
from modeling_more import predict
from modeling_more.metrics import relation_scores
from ner_runs import KNOWLEDGE, ROOT, read, read_lines, write_jsonl
from re_runs import RELATIONS, mnre_line, options, pairs, write_files


@pytest.fixture
def pair_files(tmp_path):
    folder = tmp_path / "pairs"
    folder.mkdir()
    return write_files(folder)


def test_train_score_reload(pair_files, tiny_encoder):
    extra = ["--two_views", "kl", "--num_train_epochs", "25", "--top_k", "1", "--class_weights"]
    extra += ["--learning_rate", "3e-3"]
    results = run_re.main(options(pair_files, tiny_encoder("bert"), *extra, retrieval="text"))
    assert read(pair_files, "all_results.json") == json.loads(json.dumps(results))
    # the relation stands in the knowledge alone
    assert results["test_f1"] > results["test_no_knowledge_f1"] + 20 and results["dev_f1"] > 60
    assert results["history"][-1]["kl_loss"] > 0
    for key in ("test_accuracy", "test_macro_f1", "test_precision", "test_recall", "dev_no_knowledge_accuracy"):
        assert 0 <= results[key] <= 100
    assert set(results["test_f1_per_type"]) == set(RELATIONS[1:])

    out = Path(pair_files["out"])
    card = (out / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card and "Scores per relation" in card and "macro F1" in card
    assert f"{results['test_f1']:.2f}" in card and f"{results['test_accuracy']:.2f}" in card
    written = read_lines(pair_files, "predictions/test.jsonl")
    assert relation_scores([row["relation"] for row in written], [row["gold"] for row in written])["f1"] == (
        pytest.approx(results["test_f1"])
    )
    model = AutoModelForSequenceClassification.from_pretrained(out)
    processor = AutoProcessor.from_pretrained(out)
    assert model.config.class_weights and model.config.id2label[0] == "None"
    posts = [{key: row[key] for key in ("tokens", "head", "tail", "knowledge_text")} for row in pairs(15, 60)]
    for row, found in zip(written, predict(model, processor, posts), strict=True):
        [again] = found["relations"]
        assert again["relation"] == row["relation"] and again["score"] == pytest.approx(row["score"], abs=1e-5)
    code = card.split("```python\n")[1].split("```")[0].replace(repr("out"), repr(str(out)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert any(label in done.stdout for label in RELATIONS)


def test_a_run_goes_on(pair_files, tiny_encoder):
    arguments = options(pair_files, tiny_encoder("bert"), "--class_weights")
    first = run_re.main([*arguments, "--num_train_epochs", "1"])
    more = run_re.main([*arguments, "--resume_from_checkpoint", "latest"])
    assert more["history"][0] == first["history"][0] and len(more["history"]) == 2


def test_own_retrieval(pair_files, tiny_encoder, tmp_path):
    """Knowledge is searched for pairs as for posts with entities, once for all splits."""
    for split in ("train", "dev", "test"):
        rows = [json.loads(line) for line in Path(pair_files[split]).read_text().splitlines()]
        write_jsonl(Path(pair_files[split]), [{k: v for k, v in row.items() if k != "knowledge_text"} for row in rows])
    knowledge = write_jsonl(tmp_path / "wiki.jsonl", KNOWLEDGE)
    extra = ["--knowledge", str(knowledge), "--top_k", "2", "--num_train_epochs", "1"]
    results = run_re.main(options(pair_files, tiny_encoder("bert"), *extra, retrieval="text"))
    report = results["retrieval_report"]
    assert (report["posts"], report["without_knowledge"], report["entries"]) == (36 + 12 + 15, 0, 2 * 63)
    assert "test_no_knowledge_f1" in results and results["test_cut_knowledge"] == 0


def test_predict_mode_and_resume_over_seeds(pair_files, tiny_encoder, tmp_path):
    encoder = tiny_encoder("bert")
    results = run_re.main(options(pair_files, encoder, "--seeds", "1", "2"))
    assert results["seeds"] == [1, 2] and "test_accuracy_std" in results
    rows = [
        {"id": "both", "text": "Ada Lovelace in Oslo", "head": [0, 12], "tail": [16, 20]},
        {"id": "all", "tokens": ["Ada", "in", "Oslo"], "entities": [[0, 1], [2, 3]]},
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    predicted = str(tmp_path / "predicted")
    arguments = ["--model_name_or_path", pair_files["out"], "--do_predict", "--use_cpu"]
    arguments += ["--predict_file", str(tmp_path / "pairs.jsonl"), "--output_dir", predicted]
    run_re.main(arguments)
    one, two = [json.loads(line) for line in Path(predicted, "predictions", "predict.jsonl").read_text().splitlines()]
    assert one["id"] == "both" and len(one["relations"]) == 1 and len(two["relations"]) == 2
    assert two["relations"][1]["head"] == [2, 3]

    with pytest.raises(SystemExit, match=r"is an expert for relations: use run_re\.py"):
        run_ner.main([*arguments[:-2], "--output_dir", predicted])


def test_each_script_sends_the_others_data_away(pair_files, files, tiny_encoder, tmp_path):
    encoder = tiny_encoder("bert")
    with pytest.raises(SystemExit, match=r"error: .*this is entity data, use run_ner\.py"):
        run_re.main([*options(pair_files, encoder), "--train_file", files["train"]])
    (tmp_path / "mnre.txt").write_text("\n".join(map(mnre_line, pairs(3))))
    for path in (pair_files["train"], str(tmp_path / "mnre.txt")):
        with pytest.raises(SystemExit, match=r"error: .*this is relation data, use run_re\.py"):
            run_ner.main(["--train_file", path, "--validation_file", path, "--use_cpu"])
    with pytest.raises(SystemExit, match=r"error: --dataset mnre: this is relation data, use run_re\.py"):
        run_ner.main(["--dataset", "mnre", "--use_cpu"])
    with pytest.raises(SystemExit, match=r"error: --dataset twitter17: this is entity data, use run_ner\.py"):
        run_re.main(["--dataset", "twitter17", "--use_cpu"])
    with pytest.raises(SystemExit, match="unknown relation '/new'"):
        Path(pair_files["dev"]).write_text(json.dumps({**pairs(1)[0], "relation": "/new"}))
        run_re.main(options(pair_files, encoder))


def test_mnre_by_accelerate_launch(shared_data, tiny_encoder, tmp_path):
    """The user's own command on the real files, a small encoder and few rows."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", str(ROOT / "run_re.py"), "--dataset", "mnre"),
        *("--data_dir", str(shared_data / "mnre"), "--retrieval", "none", "--use_cpu"),
        *("--model_name_or_path", tiny_encoder("bert"), "--num_train_epochs", "1", "--max_train_samples", "64"),
        *("--max_eval_samples", "40", "--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["train_posts"] == 64 and 0 <= results["test_accuracy"] <= 100
    settings = json.loads((tmp_path / "out" / "arguments.json").read_text())
    assert settings["max_length"] == 128 and settings["two_views"] == "off"  # the recipe's
