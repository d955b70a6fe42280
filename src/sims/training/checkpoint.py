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
from sims.training.ema import EMA


def save_state(
    file: Path, network: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer, position: dict[str, Any]
) -> None:
    """Write everything in one file, atomically; ``position`` is small, JSON-able, and travels in the header."""
    tensors: dict[str, Tensor] = {f"network.{k}": v.detach() for k, v in network.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.average.state_dict().items()}
    for index, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in entry.items()}
    contiguous = {name: value.contiguous().cpu() for name, value in tensors.items()}
    with atomic_path(file) as temporary:
        save_file(contiguous, temporary, metadata={"position": json.dumps(position)})


def load_state(file: Path, network: nn.Module, ema: EMA, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Restore a state in place and return its position; None if there is none.

    Errors: UserError if the file is truncated.
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
    network.load_state_dict(_part(tensors, "network."))
    ema.average.load_state_dict(_part(tensors, "ema."))
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(tensors, "optimizer.").items():
        index, field = name.split(".", 1)
        entries.setdefault(int(index), {})[field] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
    return position


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
