"""Weight decay: what it does to a weight that no gradient moves, where it does nothing, and the rival that it makes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tiny
from sims.config import to_dict
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.experiments.cost import rates
from sims.methods import METHODS, Base
from sims.methods.settings import AuxiliarySettings, Settings
from sims.methods.sims import SIMS
from sims.methods.weight_decay import WEIGHT_DECAY
from sims.runs.directory import Run
from sims.training.sharding import can_decay
from sims.training.trainer import Trainer, TrainOptions

FAST = TrainOptions(batch=32, warmup=96, ema_halflife=200.0, checkpoint_seconds=0.0)
EDM2 = {"type": "edm2", "width": 16, "blocks": 1, "channel_mult": (1, 2), "attention": (4,)}


class Own(Trainer):
    """With an optimizer of its own."""

    def __init__(self, optimizer: type[torch.optim.Optimizer], decay: dict[str, float], *args: object, **more: object):
        super().__init__(*args, **more)  # type: ignore[arg-type]
        self.kind, self.decay = optimizer, decay

    def build(self) -> None:
        super().build()
        betas = (0.9, self.options.beta2)
        self.optimizer = self.kind(self.parameters, lr=1e-3, betas=betas, fused=True, **self.decay)  # type: ignore[call-arg]


def stepped(trainer: Trainer) -> dict[str, Tensor]:
    """The weights after all steps; nothing is written."""
    trainer.averaged()
    return {name: value.detach() for name, value in trainer.network.named_parameters()}


@pytest.mark.parametrize("schedule", [{}, {"decay": "cosine"}])
def test_a_weight_without_gradient_shrinks_by_the_product_of_all_steps(digits: Dataset, schedule: dict) -> None:
    options = replace(FAST, weight_decay=3.0, **schedule)
    some = digits.subset((digits.labels == 3).nonzero()[0])  # type: ignore[union-attr]
    start = tiny.model(digits)
    before = dict(start.denoiser.named_parameters())["network.classes.weight"].detach()  # type: ignore[attr-defined]
    after = stepped(Trainer(start, some, options, Path(), images=640, seed=5))["network.classes.weight"]
    factor = math.prod(1 - options.rate(32 * (step + 1), 640) * 3.0 for step in range(20))
    unseen = [label for label in range(10) if label != 3]
    assert factor < 0.98
    torch.testing.assert_close(after[unseen], before[unseen] * factor, rtol=1e-5, atol=0.0)
    assert not torch.allclose(after[3], before[3] * factor, rtol=1e-3)


def test_it_is_adamw_and_none_is_adam_bit_for_bit(digits: Dataset) -> None:
    start, how = tiny.model(digits), {"images": 640, "seed": 5}
    flat = replace(FAST, warmup=0)
    for decay, optimizer in ((0.0, torch.optim.Adam), (0.7, torch.optim.AdamW)):
        options = replace(flat, weight_decay=decay)
        own = {"weight_decay": decay} if decay else {}
        ours = stepped(Trainer(start, digits, options, Path(), **how))  # type: ignore[arg-type]
        theirs = stepped(Own(optimizer, own, start, digits, flat, Path(), **how))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_at_its_default_no_name_of_an_artefact_changes() -> None:
    assert "weight_decay" not in to_dict(TrainOptions()) and to_dict(TrainOptions(weight_decay=0.1))["weight_decay"]
    assert not {"synthesis", "stop", "weight_decay"} & to_dict(AuxiliarySettings()).keys()
    assert to_dict(AuxiliarySettings(stop=0.2))["stop"] == 0.2


def test_an_interrupted_training_goes_on_the_same(digits: Dataset, tmp_path: Path) -> None:
    options, start = replace(FAST, weight_decay=2.0), tiny.model(digits)

    def trainer(name: str) -> Trainer:
        return Trainer(start, digits, options, tmp_path / name, images=640, seed=5)

    calls = 0

    def stop(count: int) -> None:
        nonlocal calls
        calls += 1
        if calls > 7:
            raise InterruptedError

    whole = trainer("whole").run(log=lambda text: None)
    with pytest.raises(InterruptedError):
        trainer("again").run(stop, log=lambda text: None)
    again = trainer("again").run(log=lambda text: None)
    ours, theirs = (load_file(trained.folder / "state.safetensors") for trained in (whole, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_edm2_refuses_it_in_one_sentence(digits: Dataset) -> None:
    start = tiny.model(digits, **EDM2)
    assert not can_decay(start) and not can_decay(start.guided(start, 1.0)) and can_decay(tiny.model(digits))
    with pytest.raises(UserError, match=r"normalizes its weights wherever it uses them.*set it to 0"):
        Trainer(start, digits, replace(FAST, weight_decay=0.1), Path(), images=32, seed=5)
    Trainer(start, digits, FAST, Path(), images=32, seed=5)


def test_a_job_on_edm2_leaves_the_rival_out(tmp_path: Path, say: tiny.Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SECONDS", 0.05)
    small = [
        "--network.type",
        "edm2",
        "--network.width",
        "16",
        "--network.channel-mult",
        "1",
        "--network.attention",
        "0",
    ]
    words = tiny.improve_arguments(tmp_path / "run", *tiny.PCA, *small, "--methods", "base,sims,weight-decay")
    status, out, _ = say(*words, "--dry-run")
    assert status == 0 and "search sims" in out and "weight-decay" not in out
    status, _, err = say(*words, "--auxiliary.train.weight-decay", "0.1", "--dry-run")
    assert status == 2 and "is 0.1 for a network of EDM2" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--base.train.weight-decay", "1000"], "choose one from 0 up to, but not including, 1000"),
        (["--base.train.weight-decay", "-1"], "choose one from 0"),
        (["--base.train.weight-decay", "nan"], "choose one from 0"),
        (["--base.train.weight-decay", "10", "--base.train.lr", "0.5"], "but not including, 2"),
        (["--auxiliary.weight-decay", "0"], "--auxiliary.weight-decay is 0.0: it must be a positive number"),
    ],
)
def test_impossible_decay_is_refused(words: list[str], said: str, tmp_path: Path, say: tiny.Say) -> None:
    status, _, err = say(*tiny.improve_arguments(tmp_path / "run", *words))
    flat = " ".join(err.replace("│", " ").split())
    assert status == 2 and said in flat and "Traceback" not in err and not (tmp_path / "run").exists()


# ---- the rival


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    run = Run(tmp_path_factory.mktemp("decay") / "run", {}, quiet=True)
    yield run
    run.close()


def norm(weights: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(value.square().sum()) for value in weights.values()))


def test_its_auxiliary_is_that_of_sims_with_smaller_weights(digits: Dataset, run: Run) -> None:
    model = replace(tiny.model(digits), provenance={})  # was not trained here: both find one learning rate
    base = Base(model, model.hash)
    auxiliary = AuxiliarySettings(40, (64, 640), train=replace(FAST, warmup=0), weight_decay=100.0)
    settings = Settings(auxiliary, seed=3, batch_size=20)
    made = {}
    for method in (SIMS, WEIGHT_DECAY):
        made[method] = method.prepare(base, None, settings, run)
    ours, theirs = made[WEIGHT_DECAY], made[SIMS]
    assert ours is not None and theirs is not None and ours.key != theirs.key
    assert sorted(ours.variants) == [64, 640] and ours.cost == theirs.cost and ours.note == theirs.note
    folder = run.path / "artefacts"
    assert [len(list(folder.glob(f"{kind}-*"))) for kind in ("rate", "synthetic", "auxiliary")] == [1, 1, 2]
    small, large = (norm(load_file(a.variants[640] / "model.safetensors")) for a in (ours, theirs))
    assert small < 0.95 * large
    asked = replace(auxiliary, train=replace(auxiliary.train, weight_decay=100.0))
    assert METHODS[SIMS.name].prepare(base, None, replace(settings, auxiliary=asked), run) == ours
