"""torch.compile for a network, in place: its weights, their names and its files stay what they are."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from torch import nn

from sims.errors import UserError


def compile_network(network: nn.Module, device: torch.device, graphs: bool = False) -> None:
    """Compile at the next call, unless it is done already; copies of the network are not compiled.

    ``graphs`` records the kernels of a GPU and replays them (CUDA graphs): what counts for small batches. Results
    differ from those of the uncompiled network by rounding. Errors: UserError where there is no compiler to use.
    """
    if network._compiled_call_impl is not None:
        return
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("compile is on, and for a GPU it needs triton: install it, or turn compile off")
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise UserError("compile is on, and on a CPU it needs a C++ compiler: install g++, or turn compile off")
    network.compile(mode="reduce-overhead" if graphs and device.type == "cuda" else None)
