"""Options that can't be end in one sentence that names them, from the command line and from a file."""

import re
import subprocess
import sys

import pytest
from accelerate.utils import LoggerType

from modeling_more import MoReConfig, MoReMixtureConfig
from modeling_more.training.arguments import TRACKERS, Arguments
from modeling_more.training.command_line import FIRST, one_sentence_errors, parse_arguments
from modeling_more.training.run_record import MODEL_TYPES
from ner_runs import ROOT


def refused(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(["--dataset", "demo", *arguments], "")
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize("name, values", [
    ("learning_rate", "nan inf -1"), ("crf_learning_rate", "nan inf -1"), ("gate_learning_rate", "0"),
    ("weight_decay", "-0.1 nan"), ("warmup_ratio", "-0.1 1.1"), ("max_grad_norm", "-1 inf"),
    ("max_tokens_per_batch", "0"), ("knowledge_words", "0"), ("top_k", "0 -3"), ("early_stopping_patience", "0"),
    ("head_dropout", "1 -0.1"), ("word_dropout", "1"), ("image_dropout", "1.5"), ("kl_temperature", "0 nan"),
    ("nll_weight", "-0.1 1.1"), ("crossfit_folds", "1"), ("gate_batch_size", "0"),
])  # fmt: skip
def test_values_that_can_not_be(name, values, capsys):
    for value in values.split():
        assert f"--{name} is " in refused(capsys, f"--{name}={value}")


def test_a_seed_comes_once(capsys):
    assert "--seeds holds 2 twice" in refused(capsys, "--seeds", "1", "2", "2")


@pytest.mark.parametrize("line", [
    "per_device_train_batch_size: null", "knowledge: null", "knowledge: [null]", "num_train_epochs: true",
    "learning_rate: false", "seeds: [1, true]", "dataset: true", "do_train: null", "do_train: 'no'", "bf16: 3",
    "retrieval: null",
])  # fmt: skip
def test_options_files_with_values_of_other_types(line, tmp_path, capsys):
    (tmp_path / "my.yaml").write_text(line)
    with pytest.raises(SystemExit):
        parse_arguments([str(tmp_path / "my.yaml"), "--output_dir", "o"], "")
    said = capsys.readouterr().err
    assert said.startswith("error: option ") and line.split(":")[0] in said


def test_options_files_with_null_where_that_is_the_default(tmp_path):
    (tmp_path / "my.yaml").write_text("crf_learning_rate: null\nbf16: true\ndo_train: false\nseeds: [1, 2]")
    training = parse_arguments([str(tmp_path / "my.yaml"), "--dataset", "demo"], "").training
    assert training.crf_learning_rate is None and training.bf16 and not training.do_train and training.seeds == [1, 2]


LIGHT = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    print("END", end.code, sorted({"torch", "datasets", "accelerate", "evaluate", "faiss"} & sys.modules.keys()))
"""


@pytest.mark.parametrize("script", ["run_ner.py", "run_re.py"])
@pytest.mark.parametrize(
    ("words", "code"), [(["--help"], "0"), (["--datset", "x"], "2"), (["--do_predict"], "error: ")]
)
def test_help_and_wrong_options_wait_for_no_library(script, words, code):
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, str(ROOT / script), *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"END {code}" in done.stdout and done.stdout.rstrip().endswith("[]")


def test_the_help_begins_with_what_most_people_need_and_has_every_option_once(capsys):
    with pytest.raises(SystemExit):
        parse_arguments(["--help"], "What it does.")
    text = capsys.readouterr().out
    shown = re.findall(r"^  --(\w+)", text, flags=re.M)
    negative = [name for name in shown if name.startswith("no_")]
    assert sorted(set(shown) - set(negative)) == sorted(Arguments().options()) and len(shown) == len(set(shown))
    first = text.split("what most people need:")[1].split("\n\n")[0]
    assert re.findall(r"^  --(\w+)", first, flags=re.M) == list(FIRST) and len(FIRST) == 10


def test_names_that_are_written_down_are_those_of_the_libraries():
    assert sorted(TRACKERS) == sorted(LoggerType.list())
    assert MODEL_TYPES == (MoReConfig.model_type, MoReMixtureConfig.model_type)


def test_errors_hide_what_is_secret(monkeypatch):
    monkeypatch.setenv("MILVUS_TOKEN", "root:milvus-password")
    monkeypatch.setenv("HF_TOKEN", "a-token-without-prefix")
    told = (
        "no https://me:hunter22@hub.example/x with hf_abcdefghijk, Bearer abc, a-token-without-prefix, "
        "root:milvus-password or milvus-password"
    )
    with pytest.raises(SystemExit) as error, one_sentence_errors():
        raise OSError(told)
    shown = str(error.value)
    assert shown.startswith("error: no https://<secret>@hub.example/x with <secret>")
    for secret in ("hunter22", "hf_abc", "Bearer", "without-prefix", "milvus-password"):
        assert secret not in shown
