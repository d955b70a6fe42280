"""Outputs of the reference implementations at toy sizes, reproduced by this package's networks and samplers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from sims.guidance import Extrapolate
from sims.interop.nvidia import build
from sims.preconditioning import Preconditioned
from sims.sampling import SamplerOptions, SeededNoise, sample, sample_seeds

GOLDEN = Path(os.environ.get("SIMS_GOLDEN") or Path(__file__).parents[2] / "shared" / "golden")
NETWORKS = (
    "edm-adm-cond",
    "edm-ddpmpp-uncond-augment",
    "edm-ncsnpp-cond",
    "edm2-cond",
    "edm2-cond-aux",
    "vp-ddpmpp-uncond",
)
SIDES = (0.002, 80.0)  # noise levels that the reference samplers start and end with

pytestmark = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason=f"no golden files at {GOLDEN}: set SIMS_GOLDEN to the folder that has them"
)


def read(name: str) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a golden file."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def denoiser(name: str) -> tuple[Preconditioned, dict[str, Tensor]]:
    """The network of a golden file, and the file's tensors."""
    metadata, tensors = read(name)
    state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
    return build(metadata["class"], json.loads(metadata["init"]), state), tensors


def labels_of(tensors: dict[str, Tensor]) -> Tensor | None:
    """Classes (B,) from one-hot vectors, -1 for zeros; None where there are none."""
    if "in.labels" not in tensors:
        return None
    vectors = tensors["in.labels"]
    return torch.where(vectors.any(dim=1), vectors.argmax(dim=1), -1)


def off(ours: Tensor, theirs: Tensor) -> float:
    """The largest relative difference of a sample: norm of the difference over the norm."""
    difference = (ours.double() - theirs.double()).flatten(1).norm(dim=1)
    return float((difference / theirs.double().flatten(1).norm(dim=1)).max())


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_denoised(name: str) -> None:
    made, tensors = denoiser(name)
    x, sigma, labels = tensors["in.x"], tensors["in.sigma"], labels_of(tensors)
    assert off(made(x, sigma, labels), tensors["out.denoised"]) < 1e-5
    # What the network adds: at low noise the input would hide a wrong network.
    c_skip, c_out, *_ = (c[:, None, None, None] for c in made.coefficients(sigma))
    ours, theirs = ((d - c_skip * x) / c_out for d in (made(x, sigma, labels), tensors["out.denoised"]))
    assert off(ours, theirs) < 1e-4  # the subtraction loses digits
    if "out.denoised_null" in tensors:
        assert off(made(x, sigma), tensors["out.denoised_null"]) < 1e-5
        assert off(made(x, sigma, torch.full((len(x),), -1)), tensors["out.denoised_null"]) < 1e-5
        assert off(tensors["out.denoised_null"], tensors["out.denoised"]) > 1e-4, "labels must matter"


@torch.no_grad()
def test_denoised_with_augmentation_labels() -> None:
    made, tensors = denoiser("edm-ddpmpp-uncond-augment")
    ours = made(tensors["in.x"], tensors["in.sigma"], augment=tensors["in.augment_labels"])
    assert off(ours, tensors["out.denoised_augment"]) < 1e-5
    assert off(made(tensors["in.x"], tensors["in.sigma"]), tensors["out.denoised_augment"]) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", ["edm2-cond", "edm2-cond-aux"])
def test_log_variance(name: str) -> None:
    made, tensors = denoiser(name)
    denoised, u = made(tensors["in.x"], tensors["in.sigma"], labels_of(tensors), log_variance=True)
    assert off(u[None], tensors["out.logvar"][None]) < 1e-5
    assert off(denoised, tensors["out.denoised"]) < 1e-5


def options(metadata: dict[str, str], steps: int) -> SamplerOptions:
    assert f"Heun, {steps} steps, sigma_min 0.002, sigma_max 80, rho 7" in metadata["sampler"]
    return SamplerOptions(steps=steps, sigma_min=SIDES[0], sigma_max=SIDES[1])


def check_samples(made: Any, metadata: dict[str, str], tensors: dict[str, Tensor], steps: int) -> Tensor | None:
    """The samples of the file's seeds, and those of its noise; returns the labels drawn."""
    chosen, seeds = options(metadata, steps), tensors["seeds"].tolist()
    noise = SeededNoise(seeds, made.data_shape, made.num_classes)
    assert torch.equal(noise.initial(), tensors["noise"])
    images = sample(made, tensors["noise"], chosen.sigmas(made), noise.labels())
    assert off(images, tensors["images"]) < 1e-4
    again, labels = sample_seeds(made, seeds, chosen)
    assert off(again, tensors["images"]) < 1e-4
    return labels


def test_heun_with_18_steps() -> None:
    metadata, tensors = read("edm-sampler-heun18")
    made, _ = denoiser(metadata["network"].removesuffix(".safetensors"))
    assert check_samples(made, metadata, tensors, 18) is None


def test_guided_heun_with_16_steps() -> None:
    metadata, tensors = read("edm2-guided-heun16-w1")
    base, aux = (denoiser(metadata[part].removesuffix(".safetensors"))[0] for part in ("base", "aux"))
    labels = check_samples(Extrapolate(base, aux, float(metadata["w"])), metadata, tensors, 16)
    assert labels is not None and torch.equal(labels, tensors["labels"])
