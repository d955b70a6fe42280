"""The U-Nets and preconditionings: published sizes, independent samples, exact formulas; and they train."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import sims.networks.edm2_unet as mp
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.model import Model, load, make_network, reinitialized
from sims.networks import NETWORKS, DhariwalUNet, EDM2UNet, SongUNet
from sims.networks.layers import Place, ResampleConv, attend, filter_kernel, plan, resample
from sims.preconditioning import EDM2Precond, EDMPrecond, IDDPMPrecond, Preconditioned, VEPrecond, VPPrecond
from sims.sampling import SamplerOptions, sample_seeds
from sims.training.loss import denoising_loss
from sims.training.trainer import Trainer, TrainOptions

SMALL: dict[str, Any] = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
SONG = {"type": "song_unet", **SMALL}
ADM = {"type": "adm_unet", **SMALL, "model_channels": 32}
EDM2 = {"type": "edm2_unet", **SMALL, "channels_per_head": 16}
NCSN = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": [1, 3, 3, 1],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "ddpm++": SONG,
    "ncsn++": {**SONG, **NCSN},
    "skip": {**SONG, "encoder_type": "skip", "decoder_type": "skip", "resample_filter": [1, 3, 3, 1]},
    "three levels": {**SONG, **NCSN, "channel_mult": [2, 1, 3], "num_blocks": 2, "decoder_type": "skip"},
    "augmented": {**SONG, "augment_dim": 9, "label_dropout": 0.1},
    "adm": ADM,
    "adm of two heads": {**ADM, "model_channels": 64, "channel_mult": [1, 2], "attn_resolutions": [8, 4]},
    "edm2": EDM2,
    "edm2 of many options": {
        **EDM2, "channel_mult_noise": 2, "channel_mult_emb": 3, "label_balance": 0.3, "concat_balance": 0.6,
        "resample_filter": [1, 3, 3, 1], "res_balance": 0.4, "attn_balance": 0.2, "clip_act": None, "dropout": 0.1,
    },
}  # fmt: skip
FAST = TrainOptions(batch=16, warmup=32, ema_halflife=100, lr=2e-3, checkpoint_seconds=0.0, precision="fp32")


def stirred(denoiser: Preconditioned, scale: float = 0.2, seed: int = 0) -> Preconditioned:
    """The network with noise on all weights, so that layers that begin at zero count too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight += scale * torch.randn(weight.shape, generator=generator)
    return denoiser.eval().requires_grad_(False)


def made(table: dict[str, Any], kind: str = "edm", num_classes: int = 3, side: int = 8, **more: Any) -> Preconditioned:
    torch.manual_seed(0)
    return stirred(make_network((2, side, side), num_classes, dict(table), {"type": kind, **more}))


def inputs(count: int = 3, side: int = 8, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.tensor([0.05, 0.8, 20.0])[torch.arange(count) % 3]
    x = torch.randn(count, 2, side, side, generator=generator) * (1 + sigma)[:, None, None, None]
    return x, sigma, torch.tensor([2, -1, 0])[torch.arange(count) % 3]


# -- published sizes and names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind, shape, classes, options, millions",
    [
        (SongUNet, (3, 32, 32), 0, {"augment_dim": 9, "channel_mult": [2, 2, 2]}, 55.7),
        (SongUNet, (3, 64, 64), 0, {"augment_dim": 9}, 61.8),
        (DhariwalUNet, (3, 64, 64), 1000, {}, 295.9),
        (EDM2UNet, (4, 64, 64), 1000, {"model_channels": 128}, 124.7),
        (EDM2UNet, (4, 64, 64), 1000, {}, 280.2),
        (EDM2UNet, (4, 64, 64), 1000, {"model_channels": 256}, 497.8),
        (EDM2UNet, (4, 64, 64), 1000, {"model_channels": 448}, 1523.2),
    ],
)
def test_parameters_as_published(kind: Any, shape: tuple, classes: int, options: dict, millions: float) -> None:
    with torch.device("meta"):
        network = kind(shape, classes, **options)
    assert round(sum(weight.numel() for weight in network.parameters()) / 1e6, 1) == millions


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_the_plan_closes(widths: list[int], num_blocks: int) -> None:
    encoder, decoder = plan((64, 64), 3, 5, widths, num_blocks)
    skips = [place.cout for place in encoder]
    channels, level = encoder[-1].cout, encoder[-1].level
    for before, after in pairwise(encoder):
        assert after.cin == before.cout and after.sides == (64 >> after.level,) * 2
    for place in decoder:
        assert place.cin == channels + (skips.pop() if place.role == "block" else 0)
        assert place.level == level - (place.role == "up")
        channels, level = place.cout, place.level
    assert not skips and channels == widths[0] and level == 0
    assert len({place.name for place in encoder}) == len(encoder)
    assert len({place.name for place in decoder}) == len(decoder)
    assert (
        Place("block", (16, 16), 1, 2, 1, 1).name == "16x16_block2"
        and Place("up", (16, 16), 1, 0, 1, 1).name == "16x16_up"
    )


def test_layers_of_the_second_path() -> None:
    names = set(dict(made({**VARIANTS["skip"], "channel_mult": [1, 1, 2]}).network.named_modules()))
    for name in ("enc.4x4_aux_down", "enc.2x2_aux_skip", "dec.4x4_aux_up", "dec.8x8_aux_up", "dec.2x2_aux_conv"):
        assert name in names, name
    assert "dec.2x2_aux_up" not in names and "enc.8x8_aux_down" not in names
    residual = made({**VARIANTS["ncsn++"], "channel_mult": [1, 1, 2]}).network
    assert {"enc.4x4_aux_residual", "enc.2x2_aux_residual", "dec.8x8_aux_norm"} <= set(dict(residual.named_modules()))
    with_attention = [name for name, _ in made(SONG).network.named_modules() if name.endswith("qkv")]
    assert with_attention == ["enc.4x4_block0.qkv", "dec.4x4_in0.qkv", "dec.4x4_block1.qkv"]


# -- what every network must do ----------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("num_classes", [0, 3])
def test_samples_do_not_influence_each_other(name: str, num_classes: int) -> None:
    network = made(VARIANTS[name], num_classes=num_classes)
    x, sigma, labels = inputs()
    given = labels if num_classes else None
    whole = network(x, sigma, given)
    assert whole.shape == x.shape and bool(torch.isfinite(whole).all())
    for i in range(len(x)):
        alone = network(x[i : i + 1], sigma[i : i + 1], labels[i : i + 1] if num_classes else None)
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=1e-4, atol=1e-5)
    same = torch.full_like(sigma, 0.8)  # one level for all: it is embedded once
    with torch.enable_grad():
        each = network(x, same, given)  # embedded for each sample
    torch.testing.assert_close(network(x, same, given), each, rtol=1e-4, atol=1e-5)
    if num_classes:
        none = network(x, sigma, torch.full_like(labels, -1))
        torch.testing.assert_close(network(x, sigma), none)
        assert not torch.allclose(none[0], whole[0], atol=1e-4) and torch.allclose(none[1], whole[1])


@torch.no_grad()
@pytest.mark.parametrize("table", [SONG, ADM])
def test_augmentation_labels(table: dict[str, Any]) -> None:
    network = made({**table, "augment_dim": 4})
    x, sigma, labels = inputs()
    plain = network(x, sigma, labels)
    torch.testing.assert_close(network(x, sigma, labels, augment=torch.zeros(3, 4)), plain)
    assert not torch.allclose(network(x, sigma, labels, augment=torch.ones(3, 4)), plain, atol=1e-4)
    with pytest.raises(UserError, match=r"takes \(B, 4\)"):
        network(x, sigma, labels, augment=torch.ones(3, 5))
    with pytest.raises(UserError, match="leave them out"):
        made(table)(x, sigma, labels, augment=torch.ones(3, 4))


@pytest.mark.parametrize("table", [SONG, ADM, EDM2])
def test_dropout_and_label_dropout_in_training_only(table: dict[str, Any]) -> None:
    more = {"dropout": 0.5} if table is EDM2 else {"dropout": 0.0, "label_dropout": 0.5}
    network = made({**table, **more})
    x, sigma, labels = inputs(9)
    assert torch.equal(network(x, sigma, labels), network(x, sigma, labels))
    network.train()
    assert not torch.allclose(network(x, sigma, labels), network(x, sigma, labels))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_model_directory_brings_it_back(name: str, tmp_path: Path, plain: Dataset) -> None:
    network = made(VARIANTS[name], "edm2" if "edm2" in name else "edm", sigma_data=0.4)
    model = Model(network, plain.codec)
    before = torch.get_rng_state()
    read = load(model.save(tmp_path / "model"))
    assert torch.equal(torch.get_rng_state(), before), "opening a model draws no numbers"
    assert read.hash == model.hash
    x, sigma, labels = inputs()
    assert torch.equal(read(x, sigma, labels), network(x, sigma, labels))
    fresh = reinitialized(read, 3)
    assert torch.equal(torch.get_rng_state(), before)
    assert fresh.hash == reinitialized(model, 3).hash not in (model.hash, reinitialized(model, 4).hash)
    assert fresh.denoiser.network.config == network.network.config  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "table, shape, said",
    [
        (SONG, (2, 1, 9), "images of 1x9 pixels .* too small to be halved 1 times: give sides of at least 2"),
        ({**SONG, "channel_mult": [1, 1, 1, 1]}, (2, 2, 2), "too small to be halved 3 times"),
        (EDM2, (2,), "it takes images"),
        ({**SONG, "channel_mult": []}, (2, 8, 8), "must be at least 1"),
        ({**EDM2, "num_blocks": 0}, (2, 8, 8), "must be at least 1"),
        ({**SONG, "encoder_type": "none"}, (2, 8, 8), "encoder_type': 'none' is not one of"),
        ({**SONG, "embedding_type": "x"}, (2, 8, 8), "embedding_type': 'x' is not one of"),
        ({**SONG, "resample_filter": [1, 2, 1]}, (2, 8, 8), "even number of taps"),
        ({**EDM2, "resample_filter": []}, (2, 8, 8), "even number of taps"),
        ({**SONG, "model_channels": 3}, (2, 8, 8), "cannot be split into 0 groups"),
        ({**EDM2, "channels_per_head": 0}, (2, 8, 8), "channels_per_head is 0"),
    ],
)
def test_what_does_not_fit_is_refused(table: dict[str, Any], shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_network(shape, 0, dict(table), {"type": "edm"})


# -- layers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1], [1, 2], [1, 5, 10, 10, 5, 1]])
def test_resampling(taps: list[float]) -> None:
    kernel = filter_kernel(taps)
    torch.testing.assert_close(kernel.sum(), torch.tensor(1.0))
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 8, 8)
    down, up = resample(x, kernel, "down"), resample(y, kernel, "up")
    assert down.shape == y.shape and up.shape == x.shape
    torch.testing.assert_close((4 * down * y).sum(), (x * up).sum(), rtol=1e-4, atol=1e-4)  # one transposes the other
    edge = len(taps) // 2
    flat = resample(torch.ones(1, 1, 16, 16), kernel, "down")[..., edge:-edge, edge:-edge]
    torch.testing.assert_close(flat, torch.ones_like(flat))
    if taps == [1, 1]:
        torch.testing.assert_close(down, F.avg_pool2d(x, 2))
        torch.testing.assert_close(up, y.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_a_fused_convolution_differs_at_the_border_only() -> None:
    torch.manual_seed(0)
    fused = ResampleConv(2, 3, 3, [1, 3, 3, 1], "down", fused=True)
    plain = ResampleConv(2, 3, 3, [1, 3, 3, 1], "down")
    plain.weight.data = F.pad(torch.zeros(3, 2, 1, 1), (1, 1, 1, 1))
    plain.weight.data[:, :, 1, 1] = fused.weight.data.sum(dim=(2, 3))
    plain.bias.data = fused.bias.data  # type: ignore[union-attr]
    x = torch.ones(1, 2, 16, 16)  # convolution and filter commute, and neighbours are equal
    a, b = fused(x), plain(x)
    assert a.shape == b.shape == (1, 3, 8, 8)
    torch.testing.assert_close(a[..., 2:-2, 2:-2], b[..., 2:-2, 2:-2])


def test_attention() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 7) for _ in range(3))
    weights = (torch.einsum("bhci,bhcj->bhij", q, k) / math.sqrt(5)).softmax(dim=-1)
    torch.testing.assert_close(attend(q, k, v), torch.einsum("bhij,bhcj->bhci", weights, v))


# -- magnitudes (EDM2) -------------------------------------------------------------------------------------------------


def rms(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


def test_magnitudes_are_preserved() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(64, 16, 8, 8), torch.randn(64, 48, 8, 8)
    assert rms(mp.mp_silu(a)) == pytest.approx(1, abs=0.01)
    for t in (0.1, 0.3, 0.5, 0.8):
        assert rms(mp.mp_sum(a, torch.randn_like(a), t)) == pytest.approx(1, abs=0.01)
        both = mp.mp_cat(a, b, t)
        assert rms(both) == pytest.approx(1, abs=0.01)
        shares = (both[:, :16].norm(), both[:, 16:].norm())
        assert float(shares[1] / shares[0]) == pytest.approx(t / (1 - t), abs=0.02)
    assert rms(mp.MPFourier(256)(torch.linspace(-3, 3, 100))) == pytest.approx(1, abs=0.02)
    assert rms(mp.normalize(5 * a, 1)) == pytest.approx(1, abs=0.01)
    for conv in (mp.MPConv(16, 32, 3), mp.MPConv(16, 32, 1)):
        conv.weight.data *= 7
        assert rms(conv(a)[..., 1:-1, 1:-1]) == pytest.approx(1, abs=0.05)
    assert rms(mp.MPConv(16, 32, 0)(torch.randn(1000, 16), 0.5)) == pytest.approx(0.5, abs=0.05)


def test_forced_normalization_changes_no_output() -> None:
    network = made(EDM2, "edm2")
    x, sigma, labels = inputs()
    before = {name: value.clone() for name, value in network.named_parameters()}
    expected = network(x, sigma, labels)
    assert all(torch.equal(before[name], value) for name, value in network.named_parameters()), "not in evaluation"
    torch.testing.assert_close(network.train()(x, sigma, labels), expected, rtol=1e-3, atol=1e-3)
    check_unit_norm(network, skip="loss_head")  # only the loss uses it
    torch.testing.assert_close(network.eval()(x, sigma, labels), expected, rtol=1e-3, atol=1e-3)


def check_unit_norm(network: nn.Module, skip: str = "nothing") -> None:
    convs = [(name, one) for name, one in network.named_modules() if isinstance(one, mp.MPConv)]
    assert len(convs) > 20
    for name, conv in convs:
        if not name.startswith(skip):
            sizes = conv.weight.flatten(1).square().mean(dim=1).sqrt()  # (cout,)
            torch.testing.assert_close(
                sizes, torch.ones_like(sizes), rtol=5e-3, atol=0
            )  # 1e-4 over the size that small weights had


# -- preconditionings --------------------------------------------------------------------------------------------------


class Recording(nn.Module):
    """Returns ones and remembers what it was given."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs, self.config = outputs, {}

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        self.x, self.c_noise = x, c_noise
        return torch.ones(len(x), self.outputs, *x.shape[2:])


SIGMA = torch.tensor([0.02, 0.5, 3.0, 60.0])


def wrapped(kind: Any, outputs: int = 2, **options: Any) -> tuple[Any, Tensor, Tensor, Tensor, Tensor]:
    """A preconditioning around `Recording`; what went in, came out, and was seen in between."""
    network = Recording(outputs)
    denoiser = kind(network, (2, 4, 4), **options)
    x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    denoised = denoiser(x, SIGMA)
    return denoiser, x, denoised, network.x, network.c_noise


def columns(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def test_edm_formulas() -> None:
    for kind in (EDMPrecond, EDM2Precond):
        _, x, denoised, seen, c_noise = wrapped(kind, sigma_data=0.7)
        total = SIGMA**2 + 0.7**2
        torch.testing.assert_close(seen, x / columns(total.sqrt()))
        torch.testing.assert_close(denoised, columns(0.49 / total) * x + columns(SIGMA * 0.7 / total.sqrt()))
        torch.testing.assert_close(c_noise, SIGMA.log() / 4)


def test_vp_formulas() -> None:
    denoiser, x, denoised, seen, c_noise = wrapped(VPPrecond)
    torch.testing.assert_close(denoised, x - columns(SIGMA))
    torch.testing.assert_close(seen, x / columns((SIGMA**2 + 1).sqrt()))
    t = c_noise.double() / 999  # sigma(t) inverts it; float32 sees little of (1 + sigma^2) at low noise
    torch.testing.assert_close((19.9 / 2 * t**2 + 0.1 * t).expm1().sqrt(), SIGMA.double(), rtol=1e-3, atol=0)
    assert denoiser.sigma_min == pytest.approx(0.001, rel=1e-3) and denoiser.sigma_max == pytest.approx(152.17, abs=0.1)
    other = wrapped(VPPrecond, M=500, beta_d=10.0, epsilon_t=1e-3)[0]
    assert other.sigma_max == pytest.approx(math.sqrt(math.expm1(5.1))) and other.sigma_min > denoiser.sigma_min
    torch.testing.assert_close(other.round_sigma(SIGMA), SIGMA)


def test_ve_formulas() -> None:
    denoiser, x, denoised, seen, c_noise = wrapped(VEPrecond)
    torch.testing.assert_close(denoised, x + columns(SIGMA))
    assert torch.equal(seen, x) and (denoiser.sigma_min, denoiser.sigma_max) == (0.02, 100.0)
    torch.testing.assert_close(c_noise, (SIGMA / 2).log())


def test_iddpm_formulas() -> None:
    denoiser, x, denoised, seen, c_noise = wrapped(IDDPMPrecond, outputs=4)
    torch.testing.assert_close(denoised, x - columns(SIGMA))
    torch.testing.assert_close(seen, x / columns((SIGMA**2 + 1).sqrt()))
    u = denoiser.u
    assert len(u) == 1001 and u[1000] == 0 and bool((u.diff() < 0).all())
    nearest = (u[:, None] - SIGMA).abs().argmin(dim=0)
    assert torch.equal(c_noise, 999.0 - nearest)
    # where the limit C_1 does not bind, u_j is the level of alpha_j = sin^2(pi/2 j/M/(C_2 + 1)), up to one constant
    j = torch.arange(1, 1001, dtype=torch.float64)
    alpha = (math.pi / 2 * j / 1000 / 1.008).sin() ** 2
    expected = (alpha[-1] / alpha - 1).sqrt()
    torch.testing.assert_close(u[40:1000].double(), expected[39:-1], rtol=1e-4, atol=1e-6)
    assert denoiser.sigma_min == pytest.approx(float(u[999])) and denoiser.sigma_max == pytest.approx(float(u[0]))


@given(st.floats(1e-4, 1e5))
@settings(max_examples=60, deadline=None)
def test_iddpm_rounds_to_the_nearest_level(sigma: float) -> None:
    level = torch.tensor([sigma], dtype=torch.float64)
    rounded = ROUNDING.round_sigma(level)
    assert rounded.dtype == torch.float64 and float(rounded) > 0
    known = ROUNDING.u[:-1].double()
    best = float((known - sigma).abs().min())
    assert abs(float(rounded) - sigma) == pytest.approx(best, rel=1e-5, abs=1e-9)
    assert torch.equal(ROUNDING.round_sigma(rounded), rounded)


ROUNDING = IDDPMPrecond(Recording(2), (1, 4, 4))


def test_iddpm_is_sampled_at_its_own_levels() -> None:
    denoiser = made({**ADM, "out_channels": 4}, "iddpm", M=50, num_classes=0)
    options = SamplerOptions(steps=12, sigma_min=0.01, sigma_max=50.0, s_churn=6.0)
    levels = options.planned(denoiser)
    assert bool(torch.isin(levels.float(), denoiser.u).all())  # type: ignore[arg-type]
    x, _ = sample_seeds(denoiser, range(2), options)
    assert bool(torch.isfinite(x).all())
    with pytest.raises(UserError, match="number of noise levels"):
        IDDPMPrecond(Recording(2), (1, 4, 4), M=1)


# -- training ----------------------------------------------------------------------------------------------------------


def start(data: Dataset, table: dict[str, Any], precond: str) -> Model:
    torch.manual_seed(0)
    network = make_network(data.data_shape, data.num_classes, dict(table), {"type": precond})
    return Model(network, data.codec, SamplerOptions(steps=4), data.class_names)


@pytest.mark.parametrize(
    "table, precond",
    [(SONG, "edm"), (VARIANTS["skip"], "vp"), ({**ADM, "out_channels": 2, "dropout": 0.1}, "iddpm"), (EDM2, "edm2")],
)
def test_fine_tuning(digits: Dataset, tmp_path: Path, table: dict[str, Any], precond: str) -> None:
    first = start(digits, table, precond)
    trained = Trainer(first, digits, FAST, tmp_path / "run", images=80, seed=1).run(log=lambda text: None)
    assert trained.nonfinite == 0 and all(math.isfinite(loss) for _, loss in trained.losses)
    last = load(trained.last)
    assert last.hash != first.hash and last.denoiser.network.config == first.denoiser.network.config  # type: ignore[attr-defined]
    x, labels = last.sample_labelled(range(3))
    assert x.shape == (3, 1, 8, 8) and labels is not None and bool(torch.isfinite(x).all())
    # from its own weights, as a SIMS auxiliary is made
    again = Trainer(last, digits, FAST, tmp_path / "again", images=32, seed=2).run(log=lambda text: None)
    assert load(again.last).hash != last.hash


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_edm2_in_training(digits: Dataset, tmp_path: Path, precision: Any) -> None:
    first = start(digits, EDM2, "edm2")
    options = replace(FAST, precision=precision, lr=1e-2)
    trainer = Trainer(first, digits, options, tmp_path, images=96, seed=1)
    trainer.run(log=lambda text: None)
    x, labels = digits.batch(range(4))
    trainer.network.train()(x, torch.ones(4), labels, log_variance=True)  # every use normalizes what is stored
    check_unit_norm(trainer.network)
    head, before = trainer.network.loss_head.linear.weight, first.denoiser.loss_head.linear.weight  # type: ignore[attr-defined,union-attr]
    assert not torch.allclose(head, mp.normalize(before, 1), atol=1e-3), "the loss trains its head"
    assert trainer.network.network.out_gain.item() != 0  # type: ignore[attr-defined,union-attr,operator]


def test_the_uncertainty_settles_at_the_log_of_the_error() -> None:
    """With one noise level, u = ln(error) is where the derivative of error / exp(u) + u vanishes."""
    torch.manual_seed(0)
    network = EDM2UNet((1, 4, 4), model_channels=8, channel_mult=[1], num_blocks=1, channels_per_head=8)
    denoiser = EDM2Precond(network.requires_grad_(False), (1, 4, 4)).train()
    clean, noise = (torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(2))
    sigma = torch.full((64,), 0.6)
    optimizer = torch.optim.Adam(denoiser.loss_head.parameters(), lr=0.01)  # type: ignore[union-attr]
    for _ in range(80):
        loss = denoising_loss(denoiser, clean, None, noise, sigma)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        denoised, u = denoiser(clean + 0.6 * noise, sigma, log_variance=True)
    error = float(((denoised - clean) ** 2).mean()) * (0.6**2 + 0.5**2) / (0.6 * 0.5) ** 2
    assert error > 2 and float(u.mean()) == pytest.approx(math.log(error), abs=0.02)


def test_the_loss_rounds_noise_levels_to_those_that_are_known() -> None:
    seen = []

    class Spy(IDDPMPrecond):
        def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, **more: Any) -> Any:
            seen.append(sigma)
            return super().forward(x, sigma, labels, **more)

    clean = torch.zeros(4, 2, 4, 4)
    denoising_loss(Spy(Recording(4), (2, 4, 4), M=20), clean, None, clean, SIGMA)
    assert bool(torch.isin(seen[0], IDDPMPrecond(Recording(4), (2, 4, 4), M=20).u).all())


def test_networks_are_known_by_name() -> None:
    others = {"dit", "guided_unet", "ddp_unet"}
    assert {"mlp", "song_unet", "adm_unet", "edm2_unet", "replica_mlp", *others} == set(NETWORKS)
