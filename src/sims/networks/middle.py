"""The middle layer of any network: where it is, and what it gives in a pass, read without a change to the network."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sims.errors import UserError

Hook = Callable[[nn.Module, Any, Any], None]
BATCH = 5  # samples of the pass that looks for the layer


@dataclass(frozen=True)
class Layer:
    """A layer by its name in the network, and the shape of what it gives for one sample: (C, h, w), (N, C) or (C,)."""

    name: str
    shape: tuple[int, ...]

    @property
    def places(self) -> int:
        """Pixels, or tokens; 1 of a vector."""
        return {1: 1, 2: self.shape[0]}.get(len(self.shape), math.prod(self.shape[1:]))


@dataclass(frozen=True)
class _Call:
    """A layer that was called, and how many elementary layers had been called before and after it."""

    layer: Layer
    first: int
    last: int


def middle_layer(network: nn.Module, evaluate: Callable[[Tensor], object], x: Tensor) -> Layer:
    """The layer in the middle of a network's computation: of a U-Net its bottleneck, of others the one at half depth.

    ``evaluate`` calls the network, whose weights need no gradients, on x (``BATCH``, *data_shape). Layers with weights
    that give one tensor that depends on x, once, and do no more than half of the work, are the candidates; within
    others they do not count. Of those with the fewest pixels or tokens it is the one that ends nearest to half of their
    work, counted in elementary layers.
    Errors: UserError where there is none.
    """
    calls, total = _calls(network, evaluate, x)
    known = [call for call in calls if 2 * (call.last - call.first) <= total]
    names = [call.layer.name for call in known]
    outer = [call for call in known if not any(call.layer.name.startswith(f"{name}.") for name in names)]
    if not outer:
        raise UserError(
            f"{type(network).__name__} has no layer in its middle that gives one tensor (B, C, h, w), (B, N, C) or "
            "(B, C): guidance by a head needs one, choose another method"
        )
    fewest = min(call.layer.places for call in outer)
    lowest = [call for call in outer if call.layer.places == fewest]
    half = (lowest[0].first + lowest[-1].last) / 2
    return min(lowest, key=lambda call: abs(call.last - half)).layer


def _calls(network: nn.Module, evaluate: Callable[[Tensor], object], x: Tensor) -> tuple[list[_Call], int]:
    """The calls of layers that may be read, in order, and the number of elementary ones that depend on x."""
    begun: dict[str, int] = {}
    seen: dict[str, list[_Call]] = {}
    total = 0
    handles = []

    def before(name: str) -> Callable[[nn.Module, Any], None]:
        def begin(module: nn.Module, arguments: Any) -> None:
            begun[name] = total

        return begin

    def after(name: str) -> Hook:
        def end(module: nn.Module, arguments: Any, output: Any) -> None:
            nonlocal total
            if not isinstance(output, Tensor) or not output.requires_grad:
                return
            total += any(True for _ in module.parameters(recurse=False))
            known = 2 <= output.ndim <= 4 and len(output) == len(x)
            shape = tuple(output.shape[1:]) if known else ()
            seen.setdefault(name, []).append(_Call(Layer(name, shape), begun[name], total))

        return end

    for name, module in network.named_modules():
        if name and any(True for _ in module.parameters()):
            handles += [module.register_forward_pre_hook(before(name)), module.register_forward_hook(after(name))]
    try:
        with torch.enable_grad():
            evaluate(x.detach().requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    once = [calls[0] for calls in seen.values() if len(calls) == 1 and calls[0].layer.shape]
    return sorted(once, key=lambda call: call.last), total


def watched(module: nn.Module, hooks: Mapping[str, Hook]) -> nn.Module:
    """The same module, weights and all, whose submodules of these names also tell ``hooks`` what they were given, gave.

    The modules on the way to them are new, all others are shared: the module itself knows of no hook, and two calls at
    once know nothing of each other. What was compiled is called uncompiled, since nothing can be read inside it.
    Errors: AttributeError for a name that there is not.
    """
    twin = copy.copy(module)
    state = twin.__dict__
    state["_compiled_call_impl"] = None
    state["_modules"] = dict(module._modules)
    inner: dict[str, dict[str, Hook]] = {}
    for path, hook in hooks.items():
        child, _, rest = path.partition(".")
        if child:
            inner.setdefault(child, {})[rest] = hook
        else:
            state["_forward_hooks"] = module._forward_hooks.copy()
            twin.register_forward_hook(hook)
    for child, own in inner.items():
        found = module._modules.get(child)
        if found is None:
            raise AttributeError(f"{type(module).__name__} has no layer {child!r}")
        state["_modules"][child] = watched(found, own)
    return twin
