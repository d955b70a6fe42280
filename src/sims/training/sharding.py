"""A network split over the processes: each keeps its share of weights, averages and optimizer state (FSDP).

Zhao et al. 2023 (PyTorch FSDP), through ``torch.distributed.fsdp.fully_shard``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sims.denoiser import networks_of
from sims.networks.edm2_unet import MPConv


def split(network: nn.Module, accelerator: Accelerator) -> nn.Module:
    """The network itself, with every weight split along its first dimension; block by block it is put together for use.

    A single number becomes a vector of one, which the first process keeps.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 0:
                setattr(module, name, nn.Parameter(parameter.detach().reshape(1), parameter.requires_grad))
        if isinstance(module, MPConv):
            module.forced = False  # what is done to a weight that was put together is lost: see force_weights
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for part in (*_blocks(network), network):
        fully_shard(part, mesh=mesh)
    return network


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists: blocks of a U-Net, or of a transformer."""
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            yield from child.children()
        else:
            yield from _blocks(child)


def can_decay(denoiser: object) -> bool:
    """Whether weight decay changes what a denoiser does: not where its networks normalize their weights (EDM2)."""
    return not any(isinstance(module, MPConv) for network in networks_of(denoiser) for module in network.modules())


@torch.no_grad()
def force_weights(network: nn.Module) -> None:
    """The forced weight normalization of EDM2, which is one of rows, on this process's rows."""
    for module in network.modules():
        if isinstance(module, MPConv) and len(rows := local(module.weight)):
            rows.copy_(module.normalized(rows))


def local(tensor: Tensor) -> Tensor:
    """This process's share of a tensor; all of it where it is not split. Shares memory with it."""
    split_tensor: Any = tensor
    return split_tensor.to_local() if _is_split(tensor) else tensor  # type: ignore[no-any-return]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process; of one that is split, all processes must ask at the same point."""
    split_tensor: Any = tensor
    return split_tensor.full_tensor() if _is_split(tensor) else tensor  # type: ignore[no-any-return]


def alike(value: Tensor, tensor: Tensor) -> Tensor:
    """A whole tensor of as many numbers in the shape, the type and the place of another one, split if that is."""
    value = value.reshape(tensor.shape).to(tensor.device)
    if not _is_split(tensor):  # laid out in memory as the other one
        return torch.empty_like(tensor, dtype=value.dtype).copy_(value)
    from torch.distributed.tensor import distribute_tensor

    like: Any = tensor
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


@torch.no_grad()
def put_together(network: nn.Module, plain: nn.Module, main: bool) -> nn.Module:
    """A copy of ``plain``, which has the same structure, with the weights of a split network, on the CPU.

    All processes take part; in others than the ``main`` one the result is ``plain`` itself.
    """
    made = copy.deepcopy(plain).cpu() if main else plain
    names = made.state_dict()
    for name, value in network.state_dict().items():
        value = whole(value)
        if main:
            names[name].copy_(value.reshape(names[name].shape))
    return made.eval().requires_grad_(False) if main else plain


def _is_split(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")
