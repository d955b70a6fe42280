"""Classifier-free guidance in one pass of twice the batch, or in two passes: which is faster?

    python benchmarks/two_passes.py --out benchmarks/results/two-passes.json

Networks with random weights, one evaluation with and one without the class or prompt, at several batches; both ways in
turn, medians. ``sims.guidance.ClassifierFree`` takes one pass on a CPU up to the batch at which none of these is slower
by it, and on a GPU always.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from common import interleaved, save
from sims.model import make_network
from sims.networks.options import NetworkOptions

Pass = Callable[[Tensor, Tensor], Any]
BATCHES = (1, 2, 4, 8, 32, 128)


def own(kind: str, shape: tuple[int, int, int], device: str) -> tuple[Pass, Callable[[int], tuple[Tensor, Tensor]]]:
    """A network of ten classes of the sizes that are usual for such pictures."""
    options = NetworkOptions(type=kind, label_dropout=0.1).settled(shape)  # type: ignore[arg-type]
    network = make_network(shape, 10, *options.tables(0.5)).to(device).eval()

    def inputs(count: int) -> tuple[Tensor, Tensor]:
        return torch.randn(count, *shape, device=device), torch.arange(count, device=device) % 10

    return lambda x, labels: network(x, torch.ones(len(x), device=device), labels), inputs


def text(
    widths: tuple[int, ...], side: int, tokens: int, device: str
) -> tuple[Pass, Callable[[int], tuple[Tensor, Tensor]]]:
    """A conditional U-Net of diffusers with cross-attention at all but the lowest resolution, as Stable Diffusion's."""
    down = ["CrossAttnDownBlock2D"] * (len(widths) - 1) + ["DownBlock2D"]
    up = ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (len(widths) - 1)
    network = UNet2DConditionModel(
        sample_size=side, down_block_types=down, up_block_types=up, block_out_channels=widths,
        layers_per_block=1 if len(widths) < 3 else 2, cross_attention_dim=96, attention_head_dim=8, norm_num_groups=16,
    ).to(device).eval()  # fmt: skip

    def inputs(count: int) -> tuple[Tensor, Tensor]:
        return torch.randn(count, 4, side, side, device=device), torch.randn(count, tokens, 96, device=device)

    return lambda x, told: network(x, torch.ones(len(x), device=device), told, return_dict=False)[0], inputs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    beds = {
        "mlp, 8x8": own("mlp", (1, 8, 8), device),
        "ddpmpp, 28x28": own("ddpmpp", (1, 28, 28), device),
        "dit, 32x32": own("dit", (3, 32, 32), device),
        "text U-Net, latents of 8x8": text((64, 128), 8, 16, device),
        "text U-Net, latents of 64x64, a quarter as wide as Stable Diffusion's": text(
            (80, 160, 320, 320), 64, 77, device
        ),
    }
    rows = []
    for name, (network, inputs) in beds.items():
        for count in BATCHES if "64x64" not in name else BATCHES[:3]:
            x, told = inputs(count)
            other = torch.full_like(told, -1) if told.dtype == torch.int64 else torch.zeros_like(told)

            def two(x: Tensor = x, told: Tensor = told, other: Tensor = other, network: Pass = network) -> None:
                network(x, told), network(x, other)

            def one(x: Tensor = x, told: Tensor = told, other: Tensor = other, network: Pass = network) -> None:
                network(torch.cat([x, x]), torch.cat([told, other])).chunk(2)

            with torch.inference_mode():
                seconds = interleaved({"two": two, "one": one}, options.rounds)
            speedup = seconds["two"] / seconds["one"]
            rows.append({"network": name, "batch": count, **seconds, "one_is_faster_by": speedup})
            print(f"{name:<70} batch {count:>3}: {speedup:.2f} times as fast in one pass")
    save(options.out, {"benchmark": "two_passes", "rounds": options.rounds, "rows": rows})


if __name__ == "__main__":
    main()
