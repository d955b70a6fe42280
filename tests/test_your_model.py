"""What the pages about models say can be typed is typed, with toys; a network of diffusers comes back to diffusers."""

from __future__ import annotations

import importlib
import re
import shlex
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import pages
from sims.cli import main
from sims.data.sources import load
from sims.experiments.cost import rates
from sims.interop.nvidia import build, read
from sims.model import load as load_model
from sims.networks import GuidedUNet
from sims.sampling import sample
from snapshots import CANARY, EDM2, SONG, network, theirs, writer

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' schedulers

PAGE = pages.read("docs/your-model.md")

#: Less of everything; these options follow those of the page and win over them.
IMPROVE = (
    "--sampler.solver dpmpp2m --sampler.steps 3 --batch-size 50 --auxiliary.samples 60 --auxiliary.budgets 128,256 "
    "--auxiliary.train.lr 1e-3 --distilled.train.lr 1e-3 "  # which is sought otherwise: tests/test_probe.py
    "--auxiliary.train.batch 64 --auxiliary.train.warmup 0 --search.rungs 20,40 --search.limit 120 --guidance.pilot 8 "
    "--distilled.samples 60 --distilled.images 128 --distilled.train.batch 64 --distilled.train.warmup 0 "
    "--evaluation.samples 40 --evaluation.draws 1 --evaluation.manifold-samples 20 --evaluation.extractor pca"
)
MLP = "--network.width 32 --network.blocks 1 --network.embedding 16 --base.images 6400"
LESS = {
    "inspect": "",
    "import": "",
    "export": "",
    "data": "",
    "sample": "--steps 3 --seeds 0-3",
    "evaluate": "--samples 40 --resamples 2 --neighbours 40 --extractor pca",
    "improve": IMPROVE,
}


def less(line: str) -> list[str]:
    """What is put behind a line."""
    _, name, *words = shlex.split(line)
    more = shlex.split(LESS[name])
    if "ddpmpp" in words:
        more += shlex.split("--network.width 16 --network.blocks 1 --data.source.size 8")
    elif name == "improve" and "--model" not in words:
        more += shlex.split(MLP)
    return more


def picture(image: np.ndarray, factor: int = 1) -> Image.Image:
    """A digit (1, 8, 8), values 0 to 16, as a grey picture."""
    return Image.fromarray((image[0] * 15).repeat(factor, 0).repeat(factor, 1))


def write_snapshot(folder: Path, patch: pytest.MonkeyPatch, name: str, class_name: str, **init: Any) -> None:
    settings = {"img_resolution": 8, "img_channels": 1, **init}
    state = theirs(class_name, network(class_name, settings))
    encoder = "StandardRGBEncoder" if class_name == "Precond" else None
    writer(folder, patch)(class_name, state, name=name, encoder=encoder, **settings)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to type in, with toys under the names that the page has."""
    diffusers = pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
    folder = tmp_path_factory.mktemp("desk")
    digits = load("digits", limit=120)
    assert digits.labels is not None
    for name in ("cifar10", "my/images", "my/photos"):
        (folder / name).mkdir(parents=True)
    with zipfile.ZipFile(folder / "imagenet-64x64.zip", "w") as archive:
        for number, (image, label) in enumerate(zip(digits.raw, digits.labels)):
            for name, factor in (("cifar10", 1), ("my/images", 1), ("my/photos", 4)):
                picture(image, factor).save(folder / name / f"{number}.png")
            archive.writestr(f"{label % 3}/{number}.png", (folder / f"cifar10/{number}.png").read_bytes())
    with torch.random.fork_rng(devices=[]), pytest.MonkeyPatch.context() as patch:
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(**TINY_UNET)
        diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(folder / "my/ddpm")
        torch.save({"model": GuidedUNet((1, 8, 8), **TINY_GUIDED).state_dict()}, folder / "ema_0.9999_300000.pt")
        write_snapshot(folder, patch, "edm-cifar10-32x32-uncond-vp.pkl", "EDMPrecond", label_dim=0, **SONG)
        write_snapshot(folder, patch, "edm2-img64-s-1073741-0.075.pkl", "Precond", label_dim=3, **EDM2)
    (code,) = [text for text in pages.blocks("py", PAGE) if "def make" in text]
    (folder / "my_model.py").write_text(code)
    names: dict[str, Any] = {}
    exec(compile(code, "my_model.py", "exec"), names)
    save_file(names["FlowViT"]().state_dict(), folder / "mnist-flow-vit.safetensors")
    for number, (image, label) in enumerate(zip(digits.raw, digits.labels)):
        (folder / f"mnist/{label}").mkdir(parents=True, exist_ok=True)
        picture(image).resize((28, 28)).save(folder / f"mnist/{label}/{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(rates, "SECONDS", 0.1)
        patch.setenv("COLUMNS", "160")
        yield folder
    assert not (folder / CANARY).exists(), "code of a snapshot was run"


TINY_UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}
TINY_GUIDED: dict[str, Any] = {"model_channels": 32, "widths": (32,), "num_blocks": 1, "attention": (0,)}
SECTIONS = [text for text in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:] if "```sh" in text]
SECTIONS += [pages.read(f"docs/{name}.md") for name in ("edm", "edm2", "diffusers")]


@pytest.mark.parametrize("section", SECTIONS, ids=[text.splitlines()[0] for text in SECTIONS])
def test_every_command_of_the_page_runs(section: str, desk: Path) -> None:
    found = pages.lines("sh", section)
    assert any(line.startswith("sims improve ") for line in found)
    for code in pages.blocks("py", section):  # a file of the user's, which the commands run
        assert (desk / "my_model.py").read_text() == code
    for line in found:
        said = pages.check(line, less(line))
        assert "--dry-run" not in line or "nothing was run or written" in said
    for code in pages.blocks("python", section):  # after the commands, whose models it reads
        names: dict[str, Any] = {}
        exec(compile(code, "your-model.md", "exec"), names)
        if "images" in names:
            assert len(names["images"]) == 4
        else:
            assert torch.isfinite(names["denoised"]).all()


def test_tensors_go_back_into_the_snapshot(desk: Path, tmp_path: Path) -> None:
    """What the export writes is another network of the same class: the one that the run made."""
    class_name, init, state = read(desk / "edm-cifar10-32x32-uncond-vp.pkl")
    base = load_model(desk / "models/edm")
    assert main(["export", str(desk / "models/edm"), str(tmp_path / "base.safetensors")]) == 0
    assert all(torch.equal(value, state[name]) for name, value in load_file(tmp_path / "base.safetensors").items())
    assert state.keys() == load_file(tmp_path / "base.safetensors").keys()
    x, sigma = torch.randn(2, *base.data_shape), torch.full((2,), 1.0)
    for name in ("distilled", "neon"):
        made = build(class_name, init, load_file(desk / f"edm-{name}.safetensors"))
        wanted = load_model(desk / "runs/edm" / name)(x, sigma)
        assert torch.equal(made(x, sigma), wanted) and not torch.equal(wanted, base(x, sigma))


# ---- diffusers, in and out


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a miniature of benchmarks/diffusers_improve.py, and what it found."""
    pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
    folder = tmp_path_factory.mktemp("diffusers")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(pages.ROOT / "benchmarks")
        benchmark = importlib.import_module("diffusers_improve")
        patch.setattr(benchmark, "UNET", TINY_UNET)
        options = [*shlex.split(IMPROVE), "--methods", "base,sims,neon,distilled", "--search.budget", "256"]
        found = benchmark.compare(folder, images=1280, count=32, steps=4, improve=options)
    return folder, found


def test_every_result_is_sampled_by_diffusers_alone(folders: tuple[Path, dict[str, Any]]) -> None:
    _, found = folders
    assert list(found["ddim"]) == ["original", "neon", "distilled", "sims (guided pair)"]
    scores = [row["fd_held_out"] for row in found["ddim"].values()]
    assert np.isfinite(scores).all() and len(set(scores)) == 4, "two of the networks are the same"


@pytest.mark.parametrize("name", ["neon", "distilled", "sims"])
def test_a_solver_of_diffusers_draws_the_images_of_ours(name: str, folders: tuple[Path, dict[str, Any]]) -> None:
    """The exported folder in a loop of diffusers, against the run's model directory in our sampler."""
    import diffusers

    from sims.interop.diffusers import load_guided

    folder, _ = folders
    scheduler = diffusers.DPMSolverMultistepScheduler.from_pretrained(
        folder / name, subfolder="scheduler", use_karras_sigmas=True, timestep_spacing="linspace"
    )
    scheduler.set_timesteps(10)
    if name == "sims":
        unet = load_guided(folder / name).trajectory(scheduler.timesteps)
    else:
        unet = diffusers.UNet2DModel.from_pretrained(folder / name, subfolder="unet")
    x = noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for time in scheduler.timesteps:
            x = scheduler.step(unet(x, time).sample, time, x).prev_sample
    levels = scheduler.sigmas.double()
    denoiser: Any = load_model(folder / "run" / name).denoiser
    start = noise * float((1 + levels[0] ** 2).sqrt() / levels[0])
    ours = sample(denoiser, start, levels, solver="dpmpp2m")
    assert float((ours - x).abs().max()) < 2e-3 * float(x.abs().max())
