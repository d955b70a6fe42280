"""The training loop: exact to resume, blind to the number of processes, patient with NaN."""

from __future__ import annotations

import copy
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

import tiny
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.model import load
from sims.networks.options import NetworkOptions
from sims.training.base import train_base
from sims.training.ema import EMA, ema_decay
from sims.training.trainer import Trained, Trainer, TrainOptions, read_trained
from sims.training.training_noise import DataOrder, TrainingNoise

FAST = TrainOptions(batch=32, warmup=64, ema_halflife=200.0, checkpoint_seconds=0.0)


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def train(data: Any, folder: Path, images: int = 640, options: TrainOptions = FAST, **more: Any) -> Trained:
    """Train the tiny network; ``stop_after`` steps it is interrupted, ``dropout`` and others go where they belong."""
    stop_after, sizes = more.pop("stop_after", None), {name: more.pop(name) for name in {*more} & {"dropout", "width"}}
    steps = 0

    def advance(count: int) -> None:
        nonlocal steps
        steps += 1  # the first call tells where the run begins
        if stop_after is not None and steps > stop_after:
            raise Interrupted

    start = tiny.model(getattr(data, "data", data), **sizes)
    trainer = Trainer(start, data, options, folder, images=images, seed=more.pop("seed", 5), **more)
    return trainer.run(advance, lambda text: None)


def weights(trained: Trained) -> dict[str, Tensor]:
    return load_file(trained.last / "model.safetensors")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Euclidean; single weights may differ more, where Adam divides a tiny gradient by its own size."""
    return math.sqrt(sum(float((a[name] - b[name]).square().sum()) for name in a))


def state(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "state.safetensors")


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("stops", [[7], [1, 1, 12]])
def test_interrupted_training_ends_bit_for_bit_the_same(
    plain: Dataset, tmp_path: Path, dropout: float, stops: list[int]
) -> None:
    whole = train(plain, tmp_path / "whole", dropout=dropout, snapshots=(100, 320))
    for stop in stops:
        with pytest.raises(Interrupted):
            train(plain, tmp_path / "parts", dropout=dropout, snapshots=(100, 320), stop_after=stop)
    parts = train(plain, tmp_path / "parts", dropout=dropout, snapshots=(100, 320))
    assert parts.losses == whole.losses
    assert equal(state(whole.folder), state(parts.folder))
    for budget in whole.snapshots:
        ours, theirs = (load_file(run.snapshots[budget] / "model.safetensors") for run in (whole, parts))
        assert equal(ours, theirs)


def test_moments_of_8_bits_take_a_quarter_and_resume_bit_for_bit(plain: Dataset, tmp_path: Path) -> None:
    """Where bitsandbytes is installed; they train as well as those of 32 bits."""
    pytest.importorskip("bitsandbytes")  # not among the tests' packages: diffusers would import it in every process
    few = replace(FAST, optimizer="adam8bit", weight_decay=0.01)
    whole = train(plain, tmp_path / "whole", options=few, width=64)
    with pytest.raises(Interrupted):
        train(plain, tmp_path / "parts", options=few, width=64, stop_after=7)
    parts = train(plain, tmp_path / "parts", options=few, width=64)
    assert equal(state(whole.folder), state(parts.folder)) and parts.losses == whole.losses
    kept = state(whole.folder)
    large = {name for name, value in kept.items() if name.startswith("optimizer.") and value.dtype == torch.uint8}
    assert large and all(kept[name].numel() >= 4096 for name in large)
    full = train(plain, tmp_path / "full", options=replace(FAST, weight_decay=0.01), width=64)
    size, less = (sum(v.nbytes for n, v in state(run.folder).items() if "optimizer" in n) for run in (full, whole))
    assert less < 0.75 * size  # of a network this small; what is above 4,096 numbers takes a quarter
    begun = tiny.model(plain, width=64).denoiser.state_dict()  # type: ignore[attr-defined]
    assert distance(weights(whole), weights(full)) < 0.2 * distance(weights(full), begun)


def test_without_bitsandbytes_it_is_named(plain: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"sims-diffusion\[8bit\]"):
        train(plain, tmp_path, options=replace(FAST, optimizer="adam8bit"))
    with pytest.raises(UserError, match="shard with optimizer adam8bit"):
        replace(FAST, optimizer="adam8bit", shard=True)


def test_an_interruption_before_the_first_checkpoint_starts_anew(plain: Dataset, tmp_path: Path) -> None:
    rare = replace(FAST, checkpoint_seconds=1e9)
    with pytest.raises(Interrupted):
        train(plain, tmp_path / "parts", options=rare, stop_after=5)
    assert not (tmp_path / "parts" / "state.safetensors").exists()
    assert equal(weights(train(plain, tmp_path / "parts", options=rare)), weights(train(plain, tmp_path / "whole")))


def test_a_finished_training_is_not_repeated(plain: Dataset, tmp_path: Path) -> None:
    first = train(plain, tmp_path / "run")
    before = tiny.snapshot(tmp_path / "run")
    again = train(plain, tmp_path / "run", stop_after=0)  # any step would raise
    assert again == first == read_trained(tmp_path / "run")
    assert tiny.snapshot(tmp_path / "run") == before


def test_accumulation_changes_only_rounding(plain: Dataset, tmp_path: Path) -> None:
    whole = weights(train(plain, tmp_path / "1", images=320))
    halves = weights(train(plain, tmp_path / "2", images=320, options=replace(FAST, accumulate=2)))
    assert distance(halves, whole) < 0.01 * distance(whole, tiny.model(plain).denoiser.state_dict())  # type: ignore[attr-defined]


def test_continuing_a_finished_run_equals_one_long_run(plain: Dataset, tmp_path: Path) -> None:
    short = train(plain, tmp_path / "short", images=320)
    longer = train(plain, tmp_path / "longer", images=640, earlier=short.folder)
    whole = train(plain, tmp_path / "whole", images=640)
    assert equal(weights(longer), weights(whole))
    assert equal(state(longer.folder), state(whole.folder))
    with pytest.raises(Interrupted):
        train(plain, tmp_path / "again", images=640, earlier=short.folder, stop_after=4)
    assert equal(weights(train(plain, tmp_path / "again", images=640, earlier=short.folder)), weights(whole))


@given(st.integers(0, 2**31 - 1), st.integers(0, 5000), st.lists(st.integers(1, 90), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_noise_depends_on_seed_and_index_alone(seed: int, start: int, counts: list[int]) -> None:
    noise = TrainingNoise(seed, (1, 2, 3))
    normals, levels = noise.draw(start, sum(counts))
    assert normals.shape == (sum(counts), 1, 2, 3) and levels.shape == (sum(counts),)
    first = 0
    for count in counts:
        part, level = TrainingNoise(seed, (1, 2, 3)).draw(start + first, count)
        assert torch.equal(part, normals[first : first + count]) and torch.equal(level, levels[first : first + count])
        first += count


@given(st.integers(0, 2**31 - 1), st.integers(1, 40), st.integers(0, 200), st.integers(1, 90), st.integers(1, 90))
@settings(max_examples=30, deadline=None)
def test_order_depends_on_seed_and_position_alone(seed: int, size: int, start: int, a: int, b: int) -> None:
    whole = DataOrder(seed, size).indices(start, a + b)
    parts = [DataOrder(seed, size).indices(start, a), DataOrder(seed, size).indices(start + a, b)]
    assert np.array_equal(whole, np.concatenate(parts))
    epoch = DataOrder(seed, size).indices(3 * size, size)
    assert sorted(epoch) == list(range(size))


def test_noise_is_standard_normal_and_differs_by_seed() -> None:
    normals, levels = TrainingNoise(0, (2,)).draw(0, 20_000)
    assert abs(float(normals.mean())) < 0.02 and abs(float(normals.std()) - 1) < 0.02
    assert abs(float(levels.mean())) < 0.03 and abs(float(levels.std()) - 1) < 0.03
    assert not torch.equal(normals, TrainingNoise(1, (2,)).draw(0, 20_000)[0])


class Poisoned:
    """Data whose batches number ``bad`` hold NaN."""

    def __init__(self, data: Dataset, bad: range) -> None:
        self.data, self.bad, self.calls = data, bad, 0

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Any) -> tuple[Tensor, Tensor | None]:
        x, labels = self.data.batch(indices)
        self.calls += 1
        return (x * math.nan if self.calls - 1 in self.bad else x), labels


def test_a_nan_batch_is_skipped_and_counted(plain: Dataset, tmp_path: Path) -> None:
    states = []
    for images in (3 * 32, 4 * 32):  # batch 3 is the poisoned one: the fourth step changes nothing
        trained = train(Poisoned(plain, range(3, 4)), tmp_path / str(images), images=images)
        states.append(state(trained.folder))
    assert trained.nonfinite == 1
    assert equal(*states)
    whole = train(Poisoned(plain, range(3, 4)), tmp_path / "whole")
    assert whole.nonfinite == 1 and all(torch.isfinite(value).all() for value in weights(whole).values())
    assert all(math.isfinite(loss) for _, loss in whole.losses)


@pytest.mark.parametrize("first", [0, 6])
@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_nan_for_ever_stops_and_keeps_the_last_good_state(
    plain: Dataset, tmp_path: Path, first: int, seconds: float
) -> None:
    options = replace(FAST, max_nonfinite=5, checkpoint_seconds=seconds)
    with pytest.raises(UserError, match="5 steps in a row"):
        train(Poisoned(plain, range(first, 10**9)), tmp_path / "run", options=options)
    kept = state(tmp_path / "run")
    assert all(torch.isfinite(value).all() for value in kept.values())
    assert read_trained(tmp_path / "run") is None
    good = train(plain, tmp_path / "run", options=options)  # the data mended, the run goes on as if nothing had been
    assert equal(weights(good), weights(train(plain, tmp_path / "whole")))


def test_where_no_step_counts_nothing_is_trained(plain: Dataset, tmp_path: Path) -> None:
    """A training shorter than the streak that stops one."""
    with pytest.raises(UserError, match="3 steps in a row"):
        train(Poisoned(plain, range(10**9)), tmp_path / "run", images=96)
    assert read_trained(tmp_path / "run") is None
    mended = train(plain, tmp_path / "run", images=96)
    assert mended.nonfinite == 0 and equal(weights(mended), weights(train(plain, tmp_path / "whole", images=96)))


def test_a_flipped_bit_of_a_state_is_noticed(plain: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="5 steps in a row"):
        train(Poisoned(plain, range(6, 10**9)), tmp_path, options=replace(FAST, max_nonfinite=5))
    file = tmp_path / "state.safetensors"
    whole = file.read_bytes()
    for place in (len(whole) // 2, len(whole) - 3, whole.index(b'\\"step\\": ') + 10):
        changed = bytearray(whole)
        changed[place] ^= 1
        file.write_bytes(changed)
        with pytest.raises(UserError, match=r"does not have its checksum.*delete it to train from the start"):
            train(plain, tmp_path)
    file.write_bytes(whole)
    assert equal(weights(train(plain, tmp_path)), weights(train(plain, tmp_path.with_name("whole"))))


def test_a_few_nan_in_a_row_do_not_stop(plain: Dataset, tmp_path: Path) -> None:
    options = replace(FAST, max_nonfinite=3)
    assert train(Poisoned(plain, range(4, 6)), tmp_path / "run", options=options).nonfinite == 2


def test_snapshots_lie_at_the_budgets_asked_for(plain: Dataset, tmp_path: Path) -> None:
    trained = train(plain, tmp_path / "run", images=320, snapshots=(1, 32, 100, 320))
    assert sorted(trained.snapshots) == [1, 32, 100, 320]
    assert [load(path).provenance["images"] for _, path in sorted(trained.snapshots.items())] == [1, 32, 100, 320]
    first, second = (load_file(trained.snapshots[budget] / "model.safetensors") for budget in (1, 32))
    assert equal(first, second)  # both after the first step
    shorter = train(plain, tmp_path / "short", images=100)
    assert equal(weights(shorter), load_file(trained.snapshots[100] / "model.safetensors"))


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8))
@settings(max_examples=20, deadline=None)
def test_ema_against_a_plain_implementation(decays: list[float]) -> None:
    network = torch.nn.Linear(3, 2)
    ema = EMA(network)
    expected = [p.detach().double().clone() for p in network.parameters()]
    for index, decay in enumerate(decays):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * (index + 1))
        ema.update(decay)
        expected = [decay * e + (1 - decay) * p.detach().double() for e, p in zip(expected, network.parameters())]
    for ours, theirs in zip(ema.average.parameters(), expected):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


def test_ema_decay_halves_in_a_halflife_and_ramps_up() -> None:
    assert ema_decay(100, 10**9, 100.0, 0.05) == pytest.approx(0.5)
    assert ema_decay(100, 10**9, 400.0, 0.0) ** 4 == pytest.approx(0.5)
    assert ema_decay(100, 1000, 10**9, 0.05) == pytest.approx(0.5**2)  # half-life 50
    assert ema_decay(1, 0, 100.0, 0.05) == 0.0


def test_the_snapshot_is_the_average(plain: Dataset, tmp_path: Path) -> None:
    trained = train(plain, tmp_path / "run")
    saved = state(trained.folder)
    for name, value in weights(trained).items():
        assert torch.equal(saved[f"ema.{name}"], value)
    assert any(not torch.equal(saved[f"ema.{n}"], saved[f"network.{n}"]) for n in weights(trained))


def test_training_lowers_the_loss_on_digits(digits: Dataset, tmp_path: Path) -> None:
    options = replace(FAST, batch=128, lr=3e-3, warmup=512, checkpoint_seconds=1e9)
    losses = [loss for _, loss in train(digits, tmp_path / "run", images=128 * 300, options=options).losses]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:3])


def test_a_truncated_state_is_one_clear_error(plain: Dataset, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(plain, tmp_path, stop_after=5)
    file = tmp_path / "state.safetensors"
    whole = file.read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"state\.safetensors cannot be read .* delete it"):
            train(plain, tmp_path)
        assert file.read_bytes() == whole[:size]


def test_the_learning_rate_rises_then_stays_or_falls() -> None:
    constant = TrainOptions(lr=0.1, warmup=100)
    assert [constant.rate(seen, 1000) for seen in (0, 50, 100, 1000)] == pytest.approx([0.0, 0.05, 0.1, 0.1])
    assert TrainOptions(lr=0.1, warmup=0).rate(0, 1000) == 0.1
    cosine = TrainOptions(lr=0.1, warmup=0, decay="cosine")
    assert [cosine.rate(seen, 1000) for seen in (0, 500, 1000, 2000)] == pytest.approx([0.1, 0.05, 0.0, 0.0])
    rates = [cosine.rate(seen, 1000) for seen in range(0, 1001, 10)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("change", [{"batch": 0}, {"lr": math.nan}, {"lr": -1.0}, {"clip": 0.0}, {"accumulate": 0}])
def test_options_that_cannot_work_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(change))):
        replace(FAST, **change)


def test_a_batch_that_cannot_be_split_is_refused(plain: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch 32 cannot be split over 3 parts"):
        train(plain, tmp_path, options=replace(FAST, accumulate=3))


def test_training_leaves_the_start_and_the_random_state_alone(plain: Dataset, tmp_path: Path) -> None:
    start = tiny.model(plain)
    before, random = copy.deepcopy(start.denoiser.state_dict()), torch.get_rng_state()  # type: ignore[attr-defined]
    Trainer(start, plain, FAST, tmp_path, images=64, seed=0).run(log=lambda text: None)
    assert equal(before, start.denoiser.state_dict())  # type: ignore[attr-defined]
    assert torch.equal(random, torch.get_rng_state())


def test_classes_reach_the_network(digits: Dataset, tmp_path: Path) -> None:
    model = load(train(digits, tmp_path).last)
    assert model.num_classes == 10
    x, sigma = torch.zeros(2, *model.data_shape), torch.ones(2)
    zero, one = model(x, sigma, torch.tensor([0, 1]))
    assert not torch.equal(zero, one)


@pytest.mark.parametrize("kind", ["ddpmpp", "ncsnpp", "adm", "edm2", "dit"])
def test_every_architecture_trains_from_its_options(kind: str, plain: Dataset, tmp_path: Path) -> None:
    network = NetworkOptions(type=kind, width=16, blocks=1, channel_mult=(1, 2), attention=(4,))  # type: ignore[arg-type]
    options = TrainOptions(batch=16, warmup=16, augment=0.0 if kind in ("edm2", "dit") else 0.5)
    trained = train_base(plain, network, tiny.SAMPLER, options, tmp_path, images=64, seed=0)
    model = load(trained.last)
    assert model.sample(range(3)).isfinite().all()
    assert model.with_denoiser(model.denoiser).hash == load(trained.last).hash


def test_networks_without_a_place_for_augmentation_say_so(plain: Dataset, tmp_path: Path) -> None:
    for kind in ("mlp", "edm2", "dit"):
        options = TrainOptions(batch=16, augment=0.1)
        with pytest.raises(UserError, match=f"network {kind} cannot be told"):
            train_base(plain, NetworkOptions(type=kind), tiny.SAMPLER, options, tmp_path, images=16, seed=0)  # type: ignore[arg-type]
