"""A checkpoint made by somebody else runs nothing when a training resumes from it, whatever it holds."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import run_ner
from modeling_more.files import file_digest, write_manifest
from ner_runs import ROOT, options

#: names that accelerate, transformers, peft or torch read by unpickling
NAMES = (
    *("optimizer.bin", "optimizer_0.bin", "scheduler.bin", "sampler.bin", "dl_state_dict.bin", "scaler.pt"),
    *("custom_checkpoint_0.pkl", "random_states_0.pkl", "pytorch_model.bin", "model.bin", "adapter_model.bin"),
    *("training_args.bin", "pytorch_model_fsdp.bin"),
)

SCRIPT = """
import json, pickle, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
import torch
import run_ner

events, armed = [], [False]

def watch(event, arguments):
    if armed[0] and event in ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        events.append([event, str(arguments)])
    if armed[0] and event == "open" and str(arguments[0]).endswith((".bin", ".pkl", ".pt")):
        events.append([event, str(arguments[0])])

sys.addaudithook(watch)
load, Unpickler = torch.load, pickle.Unpickler

def watched_load(*given, **more):
    if armed[0]:
        events.append(["torch.load", str(given)])
    return load(*given, **more)

class WatchedUnpickler(Unpickler):
    def __init__(self, *given, **more):
        if armed[0]:
            events.append(["pickle.Unpickler", str(given)])
        super().__init__(*given, **more)

torch.load, pickle.Unpickler = watched_load, WatchedUnpickler
found = {}
arguments = json.loads(sys.argv[2])
for folder in sys.argv[4:]:
    armed[0] = True
    try:
        run_ner.main([*arguments, "--output_dir", folder, "--resume_from_checkpoint", "latest"])
        said = "resumed"
    except (SystemExit, Exception) as error:
        said = str(error)
    armed[0] = False
    found[Path(folder).name] = [said, list(events)]
    events.clear()
Path(sys.argv[3]).write_text(json.dumps(found))
"""


class Bomb:
    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.system, (f"touch '{self.file}'",)


def replace(file: Path, content: bytes) -> None:
    file.unlink(missing_ok=True)
    file.write_bytes(content)


def sign(folder: Path) -> None:
    """Write the manifests of a checkpoint and its best model as a training does, as a stranger can."""
    for name in ("best", "last"):
        state = folder / "last" / "training_state.json"
        if name == "last" and state.read_bytes().startswith(b"{"):
            saved = json.loads(state.read_text()) | {"best": file_digest(folder / "best" / "manifest.json")}
            state.write_text(json.dumps(saved))
        (folder / name / "manifest.json").unlink(missing_ok=True)
        write_manifest(folder / name, [path.name for path in (folder / name).iterdir()])


@pytest.fixture
def hostile(files, tiny_encoder, tmp_path):
    """The command line of a run, and folders from which it would resume, with what the refusal has to name."""
    arguments = options(files, tiny_encoder("bert"), "--num_train_epochs", "1")
    run_ner.main(arguments)
    canary = tmp_path / "canary"
    bombs = [pickle.dumps(Bomb(canary))]
    torch.save({"state": Bomb(canary)}, tmp_path / "bomb.pt")
    bombs.append((tmp_path / "bomb.pt").read_bytes())
    made: dict[str, str] = {}

    def copy(name: str, refused: str) -> Path:
        subprocess.run(["cp", "-r", files["out"], str(tmp_path / name)], check=True)
        made[name] = refused
        return tmp_path / name / "checkpoints"

    for kind, bomb in enumerate(bombs):
        replace(copy(f"beside the schedule-{kind}", "resumed") / "last" / "custom_checkpoint_0.pkl", bomb)
        folder = copy(f"beside-{kind}", "resumed")
        for name in NAMES:
            replace(folder / "last" / name, bomb)
        folder = copy(f"beside the best-{kind}", "best holds adapter_config.json")
        replace(folder / "best" / "adapter_config.json", json.dumps({"base_model_name_or_path": "x"}).encode())
        for name in NAMES:
            replace(folder / "best" / name, bomb)
        folder = copy(f"instead of the best weights-{kind}", "best/manifest.json names pytorch_model.bin")
        (folder / "best" / "model.safetensors").unlink()
        replace(folder / "best" / "pytorch_model.bin", bomb)
        sign(folder)
        folder = copy(f"told-{kind}", "last/manifest.json names adapter_model.bin")
        for name in NAMES:
            replace(folder / "last" / name, bomb)
        sign(folder)
        for name in ("model.safetensors", "optimizer.safetensors", "random_states.json", "training_state.json"):
            # what does not read as a checkpoint's state is none
            none = "holds a finished run that has no checkpoint to go on from"
            folder = copy(f"instead of {name}-{kind}", none if name == "training_state.json" else f"last/{name} ")
            replace(folder / "last" / name, bomb)
            sign(folder)
        folder = copy(f"of an earlier version-{kind}", "is of an earlier version, whose checkpoints are pickles")
        (folder / "last" / "manifest.json").unlink(missing_ok=True)
        state = {"made_of": None, "history": [], "best_score": 1.0, "best_epoch": 1, "epoch": 1}
        replace(folder / "last" / "training_state.json", json.dumps(state).encode())
        for name in NAMES:
            replace(folder / "last" / name, bomb)
    for number, made_of in enumerate((None, [], "x", 0)):
        folder = copy(f"of no run-{number}", "the entry 'made_of' is")
        saved = json.loads((folder / "last" / "training_state.json").read_text()) | {"made_of": made_of}
        replace(folder / "last" / "training_state.json", json.dumps(saved).encode())
        sign(folder)
    return arguments, made, canary


def test_nothing_runs_and_nothing_is_unpickled(hostile, tmp_path):
    arguments, made, canary = hostile
    arguments[arguments.index("--num_train_epochs") + 1] = "2"
    place = [str(ROOT), json.dumps(arguments), str(tmp_path / "found.json"), *(str(tmp_path / name) for name in made)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *place], env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert not canary.exists()
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    for name, refused in made.items():
        said, events = found[name]
        assert not events, (name, events)
        assert refused in said and "\n" not in said, (name, said)
    # the bombs are live, and the watch sees them: as torch.load reads them without a care
    control = "torch.load(sys.argv[3].replace('found.json', 'bomb.pt'), weights_only=False)"
    script = SCRIPT.replace(SCRIPT[SCRIPT.index("    try:") : SCRIPT.index("    armed[0] = False")],
                            f"    {control}\n    said = ''\n")  # fmt: skip
    subprocess.run([sys.executable, "-c", script, *place[:4]], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    [(_, events)] = json.loads((tmp_path / "found.json").read_text()).values()
    assert canary.exists()
    assert {event for event, _ in events} >= {
        "torch.load",
        "pickle.find_class",
        "pickle.Unpickler",
        "os.system",
        "open",
    }
