"""Rules that need no training, against truth: known flows, values by hand; networks of every kind are left alone."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import sims
import tiny
from sims.data.dataset import Dataset
from sims.denoiser import Denoiser, networks_of
from sims.errors import UserError
from sims.gaussians import GaussianMixture
from sims.guidance import (
    AnotherClass,
    CacheRule,
    ClassifierFree,
    Guide,
    Momentum,
    Perturbed,
    Temperature,
    TimeShift,
    attentions_of,
    blocks_of,
    drops,
    of_trajectory,
)
from sims.guidance.guide import limited
from sims.methods import METHODS, Alone, Artefact, Method, paired
from sims.model import make_network
from sims.networks import layers
from sims.networks.perturbation import AttentionIsIdentity, DropoutLeftOn
from sims.preconditioning import Preconditioned
from sims.results.common import Cost
from sims.sampling import SamplerOptions, SamplingStep, SolverName, edm_sigmas, sample, sample_seeds

TWO = GaussianMixture([0.3, 0.7], torch.tensor([[-1.0], [1.0]]), torch.tensor([[[0.04]], [[0.09]]]))


def gaussian(std: float) -> GaussianMixture:
    return GaussianMixture([1.0], torch.zeros(1, 2), std**2 * torch.eye(2)[None])


# -- temperature -------------------------------------------------------------------------------------------------------


@given(st.floats(0.1, 3.0), st.floats(-0.9, 5.0), st.floats(0.01, 80.0))
@settings(max_examples=50, deadline=None)
def test_rescaled_by_the_data_s_own_scale_a_gaussian_is_one_of_another_temperature(
    std: float, w: float, sigma: float
) -> None:
    x, level = torch.linspace(-3, 3, 8).reshape(4, 2).double() * sigma, torch.full((4,), sigma, dtype=torch.float64)
    rescaled = Temperature(gaussian(std), w, scale=std)(x, level)
    torch.testing.assert_close(rescaled, gaussian(std / math.sqrt(1 + w))(x, level), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("w", [-0.3, 0.2, 1.0])
def test_rescaled_everywhere_the_flow_of_a_gaussian_is_known(w: float) -> None:
    std, noise = 0.7, torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    ends = []
    sample(Temperature(gaussian(std), w), noise, edm_sigmas(400, 0.01, 20.0), callback=lambda step: ends.append(step.x))
    # dx / d ln sigma = (1 + w) sigma^2 / (std^2 + sigma^2) x
    known = 20 * noise * ((std**2 + 0.01**2) / (std**2 + 20.0**2)) ** ((1 + w) / 2)
    torch.testing.assert_close(ends[-1], known, rtol=2e-3, atol=1e-4)


# -- momentum ----------------------------------------------------------------------------------------------------------


def by_hand(w: float, memory: float, levels: list[float], x: float) -> float:
    """Euler's method with the mean of its own estimates, three steps, in plain numbers."""
    denoised = lambda x, sigma: float(TWO(torch.tensor([[x]]), torch.tensor([sigma])))  # noqa: E731
    earlier = mean = None
    for t, t_next, before in zip(levels[:-1], levels[1:], [None, *levels[:-2]]):
        estimate = denoised(x, t)
        if earlier is None or mean is None or before is None:
            mean = estimate
        else:  # the mean forgets by exp(-u / memory); the estimate is linear in u between the two levels
            u = np.linspace(0, math.log(before / t), 200_001)
            kernel = np.exp(-(u[-1] - u) / memory) / memory
            line = earlier + (estimate - earlier) * u / u[-1]
            mean = mean * math.exp(-u[-1] / memory) + float(np.trapezoid(kernel * line, u))
        earlier = estimate
        x += (t_next - t) / t * (x - (estimate + w * (estimate - mean)))
    return x


@pytest.mark.parametrize(("w", "memory"), [(0.5, 0.5), (1.0, 0.25), (0.3, 3.0)])
def test_momentum_is_what_it_is_by_hand(w: float, memory: float) -> None:
    levels = [5.0, 2.0, 0.6, 0.0]
    x = torch.tensor([[0.3], [-0.2]])
    found = sample(Momentum(TWO, w, memory), x, torch.tensor(levels), solver="euler")
    assert found.flatten().tolist() == pytest.approx([by_hand(w, memory, levels, 5 * float(v)) for v in x], abs=1e-5)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("dpmpp2m", 2)])
def test_momentum_has_a_limit_in_the_number_of_steps(solver: SolverName, order: int) -> None:
    w, memory, high, low, x0 = 0.4, 0.5, 10.0, 0.05, 0.4

    def flow(u: float, state: np.ndarray) -> list[float]:  # u = -ln sigma
        sigma = math.exp(-u)
        x, mean = torch.tensor([[state[0]]], dtype=torch.float64), state[1]
        estimate = float(TWO(x, torch.tensor([sigma], dtype=torch.float64)))
        return [-(state[0] - (estimate + w * (estimate - mean))), (estimate - mean) / memory]

    first = float(TWO(torch.tensor([[x0 * high]]).double(), torch.tensor([high]).double()))
    span = (-math.log(high), -math.log(low))
    truth = solve_ivp(flow, span, [x0 * high, first], rtol=1e-9, atol=1e-9).y[0, -1]
    errors = []
    for steps in (80, 160, 320):
        ends: list[Tensor] = []
        keep: Callable[[SamplingStep], None] = lambda step, ends=ends: ends.append(step.x)  # type: ignore[misc] # noqa: E731
        noise, sigmas = torch.tensor([[x0]]), edm_sigmas(steps, low, high)
        sample(Momentum(TWO, w, memory), noise, sigmas, solver=solver, callback=keep)
        errors.append(abs(float(ends[-1]) - truth))
    assert errors[-1] < (0.02 if order == 1 else 1e-3)
    assert errors[0] / errors[2] > 0.6 * 4**order  # the network's float32 bounds what can be seen


def test_momentum_needs_a_trajectory_and_says_so() -> None:
    guide, x = Momentum(TWO, 0.7, 0.5), torch.tensor([[0.3]])
    assert torch.equal(guide(x, torch.tensor([2.0])), TWO(x, torch.tensor([2.0])))
    assert of_trajectory(guide) and of_trajectory(Temperature(guide, 0.1))
    assert not of_trajectory(Momentum(TWO, 0.0)) and not of_trajectory(Temperature(TWO, 0.1))


def test_momentum_with_churn_forgets_what_lies_at_lower_levels() -> None:
    """Levels that rise again are compared with the last one above them; a plan decides, and nothing is left behind."""
    levels = torch.tensor([4.0, 2.0, 2.5, 1.0])
    evaluate = Momentum(TWO, 1.0, 0.5).trajectory(levels)
    x = torch.tensor([[0.5]])
    values = [float(evaluate(x, torch.tensor([float(level)]), None)) for level in levels]
    again = Momentum(TWO, 1.0, 0.5).trajectory(torch.tensor([4.0, 2.5, 1.0]))
    kept = [float(again(x, torch.tensor([level]), None)) for level in (4.0, 2.5, 1.0)]
    assert [values[0], *values[2:]] == kept


# -- the other noise level, the other class ----------------------------------------------------------------------------


def test_told_another_noise_level_by_hand() -> None:
    x, sigma = torch.tensor([[0.5], [-0.4]]), torch.tensor([1.0, 2.0])
    plain = TWO(x, sigma)
    torch.testing.assert_close(TimeShift(TWO, 0.5, 1.5)(x, sigma), plain + 0.5 * (plain - TWO(x, 1.5 * sigma)))
    top = torch.full((2,), TWO.sigma_max)
    torch.testing.assert_close(TimeShift(TWO, 0.5, 1.5)(x, top), TWO(x, top))  # there is no higher level to be told


CLASSES = GaussianMixture(
    [0.2, 0.3, 0.5], torch.tensor([[-2.0], [0.0], [2.0]]), torch.full((3, 1, 1), 0.04), component_labels=[0, 1, 2]
)


def test_another_class_by_hand() -> None:
    guide = AnotherClass(CLASSES, 0.5)
    labels, x = torch.tensor([0, 1, 2, -1]), torch.linspace(-1, 1, 4)[:, None]
    seen = set()
    for level in (0.1, 0.5, 1.0, 3.0, 9.0, 20.0):
        sigma = torch.full((4,), level)
        other = guide.other(labels, sigma)
        assert (other[:3] != labels[:3]).all() and other[3] == -1 and other.max() <= 2
        plain = CLASSES(x, sigma, labels)
        torch.testing.assert_close(guide(x, sigma, labels), plain + 0.5 * (plain - CLASSES(x, sigma, other)))
        seen.add(int(other[0]))
    assert seen == {1, 2}  # over a trajectory it is now one, now the other


@pytest.mark.parametrize("solver", ["heun", "unipc"])
@pytest.mark.parametrize("cached", [False, True])
def test_told_another_noise_level_a_guided_base_is_counted_at_that_level(solver: SolverName, cached: bool) -> None:
    """What guides in an interval guides elsewhere when it is told of more noise."""
    calls = []

    class Counted(GaussianMixture):
        def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            calls.append(1)
            return super().__call__(x, sigma, labels)

    inner = [Counted([0.3, 0.7], TWO.means, TWO.covariances * scale) for scale in (1.0, 1.5)]
    options = SamplerOptions(solver=solver, steps=9)
    guide = TimeShift(sims.Extrapolate(*inner, 0.5, (0.1, 1.0)), 0.3, 1.5)
    if cached:
        guide = guide.with_cache(CacheRule.from_pilot(guide, range(4), options, refreshes=3))
        calls.clear()
    sample_seeds(guide, range(2), options)
    assert sims.nfe(guide, options) == len(calls)


# -- perturbed networks ------------------------------------------------------------------------------------------------

UNET = {"channel_mult": [1, 2], "num_blocks": 2, "attn_resolutions": [8, 4]}
SMALL: dict[str, dict[str, object]] = {
    "mlp": {"type": "mlp", "width": 16, "blocks": 3, "embedding": 8},
    "ddpmpp": {"type": "song_unet", "model_channels": 16, **UNET},
    "adm": {"type": "adm_unet", "model_channels": 64, **UNET},
    "edm2": {"type": "edm2_unet", "model_channels": 16, "channels_per_head": 8, **UNET},
    "dit": {"type": "dit", "hidden_size": 24, "depth": 4, "num_heads": 2, "patch_size": 2},
}


def network(kind: str, sides: tuple[int, int] = (8, 8)) -> Preconditioned:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        outer = {"type": "edm2" if kind == "edm2" else "edm"}
        made = make_network((1, *sides), 0, dict(SMALL[kind]), dict(outer))  # type: ignore[arg-type]
        for weight in made.parameters():  # what begins at zero would hide what is left out
            weight.data += 0.05 * torch.randn_like(weight)
    return made.eval().requires_grad_(False)


def diffusers_network() -> Denoiser:
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=2, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=4, attention_head_dim=4,
    ).eval().requires_grad_(False)  # fmt: skip
    how = {"prediction": "eps", "schedule": "linear", "call": lambda net, x, t, y: net(x, t).sample}
    return sims.wrap(unet, data_shape=(1, 8, 8), **how).denoiser  # type: ignore[arg-type]


MAKE: dict[str, Callable[[], Denoiser]] = {
    **{kind: (lambda kind=kind: network(kind)) for kind in SMALL},
    "diffusers": diffusers_network,
}


def batch(count: int, like: Denoiser, level: float = 0.7) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, *like.data_shape, generator=torch.Generator().manual_seed(1))
    return x, torch.full((count,), level)


@pytest.mark.parametrize("kind", MAKE)
def test_every_network_can_be_perturbed_and_is_left_as_it_was(kind: str) -> None:
    base = MAKE[kind]()
    x, sigma = batch(3, base)
    before, blocks, attentions = base(x, sigma), blocks_of(base), attentions_of(base)
    assert blocks and drops(base) and (attentions > 0) == (kind != "mlp")
    guides = [Perturbed(base, 1.0, "blocks", blocks=(name,)) for name in blocks]
    guides.append(Perturbed(base, 1.0, "dropout", rate=0.3))
    guides += [Perturbed(base, 1.0, "attention", at=at) for at in ((), (attentions - 1,)) if attentions]
    for guide in guides:
        guided = guide(x, sigma)
        assert torch.isfinite(guided).all() and not torch.equal(guided, before)
        torch.testing.assert_close(guide(x[1:2], sigma[1:2]), guided[1:2], rtol=1e-4, atol=1e-5)  # alone, or in a batch
        assert torch.equal(guide.trajectory(sigma[:1])(x, sigma, None), guided)
        assert torch.equal(base(x, sigma), before)
    modules = [module for network in networks_of(base) for module in network.modules()]
    assert not any(module._forward_hooks for module in modules)


def test_a_block_left_out_is_a_network_without_it() -> None:
    base = network("mlp")
    x, sigma = batch(3, base)
    without = network("mlp")
    del without.network.blocks[1]  # type: ignore[union-attr, operator]
    expected = base(x, sigma) + 0.5 * (base(x, sigma) - without(x, sigma))
    torch.testing.assert_close(Perturbed(base, 0.5, "blocks", blocks=("network.blocks.1",))(x, sigma), expected)
    assert blocks_of(base) == [f"network.blocks.{i}" for i in range(3)]


@pytest.mark.parametrize("kind", ["ddpmpp", "adm"])
def test_attention_without_effect_gives_each_position_its_own_value(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    base = network(kind)
    x, sigma = batch(2, base)
    guided, plain = Perturbed(base, 0.5, "attention")(x, sigma), base(x, sigma)
    monkeypatch.setattr(layers, "attend", lambda q, k, v: v)
    torch.testing.assert_close(guided, plain + 0.5 * (plain - base(x, sigma)))


class OfTorch(nn.Module):
    """A network of torch's own layers, which compute attention and dropout in one call where nobody looks."""

    def __init__(self) -> None:
        super().__init__()
        self.read = nn.Linear(2, 8)
        layers = [nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(3)]
        self.layers, self.write = nn.ModuleList(layers), nn.Linear(8, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        h = self.read(x.transpose(1, 2)) + t[:, None, None]
        for layer in self.layers:
            h = layer(h)
        return self.write(h).transpose(1, 2)


def test_networks_of_torch_s_own_layers() -> None:
    torch.manual_seed(0)
    net = OfTorch().eval().requires_grad_(False)
    base = sims.as_denoiser(net, (2, 5))
    x, sigma = batch(3, base)
    plain = base(x, sigma)
    assert attentions_of(base) == 3 and drops(base) and len(blocks_of(base)) == 3
    guided = Perturbed(base, 0.5, "attention", at=(1,))(x, sigma)
    attention = net.layers[1].self_attn
    weight, bias = attention.in_proj_weight[16:], attention.in_proj_bias[16:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            net.layers[1], "_sa_block", lambda h, *args, **more: attention.out_proj(F.linear(h, weight, bias))
        )
        with torch.enable_grad():  # torch's one call for the whole layer would not ask for it
            worse = base(x.clone().requires_grad_(), sigma).detach()
    assert not torch.allclose(worse, plain)
    torch.testing.assert_close(guided, plain + 0.5 * (plain - worse))


def test_dropout_drops_at_its_rate_and_differs_by_level() -> None:
    base = network("mlp")
    x, _ = batch(4, base)
    guide = Perturbed(base, 1.0, "dropout", rate=0.5)
    mixed = torch.tensor([0.5, 2.0, 0.5, 2.0])
    together = guide(x, mixed)
    for i in range(4):
        torch.testing.assert_close(together[i : i + 1], guide(x[i : i + 1], mixed[i : i + 1]), rtol=1e-4, atol=1e-5)
    with DropoutLeftOn(0.3, torch.ones(1)):
        kept, other = F.dropout(torch.ones(1, 100_000)), F.dropout(torch.ones(1, 100_000))
    assert float((kept == 0).float().mean()) == pytest.approx(0.3, abs=0.01) and not torch.equal(kept, other)
    assert float(kept.max()) == pytest.approx(1 / 0.7)


def test_attention_to_something_else_is_left_alone() -> None:
    q, k, v = torch.randn(2, 1, 6, 4), torch.randn(2, 1, 3, 4), torch.randn(2, 1, 3, 4)
    with AttentionIsIdentity() as mode:
        across = F.scaled_dot_product_attention(q, k, v)
        own = F.scaled_dot_product_attention(q, q, value=q)
    assert torch.equal(across, F.scaled_dot_product_attention(q, k, v)) and torch.equal(own, q) and mode.calls == 1


def test_two_threads_do_not_see_each_other_s_perturbation() -> None:
    base = network("ddpmpp")
    x, sigma = batch(2, base)
    plain, guide = base(x, sigma), Perturbed(base, 1.0, "attention")
    guided, found = guide(x, sigma), []

    def work(denoiser: Denoiser, expected: Tensor) -> None:
        found.append(all(torch.equal(denoiser(x, sigma), expected) for _ in range(20)))

    threads = [threading.Thread(target=work, args=pair) for pair in ((base, plain), (guide, guided))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True, True]


def test_a_compiled_network_s_twin_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    base = network("mlp")
    x, sigma = batch(2, base)
    guide = Perturbed(base, 0.5, "blocks", blocks=("network.blocks.0",))
    expected = guide(x, sigma)
    calls: list[int] = []

    def compiled(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return nn.Module._call_impl(base.network, *args, **kwargs)

    base.network._compiled_call_impl = compiled
    torch.testing.assert_close(guide(x, sigma), expected)
    assert len(calls) == 1  # the base's own pass


@pytest.mark.parametrize("way", ["attention", "dropout"])
@pytest.mark.parametrize("at", [(), (1,)])
def test_each_pass_of_a_guided_base_is_perturbed_as_if_it_were_alone(way: str, at: tuple[int, ...]) -> None:
    """Two passes, or one of both: classifier-free guidance joins them for few samples."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small = {**SMALL["dit"], "label_dropout": 0.1}
        base = make_network((1, 8, 8), 3, small, {"type": "edm"}).eval().requires_grad_(False)  # type: ignore[arg-type]
        for weight in base.parameters():
            weight.data += 0.05 * torch.randn_like(weight)
    guide = Perturbed(ClassifierFree(base, 0.7), 0.5, way, at=at, rate=0.3)  # type: ignore[arg-type]
    x, _ = batch(8, base)
    sigma, labels = torch.linspace(0.3, 2.0, 8), torch.arange(8) % 3
    whole = guide(x, sigma, labels)
    for size in (1, 3):
        parts = zip(x.split(size), sigma.split(size), labels.split(size))
        torch.testing.assert_close(torch.cat([guide(*part) for part in parts]), whole, rtol=1e-4, atol=1e-5)
    worse = Perturbed(base, 1.0, way, at=at, rate=0.3)  # type: ignore[arg-type]
    bad = [2 * base(x, sigma, told) - worse(x, sigma, told) for told in (labels, torch.full_like(labels, -1))]
    plain = ClassifierFree(base, 0.7)(x, sigma, labels)
    by_hand = plain + 0.5 * (plain - (bad[0] + 0.7 * (bad[0] - bad[1])))
    torch.testing.assert_close(whole, by_hand, rtol=1e-4, atol=1e-4)


# -- all of them -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.is_free and method.extra])
@pytest.mark.parametrize("solver", ["heun", "dpmpp2m", "unipc", "euler"])
def test_a_sample_depends_on_its_seed_alone(name: str, solver: SolverName) -> None:
    method: Method = METHODS[name]
    base = network("ddpmpp", (6, 10))
    assert method.extra is not None and (method.fits is None or method.fits(base) is None)
    denoiser = method.construction(_Holder(base), _Holder(base), 0.2, method.extra.usual)
    assert isinstance(denoiser, Guide)
    options = SamplerOptions(solver=solver, steps=4)
    together, _ = sample_seeds(denoiser, range(5), options, batch_size=5)
    alone, _ = sample_seeds(denoiser, [3], options)
    torch.testing.assert_close(alone[0], together[3], rtol=1e-3, atol=1e-4)


class _Holder:
    """As much of a model as a construction asks for."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser = denoiser


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Momentum(TWO, 0.5, 0.0), "memory of momentum is 0.0: give a positive number"),
        (lambda: Momentum(TWO, 0.5, math.inf), "memory of momentum is inf"),
        (lambda: Temperature(TWO, -1.0), "it must be above -1"),
        (lambda: Temperature(TWO, 0.1, scale=-0.5), "scale of the data is -0.5"),
        (lambda: TimeShift(TWO, 0.5, 1.0), "factor of the noise level is 1.0"),
        (lambda: AnotherClass(TWO, 0.5), "2 classes or more: it has 0"),
        (lambda: AnotherClass(CLASSES, 0.5)(torch.zeros(1, 1), torch.ones(1)), "needs the labels"),
        (lambda: Perturbed(TWO, 0.5, "blocks", blocks=("a",)), "no network: there is nothing to perturb"),
        (lambda: Perturbed(network("mlp"), 0.5, "blocks"), "none is named"),
        (lambda: Perturbed(network("mlp"), 0.5, "blocks", blocks=("nothing",)), "'nothing' is not among its parts"),
        (lambda: Perturbed(network("mlp"), 0.5, "dropout", rate=1.0), "rate of dropout is 1.0"),
        (lambda: Perturbed(network("mlp"), 0.5, "noise"), "not by 'noise'"),  # type: ignore[arg-type]
        (
            lambda: Perturbed(network("mlp"), 0.5, "attention")(torch.zeros(1, 1, 8, 8), torch.ones(1)),
            "no self-attention that torch's functions compute",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(make: Callable[[], object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        make()


def test_a_pair_is_one_rule_around_another_and_its_search_is_its_own(digits: Dataset, tmp_path: Path) -> None:
    base, aux = network("mlp"), network("mlp")
    for weight in aux.parameters():
        weight.data += 0.02
    model = tiny.model(digits).with_denoiser(base)
    path = model.with_denoiser(aux).save(tmp_path / "aux")
    sims_method = dataclasses.replace(METHODS["sims"], preparation=lambda *_: Artefact("key", {64: path}, Cost(3)))
    inner = Alone(sims_method, 64, 2.0, cost=Cost(10, 20))
    keys = set()
    for memory, w in ((1.0, 2.0), (2.0, 2.0), (1.0, 1.0)):
        method = paired(dataclasses.replace(inner, w=w), Alone(METHODS["history"], 0, 0.5, memory, Cost(0, 7)))
        artefact = method.preparation(None, None, None, None)  # type: ignore[arg-type]
        assert artefact is not None and artefact.variants == {64: path} and artefact.cost == Cost(10, 27)
        keys.add(artefact.key)
        by_hand = Momentum(sims.Extrapolate(base, aux, 0.75 * w), 0.3, memory)
        built = method.build(model, artefact.load(64), 0.3, 0.75)
        expected = model.with_denoiser(by_hand).sample(range(3))
        torch.testing.assert_close(model.with_denoiser(built).sample(range(3)), expected)
        assert method.build(model, None, 0.0) is base and not method.is_free
    assert len(keys) == 3, "what was found for one pair would be taken for another"


def test_a_pair_guides_at_the_noise_levels_that_were_asked_for() -> None:
    base, aux = gaussian(0.5), gaussian(0.6)
    pair = Momentum(sims.Extrapolate(base, aux, 0.5), 0.3, 1.0)
    limits = limited(pair, base, (0.1, 2.0))
    assert isinstance(limits, Momentum) and isinstance(limits.base, sims.Extrapolate)
    assert limits.interval == limits.base.interval == (0.1, 2.0) and limits.base.base is base
    options = SamplerOptions(steps=9)
    assert sims.nfe(limits, options) == sims.nfe(sims.Extrapolate(base, aux, 0.5, (0.1, 2.0)), options)
    own = sims.Extrapolate(limited(sims.Extrapolate(base, aux, 0.5), base, (0.1, 2.0)), aux, 1.0)
    kept = limited(own, own.base, (0.3, 1.0))  # a base that is guided itself stays as it is
    assert kept is own
