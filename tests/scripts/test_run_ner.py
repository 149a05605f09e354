"""run_ner.py as its users run it: train, score, reload, predict, publish."""

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification, AutoProcessor

import run_ner
from modeling_more import predict
from modeling_more.tagging import tags_to_spans
from modeling_more.training.command_line import parse_arguments
from modeling_more.training.results import over_seeds
from ner_runs import (
    ROOT,
    options,
    posts,
    read,
    read_lines,
    run_script,
    write_conll,
    write_jsonl,
)


def test_train_score_reload_with_own_knowledge(files, tiny_encoder):
    extra = ["--knowledge", files["knowledge"], "--top_k", "2", "--knowledge_words", "6", "--two_views", "crf_kl"]
    extra += ["--num_train_epochs", "12", "--seed", "1"]
    results = run_ner.main(options(files, tiny_encoder("bert"), *extra, retrieval="text"))
    assert read(files, "all_results.json") == json.loads(json.dumps(results))
    assert results["test_f1"] > 80 and results["dev_f1"] > 80  # the same names as in training
    for key in ("test_precision", "test_recall", "test_strict_f1", "test_no_knowledge_f1", "dev_no_knowledge_f1"):
        assert 0 <= results[key] <= 100
    assert results["test_f1_per_type"]["PER"]["support"] == 9
    assert results["retrieval_report"]["posts"] == 24 + 8 + 9 and results["retrieval_report"]["entries"] > 40
    history = results["history"]
    assert len(history) == 12 and results["best_epoch"] == 1 + max(range(12), key=lambda e: (history[e]["dev_f1"], -e))

    out = Path(files["out"])
    card = (out / "README.md").read_text()
    assert f"{results['test_f1']:.2f}" in card and "run_ner.py --train_file" in card
    assert (out / "training_curve.png").stat().st_size > 1000
    # what was written is what the reloaded model says
    model, processor = AutoModelForTokenClassification.from_pretrained(out), AutoProcessor.from_pretrained(out)
    assert (processor.top_k, processor.knowledge_words, processor.max_length) == (2, 6, 96)
    written = read_lines(files, "predictions/test.jsonl")
    from modeling_more.knowledge import BM25Retriever, load_knowledge

    retriever = BM25Retriever.from_corpus(load_knowledge([files["knowledge"]], cache_dir=files["cache"]))
    entries = retriever.search([" ".join(row["tokens"]) for row in written], top_k=2)
    again = predict(
        model,
        processor,
        [{"tokens": row["tokens"], "knowledge_text": e} for row, e in zip(written, entries, strict=True)],
    )
    assert sum(map(len, (row["entities"] for row in written))) > 10
    for row, found in zip(written, again, strict=True):
        assert [{**e, "score": 0} for e in row["entities"]] == [{**e, "score": 0} for e in found["entities"]]
        assert [e["score"] for e in row["entities"]] == pytest.approx(
            [e["score"] for e in found["entities"]], abs=1e-5
        )
        assert [tuple(span) for span in tags_to_spans(row["tags"])] == [
            (e["start"], e["end"], e["type"]) for e in found["entities"]
        ]


def test_arguments_file_repeats_the_run(files, tiny_encoder):
    first = run_ner.main(options(files, tiny_encoder("bert"), "--seed", "3"))
    weights = load_file(Path(files["out"]) / "model.safetensors")
    second = run_ner.main([str(Path(files["out"]) / "arguments.json"), "--output_dir", files["out"] + "2"])
    assert second["test_f1"] == first["test_f1"] and second["seed"] == 3
    again = load_file(Path(files["out"] + "2") / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_seeds_give_mean_and_deviation(files, tiny_encoder):
    results = run_ner.main(options(files, tiny_encoder("bert"), "--seeds", "1", "2"))
    scores = [read(files, f"seed-{seed}/all_results.json")["test_f1"] for seed in (1, 2)]
    assert results["test_f1"] == pytest.approx(sum(scores) / 2)
    assert results["test_f1_std"] == pytest.approx(abs(scores[0] - scores[1]) / 2**0.5)
    card = (Path(files["out"]) / "README.md").read_text()
    assert "±" in card and "python run_ner.py --train_file" in card
    per_type = [read(files, f"seed-{seed}/all_results.json")["test_f1_per_type"] for seed in (1, 2)]
    for name, row in results["test_f1_per_type"].items():
        assert row["f1"] == pytest.approx((per_type[0][name]["f1"] + per_type[1][name]["f1"]) / 2)
        assert f"| {name} |" in card
    again = read(files, "arguments.json")  # of the whole run, not of the seed whose model is adopted
    assert again["output_dir"] == files["out"] and again["seeds"] == [1, 2]
    AutoModelForTokenClassification.from_pretrained(files["out"])


def test_seeds_that_predict_different_types():
    """A type that the reference lacks is in the table of those seeds only that predicted it."""
    one = {"precision": 50.0, "recall": 100.0, "f1": 66.0, "support": 3}
    wrong = dict.fromkeys(one, 0)
    tables = [{"PER": one, "LOC": wrong}, {"PER": one, "MISC": wrong}]
    merged = over_seeds([{"test_f1": 50.0, "test_f1_per_type": table} for table in tables], [1, 2])
    assert merged["test_f1_per_type"] == {"PER": one, "LOC": wrong, "MISC": wrong}


def test_an_options_file_is_read_as_the_command_line(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text("seeds: 7\nentities: found.jsonl\nlearning_rate: 1e-5\nbf16: true\nmax_train_samples: null\n")
    args = parse_arguments([str(path)], "")
    data, training = args.data, args.training
    assert (training.seeds, training.learning_rate, training.bf16) == ([7], 1e-5, True)
    assert data.entities == ["found.jsonl"] and data.max_train_samples is None


def test_predict_mode_splits_words_as_the_training_did(files, tiny_encoder, tmp_path):
    run_ner.main(options(files, tiny_encoder("bert"), "--splitter", "twitter15", "--num_train_epochs", "1"))
    file = write_jsonl(tmp_path / "posts.jsonl", [{"text": "@Ada visits #Oslo w/ Coca-Cola"}])
    predict = ["--do_predict", "--predict_file", str(file), "--use_cpu"]
    run_ner.main([*predict, "--model_name_or_path", files["out"], "--output_dir", str(tmp_path / "predicted")])
    [row] = map(json.loads, (tmp_path / "predicted" / "predictions" / "predict.jsonl").read_text().splitlines())
    assert row["tokens"] == ["@Ada", "visits", "#Oslo", "w/", "Coca-Cola"]


def test_an_archive_is_read_by_the_expert_for_images(files, tiny_encoder, tmp_path, caplog):
    """Words labelled X belong to no column by name: they are what the expert reads."""
    train, dev = (write_conll(tmp_path / f"{name}.txt", posts(8), knowledge=True) for name in ("train", "dev"))
    given = ["--train_file", str(train), "--validation_file", str(dev), "--retrieval", "image", "--use_cpu"]
    run_ner.main([*given, "--model_name_or_path", tiny_encoder("bert"), "--num_train_epochs", "1",
                  "--max_length", "96", "--output_dir", files["out"]])  # fmt: skip
    predict = ["--do_predict", "--predict_file", str(dev), "--model_name_or_path", files["out"], "--use_cpu"]
    run_ner.main([*predict, "--output_dir", str(tmp_path / "predicted")])
    assert len((tmp_path / "predicted" / "predictions" / "predict.jsonl").read_text().splitlines()) == 8
    assert "no post has" not in caplog.text


def test_predict_mode_over_files_of_posts(files, tiny_encoder, tmp_path):
    run_ner.main(options(files, tiny_encoder("bert"), "--num_train_epochs", "10"))
    trained = files["out"]
    text = "Rivera  met in Oslo today"
    file = write_jsonl(
        tmp_path / "posts.jsonl", [{"text": text, "id": "a"}, {"tokens": ["Ada", "met", "in", "Lindau"]}]
    )
    files["out"] = str(tmp_path / "predicted")
    run_ner.main(
        [
            "--model_name_or_path",
            trained,
            "--do_predict",
            "--predict_file",
            str(file),
            "--output_dir",
            files["out"],
            "--use_cpu",
        ]
    )
    first, second = read_lines(files, "predictions/predict.jsonl")
    assert first["id"] == "a" and first["entities"] and second["entities"]
    for entity in first["entities"]:
        assert text[entity["char_start"] : entity["char_end"]] == entity["text"]
        assert 0 < entity["score"] <= 1
    model, processor = AutoModelForTokenClassification.from_pretrained(trained), AutoProcessor.from_pretrained(trained)
    again = predict(model, processor, [{"text": text}, {"tokens": ["Ada", "met", "in", "Lindau"]}])
    assert [[{**e, "score": 0} for e in row["entities"]] for row in (first, second)] == [
        [{**e, "score": 0} for e in row["entities"]] for row in again
    ]


def test_what_predict_mode_says(files, tiny_encoder, tmp_path):
    """What it did, and what is wrong; nothing of threads, libraries and bars that are over at once."""
    knowledge = ["--knowledge", files["knowledge"]]
    trained = run_script(options(files, tiny_encoder("bert"), "--num_train_epochs", "1", *knowledge, retrieval="text"))
    assert trained.returncode == 0, trained.stderr
    config = str(ROOT / "accelerate_configs" / "cpu.yaml")
    predict = ["--model_name_or_path", files["out"], "--do_predict", "--predict_file", files["test"]]
    predict += ["--output_dir", str(tmp_path / "predicted")]
    for launch in (None, ["--config_file", config, "--num_cpu_threads_per_process", "1"]):
        done = run_script(predict, launch=launch)
        assert done.returncode == 0, done.stderr
        lines = [line.strip() for line in done.stderr.replace("\r", "\n").splitlines()]
        lines = [line for line in lines if line and not line.startswith(("predict:", "Retrieving"))]
        assert "the expert searches" in lines[0] and "9 posts read" in lines[-1]
        assert [line for line in lines[1:-1] if "article" not in line and "Knowledge attached" not in line] == []
    # where it trains the warning stays
    for noise in ("faiss.loader", "Loading weights", "Writing model shards"):
        assert noise not in trained.stderr
    idle = (os.cpu_count() or 1) > 1 and not torch.cuda.is_available()
    assert trained.stderr.count("computing with one thread") == idle


def test_scoring_a_trained_expert_without_training(files, tiny_encoder, tmp_path):
    trained = run_ner.main(options(files, tiny_encoder("bert"), "--num_train_epochs", "4"))
    scored = run_ner.main(
        ["--test_file", files["test"], "--model_name_or_path", files["out"], "--no_do_train",
         "--output_dir", str(tmp_path / "scored"), "--use_cpu"]
    )  # fmt: skip
    assert scored["test_f1"] == trained["test_f1"] and "best_epoch" not in scored


def test_holdout_is_the_same_for_every_expert_and_never_trained_on(files, tiny_encoder):
    one = run_ner.main(options(files, tiny_encoder("bert"), "--holdout_fraction", "0.3", "--num_train_epochs", "1"))
    held = read(files, "holdout_ids.json")
    assert 0 < len(held) < 24 and one["train_posts"] == 24 - len(held) and one["held_out_posts"] == len(held)
    again = ["--holdout_fraction", "0.3", "--seed", "9", "--num_train_epochs", "1", "--overwrite_output_dir"]
    run_ner.main(options(files, tiny_encoder("roberta"), *again))
    assert read(files, "holdout_ids.json") == held


def test_a_checkpoint_of_another_run_is_refused(files, tiny_encoder, tmp_path):
    once = options(files, tiny_encoder("bert"), "--num_train_epochs", "1")
    first = run_ner.main(once)
    resume = [*once, "--resume_from_checkpoint", "latest"]
    for changed, named in (
        (["--seed", "9"], "other seed"),
        (["--learning_rate", "1e-4", "--max_length", "80"], "other learning_rate, max_length"),
        (["--max_train_samples", "20"], "other posts"),
    ):
        with pytest.raises(SystemExit, match=named):
            run_ner.main([*resume, *changed])
    # what does not change the run may differ; a delete that a crash cut short is made good
    folder = Path(files["out"]) / "checkpoints"
    shutil.copytree(folder / "last", folder / "last.outgoing")
    (folder / "last.outgoing" / "model.safetensors").unlink()
    more = run_ner.main([*resume, "--num_train_epochs", "2", "--per_device_eval_batch_size", "3"])
    assert more["history"][0] == first["history"][0] and len(more["history"]) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["best", "last"]
    # a checkpoint elsewhere brings its best epoch along
    elsewhere = [*once, "--output_dir", str(tmp_path / "new"), "--resume_from_checkpoint", str(folder / "last")]
    assert run_ner.main([*elsewhere, "--num_train_epochs", "2"])["test_f1"] == more["test_f1"]
    shutil.rmtree(folder / "best")
    with pytest.raises(SystemExit, match="the folder best is missing beside it"):
        run_ner.main([*resume, "--num_train_epochs", "2"])


def test_early_stopping_and_tracker(files, tiny_encoder):
    extra = [
        "--early_stopping_patience",
        "2",
        "--num_train_epochs",
        "9",
        "--learning_rate",
        "0",
        "--crf_learning_rate",
        "0",
    ]
    results = run_ner.main(options(files, tiny_encoder("bert"), *extra, "--report_to", "tensorboard"))
    assert len(results["history"]) == 3 and results["best_epoch"] == 1
    assert list((Path(files["out"]) / "logs").rglob("events*"))


def test_accumulation_gives_the_same_step(files, tiny_encoder):
    """Eight posts at once and twice four: the same gradient, so the same weights after an epoch of plain batches."""
    weights = []
    for size, steps in (("8", "1"), ("4", "2")):
        files["out"] += size
        run_ner.main(
            options(files, without_dropout(tiny_encoder("bert"), Path(files["cache"])),
                    "--per_device_train_batch_size", size, "--gradient_accumulation_steps", steps,
                    "--num_train_epochs", "1", "--learning_rate", "1e-4")
        )  # fmt: skip
        weights.append(load_file(Path(files["out"]) / "model.safetensors"))
    initial = load_file(Path(tiny_encoder("bert")) / "model.safetensors")
    moved = [name for name in initial if "encoder." + name in weights[0]
             and not torch.equal(initial[name], weights[0]["encoder." + name])]  # fmt: skip
    assert len(moved) > 10
    for name in weights[0]:
        assert torch.allclose(weights[0][name], weights[1][name], atol=2e-5), name


def without_dropout(folder: str, into: Path) -> str:

    target = into / "no-dropout"
    if not target.exists():
        shutil.copytree(folder, target)
        config = json.loads((target / "config.json").read_text())
        config["hidden_dropout_prob"] = config["attention_probs_dropout_prob"] = 0.0
        (target / "config.json").write_text(json.dumps(config))
    return str(target)


def test_options_of_the_loop_run_together(files, tiny_encoder):
    """bf16, clipping, warm-up, a token budget and gradient checkpointing in one run."""
    extra = ["--bf16", "--max_grad_norm", "1.0", "--warmup_ratio", "0.2", "--max_tokens_per_batch", "200"]
    # in a process of its own: accelerate's precision is set once a process
    done = run_script(options(files, tiny_encoder("bert"), *extra, "--gradient_checkpointing"))
    assert done.returncode == 0, done.stderr
    slow = torch.backends.cpu.get_cpu_capability() == "AVX2" and not torch.cuda.is_available()
    assert done.stderr.count("this CPU has no bf16 instructions") == slow
    idle = (os.cpu_count() or 1) > 1 and not torch.cuda.is_available()  # of them the run had one
    assert done.stderr.count("--num_cpu_threads_per_process") == idle
    losses = [row["loss"] for row in read(files, "all_results.json")["history"]]
    assert losses[1] < losses[0]
    model = AutoModelForTokenClassification.from_pretrained(files["out"])
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # bf16 is for computing


def test_a_folder_is_read_as_it_is_now(tmp_path):
    """Folders of one name, and one that changed: `datasets` alone would give the rows that it read first."""
    from datasets import Dataset, DatasetDict

    from modeling_more.data.tasks import ENTITIES
    from modeling_more.training.arguments import DataArguments
    from modeling_more.training.posts import load_posts

    def write(folder, word):
        rows = Dataset.from_dict({"id": ["1"], "tokens": [[word]], "ner_tags": [["O"]]})
        (folder / "none").mkdir(parents=True, exist_ok=True)
        for split in ("train", "validation"):
            rows.to_parquet(folder / "none" / f"{split}.parquet")
        files = "".join(f"  - {{split: {s}, path: none/{s}.parquet}}\n" for s in ("train", "validation"))
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: none\n  data_files:\n{files}---\n")

    def words(folder):
        data = DataArguments(dataset=str(folder), cache_dir=str(tmp_path / "cache"))
        splits, _, _ = load_posts(data, ENTITIES, DatasetDict, [])
        return splits["train"][0]["tokens"]

    for place, word in (("a", "one"), ("b", "two"), ("a", "three")):
        write(tmp_path / place / "data", word)
        assert words(tmp_path / place / "data") == [word]


def test_real_posts_with_own_retrieval(shared_data, tiny_encoder, tmp_path):
    corpora = [str(shared_data / "knowledge" / f"{name}.jsonl.gz") for name in ("codex_wiki", "factbook_countries")]
    results = run_ner.main(
        ["--dataset", "twitter17", "--data_dir", str(shared_data / "twitter2017"), "--retrieval", "text",
         "--knowledge", *corpora, "--top_k", "3", "--knowledge_words", "30", "--max_length", "160",
         "--model_name_or_path", tiny_encoder("bert"), "--num_train_epochs", "1", "--max_train_samples", "64",
         "--per_device_train_batch_size", "16", "--cache_dir", str(tmp_path / "cache"),
         "--output_dir", str(tmp_path / "out"), "--use_cpu"]
    )  # fmt: skip
    report = results["retrieval_report"]
    assert report["posts"] == 64 + 723 + 723 and report["without_knowledge"] < 100
    assert sum(row["support"] for row in results["test_f1_per_type"].values()) == 1351
    assert sum(row["support"] for row in results["dev_f1_per_type"].values()) == 1324


def test_recipes_are_the_papers():
    off = ("off", 1)
    expected = {  # METHOD, section 6: epochs, learning rate, CRF learning rate, (two views, temperature)
        ("twitter15", "none"): (10, 1e-5, 5e-2, off),
        ("twitter15", "text"): (15, 5e-6, 1e-2, ("crf_kl", 1)),
        ("twitter15", "image"): (15, 5e-6, 2.5e-2, off),
        ("twitter17", "none"): (10, 1e-5, 5e-2, off),
        ("twitter17", "text"): (15, 5e-6, 1e-2, ("crf_kl", 1)),
        ("twitter17", "image"): (15, 5e-6, 5e-2, off),
        ("snap", "none"): (10, 5e-6, 5e-2, off),
        ("snap", "text"): (15, 5e-6, 2.5e-2, ("crf_kl", 0.5)),
        ("snap", "image"): (15, 5e-6, 1e-2, ("crf_kl", 1)),
        ("wikidiverse", "none"): (10, 1e-5, 5e-2, off),
        ("wikidiverse", "text"): (15, 5e-6, 2.5e-2, off),
        ("wikidiverse", "image"): (15, 5e-6, 2.5e-2, ("crf_kl", 1)),
    }
    for (dataset, retrieval), row in expected.items():
        args = parse_arguments(["--dataset", dataset, "--retrieval", retrieval], "")
        data, model, training = args.data, args.model, args.training
        views = (model.two_views, model.kl_temperature)
        found = (training.num_train_epochs, training.learning_rate, training.crf_learning_rate, views)
        assert found == row, (dataset, retrieval)
        assert model.model_name_or_path == "FacebookAI/xlm-roberta-large" and data.max_length == 512
        assert training.per_device_train_batch_size == 4 and training.weight_decay == 0.01
        assert training.lr_decay == "epoch" and training.warmup_ratio == 0 == training.max_grad_norm
    training = parse_arguments(["--dataset", "snap", "--learning_rate", "3e-4"], "").training
    assert training.learning_rate == 3e-4 and training.num_train_epochs == 10


def test_learning_rate_decays_by_step_or_by_epoch():
    from modeling_more.training.arguments import TrainingArguments
    from modeling_more.training.optimization import learning_rate_factor

    by_epoch = learning_rate_factor([3, 2, 5], TrainingArguments(lr_decay="epoch"))
    assert [by_epoch(step) for step in range(11)] == pytest.approx([1] * 3 + [2 / 3] * 2 + [1 / 3] * 5 + [0])
    by_step = learning_rate_factor([5, 5], TrainingArguments(warmup_ratio=0.2))
    assert [by_step(step) for step in range(11)] == pytest.approx([0, 0.5, *(x / 8 for x in range(8, -1, -1))])


def test_gz_knowledge_and_shuffled_control(files, tiny_encoder, tmp_path):
    packed = tmp_path / "wiki.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(files["knowledge"]).read_bytes()))
    extra = ["--knowledge", str(packed), "--shuffle_knowledge", "--num_train_epochs", "1", "--max_train_samples", "10"]
    results = run_ner.main(options(files, tiny_encoder("bert"), *extra, retrieval="text"))
    assert results["train_posts"] == 10 and results["retrieval_report"]["posts"] == 10 + 8 + 9


def test_shuffled_posts_get_another_posts_knowledge():
    from modeling_more.data.sources import Source
    from modeling_more.training.arguments import DataArguments
    from modeling_more.training.posts import with_knowledge

    args = DataArguments(retrieval="text", shuffle_knowledge=True)
    for number in (2, 3, 10):
        source = Source({"test": [{"id": i, "knowledge_text": [i]} for i in range(number)]}, [])
        shuffled = with_knowledge(args, source, {"test": range(number)})[0]["test"]
        assert sorted(row["knowledge_text"][0] for row in shuffled) == list(range(number))
        assert all(row["knowledge_text"] != [row["id"]] for row in shuffled)
        few = with_knowledge(args, source, {"test": range(2)})[0]["test"]
        assert few == shuffled[:2]  # among all posts, not among those that are used
