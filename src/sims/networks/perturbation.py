"""A network made worse on purpose: blocks left out, attention replaced by the identity, dropout left on.

Nothing here changes a network that is in use: what is perturbed is a twin, a copy of its modules that shares every
weight, and functions are replaced for the calls of one thread alone.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sims.seeds import derive_seed

T = TypeVar("T")
SHARE = 0.5  # of all weights: a module that holds more is no block, but holds the blocks


def twin(thing: T, networks: Sequence[nn.Module]) -> T:
    """A copy of anything that holds these networks, with modules of its own and their tensors; it is not compiled."""
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    return copy.deepcopy(thing, {id(tensor): tensor for tensor in tensors})


# -- blocks ------------------------------------------------------------------------------------------------------------


def skippable(network: nn.Module, run: Callable[[], object]) -> list[str]:
    """The names of the blocks that can be left out, in the order of their calls: outermost parts of like shape.

    A block has parts and weights of its own and gives what has the shape of its first argument; a U-Net's blocks that
    change the width, or the number of pixels, are not among them. ``run`` calls the network, which should be a twin.
    """
    total = sum(weight.numel() for weight in network.parameters())
    called: list[str] = []
    names = {module: name for name, module in network.named_modules()}

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: object) -> None:
        given, made = _first((*args, *kwargs.values())), _first(output)
        if given is not None and made is not None and given.shape == made.shape:
            called.append(names[module])

    parts = [part for part in network.modules() if _is_block(part, total) and part is not network]
    handles = [part.register_forward_hook(note, with_kwargs=True) for part in parts]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    found = list(dict.fromkeys(called))
    return [name for name in found if not any(name.startswith(f"{other}.") for other in found)]


def leave_out(network: nn.Module, names: Sequence[str]) -> None:
    """From now on these blocks of a twin pass on what they are given. KeyError for a name that there is not."""
    parts = dict(network.named_modules())
    for name in names:
        parts[name].register_forward_hook(_pass_on, with_kwargs=True)


def _is_block(part: nn.Module, total: int) -> bool:
    weights = sum(weight.numel() for weight in part.parameters())
    return 0 < weights <= SHARE * total and next(part.children(), None) is not None


def _first(values: object) -> Tensor | None:
    """The tensor, or the first of several values if that is one."""
    if isinstance(values, tuple | list):
        values = values[0] if values else None
    return values if isinstance(values, Tensor) and values.is_floating_point() else None


def _pass_on(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    given = _first((*args, *kwargs.values()))
    return type(output)((given, *output[1:])) if isinstance(output, tuple | list) else given


# -- functions ---------------------------------------------------------------------------------------------------------


class AttentionIsIdentity(TorchFunctionMode):
    """While it is entered, attention among the same positions gives each its own value (PAG, arXiv 2403.17377).

    It is what torch calls ``scaled_dot_product_attention``, or ``multi_head_attention_forward``, which its own layers
    call; ``at`` has the numbers of the calls, from 0, () = all. ``calls`` counts them: 0 after a pass of a network that
    has no such attention.
    """

    def __init__(self, at: Sequence[int] = ()) -> None:
        super().__init__()
        self.at, self.calls = at, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _ATTENTION:
            return func(*args, **kwargs)
        given = inspect.signature(_ATTENTION[func]).bind(*args, **kwargs).arguments
        if given["query"].shape[-2] != given["key"].shape[-2] or not _own(func, given):
            return func(*args, **kwargs)  # attention to something else, such as a text
        self.calls += 1
        if self.at and self.calls - 1 not in self.at:
            return func(*args, **kwargs)
        return given["value"] if func is F.scaled_dot_product_attention else (_own_values(given), None)


def _scaled(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> None:
    """The arguments of ``scaled_dot_product_attention``, which has no signature of its own."""


_ATTENTION: dict[Any, Callable[..., Any]] = {
    F.scaled_dot_product_attention: _scaled,
    F.multi_head_attention_forward: F.multi_head_attention_forward,
}


def _own(func: Any, given: Mapping[str, Any]) -> bool:
    """Whether the same positions are asked and answer; torch's layers give one tensor thrice then."""
    return func is F.scaled_dot_product_attention or given["query"] is given["key"]


def _own_values(given: Mapping[str, Any]) -> Tensor:
    """What ``multi_head_attention_forward`` gives where each position has its own value."""
    value, weight, bias = given["value"], given.get("v_proj_weight"), given.get("in_proj_bias")
    width = value.shape[-1]
    weight = given["in_proj_weight"][2 * width :] if weight is None else weight
    projected = F.linear(value, weight, None if bias is None else bias[2 * width :])
    return F.linear(projected, given["out_proj_weight"], given["out_proj_bias"])


class DropoutLeftOn(TorchFunctionMode):
    """While it is entered, dropout drops at ``rate`` (2510.17136), the same values for all samples of one noise level.

    ``levels`` (B,) or (1,) are the noise levels of the batch: what is dropped follows from a sample's level and the
    number of the call, so that neither the batch nor what was computed before plays a part. ``calls`` counts them.
    """

    def __init__(self, rate: float, levels: Tensor) -> None:
        super().__init__()
        self.rate, self.calls = rate, 0
        self.levels = [f"{level:.6g}" for level in levels.tolist()]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in (F.dropout, F.dropout2d, torch.dropout):
            return func(*args, **(kwargs or {}))
        x: Tensor = args[0] if args else kwargs["input"]
        self.calls += 1
        kept = {level: self._kept(level, x) for level in dict.fromkeys(self.levels)}
        rows = [kept[level] for level in self.levels]
        if len(kept) == 1:
            return x * rows[0]
        if len(x) % len(rows):
            raise RuntimeError(f"dropout of {len(x)} rows in a batch of {len(rows)}")
        return x * torch.cat(rows).repeat_interleave(len(x) // len(rows), 0)

    def _kept(self, level: str, x: Tensor) -> Tensor:
        """(1, ...) of 0 and 1 / (1 - rate)."""
        generator = torch.Generator().manual_seed(derive_seed("dropout", level, self.calls))
        kept = torch.rand(x.shape[1:], generator=generator) >= self.rate
        return (kept.to(x.dtype) / (1 - self.rate)).to(x.device)[None]
