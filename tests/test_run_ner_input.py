"""run_ner.py given bad input: one clear sentence, a failing exit code, nothing half-written."""

import json
from pathlib import Path

import pytest

import run_ner
from ner_runs import KNOWLEDGE, run_script

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
    "relation set": (["--dataset", "mnre"], "run_re.py"),
    "nothing to do": ([], "--dataset"),
    "no validation": (["--train_file", "{train}"], "validation"),
    "unknown set": (["--dataset", "twitter99"], "twitter99"),
    "no model": ([*GIVEN, "--model_name_or_path", "{tmp}/nomodel"], "nomodel"),
    "predict without file": (["--do_predict"], "--predict_file"),
    "predictions of no push": ([*GIVEN, "--push_predictions"], "--push_predictions is for --push_to_hub"),
    "push without name": ([*GIVEN, "--push_to_hub"], "--hub_model_id"),
    "option file": (["{tmp}/nowhere.yaml"], "nowhere.yaml"),
    "unknown option in file": (["{optionfile}"], "learning_rat"),
    "knowledge without retrieval": ([*GIVEN, "--knowledge", "{nojson}"], "--retrieval text or image"),
    "shuffled without retrieval": ([*GIVEN, "--shuffle_knowledge"], "--retrieval text or image"),
    "everything held out": ([*GIVEN, "--holdout_fraction", "1.5"], "holdout_fraction"),
    "no samples": ([*GIVEN, "--max_train_samples", "0"], "max_train_samples"),
    "no checkpoint": ([*GIVEN, "--resume_from_checkpoint", "{tmp}/nowhere"], "nowhere"),
    "a folder without checkpoint": ([*GIVEN, "--resume_from_checkpoint", "{tmp}"], "is no checkpoint"),
    "set and file": (["--dataset", "twitter17", "--test_file", "{dev}"], "--dataset and --test_file are both given"),
    "folder and file": ([*GIVEN, "--data_dir", "{tmp}"], "--data_dir and --train_file are both given"),
    "scoring an encoder": (["--test_file", "{dev}", "--no_do_train"], "is a plain encoder (bert)"),
    "predicting with an encoder": (["--do_predict", "--predict_file", "{dev}"], "is a plain encoder (bert)"),
    "another choice in file": (["{choice}"], "option 'lr_decay' is 'epochs', it must be one of step, epoch"),
    "YAML's off": (["{off}"], "option 'two_views' is False, it must be one of off, "),
    "no number in file": (["{number}"], "option 'seeds' is 'x'"),
    "a list in file": (["{list}"], "option 'seed' is a list, it must be one value"),
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
        "choice.yaml": "lr_decay: epochs\n",
        "off.yaml": "two_views: off\n",
        "number.yaml": "seeds: [1, x]\n",
        "list.yaml": "seed: [1]\n",
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
