"""A network split over two processes is trained as one process trains it, and each goes on from the other's state."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tiny
from sims import processes
from sims.data.sources import load_pair
from sims.errors import UserError
from sims.training.posthoc import reconstruct
from sims.training.sharding import local
from sims.training.trainer import Trainer, TrainOptions, read_trained
from test_processes import ENVIRONMENT, launched

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo, which processes on CPUs talk through", allow_module_level=True)

UNET = {"width": 16, "blocks": 1, "channel_mult": (1, 2), "attention": (4,)}
NETWORKS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "ddpmpp": {"type": "ddpmpp", **UNET},
    "edm2": {"type": "edm2", **UNET},  # forced weight normalization, numbers of no dimension, a head for the loss
}
OPTIONS = TrainOptions(batch=32, warmup=64, accumulate=2, precision="fp32", shard=True, weight_decay=2.0)
POWER = TrainOptions(**{**vars(OPTIONS), "weight_decay": 0.0, "ema": "power", "ema_rel": (0.1, 0.2), "ema_every": 96})


def trainer(name: str, folder: Path, images: int = 192, earlier: Path | None = None) -> Trainer:
    data = load_pair("digits", limit=64)[0]
    options = POWER if name == "edm2" else OPTIONS
    model = tiny.model(data, **NETWORKS[name])
    return Trainer(model, data, options, folder, images=images, seed=5, snapshots=(96,), earlier=earlier)


def work(out: Path, other: Path) -> None:
    """Whole runs; runs of half the length; and what another number of processes began, continued."""
    torch.set_num_threads(1)
    for name in NETWORKS:
        trainer(name, out / name).run()
        trainer(name, out / f"half-{name}", 96).run()
        if (other / f"half-{name}").is_dir():
            trainer(name, out / f"continued-{name}", earlier=other / f"half-{name}").run()


def shares(out: Path) -> None:
    """How many of a network's, its averages' and Adam's numbers this process holds."""
    made = trainer("edm2", out / "unused")
    made.build()
    made.update()
    tensors = [*made.network.parameters()] + [p for average in made.ema.averages for p in average.parameters()]
    tensors += [value for entry in made.optimizer.state.values() for name, value in entry.items() if name != "step"]
    held, all_of_it = sum(local(t).numel() for t in tensors), sum(t.numel() for t in tensors)
    (out / f"share-{processes.rank()}").write_text(str(held / all_of_it))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same work by one process and by two; each continues what the other began."""
    out = tmp_path_factory.mktemp("sharding")
    one, two = out / "one", out / "two"
    two.mkdir()
    work(one, two)
    worker = out / "worker.py"
    worker.write_text(
        "import sys, pathlib, test_sharding as t\n"
        "one, two = map(pathlib.Path, sys.argv[1:])\n"
        "assert t.processes.join().num_processes == 2\n"
        "t.work(two, one)\n"
        "t.shares(two)\n"
    )
    words = launched(str(worker), str(one), str(two))
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    work(one, two)  # what two began, continued by one
    return one, two


def weights(folder: Path, images: int = 192) -> dict[str, torch.Tensor]:
    trained = read_trained(folder)
    assert trained is not None
    return load_file(trained.snapshots[images] / "model.safetensors")


def near(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], start: dict[str, torch.Tensor]) -> None:
    """Differences of sums in another order, against the way that the weights have gone."""
    assert found.keys() == wanted.keys()
    assert {name: value.shape for name, value in found.items()} == {name: v.shape for name, v in wanted.items()}
    apart = sum(float((found[name] - wanted[name]).square().sum()) for name in wanted)
    moved = sum(float((wanted[name] - start[name]).square().sum()) for name in wanted)
    assert moved > 0 and apart < 1e-6 * moved, apart / moved


@pytest.mark.parametrize("name", NETWORKS)
def test_as_one_process(both: tuple[Path, Path], name: str) -> None:
    one, two = both
    start = trainer(name, one).start.denoiser.state_dict()  # type: ignore[attr-defined]
    for images in (96, 192):
        near(weights(two / name, images), weights(one / name, images), start)
    losses = [read_trained(path / name).losses for path in both]  # type: ignore[union-attr]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_each_continues_the_other(both: tuple[Path, Path], name: str) -> None:
    start = trainer(name, both[0]).start.denoiser.state_dict()  # type: ignore[attr-defined]
    for path in both:
        near(weights(path / f"continued-{name}"), weights(both[0] / name), start)


def test_averages_of_other_widths(both: tuple[Path, Path]) -> None:
    one, two = (reconstruct(path / "edm2", 0.15).denoiser.state_dict() for path in both)  # type: ignore[attr-defined]
    near(two, one, trainer("edm2", both[0]).start.denoiser.state_dict())  # type: ignore[attr-defined]


def test_each_process_holds_its_share(both: tuple[Path, Path]) -> None:
    held = [float((both[1] / f"share-{rank}").read_text()) for rank in (0, 1)]
    assert sum(held) == pytest.approx(1.0) and max(held) < 0.55


def test_what_cannot_be_split_with() -> None:
    for more in ({"compile": True}, {"precision": "fp16"}):
        with pytest.raises(UserError, match="leave one of them out"):
            TrainOptions(shard=True, **more)  # type: ignore[arg-type]
