"""Checkpoints of several processes: each has its own random states, and sharded weights are kept whole."""

import json

import pytest

from modeling_more.training.checkpoints import CheckpointError
from ner_runs import ROOT, run_in_two
from short_trainings import run, scores

TWO = """
import json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
import short_trainings
from accelerate import PartialState

encoder, place = sys.argv[2], Path(sys.argv[3])

def interrupt(model, scores=short_trainings.scores(1)):
    if (found := scores(model)) == short_trainings.SCORES[2]:
        raise InterruptedError
    return found

whole = short_trainings.run(encoder, place / "whole")
try:
    short_trainings.run(encoder, place / "run", interrupt)
except InterruptedError:
    pass
state = json.loads((place / "run" / "checkpoints" / "last" / "training_state.json").read_text())
again = short_trainings.run(encoder, place / "run", resume_from_checkpoint="latest")
same = short_trainings.same(whole, again)
damaged = place / "run" / "checkpoints" / "last" / "optimizer.safetensors"
if PartialState().is_main_process:
    damaged.write_bytes(damaged.read_bytes()[:-9])
PartialState().wait_for_everyone()
try:
    short_trainings.run(encoder, place / "run", short_trainings.scores(1), resume_from_checkpoint="latest")
    said = ""
except ValueError as error:
    said = str(error)
rank = PartialState().process_index
(place / f"found-{rank}.json").write_text(json.dumps([state["epoch"], same, said, PartialState().num_processes]))
"""

SHARDED = """
import json, sys
from pathlib import Path
import torch
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from modeling_more import MoReForTokenClassification
from modeling_more.training import checkpoint_files as files

encoder, place = sys.argv[2], Path(sys.argv[3])
accelerator = Accelerator(cpu=True)
rank = accelerator.process_index

def make(seed):
    torch.manual_seed(seed)
    model = MoReForTokenClassification.from_encoder_pretrained(encoder, id2label={0: "O", 1: "B-PER", 2: "I-PER"})
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer

def step(model, optimizer):
    for parameter in model.parameters():
        parameter.grad = parameter.detach().clone() * 0.1 + 1
    optimizer.step()

def local(model):
    return [getattr(value, "_local_tensor", value).clone() for value in model.state_dict().values()]

model, optimizer = make(0)
step(model, optimizer)
parameters = files.named_parameters(accelerator, model, optimizer)
weights = files.gathered(files.weights(accelerator, model), rank == 0)
moments = files.gathered(files.optimizer_tensors(optimizer, parameters), rank == 0)
groups = files.optimizer_groups(optimizer, parameters)
if rank == 0:
    files.write_tensors(place / "model.safetensors", weights)
    files.write_tensors(place / "optimizer.safetensors", moments)
accelerator.wait_for_everyone()
sharded = sum(isinstance(parameter, DTensor) for parameter in parameters.values())
step(model, optimizer)

other, others = make(1)
files.load_weights(place / "model.safetensors", accelerator, other)
parameters = files.named_parameters(accelerator, other, others)
files.load_optimizer(place / "optimizer.safetensors", others, parameters, groups, place)
step(other, others)
same = all(torch.equal(one, two) for one, two in zip(local(model), local(other), strict=True))
whole = rank != 0 or all(weights[name].shape == value.shape for name, value in model.state_dict().items())
(place / f"found-{rank}.json").write_text(json.dumps([sharded, same, whole]))
"""


def in_two_processes(script, encoder, place):
    run_in_two(script, place, ROOT / "tests", encoder, place)
    return [json.loads((place / f"found-{rank}.json").read_text()) for rank in (0, 1)]


def test_two_processes_go_on_bit_for_bit_and_fail_together(tiny_encoder, tmp_path):
    found = in_two_processes(TWO, tiny_encoder("bert"), tmp_path / "place")
    for epoch, same, said, processes in found:
        assert (epoch, same, processes) == (2, True, 2)
        assert "optimizer.safetensors is not the file" in said
    states = json.loads((tmp_path / "place/whole/checkpoints/last/random_states.json").read_text())["processes"]
    assert len(states) == 2 and states[0]["torch"] != states[1]["torch"]
    with pytest.raises(CheckpointError, match=r"of a run with other num_processes \(2; here 1\)"):
        run(tiny_encoder("bert"), tmp_path / "place" / "whole", scores(1), resume_from_checkpoint="latest")


def test_sharded_weights_and_moments_are_kept_whole(tiny_encoder, tmp_path):
    for sharded, same, whole in in_two_processes(SHARDED, tiny_encoder("bert"), tmp_path / "place"):
        assert sharded > 20 and same and whole
