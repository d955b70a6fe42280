"""Checkpoints of others: recognized, read as they are, and every assumption said."""

from __future__ import annotations

import argparse
import copy
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import published
from sims import interpolants
from sims.cli import main
from sims.errors import UserError
from sims.experiments.base_model import given_model
from sims.interop.checkpoints import _seen, parsed, read_checkpoint
from sims.interop.families import Understood
from sims.interop.opening import open_model
from sims.interop.reading import Assumptions, said
from sims.model import Model, load
from sims.networks import NETWORKS
from sims.preconditioning import ConsistencyPrecond
from sims.sampling import SamplerOptions
from sims.training.loss import denoising_loss
from test_golden import GOLDEN, off
from test_golden import read as golden

X = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.0, 300.0, 999.0])


def weights(kind: str, shape: tuple[int, ...], classes: int = 0, **table: Any) -> dict[str, Tensor]:
    """Random weights of a network, none of them zero, under its published names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = NETWORKS[kind](shape, classes, **table).state_dict()
        return {n: t if n == "pos_embed" else t + 0.05 * torch.randn(t.shape) for n, t in state.items()}


def dit(classes: int = 10, **table: Any) -> dict[str, Tensor]:
    sizes = {"out_channels": 8, "hidden_size": 32, "depth": 2, "num_heads": 4, **table}
    return weights("dit", (4, 8, 8), classes, **sizes)


def unet(classes: int = 0, **table: Any) -> dict[str, Tensor]:
    sizes = {"model_channels": 32, "widths": (32, 64), "num_blocks": 1, "attention": (1,), "num_heads": 4, **table}
    return weights("guided_unet", (3, 16, 16), classes, **sizes)


def ddp(**table: Any) -> dict[str, Tensor]:
    sizes = {"model_channels": 16, "first": 16, "widths": (16, 32), "full_attention": (False, True), "heads": (2, 2)}
    return weights("ddp_unet", (3, 16, 16), **{**sizes, "head_channels": (8, 8), **table})


def write(folder: Path, content: object, name: str = "net.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def raw(model: Model) -> nn.Module:
    return model.denoiser.network  # type: ignore[attr-defined,no-any-return]


needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden files at {GOLDEN}: set SIMS_GOLDEN")


@needs_golden
@pytest.mark.parametrize("form", ["safetensors", "state dict"])
@pytest.mark.parametrize(
    "name, given",
    [
        ("dit-cond-sigma", Assumptions(heads=4)),
        ("sit-cond", Assumptions(heads=4, prediction="velocity")),
        ("guided-diffusion-unet-cond", Assumptions(head_channels=16, size=16)),
    ],
)
def test_published_outputs(name: str, given: Assumptions, form: str, tmp_path: Path) -> None:
    _, tensors = golden(name)
    file = GOLDEN / f"{name}.safetensors"
    if form == "state dict":
        state = {key.removeprefix("state."): value for key, value in tensors.items() if key.startswith("state.")}
        file = write(tmp_path, {"model": {key: 0 * value for key, value in state.items()}, "ema": state})
    model = read_checkpoint(file, given if form == "state dict" else None)
    expected = tensors["out.raw"]
    output = raw(model)(tensors["in.x"], tensors["in.t"], tensors["in.labels"])
    assert off(output[:, : expected.shape[1]], expected) < 1e-5
    none = tensors["in.labels"].where(tensors["in.labels"] < model.num_classes, -1)
    torch.testing.assert_close(raw(model)(tensors["in.x"], tensors["in.t"], none), output)
    again = load(model.save(tmp_path / "model"))
    assert again.hash == model.hash
    assert again.sample(range(2), sampler=SamplerOptions(steps=2, sigma_max=80.0)).isfinite().all()


def fine_tuned(model: Model) -> float:
    """By how much one step on a picture, as training takes it, lowers the loss there."""
    denoiser: Any = load_copy(model)
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(4, *model.data_shape, generator=generator) for _ in range(2))
    sigma = denoiser.training_sigma(torch.randn(4, generator=generator), -1.2, 1.2)
    labels = torch.arange(4) % model.num_classes if model.num_classes else None
    optimizer = torch.optim.SGD(denoiser.parameters(), 1e-6)
    before = denoising_loss(denoiser, 0.5 * clean, labels, noise, sigma)
    before.backward()
    largest = max(p.grad.abs().max() for p in denoiser.parameters() if p.grad is not None)
    optimizer.param_groups[0]["lr"] = float(1e-3 / largest)
    optimizer.step()
    with torch.no_grad():
        return float(before.detach() - denoising_loss(denoiser, 0.5 * clean, labels, noise, sigma))


def load_copy(model: Model) -> nn.Module:
    return copy.deepcopy(model.denoiser).requires_grad_(True)  # type: ignore[arg-type,return-value]


CHECKPOINTS: dict[str, tuple[str, Callable[[], Any], Assumptions, str]] = {
    "a DiT as its training leaves it": (
        "0100000.pt",
        lambda: {"model": dit(), "ema": dit(), "args": argparse.Namespace(model="DiT-S/2", num_classes=10)},
        Assumptions(heads=4), "prediction eps: of a DiT, by its name",
    ),
    "a SiT as its training leaves it": (
        "0100000.pt",
        lambda: {"ema": dit(), "args": argparse.Namespace(model="SiT-S/2", path_type="GVP", prediction="velocity")},
        Assumptions(heads=4), "schedule trigonometric, data_at 1",
    ),
    "no classes": ("dit.pt", lambda: dit(0, out_channels=4), Assumptions(heads=4), "latents scaled by 0.18215"),
    "guided-diffusion": ("64x64.pt", lambda: unet(10, out_channels=6), Assumptions(size=16), "head channels 64: usual"),
    "improved-diffusion": (
        "ema_0.9999_500000.pt", lambda: unet(out_channels=6, resampling="conv", scale_shift=False),
        Assumptions(schedule="cosine:steps=4000,scale=0.25"), "size 16: its lowest resolution taken for 8",
    ),
    "consistency models": (
        "cd_toy.pt", lambda: unet(4, pointwise=2, order="new"), Assumptions(), "prediction consistency"),
    "their teacher": ("edm_toy.pt", lambda: unet(pointwise=2, order="new"), Assumptions(), "schedule edm, scale 1000"),
    "flow matching": (
        "checkpoint.pth", lambda: flow(unet(resampling="plain", order="new")),
        Assumptions(attention_order="new"), "schedule rectified_flow, data_at 1",
    ),
    "denoising-diffusion-pytorch": (
        "model-10.pt", lambda: trainer(ddp(), "pred_v"), Assumptions(size=16), "prediction v: by the weights of its",
    ),
    "its U-Net alone": ("unet.pt", ddp, Assumptions(), "schedule cosine"),
}  # fmt: skip


def flow(state: dict[str, Tensor]) -> dict[str, Any]:
    """As flow matching's example keeps a network: averages by number, beside weights."""
    weights = {f"model.{name}": 0 * tensor for name, tensor in state.items()}
    averages = {f"shadow_params.{i}": tensor for i, tensor in enumerate(state.values())}
    return {"model": {**weights, "num_updates": torch.tensor(9), **averages}, "args": argparse.Namespace(lr=1e-4)}


def trainer(state: dict[str, Tensor], objective: str, clip: float = 1e9, times: int = 50) -> dict[str, Any]:
    """As denoising-diffusion-pytorch's trainer keeps one: with the tables of its diffusion, and averages."""
    betas = torch.linspace(1e-3, 0.2, times, dtype=torch.float64)
    alphas = (1 - betas).cumprod(0)
    snr = alphas / (1 - alphas)
    cut = snr.clamp(max=clip)
    weight = {"pred_noise": cut / snr, "pred_x0": cut, "pred_v": cut / (snr + 1)}[objective]
    tables = {"betas": betas, "alphas_cumprod": alphas, "loss_weight": weight}
    buffers = {name: table.float() for name, table in tables.items()}
    inside = {**buffers, **{f"model.{name}": 0 * tensor for name, tensor in state.items()}}
    averaged = {**buffers, **{f"model.{name}": tensor for name, tensor in state.items()}}
    ema = {f"online_model.{name}": tensor for name, tensor in inside.items()}
    ema |= {f"ema_model.{name}": tensor for name, tensor in averaged.items()}
    return {"step": 10, "model": inside, "ema": {**ema, "initted": torch.tensor(True)}, "version": "2.3.4"}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_every_family_is_imported_saved_sampled_and_trained(name: str, tmp_path: Path) -> None:
    file, make, given, words = CHECKPOINTS[name]
    model = read_checkpoint(write(tmp_path, make(), file), given)
    assert words in "\n".join(said(model))
    again = load(model.save(tmp_path / "model"))
    assert again.hash == model.hash
    few = SamplerOptions(steps=2, sigma_max=min(80.0, model.sigma_max))
    samples = model.sample(range(2), sampler=few)
    assert samples.isfinite().all()
    assert samples.std() > 0
    assert torch.equal(again.sample(range(2), sampler=few), samples)
    assert any(p.abs().sum() for p in raw(model).parameters()), "the averages are taken, and the weights are zeros"
    assert fine_tuned(model) > 0


GUIDED: dict[str, dict[str, Any]] = {
    "guided-diffusion": {"classes": 10, "out_channels": 6},
    "new order": {"order": "new"},
    "improved-diffusion": {"resampling": "conv", "scale_shift": False, "attention": (0, 1)},
    "no convolutions": {"resampling": "plain", "order": "new"},
    "consistency models": {"classes": 4, "pointwise": 2, "order": "new"},
}


@pytest.mark.parametrize("name", GUIDED)
def test_a_unet_computes_what_its_names_say(name: str, tmp_path: Path) -> None:
    settings = dict(GUIDED[name])
    state = unet(**settings)
    given = Assumptions(attention_order=settings.get("order", "legacy"), heads=4, size=16)
    network = raw(read_checkpoint(write(tmp_path, state), given))
    labels = torch.tensor([0, 3, 1]) if "classes" in settings else None
    expected = published.guided(state, X, T, labels, 4, settings.get("order", "legacy") == "legacy")
    assert off(network(X, T, labels), expected) < 1e-5


def test_a_last_row_of_zeros_stands_for_no_class(tmp_path: Path) -> None:
    state = unet(5)
    state["label_emb.weight"][-1] = 0
    model = read_checkpoint(write(tmp_path, state))
    assert model.num_classes == 4
    assert "prediction velocity" in "\n".join(said(model))
    none, last = (raw(model)(X, T, labels) for labels in (None, torch.full((3,), 4)))
    torch.testing.assert_close(none, last)


@pytest.mark.parametrize("groups", [0, 8])
def test_a_network_of_denoising_diffusion_pytorch_computes_what_its_names_say(groups: int, tmp_path: Path) -> None:
    state = ddp(groups=groups)
    model = read_checkpoint(write(tmp_path, trainer(state, "pred_noise"), "model-64.pt"))
    assert model.data_shape == (3, 16, 16), "64 is the number of a file"
    network = raw(model)
    assert off(network(X, T), published.ddp(state, X, T, levels=2)) < 1e-5


@pytest.mark.parametrize("clip", [1e9, 5.0])
@pytest.mark.parametrize("objective, prediction", [("pred_noise", "eps"), ("pred_x0", "x0"), ("pred_v", "v")])
def test_tables_in_the_file_say_what_is_predicted(objective: str, prediction: str, clip: float, tmp_path: Path) -> None:
    denoiser: Any = read_checkpoint(write(tmp_path, trainer(ddp(), objective, clip))).denoiser
    assert denoiser.prediction == prediction
    assert denoiser.schedule.count == 50
    alphas = (1 - torch.linspace(1e-3, 0.2, 50, dtype=torch.float64)).cumprod(0)
    sigmas = ((1 - alphas) / alphas).sqrt()
    torch.testing.assert_close(denoiser.schedule.sigma(torch.arange(50)), sigmas, rtol=1e-5, atol=0)


def test_a_consistency_function_is_the_identity_at_the_lowest_noise(tmp_path: Path) -> None:
    model = read_checkpoint(write(tmp_path, unet(pointwise=2, order="new"), "ct_toy.pt"))
    assert isinstance(model.denoiser, ConsistencyPrecond)
    torch.testing.assert_close(model.denoiser(X, torch.full((3,), 0.002)), X)
    sigma = torch.full((3,), 80.0)
    noise = model.denoiser(80 * X, sigma)
    told = raw(model)(80 * X / (80**2 + 0.25) ** 0.5, 250 * sigma.log())
    skip, out = 0.25 / (79.998**2 + 0.25), 0.5 * 79.998 / (80**2 + 0.25) ** 0.5
    torch.testing.assert_close(noise, skip * 80 * X + out * told, rtol=1e-4, atol=1e-4)
    assert model.sampler.steps == 1


class Shows(nn.Module):
    """A network that gives a multiple of what it is given, by the time."""

    def __init__(self, late: float, early: float) -> None:
        super().__init__()
        self.late, self.early = late, early

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        return (self.late if t[0] > 500 else self.early) * x + 0.1 * x.flip(0)


def test_what_a_network_gives_is_seen_where_it_shows() -> None:
    understood = Understood({}, (3, 16, 16), 0, "eps", "")
    assert _seen(Shows(1.0, 1.0), understood) == "eps"
    assert _seen(Shows(0.0, -1.0), understood) == "velocity"
    assert _seen(Shows(0.0, 0.0), understood) is None


def test_the_command_says_what_it_took_and_is_repeatable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, {"model": unet(), "ema": unet(out_channels=3)}, "unet_32.pt")
    command = ["import", str(file), str(tmp_path / "model"), "--schedule", "cosine:steps=400", "--heads", "2"]
    assert main(command) == 0
    said = capsys.readouterr().out
    for words in (
        "recognized as a U-Net of guided-diffusion, by tensors such as input_blocks.0.0.weight",
        "averages of the weights ('ema') are taken, and not the weights ('model')",
        "assumed size 32: by the file's name (--size changes it)",
        "assumed attention order legacy",
    ):
        assert words in said
    assert "assumed schedule" not in said
    model = load(tmp_path / "model")
    assert raw(model).config["num_heads"] == 2  # type: ignore[index,operator,union-attr]
    assert model.denoiser.schedule.count == 400  # type: ignore[attr-defined]
    assert main(command) == 0
    assert "is finished" in capsys.readouterr().out
    assert main([*command[:3], "--heads", "4"]) == 2
    assert "holds another model" in capsys.readouterr().err
    assert main(["inspect", str(file)]) == 0
    assert "(--size changes it)" in capsys.readouterr().out


@pytest.mark.parametrize("make", [dit, unet, ddp])
def test_tensors_go_back_under_their_names(make: Callable[[], dict[str, Tensor]], tmp_path: Path) -> None:
    model = read_checkpoint(write(tmp_path, make())).save(tmp_path / "model")
    assert main(["export", str(model), str(tmp_path / "out.safetensors")]) == 0
    torch.testing.assert_close(load_file(tmp_path / "out.safetensors"), make())


def test_a_checkpoint_is_a_model_to_improve(tmp_path: Path) -> None:
    file = write(tmp_path, unet())
    given = given_model(file, SamplerOptions(), "cpu")
    assert given is not None
    assert given.hash == read_checkpoint(file).hash


def test_schedules_are_written_in_a_line() -> None:
    assert parsed("rectified_flow") == {"name": "rectified_flow"}
    table = parsed("cosine:steps=4000, scale=0.25")
    assert interpolants.interpolant(table).scale == 0.25
    for text in ("cosine:4000", "cosine:steps=[1]"):
        with pytest.raises(UserError, match="is not understood"):
            parsed(text)


BAD: dict[str, tuple[Callable[[], Any], Assumptions, str]] = {
    "unknown": (lambda: {"a.weight": torch.ones(2)}, Assumptions(), "looked for: .* sims.wrap"),
    "diffusers": (lambda: {"down_blocks.0.resnets.0.conv1.weight": torch.ones(2)}, Assumptions(), "give its folder"),
    "another": (lambda: {"inner_model.u_net.d_blocks.0.1.weight": torch.ones(2)}, Assumptions(), "k-diffusion"),
    "EDM": (lambda: {"model.enc.8x8_conv.weight": torch.ones(2)}, Assumptions(), "give its own .pkl"),
    "text": (
        lambda: {**unet(), "input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight": torch.ones(2)}, Assumptions(),
        "text steers"),
    "old": (
        lambda: {**ddp(), "mid_attn.fn.norm.g": torch.ones(2)}, Assumptions(), "before version 1.8"),
    "a tensor less": (
        lambda: {n: t for n, t in dit().items() if n != "blocks.1.mlp.fc2.bias"}, Assumptions(heads=4),
        "it lacks blocks.1.mlp.fc2.bias"),
    "a tensor more": (
        lambda: {**dit(), "blocks.0.attn.q_norm.weight": torch.ones(2)}, Assumptions(heads=4), "has no blocks.0.attn"),
    "other heads": (dit, Assumptions(heads=5), "5 heads"),
    "other classes": (dit, Assumptions(heads=4, num_classes=3), "give 10 or 11"),
    "other size": (unet, Assumptions(size=1), "too small to be halved 1 times"),
    "no such schedule": (unet, Assumptions(schedule="cosin"), "did you mean 'cosine'"),
    "no such prediction": (unet, Assumptions(prediction="noise"), "unknown prediction 'noise'"),
    "no whole times": (unet, Assumptions(prediction="velocity", schedule="cosine"), "continuous time"),
    "of another network": (dit, Assumptions(heads=4, attention_order="new"), "'attention_order' says nothing of a DiT"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_one_sentence(name: str, tmp_path: Path) -> None:
    make, given, words = BAD[name]
    with pytest.raises(UserError, match=words) as caught:
        read_checkpoint(write(tmp_path, make()), given)
    assert "\n" not in str(caught.value)


ODD = {"scalar": (), "a row": (3,), "no rows": (0, 4), "flat": (5, 4), "deep": (1, 1, 1, 1, 1)}


@pytest.mark.parametrize("shape", ODD.values(), ids=ODD)
@pytest.mark.parametrize("make", [dit, lambda: unet(4), ddp], ids=["dit", "unet", "ddp"])
def test_a_tensor_of_another_shape_is_one_sentence(
    make: Callable[[], dict[str, Tensor]], shape: tuple[int, ...], tmp_path: Path
) -> None:
    """Every tensor that a family is understood by, or might be, in a shape that it cannot have."""
    tensors = make()
    names = {re.sub(r"\d+", "0", name): name for name in tensors}  # one of each kind
    for name in names.values():
        if tensors[name].shape != shape:
            with pytest.raises(UserError) as caught:
                read_checkpoint(write(tmp_path, {**tensors, name: torch.ones(shape)}), Assumptions(size=16, heads=4))
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "prediction", "schedule"),
    [
        ({}, "velocity", "rectified_flow"),
        ({"prediction": "noise"}, "eps", "rectified_flow"),
        ({"prediction": "velocity", "path_type": "GVP"}, "velocity", "trigonometric"),
        ({"prediction": "noise", "path_type": "Linear"}, "eps", "rectified_flow"),
        ({"prediction": "v", "path_type": "linear"}, "velocity", "rectified_flow"),  # REPA, whose data are at time 0
    ],
)
def test_a_sit_gives_what_its_arguments_say(
    arguments: dict[str, str], prediction: str, schedule: str, tmp_path: Path
) -> None:
    told = argparse.Namespace(model="SiT-XL/2", **arguments)
    given = Assumptions(heads=4)
    model: Any = read_checkpoint(write(tmp_path, {"ema": dit(), "args": told}), given).denoiser
    assert (model.config["prediction"], model.config["schedule"]["name"]) == (prediction, schedule)
    assert model.config["schedule"].get("data_at", 0) == (0 if arguments.get("path_type") == "linear" else 1)


def test_a_dit_gives_what_its_arguments_say(tmp_path: Path) -> None:
    told = argparse.Namespace(model="DiT-XL/2", prediction="epsilon")
    model: Any = read_checkpoint(write(tmp_path, {"ema": dit(), "args": told}), Assumptions(heads=4)).denoiser
    assert (model.config["prediction"], model.config["schedule"]["name"]) == ("eps", "linear")


def test_arguments_that_nothing_stands_for_are_one_sentence(tmp_path: Path) -> None:
    file = write(tmp_path, {"ema": dit(), "args": argparse.Namespace(model="SiT-XL/2", path_type="VP")})
    with pytest.raises(UserError, match="trained with 'VP', and Linear, GVP, linear, cosine can be read"):
        read_checkpoint(file, Assumptions(heads=4))
    assert read_checkpoint(file, Assumptions(heads=4, schedule="cosine:scale=1", prediction="eps"))


@pytest.mark.parametrize(
    ("arguments", "heads", "channels"),
    [({}, 1, 64), ({"num_head_channels": -1}, 4, None), ({"num_heads": 2}, 2, None),
     ({"num_heads": 2, "num_head_channels": 32}, 1, 32), ({"num_heads": 2, "num_head_channels": -1}, 2, None)],
)  # fmt: skip
def test_heads_are_those_of_the_files_arguments(
    arguments: dict[str, int], heads: int, channels: int | None, tmp_path: Path
) -> None:
    state = unet(model_channels=64, widths=(64, 128), num_heads=4)
    told = {"model": state, "args": argparse.Namespace(**arguments)}
    network: Any = raw(read_checkpoint(write(tmp_path, told), Assumptions(size=16)))
    assert (network.config["num_heads"], network.config["head_channels"]) == (heads, channels)


def test_a_number_of_heads_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    for heads in (0, -1):
        file = write(tmp_path, {"model": dit(), "args": argparse.Namespace(num_heads=heads)})
        with pytest.raises(UserError, match=f"heads is {heads}: give option 'heads'"):
            read_checkpoint(file)


@pytest.mark.parametrize(
    ("name", "size"), [("lsun_100M_2400K_bs64.pt", 16), ("cats_batch128.pt", 16), ("cats_32.pt", 32)]
)
def test_a_batch_in_a_files_name_is_no_size(name: str, size: int, tmp_path: Path) -> None:
    model = read_checkpoint(write(tmp_path, unet(), name))
    assert model.data_shape == (3, size, size)


def test_bad_options_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = str(write(tmp_path, unet())), str(tmp_path / "model")
    for flag, value, words in (("--data-range", "0", "two values"), ("--heads", "0", "--heads is 0")):
        assert main(["import", file, out, flag, value]) == 2
        assert words in capsys.readouterr().err
    model = read_checkpoint(Path(file)).save(tmp_path / "ours")
    assert main(["import", str(model), out, "--heads", "2"]) == 2
    assert "says of itself what it is" in capsys.readouterr().err


def test_a_model_of_the_hub_is_found_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(UserError, match="give a path, or option 'download' to fetch it"):
        open_model(Path("someone/toy"))
    folder = tmp_path / "hub" / "models--someone--toy" / "snapshots" / "0123"
    folder.mkdir(parents=True)
    save_file(unet(), folder / "unet.safetensors")
    assert open_model(Path("someone/toy")).hash == read_checkpoint(folder / "unet.safetensors").hash


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_folder_with_an_average_gives_that(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
    from sims.interop.diffusers import load_diffusers
    from test_your_model import TINY_UNET

    with torch.random.fork_rng(devices=[]):
        one, other = (diffusers.UNet2DModel(**TINY_UNET) for _ in range(2))
    diffusers.DDPMPipeline(one, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "a")
    diffusers.DDPMPipeline(other, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "b")
    shutil.copytree(tmp_path / "b" / "unet", tmp_path / "a" / "unet_ema")
    assert load_diffusers(tmp_path / "a").hash == load_diffusers(tmp_path / "b").hash
