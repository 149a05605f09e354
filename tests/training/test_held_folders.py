"""One run holds a folder: a second is refused in a sentence that says who is there, and a killed one holds nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from modeling_more.files import locked
from ner_runs import ROOT, launch_two, posts, told, training, write_jsonl


def test_a_second_run_is_refused_until_the_first_is_killed(here, tmp_path, capsys):
    many = {**here, "train": str(write_jsonl(tmp_path / "many.jsonl", posts(2000)))}
    first = subprocess.Popen(
        [sys.executable, str(ROOT / "run_ner.py"), *training(many, "out"), "--num_train_epochs", "50"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        while not list(Path("out").glob("*.json")):
            assert first.poll() is None
            time.sleep(0.2)
        score = ["--model_name_or_path", "plain", "--use_cpu", "--output_dir", "out"]
        for arguments in (
            [*training(here, "out"), "--seed", "2"],
            [*score, "--no_do_train", "--test_file", here["other"]],
            [*score, "--do_predict", "--predict_file", here["other"]],
        ):
            said = told(capsys, arguments)
            assert f"out is in use: process {first.pid} on " in said and "trains with run_ner.py there since" in said
        assert not Path("out/predictions").exists()
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()
    assert Path("out/.lock").exists()  # the killed run took nothing away
    run_ner_main([*training(here, "out"), "--overwrite_output_dir"])
    assert Path("out/all_results.json").exists() and not list(Path("out").glob(".*lock*"))


def run_ner_main(arguments: list[str]) -> None:
    import run_ner

    run_ner.main(arguments)


def test_every_process_of_a_launch_leaves_when_the_folder_is_held(here):
    with locked(Path("out"), "is tested"):
        done = launch_two(ROOT / "run_ner.py", *training(here, "out"))
        assert done.returncode != 0
        assert done.stderr.count(f"error: out is in use: process {os.getpid()} on ") == 1
        assert "Traceback" not in done.stderr.split("torch/distributed")[0]
    assert not Path("out").exists() or not list(Path("out").iterdir())


def test_the_runs_of_several_seeds_share_a_folder_with_each_other_only(here, capsys):
    with locked(Path("several"), "is tested"):
        assert "several is in use" in told(capsys, training(here, "several/seed-3"))
    with locked(Path("several/seed-1"), "is tested"):
        said = told(capsys, training(here, "several", "--seeds", "1", "2", "--overwrite_output_dir"))
        assert "several/seed-1 is in use" in said
    assert Path("several/seed-1/model.safetensors").exists() and not Path("several/seed-3").exists()
    run_ner_main(training(here, "several", "--seeds", "1", "2", "--overwrite_output_dir"))  # which are no others
