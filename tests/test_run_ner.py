"""run_ner.py as its users run it: train, score, reload, predict, resume, publish; and every kind of bad input."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification, AutoProcessor

import run_ner
from modeling_more import predict
from modeling_more.tagging import tags_to_spans

ROOT = Path(__file__).resolve().parents[1]
PEOPLE = ["Ada Lovelace", "Rivera", "Charles Babbage", "Oslo Olsen", "Ada", "Lake Lindau"]
PLACES = ["Lindau", "Oslo", "London", "Lake Constance", "Bavaria", "Germany"]
KNOWLEDGE = [
    {"id": str(index), "title": name, "text": f"{name} is a {kind} .\n\nAnother paragraph about {name} and more ."}
    for kind, names in (("person", PEOPLE), ("place", PLACES))
    for index, name in enumerate(names)
]


def posts(number: int, offset: int = 0) -> list[dict]:
    rows = []
    for i in range(offset, offset + number):
        person, place = PEOPLE[i % len(PEOPLE)].split(), PLACES[(i // 2) % len(PLACES)].split()
        tokens = [*person, "met", "in", *place, *["today"] * (i % 5), "!"]
        tags = ["B-PER", *["I-PER"] * (len(person) - 1), "O", "O", "B-LOC", *["I-LOC"] * (len(place) - 1)]
        rows.append({"id": f"post-{i}", "tokens": tokens, "tags": tags + ["O"] * (len(tokens) - len(tags))})
    return rows


def write_conll(path: Path, rows: list[dict], knowledge: bool = False) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write("".join(f"{t}\t{tag}\n" for t, tag in zip(row["tokens"], row["tags"], strict=True)))
            if knowledge:
                file.write("<EOS>\tX\n" + "".join(f"{word}\tX\n" for word in "Lindau is a place .".split()))
            file.write("\n")
    return path


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def files(tmp_path):
    return {
        "train": str(write_jsonl(tmp_path / "train.jsonl", posts(24))),
        "dev": str(write_conll(tmp_path / "dev.conll", posts(8, 30))),
        "test": str(write_conll(tmp_path / "test.conll", posts(9, 50))),
        "knowledge": str(write_jsonl(tmp_path / "wiki.jsonl", KNOWLEDGE)),
        "cache": str(tmp_path / "cache"),
        "out": str(tmp_path / "out"),
    }


def options(files, encoder, *more, retrieval="none"):
    return [
        "--train_file", files["train"], "--validation_file", files["dev"], "--test_file", files["test"],
        "--retrieval", retrieval, "--model_name_or_path", encoder, "--num_train_epochs", "2",
        "--per_device_train_batch_size", "4", "--learning_rate", "1e-3", "--crf_learning_rate", "5e-2",
        "--max_length", "96", "--cache_dir", files["cache"], "--output_dir", files["out"], "--use_cpu", *more,
    ]  # fmt: skip


def run_script(arguments, *, launch=False, env=None, **kwargs):
    command = [sys.executable, "-m", "accelerate.commands.launch"] if launch else [sys.executable]
    return subprocess.run(
        [*command, str(ROOT / "run_ner.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=600,
        **kwargs,
    )


def read(files, name):
    return json.loads((Path(files["out"]) / name).read_text())


def read_lines(files, name):
    return [json.loads(line) for line in (Path(files["out"]) / name).read_text().splitlines()]


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
    assert "±" in (Path(files["out"]) / "README.md").read_text()
    AutoModelForTokenClassification.from_pretrained(files["out"])


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
    run_ner.main(
        options(files, tiny_encoder("roberta"), "--holdout_fraction", "0.3", "--seed", "9", "--num_train_epochs", "1")
    )
    assert read(files, "holdout_ids.json") == held


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
    import shutil

    target = into / "no-dropout"
    if not target.exists():
        shutil.copytree(folder, target)
        config = json.loads((target / "config.json").read_text())
        config["hidden_dropout_prob"] = config["attention_probs_dropout_prob"] = 0.0
        (target / "config.json").write_text(json.dumps(config))
    return str(target)


def test_killed_in_the_second_epoch_resumes_bit_for_bit(files, tiny_encoder, tmp_path):
    """SIGKILL while two views, dropout and length batches are on; the resumed run equals an unbroken one."""
    write_jsonl(Path(files["train"]), posts(240))
    extra = [
        "--knowledge",
        files["knowledge"],
        "--two_views",
        "crf_kl",
        "--word_dropout",
        "0.1",
        "--num_train_epochs",
        "3",
    ]
    extra.append("--group_by_length")
    arguments = options(files, tiny_encoder("bert"), *extra, retrieval="text")
    unbroken = run_script([*arguments, "--output_dir", str(tmp_path / "whole")])
    assert unbroken.returncode == 0, unbroken.stderr

    running = subprocess.Popen(
        [sys.executable, str(ROOT / "run_ner.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=False,
    )
    seen = b""
    while b"epoch 2/3:" not in seen or not any(
        f" {n}/60".encode() in seen.split(b"epoch 2/3:")[-1] for n in range(5, 50)
    ):
        piece = os.read(running.stderr.fileno(), 4096)
        assert piece, seen.decode()
        seen += piece
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not (Path(files["out"]) / "all_results.json").exists()
    resumed = run_script([*arguments, "--resume_from_checkpoint", "latest"])
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from" in resumed.stderr and "epoch 1/3" not in resumed.stderr

    whole, mended = read({"out": tmp_path / "whole"}, "all_results.json"), read(files, "all_results.json")
    for result in (whole, mended):
        result.pop("retrieval_report")
        for row in result["history"]:
            row.pop("seconds")
    assert whole == mended
    one, two = (load_file(folder / "model.safetensors") for folder in (tmp_path / "whole", Path(files["out"])))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_options_of_the_loop_run_together(files, tiny_encoder):
    """bf16, clipping, warm-up, a token budget and gradient checkpointing in one run."""
    extra = ["--bf16", "--max_grad_norm", "1.0", "--warmup_ratio", "0.2", "--max_tokens_per_batch", "200"]
    # in a process of its own: accelerate's precision is set once a process
    done = run_script(options(files, tiny_encoder("bert"), *extra, "--gradient_checkpointing"))
    assert done.returncode == 0, done.stderr
    losses = [row["loss"] for row in read(files, "all_results.json")["history"]]
    assert losses[1] < losses[0]
    model = AutoModelForTokenClassification.from_pretrained(files["out"])
    assert {p.dtype for p in model.parameters()} == {torch.float32}  # bf16 is for computing


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
    assert report["posts"] == 4819 and report["without_knowledge"] < 100
    assert sum(row["support"] for row in results["test_f1_per_type"].values()) == 1351
    assert sum(row["support"] for row in results["dev_f1_per_type"].values()) == 1324


def run_in_two_processes(arguments):
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    done = subprocess.run(
        [sys.executable, *launch, "--rdzv_endpoint", "127.0.0.1:0", str(ROOT / "run_ner.py"), *arguments],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


def test_two_processes_score_as_one(files, tiny_encoder):
    alone = run_ner.main(options(files, tiny_encoder("bert"), "--num_train_epochs", "6"))
    rows = read_lines(files, "predictions/test.jsonl")
    again = ["--test_file", files["test"], "--validation_file", files["dev"], "--model_name_or_path", files["out"]]
    files["out"] += "2"
    run_in_two_processes(
        [*again, "--no_do_train", "--output_dir", files["out"], "--use_cpu", "--per_device_eval_batch_size", "4"]
    )
    both = read(files, "all_results.json")
    scores = {key: value for key, value in alone.items() if "f1" in key and key.startswith(("dev", "test"))}
    assert {key: value for key, value in both.items() if "f1" in key} == scores
    assert [row["tags"] for row in read_lines(files, "predictions/test.jsonl")] == [row["tags"] for row in rows]


def test_two_processes_train_and_resume(files, tiny_encoder):
    extra = ["--knowledge", files["knowledge"], "--two_views", "crf_kl", "--max_tokens_per_batch", "300"]
    arguments = options(files, tiny_encoder("bert"), *extra, retrieval="text")
    run_in_two_processes([*arguments, "--num_train_epochs", "1"])
    assert len(read(files, "all_results.json")["history"]) == 1
    run_in_two_processes([*arguments, "--num_train_epochs", "3", "--resume_from_checkpoint", "latest"])
    history = read(files, "all_results.json")["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3] and history[2]["loss"] < history[0]["loss"]
    # what was trained scores the same in one process
    both = read(files, "all_results.json")
    alone = run_ner.main(
        [*arguments, "--model_name_or_path", files["out"], "--no_do_train", "--output_dir", files["out"] + "1"]
    )
    assert alone["test_f1"] == pytest.approx(both["test_f1"]) and alone["dev_f1"] == pytest.approx(both["dev_f1"])


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """twitter2017.zip, -txt and -img as the authors packed them, served over HTTP."""
    import functools
    import threading
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    folder = tmp_path_factory.mktemp("served")
    for name, knowledge in (("twitter2017", False), ("twitter2017-txt", True), ("twitter2017-img", True)):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for split, number, offset in (("train", 24, 0), ("dev", 6, 40), ("test", 6, 60)):
                file = write_conll(folder / "file.txt", posts(number, offset), knowledge)
                archive.write(file, f"{name}/{split}.txt")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(SimpleHTTPRequestHandler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.mark.parametrize("retrieval", ["text", "none", "image"])
def test_the_users_own_command(retrieval, archives, tiny_encoder, tmp_path):
    arguments = ["--dataset", "twitter17", "--retrieval", retrieval]
    overridden = ["--model_name_or_path", tiny_encoder("xlm-roberta"), "--num_train_epochs", "1"]
    done = run_script(
        [*arguments, *overridden],
        launch=True,
        env={"MORE_DATA_URL": archives, "HF_HOME": str(tmp_path / "home"), "MORE_CACHE": str(tmp_path / "cache")},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert results["train_posts"] == 24 and ("test_no_knowledge_f1" in results) == (retrieval != "none")
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "out")
    assert model.config.two_views == ("crf_kl" if retrieval == "text" else "off")  # the recipe's


def test_without_network_one_sentence_names_address_and_option(tiny_encoder, tmp_path):
    done = run_script(
        ["--dataset", "twitter17", "--retrieval", "text", "--model_name_or_path", tiny_encoder("bert")],
        env={"MORE_DATA_URL": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "MORE_CACHE": str(tmp_path / "c")},
        cwd=tmp_path,
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "http://127.0.0.1:9/twitter2017-txt.zip" in line and "--data_dir" in line
    assert not (tmp_path / "out").exists()


RELATION = {
    "token": ["Ada", "in", "Oslo"],
    "h": {"name": "Ada", "pos": [0, 1]},
    "t": {"name": "Oslo", "pos": [2, 3]},
    "img_id": "x.jpg",
    "relation": "/per/loc/x",
}
GIVEN = ["--train_file", "{train}", "--validation_file", "{dev}"]
BAD = {
    "missing folder": (["--dataset", "twitter17", "--data_dir", "{tmp}/nowhere"], "nowhere"),
    "missing file": (["--train_file", "{tmp}/nowhere.txt", "--validation_file", "{dev}"], "nowhere.txt"),
    "empty file": (["--train_file", "{empty}", "--validation_file", "{dev}"], "empty.txt"),
    "no label": (["--train_file", "{nolabel}", "--validation_file", "{dev}"], "nolabel.txt, line 2"),
    "unknown label": (["--train_file", "{train}", "--validation_file", "{strange}"], "strange.txt, line 1"),
    "knowledge is no JSON": (
        [*GIVEN, "--retrieval", "text", "--knowledge", "{nojson}"],
        "nojson.jsonl, line 2",
    ),
    "knowledge lacks a column": (
        [*GIVEN, "--retrieval", "text", "--knowledge", "{nocolumn}"],
        "nocolumn.jsonl, line 1",
    ),
    "no such knowledge": (
        [*GIVEN, "--retrieval", "text", "--knowledge", "{tmp}/no.jsonl"],
        "no.jsonl",
    ),
    "posts without knowledge": ([*GIVEN, "--retrieval", "text"], "knowledge"),
    "a column missing": (["--train_file", "{notags}", "--validation_file", "{dev}"], "notags.jsonl, line 1"),
    "relation data": (["--train_file", "{relation}", "--validation_file", "{dev}"], "run_re.py"),
    "relation set": (["--dataset", "mnre"], "mnre"),
    "nothing to do": ([], "--dataset"),
    "no validation": (["--train_file", "{train}"], "validation"),
    "unknown set": (["--dataset", "twitter99"], "twitter99"),
    "no model": ([*GIVEN, "--model_name_or_path", "{tmp}/nomodel"], "nomodel"),
    "predict without file": (["--do_predict"], "--predict_file"),
    "push without name": ([*GIVEN, "--push_to_hub"], "--hub_model_id"),
    "option file": (["{tmp}/nowhere.yaml"], "nowhere.yaml"),
    "unknown option in file": (["{optionfile}"], "learning_rat"),
    "epochs": ([*GIVEN, "--num_train_epochs", "0"], "num_train_epochs"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_one_sentence(case, files, tiny_encoder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = {key: files[key] for key in ("train", "dev")} | {"tmp": str(tmp_path)}
    contents = {
        "empty.txt": "",
        "nolabel.txt": "Ada\tB-PER\nLovelace\n",
        "strange.txt": "Ada\tB-QUX\n",
        "nojson.jsonl": json.dumps(KNOWLEDGE[0]) + "\n{title: x}\n",
        "nocolumn.jsonl": json.dumps({"id": "1", "title": "x"}) + "\n",
        "notags.jsonl": json.dumps({"id": "1", "tokens": ["a"]}) + "\n",
        "relation.txt": f"{RELATION}\n",
        "optionfile.yaml": "learning_rat: 1\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        names[Path(name).stem] = str(tmp_path / name)
    arguments, expected = BAD[case]
    given = [argument.format(**names) for argument in arguments]
    if "--model_name_or_path" not in given:
        given += ["--model_name_or_path", tiny_encoder("bert")]
    with pytest.raises(SystemExit) as stopped:
        run_ner.main([*given, "--output_dir", files["out"], "--cache_dir", files["cache"], "--use_cpu"])
    message = str(stopped.value.code) if not isinstance(stopped.value.code, int) else capsys.readouterr().err
    assert stopped.value.code not in (0, None)
    assert expected in message and "Traceback" not in message
    sentence = message.strip().splitlines()[-1]
    assert len(sentence) < 500 and "error:" in sentence
    assert not Path(files["out"]).exists()


def test_bad_input_shows_no_traceback(files, tiny_encoder, tmp_path):
    done = run_script(["--train_file", str(tmp_path / "no.txt"), "--validation_file", files["dev"]])
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if "no.txt" in line and line.startswith("error:")]


def test_interrupted_run_says_how_to_go_on(files, tiny_encoder):
    write_jsonl(Path(files["train"]), posts(4000))
    running = subprocess.Popen(
        [sys.executable, str(ROOT / "run_ner.py"), *options(files, tiny_encoder("bert"))],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    seen = b""
    while b"epoch 1/2:" not in seen:
        piece = os.read(running.stderr.fileno(), 4096)
        assert piece, seen.decode()
        seen += piece
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    rest = running.stderr.read().decode()
    assert running.wait() != 0 and "--resume_from_checkpoint latest" in rest and "Traceback" not in rest


def test_push_and_reload_from_the_hub(files, hub, tiny_encoder):
    arguments = options(
        files, tiny_encoder("bert"), "--push_to_hub", "--hub_model_id", "org/more-tiny", "--seeds", "1", "2"
    )
    done = run_script(arguments, env=hub.env)
    assert done.returncode == 0, done.stderr
    uploaded = set(hub.files("org/more-tiny"))
    assert {"README.md", "config.json", "model.safetensors", "processor_config.json", "all_results.json",
            "training_curve.png", "predictions/test.jsonl"} <= uploaded  # fmt: skip
    assert not [name for name in uploaded if name.startswith(("checkpoints", "seed-", "logs"))]
    assert hub.env["HF_TOKEN"] not in done.stderr + done.stdout or len(hub.env["HF_TOKEN"]) < 4
    code = (
        "import sys, modeling_more, json; from transformers import AutoModelForTokenClassification, AutoProcessor\n"
        "model = AutoModelForTokenClassification.from_pretrained('org/more-tiny')\n"
        "processor = AutoProcessor.from_pretrained('org/more-tiny')\n"
        "rows = [json.loads(line) for line in open(sys.argv[1])]\n"
        "found = modeling_more.predict(model, processor, [{'tokens': row['tokens']} for row in rows])\n"
        "for row, one in zip(rows, found, strict=True):\n"
        "    drop = lambda entities: [{**e, 'score': 0} for e in entities]\n"
        "    assert drop(one['entities']) == drop(row['entities'])\n"
    )
    again = subprocess.run(
        [sys.executable, "-c", code, str(Path(files["out"]) / "predictions" / "test.jsonl")],
        env={**os.environ, **hub.env}, cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr


def test_failed_upload_loses_nothing(files, tiny_encoder):
    env = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_secretsecretsecret", "HF_HUB_DISABLE_XET": "1"}
    done = run_script(
        options(files, tiny_encoder("bert"), "--push_to_hub", "--hub_model_id", "org/x", "--num_train_epochs", "1"),
        env=env,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "hf upload org/x" in done.stderr and "hf_secret" not in done.stderr
    AutoModelForTokenClassification.from_pretrained(files["out"])


def test_recipes_are_the_papers():
    from modeling_more.arguments import parse_arguments

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
        data, model, training, _ = parse_arguments(["--dataset", dataset, "--retrieval", retrieval], "")
        views = (model.two_views, model.kl_temperature)
        found = (training.num_train_epochs, training.learning_rate, training.crf_learning_rate, views)
        assert found == row, (dataset, retrieval)
        assert model.model_name_or_path == "FacebookAI/xlm-roberta-large" and data.max_length == 512
        assert training.per_device_train_batch_size == 4 and training.weight_decay == 0.01
        assert training.lr_decay == "epoch" and training.warmup_ratio == 0 == training.max_grad_norm
    _, _, training, _ = parse_arguments(["--dataset", "snap", "--learning_rate", "3e-4"], "")
    assert training.learning_rate == 3e-4 and training.num_train_epochs == 10


def test_learning_rate_decays_by_step_or_by_epoch():
    from modeling_more.training import TrainingArguments, learning_rate_factor

    by_epoch = learning_rate_factor([3, 2, 5], TrainingArguments(lr_decay="epoch"))
    assert [by_epoch(step) for step in range(11)] == pytest.approx([1] * 3 + [2 / 3] * 2 + [1 / 3] * 5 + [0])
    by_step = learning_rate_factor([5, 5], TrainingArguments(warmup_ratio=0.2))
    assert [by_step(step) for step in range(11)] == pytest.approx([0, 0.5, *(x / 8 for x in range(8, -1, -1))])


def test_gz_knowledge_and_shuffled_control(files, tiny_encoder, tmp_path):
    packed = tmp_path / "wiki.jsonl.gz"
    packed.write_bytes(gzip.compress(Path(files["knowledge"]).read_bytes()))
    extra = ["--knowledge", str(packed), "--shuffle_knowledge", "--num_train_epochs", "1", "--max_train_samples", "10"]
    results = run_ner.main(options(files, tiny_encoder("bert"), *extra, retrieval="text"))
    assert results["train_posts"] == 10 and results["retrieval_report"]["posts"] == 41


def test_shuffled_posts_get_another_posts_knowledge():
    from modeling_more.data import _shifted

    for number in (2, 3, 10):
        rows = [{"id": i, "k": [i]} for i in range(number)]
        shuffled = _shifted(rows, "k")
        assert sorted(row["k"][0] for row in shuffled) == list(range(number))
        assert all(row["k"] != [row["id"]] for row in shuffled)
