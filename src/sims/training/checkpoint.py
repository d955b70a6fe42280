"""The state a training run resumes from: weights, average, optimizer, position; safetensors and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sims.errors import UserError
from sims.files import atomic_path
from sims.training.ema import EMA, PowerEMA


def save_state(
    file: Path, network: nn.Module, ema: EMA | PowerEMA, optimizer: torch.optim.Optimizer, position: dict[str, Any]
) -> None:
    """Write everything in one file, atomically; ``position`` is small, JSON-able, and travels in the header."""
    tensors: dict[str, Tensor] = {f"network.{k}": v.detach() for k, v in network.state_dict().items()}
    for prefix, average in _averages(ema):
        tensors |= {f"{prefix}{k}": v for k, v in average.state_dict().items()}
    for index, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in entry.items()}
    contiguous = {name: value.contiguous().cpu() for name, value in tensors.items()}
    with atomic_path(file) as temporary:
        save_file(contiguous, temporary, metadata={"position": json.dumps(position | ema.position())})


def load_state(
    file: Path, network: nn.Module, ema: EMA | PowerEMA, optimizer: torch.optim.Optimizer
) -> dict[str, Any] | None:
    """Restore a state in place and return its position; None if there is none.

    Errors: UserError if the file is truncated, or holds averages of another kind.
    """
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            position = json.loads(opened.metadata()["position"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"the training state {file} cannot be read ({error}): delete it to train from the start"
        ) from None
    ema.restore(position)
    network.load_state_dict(_part(tensors, "network."))
    for prefix, average in _averages(ema):
        average.load_state_dict(_part(tensors, prefix))
    entries: dict[int, dict[str, Tensor]] = {}
    parameters = list(network.parameters())
    for name, value in _part(tensors, "optimizer.").items():
        index, field = name.split(".", 1)
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:  # the file has lost how weights lie in memory, and moments must lie alike
            value = torch.empty_like(parameter, dtype=value.dtype, device=value.device).copy_(value)
        entries.setdefault(int(index), {})[field] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
    return position


def _averages(ema: EMA | PowerEMA) -> list[tuple[str, nn.Module]]:
    """The averages with the prefix of their names in the file: the first is ``ema.``, then ``ema1.``, ..."""
    return [(f"ema{index or ''}.", average) for index, average in enumerate(ema.averages)]


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
