"""The peers of throughput.py: networks and loops of diffusers and denoising-diffusion-pytorch, as these document them.

Each peer trains and samples with its own loop; the same weights, in a module of the same class, go into sims' loop and
sampler. Where the loops differ, the peer does less: its images lie in memory as floats (theirs come from image files),
and the loop of diffusers keeps no average of the weights, which is off by default there (sims always keeps one).
"""

from __future__ import annotations

import copy
import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from sims.data.codec import UINT8
from sims.interop.diffusers_network import DiffusersDenoiser, DiffusersNetwork
from sims.model import Model
from sims.preconditioning import VPPrecond

SIDE = 32
Work = Callable[[], Any]


@dataclass(frozen=True)
class Peer:
    """One library: its version, the network as a model of sims, its training step and its sampler."""

    name: str
    version: str
    network: str
    model: Model
    train: Callable[[Tensor, int, torch.dtype | None], Work]  # images in [0, 1] (N, 3, 32, 32), batch -> one step
    sample: Callable[[int, int, torch.dtype | None], Work]  # batch, evaluations -> one batch of samples


def batches(images: Tensor, batch: int) -> Iterator[Tensor]:
    """Shuffled batches (batch, 3, 32, 32) for ever, from a DataLoader as both libraries use it."""
    data = torch.utils.data.TensorDataset(images)
    loader = torch.utils.data.DataLoader(data, batch_size=batch, shuffle=True, drop_last=True)
    while True:
        for (part,) in loader:
            yield part


def half(dtype: torch.dtype | None) -> torch.autocast:
    """What accelerate puts around a network with mixed_precision."""
    return torch.autocast("cpu", dtype=dtype, enabled=dtype is not None)


def with_diffusers(width: int) -> Peer:
    """google/ddpm-cifar10-32 at ``width`` channels (128 there); loop: its train_unconditional.py; sampler: DDIM."""
    import diffusers
    from diffusers.optimization import get_scheduler

    torch.manual_seed(0)
    settings = {
        "sample_size": SIDE,
        "block_out_channels": (width, 2 * width, 2 * width, 2 * width),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "norm_eps": 1e-6,
    }
    unet = diffusers.UNet2DModel(**settings)
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear")

    def train(images: Tensor, batch: int, dtype: torch.dtype | None) -> Work:
        accelerator = Accelerator(cpu=True)
        network = copy.deepcopy(unet)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
        rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=10_000)
        network, optimizer, rate = accelerator.prepare(network, optimizer, rate)
        data = batches(2 * images - 1, batch)

        def step() -> None:
            network.train()
            clean = next(data)
            noise = torch.randn_like(clean)
            timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(clean),)).long()
            noisy = scheduler.add_noise(clean, noise, timesteps)
            with accelerator.accumulate(network):
                with half(dtype):
                    output = network(noisy, timesteps).sample
                loss = F.mse_loss(output.float(), noise.float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                rate.step()
                optimizer.zero_grad()
            loss.detach().item()

        return step

    def sample(batch: int, evaluations: int, dtype: torch.dtype | None) -> Work:
        sampler = diffusers.DDIMScheduler.from_config(scheduler.config)
        pipeline = diffusers.DDIMPipeline(unet=copy.deepcopy(unet).eval(), scheduler=sampler)
        pipeline.set_progress_bar_config(disable=True)

        def draw() -> None:
            with half(dtype):
                pipeline(batch_size=batch, num_inference_steps=evaluations, output_type="np")

        return draw

    ours = DiffusersNetwork((3, SIDE, SIDE), 0, "UNet2DModel", dict(settings), model=copy.deepcopy(unet))
    denoiser = DiffusersDenoiser(ours, (3, SIDE, SIDE), 0, dict(scheduler.config) | {"_class_name": "DDPMScheduler"})
    what = f"UNet2DModel of ddpm-cifar10-32, {width} channels, {parameters(unet):.1f} M parameters"
    return Peer("diffusers", diffusers.__version__, what, Model(denoiser, UINT8), train, sample)


class LucidNetwork(nn.Module):
    """A Unet of denoising-diffusion-pytorch as F(x, c_noise)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.config: dict[str, Any] = {}

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.unet(x, c_noise.expand(len(x)))  # it wants one time per image


def with_lucid(width: int) -> Peer:
    """denoising-diffusion-pytorch's Unet and GaussianDiffusion; loop: its Trainer, amp off; sampler: its DDIM."""
    without_torchvision()
    import denoising_diffusion_pytorch as library
    from denoising_diffusion_pytorch.version import __version__
    from ema_pytorch import EMA

    torch.manual_seed(0)
    unet = library.Unet(dim=width, dim_mults=(1, 2, 4), flash_attn=False)

    def train(images: Tensor, batch: int, dtype: torch.dtype | None) -> Work:
        accelerator = Accelerator(cpu=True)
        diffusion = library.GaussianDiffusion(copy.deepcopy(unet), image_size=SIDE)
        optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))
        average = EMA(diffusion, beta=0.995, update_every=10)
        diffusion, optimizer = accelerator.prepare(diffusion, optimizer)
        data = batches(images, batch)

        def step() -> None:
            diffusion.train()
            with half(dtype):
                loss = diffusion(next(data))
                loss.item()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(diffusion.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            average.update()

        return step

    def sample(batch: int, evaluations: int, dtype: torch.dtype | None) -> Work:
        diffusion = library.GaussianDiffusion(
            copy.deepcopy(unet), image_size=SIDE, sampling_timesteps=evaluations
        ).eval()

        def draw() -> None:
            with half(dtype):
                diffusion.sample(batch_size=batch)

        return draw

    denoiser = VPPrecond(LucidNetwork(copy.deepcopy(unet)), (3, SIDE, SIDE))
    what = f"Unet(dim={width}, dim_mults=(1, 2, 4)), {parameters(unet):.1f} M parameters"
    return Peer("denoising-diffusion-pytorch", __version__, what, Model(denoiser, UINT8), train, sample)


def without_torchvision() -> None:
    """Stand-ins for the two modules of torchvision that the library imports; nothing here calls them."""
    if "torchvision" in sys.modules:
        return
    parts = {name: types.ModuleType(name) for name in ("torchvision", "torchvision.transforms", "torchvision.utils")}
    for name, module in parts.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    parts["torchvision"].transforms = parts["torchvision.transforms"]  # type: ignore[attr-defined]
    parts["torchvision"].utils = parts["torchvision.utils"]  # type: ignore[attr-defined]
    sys.modules.update(parts)


def parameters(network: nn.Module) -> float:
    """Millions of parameters."""
    return sum(p.numel() for p in network.parameters()) / 1e6


PEERS = {"diffusers": with_diffusers, "denoising-diffusion-pytorch": with_lucid}
