"""Averages with power-function profiles: against their definition, through interruptions, and recombined."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from scipy.integrate import quad
from torch import Tensor, nn

import tiny
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.model import load
from sims.training.ema import WIDEST, PowerEMA, power_decay, power_exponent
from sims.training.posthoc import combination, inner_products, reconstruct, stored_averages
from sims.training.trainer import Trained, Trainer, TrainOptions

POWER = TrainOptions(batch=32, warmup=64, ema="power", ema_every=160, checkpoint_seconds=0.0)
OFTEN = replace(POWER, ema_every=96, checkpoint_seconds=1e9)
IMAGES = 3200  # 100 steps


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def train(data: Any, folder: Path, options: TrainOptions = POWER, images: int = IMAGES, **more: Any) -> Trained:
    stop_after, steps = more.pop("stop_after", None), 0

    def advance(count: int) -> None:
        nonlocal steps
        steps += 1
        if stop_after is not None and steps > stop_after:
            raise Interrupted

    trainer = Trainer(tiny.model(getattr(data, "data", data)), data, options, folder, images=images, seed=5, **more)
    return trainer.run(advance, lambda text: None)


def weights(path: Path) -> dict[str, Tensor]:
    return load_file(path / "model.safetensors")


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((a[name].double() - b[name].double()).square().sum()) for name in a))


def profile(tau: float, time: float, gamma: float) -> float:
    """The definition: (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]."""
    return (gamma + 1) * (tau / time) ** gamma / time if 0 <= tau <= time else 0.0


def averaged(times: list[int], values: np.ndarray, gamma: float) -> np.ndarray:
    """The exact integral of the profile over values (T, ...) that are constant between the times."""
    edges = np.array([0, *times], dtype=np.float64) / times[-1]
    return np.tensordot(np.diff(edges ** (gamma + 1)), values, axes=1)


def relative_width(gamma: float) -> float:
    """sigma_rel of the profile tau^gamma on [0, t]: its standard deviation over t (Karras et al. 2024, section 3.1)."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


@given(st.floats(0.001, WIDEST))
def test_width_and_exponent_are_inverse(sigma_rel: float) -> None:
    assert relative_width(power_exponent(sigma_rel)) == pytest.approx(sigma_rel, rel=1e-9)


@given(st.floats(0, 900))
def test_exponent_and_width_are_inverse(gamma: float) -> None:
    assert power_exponent(relative_width(gamma)) == pytest.approx(gamma, rel=1e-6, abs=1e-6)


def test_the_printed_exponents() -> None:
    assert power_exponent(0.05) == pytest.approx(16.97, abs=0.01)
    assert power_exponent(0.10) == pytest.approx(6.94, abs=0.01)
    assert relative_width(0.0) == pytest.approx(WIDEST)  # a uniform distribution


@pytest.mark.parametrize("gamma", [0.0, 1.5, 6.94, 16.97])
def test_the_width_is_the_standard_deviation_of_the_profile(gamma: float) -> None:
    mean = quad(lambda tau: tau * profile(tau, 1, gamma), 0, 1)[0]
    square = quad(lambda tau: tau**2 * profile(tau, 1, gamma), 0, 1)[0]
    assert math.sqrt(square - mean**2) == pytest.approx(relative_width(gamma), rel=1e-6)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.29, 1.0, math.nan, math.inf])
def test_a_width_that_no_profile_has_is_refused(width: float) -> None:
    with pytest.raises(UserError, match=r"relative width .* up to 0\.2887"):
        power_exponent(width)


def test_the_decay_is_the_papers() -> None:
    for step in (1, 2, 10, 5000):
        assert power_decay(step - 1, step, 6.94) == pytest.approx((1 - 1 / step) ** 7.94)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(0, 2**31 - 1))
@settings(max_examples=30, deadline=None)
def test_averages_against_direct_integration(pauses: list[int], seed: int) -> None:
    """A scalar weight that moves at irregular times: skipped steps leave gaps."""
    times = [int(time) for time in np.cumsum(pauses)]
    values = np.random.default_rng(seed).standard_normal(len(times)).cumsum() + 3
    network = nn.Linear(1, 1, bias=False).double()
    ema = PowerEMA(network, (0.05, 0.10, 0.25))
    for time, value in zip(times, values):
        nn.init.constant_(network.weight, value)
        ema.update(time)
    assert ema.seen == times[-1]
    for gamma, average in zip(ema.gammas, ema.averages):
        assert float(average.weight) == pytest.approx(averaged(times, values, gamma), rel=1e-9)
    if len(times) <= 10:
        edges = np.array(times, dtype=np.float64)

        def integrand(tau: float) -> float:
            return (
                profile(tau, times[-1], ema.gammas[0]) * values[min(int(np.searchsorted(edges, tau)), len(edges) - 1)]
            )

        direct = quad(integrand, 0, times[-1], points=times[:-1], limit=200)[0]
        assert float(ema.average.weight) == pytest.approx(direct, rel=1e-6)


positive = st.floats(0.1, 20)


@given(positive, positive, positive, positive)
@settings(max_examples=50, deadline=None)
def test_inner_products_against_integration(t1: float, g1: float, t2: float, g2: float) -> None:
    both = min(t1, t2)
    expected = quad(lambda tau: profile(tau, t1, g1) * profile(tau, t2, g2), 0, both, limit=200)[0]
    ours = inner_products(np.array(t1), np.array(g1), np.array(t2), np.array(g2))
    assert float(ours) == pytest.approx(expected, rel=1e-6, abs=1e-12)


def grid(count: int, *sigma_rel: float) -> tuple[np.ndarray, np.ndarray]:
    """Profiles of these widths stored at ``count`` equal times up to 1."""
    gammas = [power_exponent(width) for width in sigma_rel]
    return np.repeat(np.arange(1, count + 1) / count, len(gammas)), np.tile(gammas, count)


@given(st.integers(0, 39))
def test_a_stored_average_is_its_own_combination(index: int) -> None:
    times, gammas = grid(20, 0.05, 0.10)
    x, miss = combination(times, gammas, times[index], gammas[index])
    np.testing.assert_allclose(x, np.arange(40) == index, atol=1e-9)
    assert miss < 1e-6


@given(st.floats(0.02, 0.28), st.floats(0.1, 1.0), st.integers(2, 200))
@settings(max_examples=20, deadline=None)
def test_what_a_combination_misses_is_what_it_says(sigma_rel: float, time: float, count: int) -> None:
    times, gammas = grid(count, 0.05, 0.10)
    gamma = power_exponent(sigma_rel)
    x, miss = combination(times, gammas, time, gamma)
    assert x.sum() == pytest.approx(1, abs=1e-8)
    edges = np.unique([0.0, *times, time])  # between these, everything is smooth
    nodes, quadrature = np.polynomial.legendre.leggauss(40)
    half = np.diff(edges)[:, None] / 2
    tau = edges[:-1, None] + half * (nodes + 1)  # (segments, 40)
    got = np.zeros_like(tau)
    for weight, t, g in zip(x, times, gammas):
        got += np.where(tau < t, weight * (g + 1) * (tau / t) ** g / t, 0.0)
    wanted = np.where(tau < time, (gamma + 1) * (tau / time) ** gamma / time, 0.0)
    missing, whole = (float((half * quadrature * f**2).sum()) for f in (got - wanted, wanted))
    assert miss == pytest.approx(math.sqrt(missing / whole), rel=1e-4, abs=1e-6)


def test_more_snapshots_miss_less() -> None:
    missed = [combination(*grid(count, 0.05, 0.10), 1.0, power_exponent(0.07))[1] for count in (4, 8, 16, 32, 64)]
    assert all(b < a / 2.5 for a, b in itertools.pairwise(missed))
    assert missed[3] < 1.1e-3
    x, many = combination(*grid(512, 0.05, 0.10), 1.0, power_exponent(0.15))
    assert many < 1e-3 and np.abs(x).sum() < 20  # no digits lost to weights that cancel


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, plain: Dataset) -> Trained:
    """A finished training that tracked 0.05 and 0.10 and stored them 34 times; tests must not change it."""
    return train(plain, tmp_path_factory.mktemp("power") / "run", OFTEN, snapshots=(1600,))


def test_averages_are_stored_at_their_times(run: Trained) -> None:
    stored = stored_averages(run.folder)
    assert [entry.seen for entry in stored] == [*range(96, IMAGES, 96), IMAGES]
    assert {entry.sigma_rel for entry in stored} == {(0.05, 0.10)}
    saved = load_file(stored[-1].file)
    names = {name for name, _ in load(run.last).denoiser.named_parameters()}  # type: ignore[attr-defined]
    assert set(saved) == {f"{index}.{name}" for index in (0, 1) for name in names}
    for name in names:
        assert torch.equal(saved[f"0.{name}"], weights(run.last)[name])  # models are saved with the first


def test_reconstruction_against_averages_tracked_directly(run: Trained, plain: Dataset, tmp_path: Path) -> None:
    """The average does not influence training, so that a second run has the same weights."""
    most = {
        0.06: 1e-4,
        0.07: 1e-4,
        0.085: 1e-4,
        0.12: 1e-4,
        0.15: 5e-4,
        0.2: 0.02,
    }  # share of what 0.05 and 0.10 differ
    direct = train(plain, tmp_path / "run", replace(OFTEN, ema_rel=tuple(most)))
    for images, slack in ((IMAGES, 1), (1536, 20)):  # half the time has half the snapshots, and larger steps
        apart = distance(averages(run.folder, images, 0), averages(run.folder, images, 1))
        for index, (sigma_rel, limit) in enumerate(most.items()):
            model = reconstruct(run.folder, sigma_rel, images)
            made = model.denoiser.state_dict()  # type: ignore[attr-defined]
            assert distance(averages(direct.folder, images, index), made) < limit * slack * apart
            assert model.provenance["images"] == images and model.provenance["ema"]["sigma_rel"] == sigma_rel
            assert model.provenance["ema"]["missed"] < 0.03


def averages(folder: Path, images: int, index: int) -> dict[str, Tensor]:
    """The parameters of one stored average."""
    saved = load_file(next(entry.file for entry in stored_averages(folder) if entry.seen == images))
    return {name[2:]: value for name, value in saved.items() if name.startswith(f"{index}.")}


def test_reconstruction_of_what_is_stored_is_exact_and_can_be_used(run: Trained, tmp_path: Path) -> None:
    model = reconstruct(run.folder, 0.05)
    for name, value in model.denoiser.state_dict().items():  # type: ignore[attr-defined]
        torch.testing.assert_close(value, weights(run.last)[name], rtol=1e-6, atol=1e-8)
    assert not any(p.requires_grad for p in model.denoiser.parameters())  # type: ignore[attr-defined]
    again = load(reconstruct(run.folder, 0.15).save(tmp_path / "model"))
    assert torch.isfinite(again.sample(range(4))).all()
    assert again.provenance["ema"]["averages"] == 68


def test_a_time_between_is_nearer_to_the_truth_than_its_neighbours(run: Trained) -> None:
    truth = weights(run.snapshots[1600])  # stored were 1536 and 1632
    found = [reconstruct(run.folder, 0.05, images).denoiser.state_dict() for images in (1536, 1600, 1632)]  # type: ignore[attr-defined]
    before, between, after = (distance(one, truth) for one in found)
    assert between < 0.2 * min(before, after)


def test_what_cannot_be_reconstructed_is_refused(run: Trained, plain: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"relative width .* is 0\.4"):
        reconstruct(run.folder, 0.4)
    with pytest.raises(UserError, match="stored some from 96 to 3,200"):
        reconstruct(run.folder, 0.1, 95)
    with pytest.raises(UserError, match=r"misses .* of its profile"):
        reconstruct(run.folder, 0.001)
    with pytest.raises(UserError, match="holds no averages"):
        reconstruct(tmp_path, 0.1)
    with pytest.raises(Interrupted):
        train(plain, tmp_path / "run", stop_after=20)
    with pytest.raises(UserError, match="has averages but no model yet"):
        reconstruct(tmp_path / "run", 0.1)
    broken = stored_averages(tmp_path / "run")[0].file
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(UserError, match=r"cannot be read .* delete the file"):
        reconstruct(tmp_path / "run", 0.1)


@pytest.mark.parametrize("stops", [[7], [1, 1, 12]])
def test_interrupted_training_ends_bit_for_bit_the_same(plain: Dataset, tmp_path: Path, stops: list[int]) -> None:
    whole = train(plain, tmp_path / "whole", images=640)
    for stop in stops:
        with pytest.raises(Interrupted):
            train(plain, tmp_path / "parts", images=640, stop_after=stop)
    train(plain, tmp_path / "parts", images=640)
    assert tiny.snapshot(tmp_path / "parts") == tiny.snapshot(whole.folder)


def test_continuing_a_finished_run_keeps_its_averages(plain: Dataset, tmp_path: Path) -> None:
    whole = train(plain, tmp_path / "whole", images=1280)
    short = train(plain, tmp_path / "short", images=640)
    with pytest.raises(Interrupted):
        train(plain, tmp_path / "longer", images=1280, earlier=short.folder, stop_after=5)
    longer = train(plain, tmp_path / "longer", images=1280, earlier=short.folder)
    assert tiny.snapshot(longer.folder / "averages") == tiny.snapshot(whole.folder / "averages")
    assert tiny.snapshot(longer.folder / "snapshots") == tiny.snapshot(whole.folder / "snapshots")


def test_starting_anew_forgets_averages_of_before(plain: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(plain, tmp_path, replace(POWER, ema_every=32), images=640, stop_after=5)
    (tmp_path / "state.safetensors").unlink()
    train(plain, tmp_path, images=640)
    assert [entry.seen for entry in stored_averages(tmp_path)] == [160, 320, 480, 640]


class Poisoned:
    """Data whose batch number ``bad`` holds NaN."""

    def __init__(self, data: Dataset, bad: int) -> None:
        self.data, self.bad, self.calls = data, bad, 0

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Any) -> tuple[Tensor, Tensor | None]:
        x, labels = self.data.batch(indices)
        self.calls += 1
        return (x * math.nan if self.calls - 1 == self.bad else x), labels


def test_a_skipped_step_leaves_a_gap_in_time(plain: Dataset, tmp_path: Path) -> None:
    """The time of the last update is kept, so that the next one weighs as much as the definition says."""
    network = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(network.weight)
    ema = PowerEMA(network, (0.1,))
    ema.update(32)
    nn.init.zeros_(network.weight)
    ema.update(96)  # 64 was skipped
    assert float(ema.average.weight) == pytest.approx((1 / 3) ** (ema.gammas[0] + 1))
    train(Poisoned(plain, 3), tmp_path, images=4 * 32)
    with safe_open(tmp_path / "state.safetensors", framework="pt") as opened:
        assert json.loads(opened.metadata()["position"])["power"] == {"rel": [0.05, 0.10], "seen": 96}
    assert [entry.seen for entry in stored_averages(tmp_path)] == [96]


def test_a_state_of_another_average_is_refused(plain: Dataset, tmp_path: Path) -> None:
    halflife = TrainOptions(batch=32, checkpoint_seconds=0.0)
    for folder, options in (("power", POWER), ("halflife", halflife)):
        with pytest.raises(Interrupted):
            train(plain, tmp_path / folder, options, stop_after=5)
    assert not (tmp_path / "halflife" / "averages").exists()
    with pytest.raises(UserError, match=r"holds power averages of widths \[0\.05, 0\.1\], and ema is 'halflife'"):
        train(plain, tmp_path / "power", halflife)
    with pytest.raises(UserError, match="holds an average with a half-life"):
        train(plain, tmp_path / "halflife", POWER)
    with pytest.raises(UserError, match=r"this run tracks widths \[0\.07\]"):
        train(plain, tmp_path / "power", replace(POWER, ema_rel=(0.07,)))


@pytest.mark.parametrize("change", [{"ema_rel": ()}, {"ema_rel": (0.1, 0.1)}, {"ema_rel": (0.5,)}, {"ema_every": 0}])
def test_options_that_cannot_work_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        replace(POWER, **change)
