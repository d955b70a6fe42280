"""Guidance by a light head on the base's middle layer: one pass for both, found in every network, trained alone."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sims
import tiny
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.experiments.cost import rates
from sims.guidance import CacheRule
from sims.guidance.head_guide import HeadGuide
from sims.heads import HeadPrecond, new_head
from sims.methods import METHODS, Base, Settings, default_methods
from sims.methods.settings import AuxiliarySettings
from sims.model import Model, load, make_network
from sims.networks.feature_head import FeatureHead
from sims.networks.middle import BATCH, middle_layer
from sims.preconditioning import Preconditioned
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.runs.directory import Run
from sims.sampling import nfe
from sims.training.options import TrainOptions

HEAD = METHODS["head"]
LEVELS = (0.05, 0.7, 20.0)
UNET: dict[str, Any] = {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...], str]] = {
    "mlp": ({"type": "mlp", "width": 32, "blocks": 3}, (1, 8, 8), "blocks.1"),
    "points": ({"type": "mlp", "width": 32, "blocks": 3}, (2,), "blocks.1"),
    "ddpmpp": ({"type": "song_unet", "model_channels": 16, **UNET}, (3, 8, 8), "dec.4x4_in0"),
    "adm": ({"type": "adm_unet", "model_channels": 64, **UNET}, (3, 8, 8), "dec.4x4_in0"),
    "edm2": ({"type": "edm2_unet", "model_channels": 16, "channels_per_head": 16, **UNET}, (3, 8, 8), "dec.4x4_in0"),
    "dit": ({"type": "dit", "hidden_size": 32, "depth": 4, "num_heads": 2}, (3, 8, 8), "blocks.1"),
    "ddpmpp 6x10": ({"type": "song_unet", "model_channels": 16, **UNET}, (3, 6, 10), "dec.3x5_in0"),
    "ddpmpp 6x10, padded": (
        {"type": "song_unet", "model_channels": 16, **UNET, "channel_mult": [1, 1, 1]}, (3, 6, 10), "dec.2x3_in0",
    ),
    "dit 6x10, padded": (
        {"type": "dit", "hidden_size": 32, "depth": 4, "num_heads": 2, "patch_size": 4}, (3, 6, 10), "blocks.1",
    ),
}  # fmt: skip


def moved(network: nn.Module, seed: int = 0) -> Any:
    """The network in evaluation mode with noise on its weights, so that zeros at the start hide nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    return network.eval().requires_grad_(False)


def pair_of(name: str, classes: int = 3) -> tuple[Preconditioned, HeadPrecond]:
    table, shape, _ = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind = "edm2" if name == "edm2" else "edm"
        base = moved(make_network(shape, classes, dict(table), {"type": kind, "sigma_data": 0.5}))
    return base, moved(new_head(base, 1), 1)


def noisy(base: Any, sigma: float, count: int = 4) -> tuple[Tensor, Tensor, Tensor | None]:
    x = torch.randn(count, *base.data_shape, generator=torch.Generator().manual_seed(count))
    labels = torch.arange(count) % base.num_classes if base.num_classes else None
    return sigma * x, torch.full((count,), sigma), labels


def by_hand(base: Preconditioned, head: HeadPrecond, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """D_head by Karras et al., equation 7, with a hook of torch's own on the layer."""
    found: list[Tensor] = []
    network = head.network
    assert isinstance(network, FeatureHead)
    hook = base.network.get_submodule(network.layer).register_forward_hook(lambda *a: found.append(a[2]))
    base(x, sigma, labels)
    hook.remove()
    c_skip, c_out, c_in, _ = (c.reshape(-1, *[1] * (x.ndim - 1)) for c in base.coefficients(sigma))
    return c_skip * x + c_out * network(c_in * x, sigma.log() / 4, found[0])


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_middle_is_found_and_the_estimate_is_the_formula(name: str) -> None:
    base, head = pair_of(name)
    network = head.network
    assert isinstance(network, FeatureHead) and network.layer == NETWORKS[name][2]
    for sigma in LEVELS:
        x, levels, labels = noisy(base, sigma)
        plain, weak = base(x, levels, labels), by_hand(base, head, x, levels, labels)
        assert torch.allclose(head(x, levels, labels), weak, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(plain, weak, atol=1e-3 * sigma)
        for w in (0.5, 2.0):
            guided = HeadGuide(base, head, w)(x, levels, labels)
            assert torch.allclose(guided, plain + w * (plain - weak), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_sample_does_not_see_its_batch_and_levels_may_differ(name: str) -> None:
    base, head = pair_of(name)
    guide = HeadGuide(base, head, 1.5)
    x, _, labels = noisy(base, 1.0)
    levels = torch.tensor([0.1, 0.5, 0.5, 10.0])
    together = guide(x, levels, labels)
    alone = torch.cat([guide(x[i : i + 1], levels[i : i + 1], labels[i : i + 1]) for i in range(4)])  # type: ignore[index]
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_head_is_small(name: str) -> None:
    table, shape, _ = NETWORKS[name]
    table = {**table, **{key: 128 for key in ("width", "model_channels", "hidden_size") if key in table}}
    kind = "edm2" if name == "edm2" else "edm"
    base = make_network(shape, 0, table, {"type": kind})
    sizes = [sum(weight.numel() for weight in one.parameters()) for one in (new_head(base, 0), base)]
    assert sizes[0] < 0.09 * sizes[1], sizes


@pytest.fixture
def model(plain: Dataset) -> tuple[Model, HeadPrecond]:
    base = tiny.model(plain, blocks=3)
    moved(base.denoiser)  # type: ignore[arg-type]
    return base, moved(new_head(base.denoiser, 1), 1)


def test_strength_zero_is_the_base_bit_for_bit(model: tuple[Model, HeadPrecond]) -> None:
    base, head = model
    off = base.with_denoiser(HeadGuide(base.denoiser, head, 0.0))
    assert torch.equal(off.sample(range(6)), base.sample(range(6)))
    on = base.with_denoiser(HeadGuide(base.denoiser, head, 1.0))
    assert not torch.equal(on.sample(range(6)), base.sample(range(6)))
    nowhere = base.with_denoiser(HeadGuide(base.denoiser, head, 1.0, (0.0, 1e-6)))
    assert torch.equal(nowhere.sample(range(6)), base.sample(range(6)))


def test_the_base_is_evaluated_once_at_every_level(model: tuple[Model, HeadPrecond]) -> None:
    base, head = model
    calls = []
    base.denoiser.network.write.register_forward_hook(lambda *a: calls.append(1))  # type: ignore[attr-defined]
    guided = base.with_denoiser(HeadGuide(base.denoiser, head, 1.0))
    guided.sample(range(4))
    assert len(calls) == nfe(guided, base.sampler) == nfe(base, base.sampler) == 9  # type: ignore[arg-type]
    cached = CacheRule.from_pilot(guided.denoiser, range(8), base.sampler, refreshes=2)  # type: ignore[arg-type]
    calls.clear()
    few = base.with_denoiser(HeadGuide(base.denoiser, head, 1.0, cache=cached))
    assert torch.isfinite(few.sample(range(4))).all() and len(calls) == 9


def test_nothing_is_left_behind(model: tuple[Model, HeadPrecond]) -> None:
    """Neither in the base, nor between calls, nor between threads; deep copies share no more than they should."""
    base, head = model
    guide = HeadGuide(base.denoiser, head, 1.0)
    modules = dict(base.denoiser.named_modules())  # type: ignore[attr-defined]
    jobs = [noisy(base, sigma, count) for sigma in LEVELS for count in (1, 3, 40)] * 4
    with torch.no_grad():
        expected = [guide(*job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: torch.no_grad()(guide)(*job), jobs))
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in modules.values())
    assert dict(base.denoiser.named_modules()) == modules  # type: ignore[attr-defined]
    assert copy.deepcopy(head).base is base.denoiser


def test_a_compiled_base_is_read_uncompiled(model: tuple[Model, HeadPrecond]) -> None:
    base, head = model
    guide, job = HeadGuide(base.denoiser, head, 1.0), noisy(base, 1.0)
    guide.compile_networks()
    network = base.denoiser.network  # type: ignore[attr-defined]
    assert network._compiled_call_impl is None
    with torch.no_grad():
        expected = guide(*job)
        network._compiled_call_impl = lambda *_: pytest.fail("what is compiled shows nothing of its inside")
        assert torch.equal(guide(*job), expected)


def test_saved_and_loaded_it_is_the_same(model: tuple[Model, HeadPrecond], tmp_path: Path, say: tiny.Say) -> None:
    base, head = model
    guided = base.with_denoiser(HeadGuide(base.denoiser, head, 1.5, (0.01, 30.0)))
    again = load(guided.save(tmp_path / "model"))
    assert again.hash == guided.hash and torch.equal(again.sample(range(4)), guided.sample(range(4)))
    entry = json.loads((tmp_path / "model" / "head" / "model.json").read_text())
    assert entry["network"] == {"type": "feature_head", "layer": "blocks.1", "shape": [32]}
    with torch.no_grad():
        next(head.parameters()).mul_(1.01)
    assert guided.hash != again.hash and again.device == torch.device("cpu")
    status, out, _ = say("inspect", tmp_path / "model")
    assert status == 0 and "head: D = D_base + w (D_base - D_head)" in out and "head (" in out
    assert say("sample", tmp_path / "model", "--seeds", "0-3", "--out", tmp_path / "samples")[0] == 0
    status, _, err = say("export", tmp_path / "model", tmp_path / "out")
    assert status == 2 and "head cannot be exported" in err
    assert say("inspect", tmp_path / "model" / "head")[0] == 0
    status, _, err = say("sample", tmp_path / "model" / "head", "--seeds", "0-3", "--out", tmp_path / "alone")
    assert status == 2 and "a head is no model by itself" in err
    with pytest.raises(UserError, match=r"argument 'network\.shape': 'wide' is not"):
        _changed(tmp_path / "model" / "head" / "model.json", shape="wide")


def _changed(file: Path, **network: Any) -> Model:
    entry = json.loads(file.read_text())
    entry["network"] |= network
    file.write_text(json.dumps(entry))
    return load(file.parent)


def test_where_it_cannot_be_it_says_so(model: tuple[Model, HeadPrecond]) -> None:
    base, head = model
    pair = base.guided(base, 0.5).denoiser
    own = pair_of("dit", 0)[1]
    with pytest.raises(UserError, match="a single network, and a Extrapolate is none"):
        new_head(pair, 0)
    with pytest.raises(UserError, match="a single network, and a Extrapolate is none"):
        HeadGuide(pair, head, 1.0)
    with pytest.raises(UserError, match="a EDMPrecond is no head"):
        HeadGuide(base.denoiser, base.denoiser, 1.0)
    shapeless = make_network((1, 8, 8), 0, {"type": "mlp", "width": 16, "blocks": 3}, {"type": "edm"}).eval()
    with pytest.raises(UserError, match=r"gives \(16,\) for a sample.*\(32,\): it was trained on another base"):
        HeadGuide(shapeless, head, 1.0)(*noisy(shapeless, 1.0))
    unlike = make_network((3, 8, 8), 0, {"type": "mlp", "width": 16, "blocks": 1}, {"type": "edm"})
    with pytest.raises(UserError, match=r"no layer 'blocks\.1'"):
        HeadGuide(unlike, own, 1.0)
    line = nn.Linear(2, 2)
    with pytest.raises(UserError, match="Linear has no layer in its middle"):
        middle_layer(line, line, torch.zeros(BATCH, 2))
    replicas = make_network((4, 2), 0, {"type": "replica_mlp"}, {"type": "edm"})
    with pytest.raises(UserError, match=r"data of shape \(4, 2\)"):
        new_head(replicas, 0)


def test_a_network_of_ones_own_and_another_range() -> None:
    """The correction is the base's own c_out times the difference, in the range that the network knows."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1))
            self.out = nn.Conv2d(8, 2, 3, padding=1)  # a variance too

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.out(self.layers(x) * (1 + t[:, None, None, None]))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    how: dict[str, Any] = {"prediction": "eps", "schedule": "cosine", "data_range": (0.0, 1.0)}
    wrapped = sims.wrap(Net(), data_shape=(1, 6, 10), **how)
    head = moved(new_head(wrapped.denoiser, 0))
    assert head.network.layer == "module.layers.0"
    base: Any = wrapped.denoiser
    x, sigma, _ = noisy(base, 0.8)
    with torch.no_grad():
        both = HeadGuide(base, head, 1.0)(x, sigma), base(x, sigma)
        network = base.network
        base.network = _Instead(network, head.network, sigma)
        weak = base(x, sigma)
        base.network = network
    assert torch.allclose(both[0], 2 * both[1] - weak, atol=1e-4)
    assert not torch.allclose(both[1], weak, atol=1e-2)


class _Instead(nn.Module):
    """The head in the place of the network."""

    def __init__(self, network: nn.Module, head: FeatureHead, sigma: Tensor) -> None:
        super().__init__()
        self.network, self.head, self.sigma = network, head, sigma

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        found: list[Tensor] = []
        hook = self.network.get_submodule(self.head.layer).register_forward_hook(lambda *a: found.append(a[2]))
        self.network(x, time, labels)
        hook.remove()
        return self.head(x, self.sigma.log() / 4, found[0])  # type: ignore[no-any-return]


def test_a_unet_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
    from sims.interop.diffusers_network import DiffusersDenoiser, DiffusersNetwork

    blocks = {"down_block_types": ("DownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "UpBlock2D")}
    sizes = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    unet = moved(diffusers.UNet2DModel(in_channels=1, out_channels=1, **blocks, **sizes))
    network = DiffusersNetwork((1, 8, 8), 0, model=unet)
    base: Any = DiffusersDenoiser(network, (1, 8, 8), 0, {"_class_name": "DDPMScheduler"}).eval()
    head = moved(new_head(base, 0))
    assert head.network.shape == (16, 4, 4)
    x, sigma, _ = noisy(base, 0.8)
    with torch.no_grad():
        plain, weak = base(x, sigma), by_hand(base, head, x, sigma, None)
        assert torch.allclose(HeadGuide(base, head, 1.0)(x, sigma), 2 * plain - weak, atol=1e-4)


# ---- trained


FAST = TrainOptions(batch=32, warmup=64, ema_halflife=200, checkpoint_seconds=1e9)
SETTINGS = Settings(AuxiliarySettings(samples=40, budgets=(640, 1280), train=FAST), seed=3, batch_size=20)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(tmp_path / "run", {}, quiet=True)
    yield run
    run.close()


def test_the_head_is_trained_alone_and_again_the_same(model: tuple[Model, HeadPrecond], run: Run) -> None:
    """The base keeps its weights, the head's loss falls, and a training that is cut off leaves the same files."""
    given, _ = model
    base, before = Base(given, given.hash), given.hash
    artefact = HEAD.prepare(base, None, SETTINGS, run)
    assert artefact is not None and given.hash == before and sorted(artefact.variants) == [640, 1280]
    folder = run.path / "artefacts" / artefact.key
    losses = json.loads((folder / "done.json").read_text())["losses"]
    assert losses[-1][1] < losses[0][1]
    aux = artefact.load(1280)
    assert isinstance(aux.denoiser, HeadPrecond) and isinstance(HEAD.build(given, aux, 1.0), HeadGuide)
    assert artefact.cost.images == 0 and artefact.cost.evaluations == 40 * 9 + 2 * 1280
    files = tiny.snapshot(folder)
    for gone in ("done.json", "state.safetensors", *[f"snapshots/{budget:09d}/model.json" for budget in (640, 1280)]):
        (folder / gone).unlink()
    assert HEAD.prepare(base, None, SETTINGS, run) == artefact and tiny.snapshot(folder) == files


def test_a_training_that_was_cut_off_goes_on(
    model: tuple[Model, HeadPrecond], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sims.training.trainer import Trainer

    given, _ = model
    base, update = Base(given, given.hash), Trainer.update
    settings = Settings(AuxiliarySettings(40, (1280,), train=TrainOptions(32, checkpoint_seconds=1e-9)), 3, 0, 20)
    expected = HEAD.prepare(base, None, settings, run)
    assert expected is not None
    folder = run.path / "artefacts" / expected.key
    files = tiny.snapshot(folder)
    for file in folder.rglob("*"):
        if file.is_file():
            file.unlink()

    def killed(self: Trainer) -> tuple[float, bool]:
        if self.step == 17:
            raise KeyboardInterrupt
        return update(self)

    monkeypatch.setattr(Trainer, "update", killed)
    with pytest.raises(KeyboardInterrupt):
        HEAD.prepare(base, None, settings, run)
    monkeypatch.undo()
    assert not (folder / "done.json").exists() and (folder / "state.safetensors").exists()
    assert HEAD.prepare(base, None, settings, run) == expected and tiny.snapshot(folder) == files


def test_in_a_run(tmp_path: Path, say: tiny.Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SECONDS", 0.1)
    words = tiny.improve_arguments(
        tmp_path / "run", *tiny.PCA, "--methods", "base,sims,head", "--guidance.cache-cost", "0"
    )
    status, out, _ = say("improve", "--help")
    assert status == 0 and "head" not in default_methods()
    status, out, _ = say(*words, "--dry-run")
    stages = {line[:30].strip() for line in out.splitlines()}
    assert status == 0 and {"prepare head", "search head", "evaluate head"} <= stages
    status, _, err = say(*words)
    assert status == 0 and any(line.startswith("│ head ") for line in err.splitlines())
    result = read_result(tmp_path / "run", ImproveResult)
    row = result.row("head")
    assert row is not None and row.nfe == 11 and row.figures["fd"].mean > 0 and result.looks["head"] == HEAD.look
    assert "head" in (tmp_path / "run" / "report.html").read_text()
    assert result.search is not None and result.search.chosen["head"].w == row.w
