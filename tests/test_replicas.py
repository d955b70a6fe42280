"""Replicas trained at once: the same networks as alone, paired over arms, independent of each other, resumable."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sims.config import override
from sims.errors import UserError
from sims.experiments.loop.options import LoopOptions, PollutionOptions, toy_defaults
from sims.experiments.loop.point_loop import run_points
from sims.experiments.loop.remedies import arm_of
from sims.experiments.loop.replica_group import ReplicaGroup
from sims.experiments.loop.toys import TOYS, ReplicaNoise, Ruler, gaussian_w2, sampling_noise
from sims.gaussians import GaussianMixture
from sims.metrics.frechet import Moments, frechet_distance
from sims.model import load, make_network
from sims.networks import MLP, ReplicaMLP
from sims.results.common import Cost
from sims.results.loop import Arm, LoopResult
from sims.runs.directory import Run
from sims.sampling import SamplerOptions, sample
from sims.training import trainer as training

TINY: dict[str, Any] = {
    "generations": 2,
    "repeats": 3,
    "w": [1.0],
    "counts": {"real": 40, "synthetic": 30},
    "network": {"width": 8, "blocks": 1, "embedding": 8, "sigma_min": 0.02, "sigma_max": 20.0},
    "base": {"images": 256, "train": {"batch": 32, "warmup": 0, "precision": "fp32"}},
    "auxiliary": {"samples": 40, "budgets": [96], "train": {"batch": 32, "warmup": 0, "precision": "fp32"}},
    "sampler": {"solver": "dpmpp2m", "steps": 4},
    "evaluation": {"samples": 60},
}
STANDARD, SIMS = arm_of("standard"), arm_of("sims", 1.0)


def options(folder: Path, **values: Any) -> LoopOptions:
    return override(toy_defaults(), {**TINY, **values, "run": str(folder)})


def group(
    folder: Path, arms: Sequence[Arm] = (STANDARD, SIMS), replicas: tuple[int, ...] = (0, 1), **values: Any
) -> ReplicaGroup:
    chosen = options(folder, **values)
    return ReplicaGroup(chosen, folder, tuple(arms), replicas, chosen.generations)


def figures(group: ReplicaGroup) -> list[dict[str, dict[str, list[float]]]]:
    return [entry.figures for entry in group.run()]


def alike(left: dict[str, list[float]], right: dict[str, list[float]]) -> bool:
    """Whether two arms' distances agree but for rounding: a vector's last elements may be computed differently."""
    return left["w2"] == pytest.approx(right["w2"], rel=1e-4)


def result(chosen: LoopOptions) -> LoopResult:
    run = Run(chosen.run, {}, quiet=True)
    try:
        return run_points(run, chosen)
    finally:
        run.close()


def random_network(slices: int) -> ReplicaMLP:
    network = ReplicaMLP((slices, 2), width=16, blocks=2, embedding=8)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return network


# -- the network -------------------------------------------------------------------------------------------------------


def test_a_slice_is_the_network_alone() -> None:
    network = random_network(3)
    x, levels = torch.randn(5, 3, 2), torch.randn(5)
    together = network(x, levels)
    for index in range(3):
        alone = network.slice(index)
        assert isinstance(alone, MLP)
        assert torch.allclose(alone(x[:, index], levels), together[:, index], atol=1e-5)
    two = network.select([2, 0])
    assert torch.allclose(two(x[:, [2, 0]], levels), together[:, [2, 0]], atol=1e-5)
    assert torch.allclose(network(x, levels[:1]), network(x, levels[:1].expand(5)), atol=1e-5)


def test_gradients_of_a_slice_are_its_own() -> None:
    network, x, levels = random_network(3), torch.randn(5, 3, 2), torch.randn(5)
    network(x, levels)[:, 1].square().sum().backward()
    alone = network.slice(1)
    alone(x[:, 1], levels).square().sum().backward()
    theirs = dict(alone.named_parameters())
    for name, parameter in network.named_parameters():
        gradient, expected = parameter.grad, theirs[name].grad
        assert gradient is not None and expected is not None
        assert not gradient[0].any() and not gradient[2].any()
        expected = expected.T if expected.ndim == 2 else expected
        assert torch.allclose(gradient[1].reshape(expected.shape), expected, atol=1e-4)


def test_networks_go_in_as_they_come_out() -> None:
    network = random_network(3)
    other = ReplicaMLP((3, 2), **network.config)
    assert not torch.equal(other.read.weight[0], other.read.weight[1])
    other.load([network.slice(index) for index in range(3)])
    for ours, theirs in zip(other.parameters(), network.parameters()):
        assert torch.equal(ours, theirs)


def test_it_is_saved_as_every_model(tmp_path: Path) -> None:
    made = group(tmp_path)._new(0, 2)
    made.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.hash == made.hash and again.data_shape == (4, 2)
    noise = range(3)
    assert torch.equal(
        again.sample(noise, sampler=SamplerOptions(steps=2)), made.sample(noise, sampler=SamplerOptions(steps=2))
    )


@pytest.mark.parametrize(("shape", "classes"), [((2,), 0), ((3, 2), 4)])
def test_it_takes_replicas_without_classes(shape: tuple[int, ...], classes: int) -> None:
    with pytest.raises(UserError, match="replica_mlp"):
        make_network(shape, classes, {"type": "replica_mlp"}, {"type": "edm"})


# -- pairing and independence ------------------------------------------------------------------------------------------


def test_noise_is_the_same_in_every_arm_and_different_between_replicas() -> None:
    noise, levels = ReplicaNoise(5, (3, 8), arms=2).draw(100, 400)
    alone, same_levels = ReplicaNoise(5, (8,), arms=1).draw(100, 400)
    assert noise.shape == (400, 4, 2)
    assert torch.equal(noise[:, :2], noise[:, 2:]) and torch.equal(noise[:, [1]], alone)
    assert torch.equal(levels, same_levels)
    assert not torch.equal(noise[:, 0], noise[:, 1])
    whole, spread = ReplicaNoise(5, (0,), 1).draw(0, 256)
    assert torch.equal(spread.sort().values.diff().sign(), torch.ones(255))
    assert abs(float(spread.mean())) < 0.01 and abs(float(spread.std()) - 1) < 0.02  # even over the quantiles
    assert abs(float(whole.mean())) < 0.2 and abs(float(whole.std()) - 1) < 0.1
    drawn = sampling_noise((3, 8), 6, "passed", 1)
    assert torch.equal(drawn[:, [1]], sampling_noise((8,), 6, "passed", 1))
    assert not torch.equal(drawn, sampling_noise((3, 8), 6, "measured", 1))


def test_arms_with_equal_settings_agree(tmp_path: Path) -> None:
    twins = (STANDARD, arm_of("standard", name="again"), SIMS, arm_of("sims", 1.0, "twin"))
    for generation in figures(group(tmp_path, twins)):
        assert alike(generation["standard"], generation["again"])
        assert alike(generation["sims"], generation["twin"])
        assert not alike(generation["sims"], generation["standard"])


def test_a_replica_does_not_depend_on_the_others(tmp_path: Path) -> None:
    together = figures(group(tmp_path / "together", replicas=(0, 1, 2)))
    alone = figures(group(tmp_path / "alone", replicas=(1,)))
    for both, one in zip(together, alone):
        for arm in both:
            assert both[arm]["w2"][1] == pytest.approx(one[arm]["w2"][0], rel=2e-3)
            assert both[arm]["w2"][1] != pytest.approx(both[arm]["w2"][0], rel=2e-2)


def test_w_0_is_the_base(tmp_path: Path) -> None:
    for generation in figures(group(tmp_path, (STANDARD, arm_of("sims", 0.0, "nothing")), generations=1)):
        assert alike(generation["standard"], generation["nothing"])


def test_equal_compute_trains_longer_on_its_own_chain(tmp_path: Path) -> None:
    arms = (STANDARD, arm_of("standard-equal"), SIMS)
    replicas = group(tmp_path, arms)
    extra = 96 + (40 + 30) * 4 // 3  # the auxiliary, its own samples, and the second evaluation of those passed on
    assert replicas.cost(arms[1]) == Cost(256 + extra)
    assert replicas.cost(SIMS) == Cost(256 + 96, 40 * 4)
    replicas.run()
    assert replicas.evaluations(SIMS) == 2 * replicas.evaluations(STANDARD) == 8


def test_the_control_with_twice_the_steps_is_standard_training_sampled_so(tmp_path: Path) -> None:
    steps = arm_of("standard-steps")
    chosen = group(tmp_path / "control", (STANDARD, steps), affine=True)
    control = figures(chosen)
    finer = figures(group(tmp_path / "finer", (STANDARD,), affine=True, sampler={"solver": "dpmpp2m", "steps": 8}))
    for generation, other in zip(control, finer):
        assert generation["standard-steps"] == other["standard"]
        assert not alike(generation["standard-steps"], generation["standard"])
    assert chosen.evaluations(steps) == 8 and chosen.cost(steps) == chosen.cost(STANDARD)


@pytest.mark.parametrize("made", [LoopOptions, PollutionOptions])
def test_the_control_with_twice_the_steps_is_for_points(made: Any) -> None:
    with pytest.raises(UserError, match="'standard-steps' is for"):
        made(remedies=("standard", "standard-steps", "sims"))


# -- interruptions -----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """What a kill looks like from inside: nothing is tidied up."""


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Interrupts training after a number of optimizer steps, right after a state was saved."""
    real, left = training.Trainer.update, [10**9]

    def update(trainer: training.Trainer) -> Any:
        left[0] -= 1
        if left[0] < 0:
            trainer._save()
            raise Killed
        return real(trainer)

    monkeypatch.setattr(training.Trainer, "update", update)
    yield lambda steps: left.__setitem__(0, steps)
    left[0] = 10**9


@pytest.mark.parametrize("start", ["scratch", "continued"])
def test_interrupted_and_resumed_it_ends_alike(tmp_path: Path, killer: Any, start: str) -> None:
    arms = (STANDARD, arm_of("standard-equal"), SIMS)
    whole = figures(group(tmp_path / "whole", arms, start=start))
    broken = group(tmp_path / "broken", arms, start=start)
    for steps in (5, 13, 17):  # within a base, an equal arm, an auxiliary
        killer(steps)
        with pytest.raises(Killed):
            broken.run()
    killer(10**9)
    assert figures(broken) == whole
    assert figures(broken) == whole  # and finished, it is only read


def test_finished_generations_keep_no_networks(tmp_path: Path) -> None:
    figures(group(tmp_path))
    assert not list(tmp_path.rglob("*.safetensors"))
    assert not (tmp_path / "000" / "passed.npy").exists()
    with np.load(tmp_path / "002" / "points.npz") as points:
        assert points["sims"].shape == (60, 2, 2)


def test_a_lost_generation_is_one_sentence(tmp_path: Path) -> None:
    whole = group(tmp_path, kind="accumulate")
    figures(whole)
    shutil.rmtree(tmp_path / "002")  # and with it the proof that the samples it was trained on are not needed
    with pytest.raises(UserError, match="missing or damaged"):
        whole.run()


# -- loops and figures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fully-synthetic", "augmentation", "accumulate", "fresh"])
def test_every_kind_trains_on_what_it_says(tmp_path: Path, kind: str) -> None:
    replicas = group(tmp_path, kind=kind, affine=True)
    sets = [replicas._data(0, SIMS)]
    for generation in range(2):
        replicas._generation(generation)
        sets.append(replicas._data(generation + 1, SIMS))
    assert torch.equal(sets[0], replicas._real) and sets[0].shape == (40, 2, 2)
    passed = [torch.from_numpy(np.load(tmp_path / f"00{generation}" / "passed.npy"))[:, 2:] for generation in range(2)]
    parts = {"fully-synthetic": [passed[1]], "accumulate": [replicas._real, *passed]}
    assert torch.equal(sets[2][-30:], passed[1])
    if kind == "fresh":
        assert len(sets[2]) == 70 and not torch.equal(sets[2][:40], sets[1][:40])
    else:
        assert torch.equal(sets[2], torch.cat(parts.get(kind, [replicas._real, passed[1]])))


def test_the_result_says_all_that_the_page_needs(tmp_path: Path) -> None:
    found = result(options(tmp_path / "run", data={"path": "mixture"}, remedies=["standard", "sims", "neon"]))
    assert [arm.name for arm in found.arms] == ["standard", "sims", "neon"] == list(found.looks)
    expected = {"sliced_w2", "coverage", "class_distance", "precision", "recall", "memorized", "distance_ratio"}
    assert {*found.curves} == {*found.figures} == expected
    curve = np.array(found.curves["sliced_w2"]["neon"])
    assert curve.shape == (3, 3) and np.isfinite(curve).all()
    assert found.verdicts["sims"].mad and found.verdicts["sims"].weak and found.verdicts["sims"].strong
    assert [(entry.real, entry.synthetic) for entry in found.trained_on] == [(40, {}), (40, {"0": 30}), (40, {"1": 30})]
    assert found.floor is not None and found.floor.values["sliced_w2"] > 0
    assert found.arms[1].cost == Cost(3 * (256 + 96), 3 * 40 * 4)
    with np.load(tmp_path / "run" / "grids.npz") as grids:
        assert {"truth", "standard@0", "neon@2"} <= {*grids.files}


def test_samples_that_diverge_are_counted(tmp_path: Path) -> None:
    far = arm_of("sims", 1e30)
    found = group(tmp_path, (STANDARD, far), affine=True, generations=1, passed_on="base").run()
    assert [entry.diverged["standard"] for entry in found] == [0, 0]
    assert [entry.diverged["sims"] for entry in found] == [2 * 60, 2 * 60]
    assert min(found[-1].figures["sims"]["w2"]) > 2 * max(found[-1].figures["standard"]["w2"])


def test_strengths_are_chosen_by_replicas_that_are_not_judged(tmp_path: Path) -> None:
    several = result(options(tmp_path / "several", affine=True, repeats=6, w=[0.5, 1.0], remedies=["standard", "sims"]))
    assert several.judged == (3, 4, 5) and several.selection["sims"].replicas == 3
    curves = {w: np.array(several.curves["w2"][f"sims@{w:g}"])[-1, :3].mean() for w in (0.5, 1.0)}
    assert several.selection["sims"].w == min(curves, key=lambda w: curves[w])
    none = result(options(tmp_path / "none", affine=True, w=[], strengths=[0.5, 1.0], remedies=["standard", "sims"]))
    assert none.arms[1].w == none.selection["sims"].w and none.judged == (0, 1, 2)
    assert (tmp_path / "none" / "selection").is_dir()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"remedies": ["standard", "autoguidance"], "base": {"snapshots": [0.5]}}, "for images"),
        ({"affine": True, "remedies": ["standard", "sims", "neon"]}, "has none"),
        ({"sampler": {"s_churn": 1.0}}, "churn"),
        ({"network": {"dropout": 0.1}}, "dropout"),
    ],
)
def test_what_points_do_not_know_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        result(options(tmp_path / "run", **values))
    assert not list((tmp_path / "run").glob("generations*"))


def test_gaussian_distance_is_the_frechet_distance() -> None:
    toy = TOYS["gaussian"]()
    mean, covariance = toy.moments()
    points = 0.3 + toy.draw(200, "test").double().numpy() @ np.array([[1.2, 0.1], [0.0, 0.9]])
    ours = gaussian_w2(points, mean, covariance)
    theirs = frechet_distance(Moments(points.mean(0), np.cov(points.T), 200), Moments(mean, covariance, 200))
    assert ours**2 == pytest.approx(theirs, rel=1e-9)
    assert toy.sigma_data == pytest.approx(2**0.5)


def test_the_default_sampler_adds_next_to_nothing_to_the_distance() -> None:
    """With the exact denoiser it maps noise linearly, so unit vectors along the axes show what variances it makes."""
    toy, chosen = TOYS["gaussian"](), toy_defaults()
    axes, variances = torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double() / 2**0.5, torch.tensor([3.0, 1.0])
    exact = GaussianMixture([1.0], torch.zeros(1, 2), toy.truth.covariances, None, *noise_range(chosen))
    made = sample(exact, axes, chosen.sampler.sigmas(exact), solver=chosen.sampler.solver)
    error = float(((made * axes).sum(dim=1).abs() - variances.sqrt()).square().sum().sqrt())
    floor = Ruler(toy).floor(chosen.evaluation.samples, draws=8)
    assert (floor**2 + error**2) ** 0.5 - floor < 0.003


def noise_range(chosen: LoopOptions) -> tuple[float, float]:
    assert chosen.network.sigma_min is not None and chosen.network.sigma_max is not None
    return chosen.network.sigma_min, chosen.network.sigma_max


def test_truth_scores_the_floor_and_diverged_samples_do_not_fail() -> None:
    for toy in (TOYS["gaussian"](), TOYS["mixture"]()):
        ruler = Ruler(toy)
        exact, real = toy.draw(800, "a test"), toy.draw(300, "real")
        found = ruler.measure(exact, real)
        assert found[toy.distance] < 3 * ruler.floor(800, draws=8)
        assert found["precision"] > 0.9 and found["recall"] > 0.9 and found["memorized"] < 0.1
        assert ruler.measure(real, real)["memorized"] == 1.0
        broken = exact.clone()
        broken[:5] = torch.nan
        broken[5:10] = torch.inf
        assert np.isfinite(list(ruler.measure(broken, real).values())).all()
    one_mode = TOYS["mixture"]().truth.means[0].float() + 0.1 * torch.randn(500, 2)
    lost = Ruler(TOYS["mixture"]()).measure(one_mode, real)
    assert lost["coverage"] == pytest.approx(0.2) and lost["class_distance"] == pytest.approx(0.7)
