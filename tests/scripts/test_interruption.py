"""Ctrl-C while a script still imports its libraries ends it with one line and no traceback."""

import os
import signal
import subprocess
import sys

import pytest

import ner_runs
import re_runs
from dataset_scripts._publish import exit_code
from ner_runs import ROOT

#: modules after whose import the signal is sent: the script's first own one, those of the options, of the run
MOMENTS = ("modeling_more.naming", "transformers.utils", "transformers", "numpy", "torch", "accelerate", "datasets")


@pytest.mark.parametrize("script", ["run_ner.py", "run_re.py"])
@pytest.mark.parametrize("moment", [*MOMENTS, "modeling_more.training.setup"])
def test_ctrl_c_in_the_first_seconds_is_one_line(script, moment, files, tmp_path):
    given = ner_runs.options(files, "nowhere") if script == "run_ner.py" else None
    given = given or re_runs.options(re_runs.write_files(tmp_path), "nowhere")
    running = subprocess.Popen(
        [sys.executable, "-X", "importtime", str(ROOT / script), *given],  # which tells of each import at its end
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        # a test run in the background ignores Ctrl-C, and its children would inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    seen = []
    for line in running.stderr:
        seen.append(line)
        if line.startswith("import time:") and line.split("|")[-1].strip() == moment:
            break
    assert seen and "import time:" in seen[-1], "".join(seen)
    running.send_signal(signal.SIGINT)
    rest = [line for line in running.stderr if not line.startswith("import time:")]
    assert running.wait() == 130
    assert "".join(rest) == "\ninterrupted\n"


def test_a_builder_that_is_interrupted_says_so(capsys):
    def build():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        exit_code(build)
    assert ended.value.code == 130 and capsys.readouterr().err == "\ninterrupted\n"
