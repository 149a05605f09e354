"""run_ner.py as a process: killed and resumed, in two processes, launched as users launch it, without network."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForTokenClassification

import run_ner
from ner_runs import ROOT, launch_two, options, posts, read, read_lines, run_script, write_conll, write_jsonl


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


def run_in_two_processes(arguments):
    done = launch_two(ROOT / "run_ner.py", *arguments)
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
        launch=[],
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
        launch=["--quiet"],  # else accelerate adds a traceback of its own
        env={"MORE_DATA_URL": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "MORE_CACHE": str(tmp_path / "c")},
        cwd=tmp_path,
    )
    assert done.returncode != 0 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "http://127.0.0.1:9/twitter2017-txt.zip" in line and "--data_dir" in line
    assert not (tmp_path / "out").exists()


def test_interrupted_run_says_what_it_keeps(files, tiny_encoder):
    write_jsonl(Path(files["train"]), posts(4000))
    running = subprocess.Popen(
        [sys.executable, str(ROOT / "run_ner.py"), *options(files, tiny_encoder("bert"))],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # a test run in the background ignores Ctrl-C, and its children would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    seen = b""
    while b"epoch 1/2:" not in seen:
        piece = os.read(running.stderr.fileno(), 4096)
        assert piece, seen.decode()
        seen += piece
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    rest = running.stderr.read().decode()
    assert running.wait() == 130 and "Traceback" not in rest
    assert "interrupted before the first epoch was complete: nothing is kept" in rest
