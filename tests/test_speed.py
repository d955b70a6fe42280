"""What makes training and sampling faster changes nothing that is saved, and nothing else but rounding."""

from __future__ import annotations

import copy
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

import tiny
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.guidance import Extrapolate
from sims.model import load
from sims.networks.layers import Resample, ResampleConv
from sims.sampling import SamplerOptions, sample_seeds
from sims.training import trainer as loop
from sims.training.feed import Feed
from sims.training.trainer import Trained, Trainer, TrainOptions

FAST = TrainOptions(batch=32, warmup=64, ema_halflife=200.0, checkpoint_seconds=0.0, precision="fp32")
UNET: dict[str, Any] = {"width": 64, "blocks": 1, "channel_mult": (1,), "attention": (4,)}


class Interrupted(Exception):
    """Stands for whatever ends a process."""


def train(
    data: Dataset, folder: Path, options: TrainOptions, images: int = 320, stop: int | None = None, **network: Any
) -> Trained:
    steps = 0

    def advance(count: int) -> None:
        nonlocal steps
        steps += 1
        if stop is not None and steps > stop:
            raise Interrupted

    trainer = Trainer(tiny.model(data, **network), data, options, folder, images=images, seed=5)
    return trainer.run(advance, lambda text: None)


def tensors(trained: Trained) -> dict[str, Tensor]:
    """The state to resume from and the model, in one."""
    model = load_file(trained.last / "model.safetensors")
    return load_file(trained.folder / "state.safetensors") | {f"model.{name}": value for name, value in model.items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def interrupted(data: Dataset, folder: Path, options: TrainOptions, **network: Any) -> Trained:
    with pytest.raises(Interrupted):
        train(data, folder, options, stop=4, **network)
    return train(data, folder, options, **network)


# -- precision ---------------------------------------------------------------------------------------------------------


def test_fp16_on_a_cpu_is_one_clear_error(plain: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="needs a GPU"):
        train(plain, tmp_path, replace(FAST, precision="fp16"))
    with pytest.raises(UserError, match="needs a GPU"):
        tiny.model(plain).sample(range(2), sampler=SamplerOptions(steps=2, precision="fp16"))
    with pytest.raises(UserError, match="fp32, bf16, fp16"):
        tiny.model(plain).sample(range(2), sampler=SamplerOptions(steps=2, precision="fp8"))  # type: ignore[arg-type]


def test_fp16_scales_the_loss_and_resumes_bit_for_bit(
    plain: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = train(plain, tmp_path / "exact", FAST)
    monkeypatch.setattr(loop, "autocast_dtype", lambda precision, device: torch.float16)
    scaler = {"init_scale": 2.0**24, "growth_interval": 3}
    monkeypatch.setattr(loop, "loss_scaler", lambda dtype, device: torch.amp.GradScaler("cpu", **scaler))
    whole = train(plain, tmp_path / "whole", replace(FAST, precision="fp16"))
    parts = interrupted(plain, tmp_path / "parts", replace(FAST, precision="fp16"))
    assert whole.losses == parts.losses and whole.nonfinite == parts.nonfinite
    assert 0 < whole.nonfinite < 10, "the first scale overflows, a later one does not"
    assert same(tensors(whole), tensors(parts))
    positions = []
    for run in (whole, parts):
        with safe_open(run.folder / "state.safetensors", framework="pt") as opened:
            positions.append(opened.metadata()["position"])
    assert positions[0] == positions[1] and '"scale"' in positions[0]
    assert tensors(whole).keys() == tensors(exact).keys()
    assert whole.losses[-1][1] == pytest.approx(exact.losses[-1][1], rel=0.2), "the scale is taken out before the step"


def test_bf16_samples_are_near_those_of_fp32(plain: Dataset, tmp_path: Path) -> None:
    model = load(train(plain, tmp_path, FAST, images=640).last)
    exact, rounded = (model.sample(range(16), sampler=SamplerOptions(steps=5, precision=p)) for p in ("fp32", "bf16"))
    error = float((exact - rounded).square().mean().sqrt() / exact.std())
    assert 0 < error < 0.05
    cut = model.sample(range(16), sampler=SamplerOptions(steps=5, precision="bf16"), batch_size=8)
    assert torch.allclose(cut, rounded, atol=0.1)


# -- the loop ----------------------------------------------------------------------------------------------------------


def test_a_batch_in_four_parts_has_the_same_losses(plain: Dataset, tmp_path: Path) -> None:
    whole = train(plain, tmp_path / "1", FAST)
    parts = train(plain, tmp_path / "4", replace(FAST, accumulate=4))
    assert [seen for seen, _ in whole.losses] == [seen for seen, _ in parts.losses]
    for (_, a), (_, b) in zip(whole.losses, parts.losses, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_batches_made_ahead_are_the_same(
    plain: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int
) -> None:
    options = replace(FAST, accumulate=accumulate)
    whole = train(plain, tmp_path / "whole", options)
    monkeypatch.setattr(loop, "Feed", lambda make, ahead: Feed(make, ahead=True))
    assert same(tensors(whole), tensors(interrupted(plain, tmp_path / "ahead", options)))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_a_feed_makes_one_batch_ahead_and_passes_errors_on() -> None:
    made: list[tuple[int, int]] = []

    def make(first: int, count: int) -> list[int]:
        made.append((first, count))
        if first == 9:
            raise UserError("no such image")
        return list(range(first, first + count))

    feed = Feed(make, ahead=True)
    assert feed.take((0, 3), (3, 3)) == [0, 1, 2]
    assert feed.take((3, 3), (6, 3)) == [3, 4, 5]
    assert feed.take((0, 2), (9, 1)) == [0, 1]  # not what was expected
    with pytest.raises(UserError, match="no such image"):
        feed.take((9, 1))
    feed.close()
    assert made == [(0, 3), (3, 3), (6, 3), (0, 2), (9, 1)]


# -- compilation -------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """torch.compile without its last stage, the slow C++ compiler; the modules that were compiled."""
    compiled: list[nn.Module] = []
    original = nn.Module.compile

    def compile(self: nn.Module, mode: str | None = None) -> None:
        compiled.append(self)
        original(self, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", compile)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    return compiled


def test_compiled_training_saves_the_same_names_and_resumes(
    plain: Dataset, tmp_path: Path, quick_compiler: list[nn.Module]
) -> None:
    plainly = train(plain, tmp_path / "plainly", FAST)
    assert not quick_compiler
    options = replace(FAST, compile=True)
    whole = train(plain, tmp_path / "whole", options)
    assert len(quick_compiler) == 1
    assert same(tensors(whole), tensors(interrupted(plain, tmp_path / "parts", options)))
    ours, theirs = tensors(whole), tensors(plainly)
    assert ours.keys() == theirs.keys()
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-3) for name in ours if name.startswith("model."))
    before, after = ((run.last / "model.json").read_text().split('"hash"')[0] for run in (plainly, whole))
    assert before.split("weights_sha256")[0] == after.split("weights_sha256")[0]


def test_compiled_sampling_compiles_each_network_once(plain: Dataset, quick_compiler: list[nn.Module]) -> None:
    base, aux = tiny.model(plain), tiny.model(plain, seed=1)
    pair = base.guided(aux, 0.5)
    expected, hashed = pair.sample(range(6), batch_size=4), pair.hash
    options = replace(pair.sampler, compile=True)
    found = [pair.sample(range(6), batch_size=4, sampler=options) for _ in range(2)]
    assert len(quick_compiler) == 2 and quick_compiler[0] is base.denoiser.network  # type: ignore[attr-defined]
    assert torch.allclose(found[0], expected, atol=1e-4) and torch.equal(*found)
    assert pair.hash == hashed
    copied = copy.deepcopy(base.denoiser)
    assert copied.network._compiled_call_impl is None  # type: ignore[attr-defined]
    nothing = Extrapolate(base.denoiser, aux.denoiser, 0.0)
    assert torch.equal(sample_seeds(nothing, range(4), options)[0], sample_seeds(base.denoiser, range(4), options)[0])


def test_compile_without_a_compiler_is_one_clear_error(
    plain: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"C\+\+ compiler"):
        tiny.model(plain).sample(range(2), sampler=SamplerOptions(steps=2, compile=True))
    with pytest.raises(UserError, match=r"C\+\+ compiler"):
        train(plain, tmp_path, replace(FAST, compile=True))


# -- memory layout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind, innermost", [("edm2", True), ("ddpmpp", False), ("mlp", False)])
def test_channels_lie_innermost_where_that_pays(plain: Dataset, tmp_path: Path, kind: str, innermost: bool) -> None:
    options = replace(FAST, batch=8)
    whole = train(plain, tmp_path / "whole", options, images=64, type=kind, **UNET)
    parts = interrupted(plain, tmp_path / "parts", options, images=64, type=kind, **UNET)
    assert same(tensors(whole), tensors(parts)), "the moments, too, come back as they lay"
    model = load(whole.last)
    network = model.denoiser
    assert isinstance(network, nn.Module)

    def lie_innermost(values: Any) -> bool:
        found = [v for v in values if v.ndim == 4 and v[0].numel() > v.shape[1] > 1]
        return bool(found) and all(v.is_contiguous(memory_format=torch.channels_last) for v in found)

    for one in (network, copy.deepcopy(network), tiny.model(plain, type=kind, **UNET).denoiser):
        assert lie_innermost(one.parameters()) == innermost  # type: ignore[attr-defined]
    ordinary = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    assert model.with_denoiser(ordinary).hash == model.hash
    saved = model.save(tmp_path / "again") / "model.safetensors"
    assert saved.read_bytes() == (whole.last / "model.safetensors").read_bytes()
    expected = model.with_denoiser(ordinary).sample(range(3))
    assert torch.allclose(model.sample(range(3)), expected, atol=1e-3)


@pytest.mark.parametrize("kernel", [0, 1, 3])
@pytest.mark.parametrize("direction, fused", [("up", False), ("down", False), ("down", True)])
def test_a_filter_of_two_equal_taps_is_done_without_a_convolution(kernel: int, direction: Any, fused: bool) -> None:
    torch.manual_seed(0)
    made: Any = ResampleConv(3, 4, kernel, [1, 1], direction, fused) if kernel else Resample([1, 1], direction)
    x = torch.randn(2, 3, 8, 8)
    quick = made(x)
    assert made.box and not Resample([1, 3, 3, 1], direction).box and not Resample([1, 2], direction).box
    made.box = False
    torch.testing.assert_close(quick, made(x))
