"""Many small multilayer perceptrons evaluated as one: replicas of an experiment in two dimensions, trained at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sims.errors import UserError
from sims.networks.layers import check_depth
from sims.networks.mlp import MLP, Fourier


class Linears(nn.Module):
    """One linear map per slice: (M, B, inputs) -> (M, B, outputs); B = 1 is broadcast by whoever adds."""

    def __init__(self, slices: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(slices, inputs, outputs))
        self.bias = nn.Parameter(torch.empty(slices, 1, outputs))

    def forward(self, h: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, h, self.weight)


class ReplicaBlock(nn.Module):
    """``mlp.Block`` of every slice."""

    def __init__(self, slices: int, width: int, embedding: int) -> None:
        super().__init__()
        self.width = width
        self.modulate = Linears(slices, embedding, 2 * width)
        self.expand = Linears(slices, width, 2 * width)
        self.contract = Linears(slices, 2 * width, width)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulate(embedding).chunk(2, dim=2)  # (M, B or 1, width) each
        u = torch.addcmul(shift, F.layer_norm(h, (self.width,)), scale + 1)
        return h + self.contract(F.silu(self.expand(u)))


class ReplicaMLP(nn.Module):
    """M networks like ``MLP``, each with weights of its own: F(x, c_noise), x (B, M, D) -> the same shape.

    Slice m of a batch is seen by network m alone. All slices share c_noise (B,), so its sines are computed once;
    products are batched over slices. ``load`` and ``slice`` exchange weights with ordinary ``MLP``s of data_shape (D,).
    Raises UserError for classes, which it has no place for, and for data that is not (M, D).
    """

    def __init__(
        self,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        width: int = 64,
        blocks: int = 2,
        embedding: int = 32,
    ) -> None:
        super().__init__()
        if len(data_shape) != 2 or num_classes:
            raise UserError(
                f"replica_mlp takes data of shape (replicas, dimensions) without classes; got {tuple(data_shape)} "
                f"and {num_classes} classes"
            )
        check_depth(blocks)
        self.config = {"width": width, "blocks": blocks, "embedding": embedding}
        self.slices, self.size = data_shape
        self.fourier = Fourier(embedding)
        self.embed = Linears(self.slices, embedding, embedding)
        self.read = Linears(self.slices, self.size, width)
        self.blocks = nn.ModuleList(ReplicaBlock(self.slices, width, embedding) for _ in range(blocks))
        self.norm = Linears(self.slices, 1, width)  # only the names and shapes of a scale and a shift
        self.write = Linears(self.slices, width, self.size)
        if self.read.weight.device.type != "meta":
            self.load([self._single() for _ in range(self.slices)])

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        waves = self.fourier(c_noise)  # (B, embedding), or (1, embedding) where one level is shared by the batch
        embedding = F.silu(self.embed(waves.expand(self.slices, *waves.shape)))  # (M, B or 1, embedding)
        h = self.read(x.transpose(0, 1))  # (M, B, width)
        for block in self.blocks:
            h = block(h, embedding)
        u = torch.addcmul(self.norm.bias, F.layer_norm(h, h.shape[2:]), self.norm.weight)
        return self.write(u).transpose(0, 1)  # (B, M, D)

    def _single(self) -> MLP:
        return MLP((self.size,), **self.config)

    @torch.no_grad()
    def load(self, networks: Sequence[MLP]) -> None:
        """Take the weights of M networks of the same sizes: slice m computes what ``networks[m]`` computes."""
        assert len(networks) == self.slices
        states = [network.state_dict() for network in networks]
        for name, own in self.named_parameters():
            own.copy_(torch.stack([_turned(state[name]) for state in states]).view_as(own))

    @torch.no_grad()
    def slice(self, index: int) -> MLP:
        """The network of one slice, with weights of its own."""
        network = self._single().to(self.read.weight.device)
        parameters = dict(self.named_parameters())
        for name, theirs in network.named_parameters():
            theirs.copy_(_turned(parameters[name][index].detach().view(_turned(theirs).shape)))
        return network.train(self.training)

    def select(self, indices: Sequence[int]) -> ReplicaMLP:
        """The network of some of the slices, in this order, with weights of its own; an index may occur twice."""
        with torch.device("meta"):
            chosen = ReplicaMLP((len(indices), self.size), **self.config)
        index = torch.as_tensor(indices, device=self.read.weight.device)
        state = {name: value.detach().index_select(0, index) for name, value in self.named_parameters()}
        chosen.load_state_dict(state | dict(self.named_buffers()), assign=True)
        return chosen.train(self.training)


def _turned(weight: Tensor) -> Tensor:
    """A linear layer's (outputs, inputs) as (inputs, outputs), and back; vectors stay."""
    return weight.T if weight.ndim == 2 else weight
