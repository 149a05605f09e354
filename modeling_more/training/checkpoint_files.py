"""This module writes and reads what a checkpoint holds: numbers as JSON, tensors as safetensors, and nothing else."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from ..foreign import require_regular

STEP = "step"  # the state of an optimizer that is a number
#: how an optimizer computes on its device, which may be another one when a run goes on
COMPUTING = ("foreach", "fused", "capturable", "differentiable")
#: what changes in a schedule while it is stepped
STEPPED = ("last_epoch", "_step_count", "_last_lr")
TWISTER_WORDS = 624  # of the random generators of Python and NumPy


def gathered(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Return whole tensors, gathered where they are sharded; every process must call this, one of them keeps them."""
    found = {}
    for name, tensor in tensors.items():
        whole = tensor.detach()
        if isinstance(whole, DTensor):
            whole = whole.full_tensor().cpu()
        if keep:
            found[name] = whole.contiguous()
    return found


def write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to a file, or raise OSError that names it."""
    try:
        save_file(tensors, file)
    except SafetensorError as error:
        raise OSError(f"{file} can't be written: {error}") from error


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Open a file of tensors, or raise ValueError that names it if it is damaged."""
    try:
        with safe_open(require_regular(file), "pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(f"{file} is no whole file of tensors: {error}") from None


def read_tensors(file: Path, like: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file by name, which must be those of `like` in name, shape and type.

    Raises:
        ValueError: they are not, or the file is damaged.
    """
    with opened(file) as tensors:
        names = set(tensors.keys())
        if missing := sorted(like.keys() - names):
            raise ValueError(f"{file} is of another training: it lacks {missing[0]}")
        if foreign := sorted(names - like.keys()):
            raise ValueError(f"{file} is of another training, which has {foreign[0]}")
        for name, wanted in like.items():
            found = tensors.get_tensor(name)
            if found.shape != wanted.shape or found.dtype != wanted.dtype:
                told, right = (f"{list(one.shape)} of {one.dtype}" for one in (found, wanted))
                raise ValueError(f"{file} is of another training: {name} is {told} there and {right} here")
            yield name, found


def weights(accelerator: Accelerator, model: torch.nn.Module) -> dict[str, Tensor]:
    """Return a model's tensors by name, where several names share one (tied weights) by the first."""
    found, seen = {}, set()
    for name, tensor in accelerator.unwrap_model(model).state_dict().items():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        place = local.device, local.data_ptr(), local.shape, local.stride()
        if not local.numel() or place not in seen:
            found[name] = tensor
        seen.add(place)
    return found


def load_weights(file: Path, accelerator: Accelerator, model: torch.nn.Module) -> None:
    """Load a model's tensors in place, see `read_tensors`."""
    own = weights(accelerator, model)
    with torch.no_grad():
        for name, tensor in read_tensors(file, own):
            own[name].copy_(_as(tensor, own[name]))


def named_parameters(accelerator: Accelerator, model: torch.nn.Module, optimizer: Any) -> dict[str, Tensor]:
    """Return the parameters that an optimizer moves, by the model's names, in the optimizer's order."""
    names = {id(parameter): name for name, parameter in accelerator.unwrap_model(model).named_parameters()}
    return {names[id(parameter)]: parameter for group in optimizer.param_groups for parameter in group["params"]}


def optimizer_tensors(optimizer: Any, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of an optimizer's state as `parameter.key`; a parameter that got no gradient has none.

    Raises:
        ValueError: for an optimizer with other states than a number `step` and tensors like its parameters.
    """
    found: dict[str, Tensor] = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if value is not None:
                found[f"{name}.{key}"] = torch.as_tensor(value)
                if found[f"{name}.{key}"].shape != (() if key == STEP else parameter.shape):
                    raise ValueError(
                        f"the state {key} of this optimizer is not of the shape of its parameter, no checkpoint can "
                        "keep it: give --no_save_checkpoints"
                    )
    return found


def load_optimizer(
    file: Path, optimizer: Any, parameters: Mapping[str, Tensor], groups: list[Any], where: Path
) -> None:
    """Load an optimizer's tensors from a file, and its rates from `groups`, whose other numbers must be its own.

    Raises:
        ValueError: tensors or groups are of another optimizer; the message names `file` or `where`.
    """
    if _without_rates(groups) != _without_rates(optimizer_groups(optimizer, parameters)):
        raise ValueError(f"{where} is of another optimizer: its groups of parameters are not those of this run")
    state: dict[int, dict[str, Tensor]] = {}
    numbers = {name: number for number, name in enumerate(parameters)}
    for name, tensor in read_tensors(file, _expected_state(file, optimizer, parameters)):
        parameter, _, key = name.rpartition(".")
        state.setdefault(numbers[parameter], {})[key] = _as(tensor.clone(), parameters[parameter])
    own = optimizer.state_dict()["param_groups"]
    rates = [{**group, "lr": found["lr"]} for group, found in zip(own, groups, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": rates})


def optimizer_groups(optimizer: Any, parameters: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Return the numbers of an optimizer's groups of parameters, with the parameters' names, as JSON keeps them."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    groups = []
    for group in optimizer.param_groups:
        numbers = {key: value for key, value in group.items() if key not in COMPUTING}
        groups.append(numbers | {"params": [names[id(parameter)] for parameter in group["params"]]})
    return as_json(groups)


def load_schedule(schedule: Any, found: dict[str, Any], where: Path) -> None:
    """Load how far a schedule was stepped; all else must be as it is.

    Raises:
        ValueError: it is the state of another schedule.
    """
    own = as_json(schedule.state_dict())
    same = found.keys() == own.keys() and all(found[key] == own[key] for key in own if key not in STEPPED)
    if not same or not all(_alike(found[key], own[key]) for key in own):
        raise ValueError(f"{where} is of another schedule of the learning rates")
    schedule.load_state_dict(found)


def load_scaler(scaler: Any, found: Any, where: Path) -> None:
    """Load the state of a gradient scaler, of which there is one in half precision only.

    Raises:
        ValueError: it is the state of another scaler, or there is none.
    """
    own = None if scaler is None else as_json(scaler.state_dict())
    if not _alike(found, own):
        raise ValueError(f"{where} is of another precision: it does not fit the scaler of the gradients")
    if scaler is not None:
        scaler.load_state_dict(found)


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the states of the random generators of this process as JSON keeps them."""
    version, words, gauss = random.getstate()
    kind, keys, *more = np.random.get_state(legacy=True)
    own = getattr(getattr(torch, device.type, None), "get_rng_state", None)
    state = None if own is None or device.type == "cpu" else own(*_given(device)).numpy().tobytes().hex()
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(keys).tolist(), *more],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
        "device": None if state is None else [device.type, state],
    }


def load_random_state(found: Any, device: torch.device, where: str) -> bool:
    """Set the random generators of this process, and return whether also that of the device, which may be another.

    Raises:
        ValueError: this is no state of random generators.
    """
    try:
        version, words, gauss = found["python"]
        kind, keys, position, has_gauss, cached = found["numpy"]
        at = words[TWISTER_WORDS]
        numbers = all(type(one) is int and 0 <= one < 2**32 for one in (*words, *keys))
        # NumPy reads past the end of its words without asking
        places = all(type(one) is int and 0 <= one <= TWISTER_WORDS for one in (at, position))
        if not (numbers and places and len(keys) == TWISTER_WORDS and has_gauss in (0, 1)):
            raise ValueError("numbers out of range")
        random.setstate((version, tuple(words), gauss if gauss is None else float(gauss)))
        np.random.set_state((kind, np.array(keys, dtype=np.uint32), position, has_gauss, float(cached)))
        torch.set_rng_state(_bytes(found["torch"]))
        if found["device"] is None or found["device"][0] != device.type:
            return found["device"] is None and device.type == "cpu"
        getattr(torch, device.type).set_rng_state(_bytes(found["device"][1]), *_given(device))
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise ValueError(f"{where} holds no state of random generators: {error}") from None
    return True


def as_json(value: Any) -> Any:
    """Return a value as a JSON file keeps it: tuples as lists, tensors with one number as numbers."""
    return json.loads(json.dumps(value, default=float))


def is_number(value: Any) -> bool:
    """Return whether this is a finite number of JSON."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _as(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor sharded as another one is, if that is; numbers stay whole."""
    if isinstance(like, DTensor) and tensor.dim():
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
    return tensor


def _given(device: torch.device) -> list[torch.device]:
    return [] if device.type == "mps" else [device]  # there is only one


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)


def _without_rates(groups: Any) -> Any:
    if not all(isinstance(group, dict) and is_number(group.get("lr")) for group in groups):
        return None
    return [{key: value for key, value in group.items() if key != "lr"} for group in groups]


def _alike(found: Any, own: Any) -> bool:
    """Return whether two values of JSON have the same structure, with finite numbers in the same places."""
    if isinstance(own, dict):
        return isinstance(found, dict) and found.keys() == own.keys() and all(_alike(found[k], own[k]) for k in own)
    if isinstance(own, list):
        return isinstance(found, list) and len(found) == len(own) and all(map(_alike, found, own))
    if is_number(own):
        return is_number(found) and (isinstance(own, float) or isinstance(found, int))
    return type(found) is type(own) and found == own


def _expected_state(file: Path, optimizer: Any, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what each tensor in an optimizer's file must be like.

    Raises:
        ValueError: for names of no parameter, or states that this optimizer doesn't have.
    """
    kept: dict[str, list[str]] = {}
    with opened(file) as tensors:
        for name in sorted(tensors.keys()):
            parameter, _, key = name.rpartition(".")
            if parameter not in parameters:
                raise ValueError(f"{file} is of another training, which has {name}")
            kept.setdefault(parameter, []).append(key)
    plain = getattr(optimizer, "optimizer", optimizer)
    keys = next(iter(kept.values()), [])
    if isinstance(plain, torch.optim.Adam):  # AdamW is one
        keys = sorted([STEP, "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if plain.defaults["amsgrad"] else [])])
    for parameter, found in kept.items():  # fused steps trust their shapes
        if found != keys:
            raise ValueError(f"{file} is of another optimizer: of {parameter} it has {', '.join(found)}")
    number = torch.zeros(())
    return {
        f"{parameter}.{key}": number if key == STEP else parameters[parameter] for parameter in kept for key in keys
    }
