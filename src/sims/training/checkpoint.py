"""The state a training run resumes from: weights, average, optimizer, position; safetensors and JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sims.checksum import checksum
from sims.config import fitted, to_dict
from sims.errors import UserError
from sims.files import atomic_path, parse_json
from sims.training.adam import is_8bit
from sims.training.ema import EMA, PowerEMA, PowerState
from sims.training.sharding import alike, local, whole


@dataclass(frozen=True)
class Progress:
    """Where a run is: steps done, steps skipped, losses by images seen, the sum and number of those since the last."""

    step: int
    nonfinite: int
    losses: tuple[tuple[int, float], ...]
    partial: tuple[float, int]
    scaler: dict[str, float] | None = None
    """Of the loss (fp16)."""
    power: PowerState | None = None


def save_state(
    file: Path,
    network: nn.Module,
    ema: EMA | PowerEMA,
    optimizer: torch.optim.Optimizer,
    position: Progress,
    main: bool = True,
) -> None:
    """Write everything in one file, atomically; ``position`` travels in the header.

    Where the network is split over processes all of them take part, and only the ``main`` one writes.
    """
    tensors: dict[str, Tensor] = {f"network.{k}": v.detach() for k, v in network.state_dict().items()}
    for prefix, average in _averages(ema):
        tensors |= {f"{prefix}{k}": v for k, v in average.state_dict().items()}
    for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
        entry = {name: torch.as_tensor(value) for name, value in optimizer.state.get(parameter, {}).items()}
        if is_8bit(optimizer):  # whose parameters share their tables
            entry = {name: value.clone() for name, value in entry.items()}
        tensors |= {f"optimizer.{index}.{name}": value for name, value in entry.items()}
    contiguous: dict[str, Tensor] = {}
    for name, value in tensors.items():
        value = whole(value)
        if main:
            contiguous[name] = value.contiguous().cpu()
    if not main:
        return
    told = to_dict(position)
    told["crc32"] = checksum(contiguous, told)
    with atomic_path(file) as temporary:
        save_file(contiguous, temporary, metadata={"position": json.dumps(told)})  # one entry: several have no order


def load_state(
    file: Path, network: nn.Module, ema: EMA | PowerEMA, optimizer: torch.optim.Optimizer
) -> Progress | None:
    """Restore a state in place and return its position; None if there is none.

    Errors: UserError if the file is truncated or was changed, or holds averages of another kind.
    """
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            told = parse_json(opened.metadata()["position"], "its position")
            written = told.pop("crc32", None)  # an older version wrote none
            position: Progress = fitted(told, Progress, "its position")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        if written not in (None, checksum(tensors, told)):
            raise UserError("what it holds does not have its checksum")
    except (SafetensorError, KeyError, TypeError, AttributeError, OSError, UserError) as error:
        raise UserError(
            f"the training state {file} cannot be read ({error}): delete it to train from the start"
        ) from None
    ema.restore(position.power)
    _restore(network, _part(tensors, "network."))
    for prefix, average in _averages(ema):
        _restore(average, _part(tensors, prefix))
    entries: dict[int, dict[str, Tensor | int]] = {}
    parameters = list(network.parameters())
    for name, value in _part(tensors, "optimizer.").items():
        index, field = name.split(".", 1)
        parameter = parameters[int(index)]
        if field == "step":
            entries.setdefault(int(index), {})[field] = int(value) if is_8bit(optimizer) else value
            continue
        if value.numel() == parameter.numel():  # the file has lost how weights lie in memory, and moments lie alike
            value = alike(value, parameter)
        entries.setdefault(int(index), {})[field] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
    return position


@torch.no_grad()
def _restore(network: nn.Module, tensors: dict[str, Tensor]) -> None:
    here = network.state_dict()
    if tensors.keys() != here.keys():
        network.load_state_dict(tensors)  # says what is missing
    for name, value in here.items():
        local(value).copy_(local(alike(tensors[name], value)))


def _averages(ema: EMA | PowerEMA) -> list[tuple[str, nn.Module]]:
    """The averages with the prefix of their names in the file: the first is ``ema.``, then ``ema1.``, ..."""
    return [(f"ema{index or ''}.", average) for index, average in enumerate(ema.averages)]


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
