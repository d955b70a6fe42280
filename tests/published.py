"""Networks of others, written down again from the names of their tensors: what a checkpoint's network computes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]


def sinusoids(t: Tensor, width: int, steps: int) -> tuple[Tensor, Tensor]:
    angles = t[:, None] * torch.tensor([10000 ** (-i / steps) for i in range(width // 2)])
    return angles.cos(), angles.sin()


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(B, heads, c, N) each."""
    weights = torch.einsum("bhcn,bhcm->bhnm", q, k) / math.sqrt(q.shape[2])
    return torch.einsum("bhnm,bhcm->bhcn", weights.softmax(-1), v)


# -- guided-diffusion, improved-diffusion, consistency models, flow matching -------------------------------------------


def guided(state: State, x: Tensor, t: Tensor, label: Tensor | None, heads: int, legacy: bool) -> Tensor:
    """A U-Net by its ``input_blocks``, ``middle_block`` and ``output_blocks``; labels are rows of ``label_emb``."""
    width = state["time_embed.0.weight"].shape[1]
    emb = torch.cat(sinusoids(t, width, width // 2), 1)
    emb = F.silu(emb @ state["time_embed.0.weight"].T + state["time_embed.0.bias"])
    emb = emb @ state["time_embed.2.weight"].T + state["time_embed.2.bias"]
    if label is not None:
        emb = emb + state["label_emb.weight"][label]

    def conv(name: str, h: Tensor, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        weight = weight[..., None] if weight.ndim == 3 else weight
        return F.conv2d(h, weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2)

    def norm(name: str, h: Tensor) -> Tensor:
        return F.group_norm(h, 32, state[f"{name}.weight"], state[f"{name}.bias"])

    def residual(name: str, h: Tensor, change: str) -> Tensor:
        def changed(h: Tensor) -> Tensor:
            up = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
            return {"": h, "up": up, "down": F.avg_pool2d(h, 2)}[change]

        inner = conv(f"{name}.in_layers.2", changed(F.silu(norm(f"{name}.in_layers.0", h))))
        told = F.silu(emb) @ state[f"{name}.emb_layers.1.weight"].T + state[f"{name}.emb_layers.1.bias"]
        told = told[:, :, None, None]
        if told.shape[1] == 2 * inner.shape[1]:
            scale, shift = told.chunk(2, 1)
            inner = norm(f"{name}.out_layers.0", inner) * (1 + scale) + shift
        else:
            inner = norm(f"{name}.out_layers.0", inner + told)
        inner = conv(f"{name}.out_layers.3", F.silu(inner))
        skip = f"{name}.skip_connection"
        h = changed(h)
        return inner + (conv(skip, h) if f"{skip}.weight" in state else h)

    def attention(name: str, h: Tensor) -> Tensor:
        qkv = conv(f"{name}.qkv", norm(f"{name}.norm", h)).flatten(2)
        channels = qkv.shape[1] // 3 // heads
        parts = qkv.reshape(len(h), 3 * heads, channels, -1)
        order = [[3 * i + j if legacy else j * heads + i for i in range(heads)] for j in range(3)]
        out = softmax_attention(*(parts[:, rows] for rows in order))
        return h + conv(f"{name}.proj_out", out.reshape(h.shape))

    def layers(name: str, h: Tensor, wide: int, last: bool = False) -> Tensor:
        """Everything within a part of the network; ``wide`` is what the sides become, where it is a block's to say."""
        for index in range(3):
            inside = f"{name}.{index}"
            if f"{inside}.in_layers.0.weight" in state:
                change = "" if h.shape[2] == wide or (index == 0 and last) else "down" if h.shape[2] > wide else "up"
                h = residual(inside, h, change)
            elif f"{inside}.qkv.weight" in state:
                h = attention(inside, h)
            elif f"{inside}.op.weight" in state:
                h = conv(f"{inside}.op", h, 2)
            elif f"{inside}.conv.weight" in state:
                h = conv(f"{inside}.conv", h.repeat_interleave(2, 2).repeat_interleave(2, 3))
            elif f"{inside}.weight" in state:
                h = conv(inside, h)
        return h

    parts = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("input_blocks"))
    plan = SIZES[parts](x.shape[2])  # sides after each part of encoder and decoder
    hs, h = [], x
    for index, wide in enumerate(plan[0]):
        empty = not any(name.startswith(f"input_blocks.{index}.") for name in state)
        h = F.avg_pool2d(h, 2) if empty else layers(f"input_blocks.{index}", h, wide)
        hs.append(h)
    h = layers("middle_block", h, h.shape[2])
    for index, wide in enumerate(plan[1]):
        h = layers(f"output_blocks.{index}", torch.cat([h, hs.pop()], 1), wide, last=True)
        if h.shape[2] < wide:
            h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
    return conv("out.2", F.silu(norm("out.0", h)))


# Two resolutions with one block each: first convolution, block, halving, block; and block, block and doubling, ...
SIZES = {4: lambda s: ([s, s, s // 2, s // 2], [s // 2, s, s, s])}


# -- denoising-diffusion-pytorch ---------------------------------------------------------------------------------------


def ddp(state: State, x: Tensor, t: Tensor, levels: int) -> Tensor:
    """A Unet by its ``downs``, ``mid_`` and ``ups``."""
    width = state["time_mlp.1.weight"].shape[1]
    cos, sin = sinusoids(t, width, width // 2 - 1)
    emb = torch.cat([sin, cos], 1) @ state["time_mlp.1.weight"].T + state["time_mlp.1.bias"]
    emb = F.gelu(emb) @ state["time_mlp.3.weight"].T + state["time_mlp.3.bias"]

    def conv(name: str, h: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(h, weight, state.get(f"{name}.bias"), 1, weight.shape[-1] // 2)

    def norm(name: str, h: Tensor) -> Tensor:
        if f"{name}.weight" in state:
            return F.group_norm(h, 8, state[f"{name}.weight"], state[f"{name}.bias"])
        return h / h.pow(2).mean(1, keepdim=True).sqrt() * state[f"{name}.g"]

    def residual(name: str, h: Tensor) -> Tensor:
        scale, shift = (F.silu(emb) @ state[f"{name}.mlp.1.weight"].T + state[f"{name}.mlp.1.bias"])[
            :, :, None, None
        ].chunk(2, 1)
        inner = norm(f"{name}.block1.norm", conv(f"{name}.block1.proj", h)) * (scale + 1) + shift
        inner = F.silu(norm(f"{name}.block2.norm", conv(f"{name}.block2.proj", F.silu(inner))))
        return inner + (conv(f"{name}.res_conv", h) if f"{name}.res_conv.weight" in state else h)

    def attention(name: str, h: Tensor) -> Tensor:
        memory = state[f"{name}.mem_kv"]
        full, heads = f"{name}.to_out.weight" in state, memory.shape[1]
        qkv = conv(f"{name}.to_qkv", norm(f"{name}.norm", h)).reshape(len(h), 3, heads, -1, h.shape[2] * h.shape[3])
        q, k, v = qkv.unbind(1)
        if full:
            memory = memory.transpose(2, 3)
        k, v = (torch.cat([m[None].repeat(len(h), 1, 1, 1), each], 3) for m, each in zip(memory, (k, v)))
        if full:
            return h + conv(f"{name}.to_out", softmax_attention(q, k, v).reshape(len(h), -1, *h.shape[2:]))
        context = torch.einsum("bhdn,bhen->bhde", k.softmax(3), v)
        out = torch.einsum("bhde,bhdn->bhen", context, q.softmax(2) / math.sqrt(q.shape[2]))
        out = conv(f"{name}.to_out.0", out.reshape(len(h), -1, *h.shape[2:]))
        return h + norm(f"{name}.to_out.1", out)

    first = h = conv("init_conv", x)
    hs = []
    for level in range(levels):
        h = residual(f"downs.{level}.0", h)
        hs.append(h)
        h = attention(f"downs.{level}.2", residual(f"downs.{level}.1", h))
        hs.append(h)
        if f"downs.{level}.3.weight" in state:
            h = conv(f"downs.{level}.3", h)
        else:
            b, c, s, _ = h.shape
            h = h.reshape(b, c, s // 2, 2, s // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, s // 2, s // 2)
            h = conv(f"downs.{level}.3.1", h)
    h = residual("mid_block2", attention("mid_attn", residual("mid_block1", h)))
    for level in range(levels):
        h = residual(f"ups.{level}.0", torch.cat([h, hs.pop()], 1))
        h = attention(f"ups.{level}.2", residual(f"ups.{level}.1", torch.cat([h, hs.pop()], 1)))
        if f"ups.{level}.3.weight" in state:
            h = conv(f"ups.{level}.3", h)
        else:
            h = conv(f"ups.{level}.3.1", h.repeat_interleave(2, 2).repeat_interleave(2, 3))
    return conv("final_conv", residual("final_res_block", torch.cat([h, first], 1)))
