"""Every method keeps the contract: w = 0 is the base, work is done once, what it needs it says."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from sims.data.dataset import Dataset
from sims.denoiser import Denoiser
from sims.errors import UserError
from sims.guidance import Extrapolate
from sims.methods import METHODS, Artefact, Base, Continuous, Fixed, Method
from sims.methods.settings import AuxiliarySettings, DistilledOptions, Leader, Settings
from sims.model import Model, load, reinitialized
from sims.results.common import Cost
from sims.runs.directory import Run
from sims.sampling import nfe
from sims.training.base import train_base
from sims.training.trainer import Trainer, TrainOptions

FAST = TrainOptions(batch=32, warmup=64, ema_halflife=200.0, checkpoint_seconds=1e9)
AUXILIARY = AuxiliarySettings(samples=40, budgets=(64, 128), train=FAST)
SETTINGS = Settings(AUXILIARY, seed=3, batch_size=20)
ALL = sorted(METHODS)
TRAINED = [name for name in ALL if isinstance(METHODS[name].strengths, Continuous) and not METHODS[name].is_free]
FIXED = [name for name in ALL if isinstance(METHODS[name].strengths, Fixed)]


@pytest.fixture(scope="module", params=["unconditional", "conditional"])
def real(request: pytest.FixtureRequest, digits: Dataset) -> Dataset:
    return digits if request.param == "conditional" else digits.without_labels()


@pytest.fixture(scope="module")
def run(real: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    run = Run(tmp_path_factory.mktemp("methods") / "run", {}, quiet=True)
    yield run
    run.close()


@pytest.fixture(scope="module")
def base(real: Dataset, run: Run) -> Base:
    folder = run.path / "base"
    options = {"images": 320, "seed": 5, "snapshots": (64, 128), "log": lambda text: None}
    trained = train_base(real, tiny.NETWORK, tiny.SAMPLER, FAST, folder, **options)  # type: ignore[arg-type]
    earlier = {budget: path for budget, path in trained.snapshots.items() if budget < 320}
    model = load(trained.last)
    return Base(model, model.hash, earlier, folder, 320, 5, FAST)


def settings_of(base: Base) -> Settings:
    """What every method is prepared with, after a leader that cost as much as 96 training images."""
    teacher = base.model.guided(reinitialized(base.model, 1), 0.1)
    leader = Leader(teacher, 0.1, "sims", 128, Cost(images=64, evaluations=96))
    return replace(SETTINGS, distilled=DistilledOptions(40, 64, FAST), leader=leader)


@pytest.fixture(scope="module")
def artefacts(base: Base, real: Dataset, run: Run) -> dict[str, Artefact | None]:
    return {name: METHODS[name].prepare(base, real, settings_of(base), run) for name in ALL}


def fitting(name: str, base: Base) -> Method:
    """The method, where the base has what it needs; what needs more has tests of its own."""
    method = METHODS[name]
    if method.fits is not None and (lacks := method.fits(base.model.denoiser)) is not None:
        pytest.skip(lacks)
    return method


def network(artefact: Artefact | None) -> Model | None:
    return None if artefact is None else artefact.load(max(artefact.variants))


def denoised(denoiser: Denoiser) -> torch.Tensor:
    """What it makes of fixed noise, at two levels."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, *denoiser.data_shape, generator=generator)
    labels = torch.tensor([0, 3, 9, -1]) if denoiser.num_classes else None
    return torch.cat([denoiser(x * sigma, torch.full((4,), sigma), labels) for sigma in (0.3, 5.0)])


def strength(name: str) -> float:
    strengths = METHODS[name].strengths
    return strengths.w if isinstance(strengths, Fixed) else strengths.start[0]


@pytest.mark.parametrize("name", ALL)
def test_strength_zero_is_the_base_bit_for_bit(name: str, base: Base, artefacts: dict[str, Artefact | None]) -> None:
    method = fitting(name, base)
    for w in (0.0, -0.0):
        for aux in (None, network(artefacts[name])):
            built = method.build(base.model, aux, w)
            assert torch.equal(denoised(built), denoised(base.model))
            same = base.model.with_denoiser(built)
            assert nfe(same, base.model.sampler) == nfe(base.model, base.model.sampler)
            assert torch.equal(same.sample(range(3)), base.model.sample(range(3)))
            assert same.hash == base.model.hash


@pytest.mark.parametrize("name", ALL)
def test_every_method_builds_a_denoiser_like_the_base(
    name: str, base: Base, artefacts: dict[str, Artefact | None], tmp_path: Path
) -> None:
    built = fitting(name, base).build(base.model, network(artefacts[name]), strength(name))
    assert (built.data_shape, built.num_classes) == (base.model.data_shape, base.model.num_classes)
    assert (built.sigma_min, built.sigma_max) == (base.model.sigma_min, base.model.sigma_max)
    assert denoised(built).shape == (8, *base.model.data_shape) and torch.isfinite(denoised(built)).all()
    model = base.model.with_denoiser(built)
    again = load(model.save(tmp_path / "model"))
    assert again.hash == model.hash and torch.equal(again.sample(range(3)), model.sample(range(3)))


@pytest.mark.parametrize("w", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ALL)
def test_a_strength_that_is_no_number_is_refused(name: str, w: float, base: Base) -> None:
    with pytest.raises(UserError, match="must be a finite number"):
        METHODS[name].build(base.model, base.model, w)


@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_method_refuses_other_strengths(name: str, base: Base) -> None:
    with pytest.raises(UserError, match="has the one strength"):
        METHODS[name].build(base.model, base.model, strength(name) + 0.5)


@pytest.mark.parametrize("name", TRAINED)
def test_a_strength_needs_the_prepared_network(name: str, base: Base) -> None:
    with pytest.raises(UserError, match="needs its prepared network"):
        METHODS[name].build(base.model, None, 1.0)


@pytest.mark.parametrize("name", [name for name in ALL if METHODS[name].needs_real])
def test_methods_that_need_real_data_say_so(name: str, base: Base, run: Run) -> None:
    with pytest.raises(UserError, match="needs the real training data"):
        METHODS[name].prepare(base, None, settings_of(base), run)


@pytest.mark.parametrize("name", [name for name in ALL if not METHODS[name].needs_real])
def test_the_other_methods_do_without(name: str, base: Base, run: Run, artefacts: dict[str, Artefact | None]) -> None:
    assert METHODS[name].prepare(base, None, settings_of(base), run) == artefacts[name]


@pytest.mark.parametrize("name", ALL)
def test_preparing_twice_works_once(
    name: str,
    base: Base,
    real: Dataset,
    run: Run,
    artefacts: dict[str, Artefact | None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("a second training step")

    monkeypatch.setattr(Trainer, "update", never)
    before = tiny.snapshot(run.path)
    assert METHODS[name].prepare(base, real, settings_of(base), run) == artefacts[name]
    assert tiny.snapshot(run.path) == before


def test_sims_is_the_formula(base: Base, artefacts: dict[str, Artefact | None]) -> None:
    aux = network(artefacts["sims"])
    assert aux is not None and aux.hash != base.model.hash
    ours, theirs = denoised(base.model), denoised(aux)
    for w in (0.5, 2.0, -0.5):
        guided = METHODS["sims"].build(base.model, aux, w)
        assert isinstance(guided, Extrapolate)
        assert torch.equal(denoised(guided), ours + w * (ours - theirs))
        sampler = base.model.sampler
        assert nfe(guided, sampler) == 2 * nfe(base.model, sampler)


def test_neon_is_the_formula_on_weights(base: Base, artefacts: dict[str, Artefact | None]) -> None:
    aux = network(artefacts["neon"])
    assert aux is not None
    before = {name: p.clone() for name, p in base.model.denoiser.named_parameters()}  # type: ignore[attr-defined]
    theirs = dict(aux.denoiser.named_parameters())  # type: ignore[attr-defined]
    merged = METHODS["neon"].build(base.model, aux, 1.5)
    for name, parameter in merged.named_parameters():  # type: ignore[attr-defined]
        expected = before[name] + 1.5 * (before[name] - theirs[name])
        torch.testing.assert_close(parameter.detach(), expected.detach(), rtol=1e-6, atol=1e-7)  # fused or not
    for name, parameter in base.model.denoiser.named_parameters():  # type: ignore[attr-defined]
        assert torch.equal(parameter, before[name])
    assert nfe(merged, base.model.sampler) == nfe(base.model, base.model.sampler)


def test_self_trained_is_the_auxiliary_itself(base: Base, artefacts: dict[str, Artefact | None]) -> None:
    aux = network(artefacts["self-trained"])
    assert aux is not None
    alone = METHODS["self-trained"].build(base.model, aux, -1.0)
    assert torch.equal(denoised(alone), denoised(aux))
    formula = METHODS["sims"].build(base.model, aux, -1.0)
    torch.testing.assert_close(denoised(alone), denoised(formula), rtol=1e-4, atol=1e-5)


def test_sims_neon_and_self_trained_share_one_auxiliary(artefacts: dict[str, Artefact | None], run: Run) -> None:
    sims, neon, alone = (artefacts[name] for name in ("sims", "neon", "self-trained"))
    assert sims == neon == alone and sims is not None
    assert sims.key.startswith("auxiliary-") and (run.path / "artefacts" / sims.key).is_dir()
    assert sorted(sims.variants) == [64, 128]
    with pytest.raises(UserError, match="no snapshot at 99 images: there are 64, 128"):
        sims.load(99)


def test_placebo_differs_from_the_auxiliary_in_data_alone(artefacts: dict[str, Artefact | None]) -> None:
    sims, placebo = artefacts["sims"], artefacts["placebo"]
    assert sims is not None and placebo is not None
    assert placebo.key != sims.key and sims.cost.images == placebo.cost.images
    assert placebo.cost.evaluations == 0 < sims.cost.evaluations


def test_continuing_is_the_longer_run(
    base: Base, real: Dataset, artefacts: dict[str, Artefact | None], run: Run
) -> None:
    start = tiny.NETWORK
    longer = train_base(real, start, tiny.SAMPLER, FAST, run.path / "longer", images=416, seed=5, log=lambda text: None)
    continued = artefacts["continued"]
    assert continued is not None
    ours, theirs = (load_file(path / "model.safetensors") for path in (continued.variants[96], longer.last))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_continuing_needs_the_state_of_the_base(base: Base, real: Dataset, run: Run, tmp_path: Path) -> None:
    lost = replace(base, training=tmp_path, seed=6)
    with pytest.raises(UserError, match=r"no state\.safetensors"):
        METHODS["continued"].prepare(lost, real, settings_of(base), run)


def test_distilling_counts_what_the_teacher_costs(base: Base, artefacts: dict[str, Artefact | None]) -> None:
    found = artefacts["distilled"]
    assert found is not None and found.cost.images == 64
    assert found.cost.evaluations == 40 * 2 * nfe(base.model, base.model.sampler) + 2 * 64


def test_without_snapshots_autoguidance_says_what_it_lacks(base: Base, real: Dataset, run: Run) -> None:
    given = Base(base.model, base.key)
    with pytest.raises(UserError, match="earlier snapshots"):
        METHODS["autoguidance"].prepare(given, real, SETTINGS, run)


@pytest.mark.parametrize("init", ["base", "scratch", "snapshot"])
def test_the_auxiliary_starts_where_asked(init: Any, base: Base, run: Run) -> None:
    slow = TrainOptions(batch=32, lr=1e-9, warmup=0, ema_halflife=1.0)
    settings = Settings(AuxiliarySettings(40, (32,), init, slow), 3, 0, 20)
    aux = network(METHODS["sims"].prepare(base, None, settings, run))
    assert aux is not None
    earliest = load(base.snapshots[min(base.snapshots)])
    distances = {"base": base.model, "snapshot": earliest}
    near = {name: torch.allclose(denoised(aux), denoised(other), atol=1e-4) for name, other in distances.items()}
    assert near == {"base": init == "base", "snapshot": init == "snapshot"}


def test_the_earliest_snapshot_needs_snapshots(base: Base, run: Run) -> None:
    settings = Settings(AuxiliarySettings(40, (32,), "snapshot", FAST), 3, 0, 20)
    with pytest.raises(UserError, match="needs earlier snapshots"):
        METHODS["sims"].prepare(Base(base.model, base.key), None, settings, run)


@pytest.mark.parametrize("change", [{"seed": 4}, {"round": 1}])
def test_another_seed_or_round_is_another_auxiliary(
    change: dict[str, int], base: Base, run: Run, artefacts: dict[str, Artefact | None]
) -> None:
    changed = METHODS["sims"].prepare(base, None, Settings(AUXILIARY, **{"seed": 3, **change}, batch_size=20), run)
    assert changed is not None and artefacts["sims"] is not None and changed.key != artefacts["sims"].key


def test_networks_of_two_architectures_have_no_common_weights(base: Base, digits: Dataset) -> None:
    other = tiny.model(digits if base.model.num_classes else digits.without_labels(), width=16)
    with pytest.raises(UserError, match="one architecture"):
        METHODS["neon"].build(base.model, other, 1.0)
