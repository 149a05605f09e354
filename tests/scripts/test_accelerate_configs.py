"""Every shipped accelerate configuration loads, plans what its name says, and two CPU processes are really two."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "accelerate_configs"
NAMES = ("cpu", "cpu_2_processes", "single_gpu", "multi_gpu", "fsdp2", "deepspeed_zero2", "multi_node")


def launch_plan(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The arguments with which `accelerate launch` would start the processes."""
    for key in list(os.environ):
        if key.startswith("ACCELERATE_"):
            monkeypatch.delenv(key)
    args = launch_command_parser().parse_args(["--config_file", str(FOLDER / f"{name}.yaml"), "run_ner.py"])
    validated, _, _ = _validate_launch_command(args)
    return validated


def test_the_seven_are_there() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_no_value_is_left_to_the_launcher(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It lists the values that it had to choose, in a block above every run."""
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # else it says how many cores it takes, which one wants to know
    launch_plan(name, monkeypatch)
    assert "had defaults used instead" not in caplog.text


@pytest.mark.parametrize("name", NAMES)
def test_loads_and_plans_what_its_name_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))
    plan = launch_plan(name, monkeypatch)
    assert config.use_cpu == name.startswith("cpu")
    processes = {"cpu": 1, "single_gpu": 1, "multi_node": 16}.get(name, 2)
    assert (config.num_processes, plan.num_processes) == (processes, processes)
    assert (plan.num_machines, plan.machine_rank) == (2 if name == "multi_node" else 1, 0)
    assert plan.mixed_precision == ("no" if name.startswith("cpu") else "bf16")
    kinds = (bool(plan.multi_gpu), bool(plan.use_fsdp), bool(plan.use_deepspeed))
    assert kinds == (
        name in ("cpu_2_processes", "multi_gpu", "multi_node"),
        name == "fsdp2",
        name == "deepspeed_zero2",
    )
    if name == "deepspeed_zero2":
        assert plan.zero_stage == 2
        # a number here would silently override the script's --gradient_accumulation_steps
        assert plan.gradient_accumulation_steps is None and plan.gradient_clipping is None


def test_fsdp2_reaches_the_plugin_and_names_a_real_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.xlm_roberta import modeling_xlm_roberta

    for key, value in prepare_multi_gpu_env(launch_plan("fsdp2", monkeypatch)).items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    assert plugin.transformer_cls_names_to_wrap == ["XLMRobertaLayer"]
    assert hasattr(modeling_xlm_roberta, "XLMRobertaLayer")


SCRIPT = """
import json, sys
import torch
from accelerate import Accelerator

accelerator = Accelerator()
rank = torch.tensor([accelerator.process_index], device=accelerator.device)
ranks = accelerator.gather(rank).tolist()
if accelerator.is_main_process:
    with open(sys.argv[1], "w") as file:
        json.dump({"processes": accelerator.num_processes, "ranks": ranks, "device": accelerator.device.type}, file)
accelerator.end_training()  # as a run does: gloo's threads may abort a process that leaves its group open
"""


@pytest.mark.parametrize("name", ["cpu", "cpu_2_processes"])
def test_launch_as_documented(name: str, tmp_path: Path) -> None:
    script, out = tmp_path / "gather.py", tmp_path / "out.json"
    script.write_text(SCRIPT)
    env = {key: value for key, value in os.environ.items() if not key.startswith("ACCELERATE_")}
    env |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path)}
    head = (FOLDER / f"{name}.yaml").read_text().split("compute_environment")[0]
    if name == "cpu_2_processes":
        assert "ACCELERATE_USE_CPU=true accelerate launch" in head
        env["ACCELERATE_USE_CPU"] = "true"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FOLDER / f"{name}.yaml")]
    command += [str(script), str(out)]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True) as launcher:
        try:
            _, errors = launcher.communicate(timeout=600)
        finally:
            with suppress(ProcessLookupError):  # a launcher that hangs must not leave its processes behind
                os.killpg(launcher.pid, signal.SIGKILL)
    assert launcher.returncode == 0, errors[-3000:]
    ranks = [0, 1] if name == "cpu_2_processes" else [0]
    assert json.loads(out.read_text()) == {"processes": len(ranks), "ranks": ranks, "device": "cpu"}


def test_no_configuration_sets_what_a_command_line_should() -> None:
    for name in NAMES:
        settings = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
        assert "gradient_accumulation_steps" not in json.dumps(settings)
