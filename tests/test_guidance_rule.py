"""A rule of guidance is one class: it samples, is saved, loaded, hashed, moved, inspected, cached, and exported or not.

Both rules of this file are all that is written for them; nothing else in the package knows their names.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tiny
from sims.data.dataset import Dataset
from sims.denoiser import Denoiser, Evaluate, device_of, networks_of
from sims.errors import UserError
from sims.guidance import RULES, CacheRule, CorrectionGuide, Extrapolate, Guide
from sims.model import Model, load, reinitialized
from sims.sampling import SamplerOptions, nfe


@pytest.fixture(scope="module")
def rules() -> Iterator[tuple[type[Guide], type[CorrectionGuide]]]:
    """A rule without a cache, and one that has a correction; registered by their definition, and removed again."""

    @dataclass(frozen=True, eq=False)
    class Pushed(Guide, kind="pushed"):
        """x + (1 + w) (D - x): every step a little too far."""

        base: Denoiser
        w: float
        limits: tuple[float, ...] = (0.1, 50.0)

        def estimate(
            self, x: Tensor, sigma: Tensor, labels: Tensor | None, base: Evaluate, *others: Evaluate
        ) -> Tensor:
            return x + (1 + self.w) * (base(x, sigma, labels) - x)

    @dataclass(frozen=True, eq=False)
    class Damped(CorrectionGuide, kind="damped"):
        """D + w tanh(D - D_aux): no correction above w."""

        children = ("base", "other")
        base: Denoiser
        other: Denoiser
        w: float
        interval: tuple[float, float] = (0.0, math.inf)
        cache: CacheRule | None = None

        def correction(
            self, x: Tensor, sigma: Tensor, labels: Tensor | None, denoised: Tensor, *others: Evaluate
        ) -> Tensor:
            return torch.tanh(denoised - others[0](x, sigma, labels))

    yield Pushed, Damped
    for kind in ("pushed", "damped"):
        del RULES[kind]


@pytest.fixture(scope="module")
def models(rules: tuple[type[Guide], type[CorrectionGuide]], plain: Dataset) -> tuple[Model, dict[str, Model]]:
    """A base with weights that do something, and what the rules make of it."""
    base = tiny.model(plain)
    other = reinitialized(base, 1)
    generator = torch.Generator().manual_seed(0)
    for network in (*base.networks, *other.networks):
        for weight in network.parameters():
            weight.requires_grad_(False).add_(0.05 * torch.randn(weight.shape, generator=generator))
    pushed, damped = rules
    guides = (pushed(base.denoiser, 0.05), damped(base.denoiser, other.denoiser, 0.5))  # type: ignore[call-arg]
    return base, {guide.kind: base.with_denoiser(guide) for guide in guides}


KINDS = ["pushed", "damped"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_samples_and_w_zero_is_the_base(models: tuple[Model, dict[str, Model]], kind: str) -> None:
    base, guided = models[0], models[1][kind]
    x = guided.sample(range(4))
    assert torch.isfinite(x).all() and not torch.equal(x, base.sample(range(4)))
    rule = guided.denoiser
    assert isinstance(rule, Guide) and isinstance(rule, Denoiser) and rule.data_shape == base.data_shape
    off = base.with_denoiser(rule.with_strength(0.0))
    assert torch.equal(off.sample(range(4)), base.sample(range(4)))
    assert nfe(off, base.sampler) == nfe(base, base.sampler)  # type: ignore[arg-type]
    assert nfe(guided, base.sampler) == len(rule.children) * nfe(base, base.sampler)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="finite"):
        rule.with_strength(math.nan)
    assert rule.limited((0.0, 1e-4)).w == rule.w


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_saved_loaded_and_hashed(
    models: tuple[Model, dict[str, Model]], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, guided = models[0], models[1][kind]
    guided.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert type(again.denoiser) is type(guided.denoiser)
    assert again.hash == guided.hash == json.loads((tmp_path / "model" / "model.json").read_text())["hash"]
    assert torch.equal(again.sample(range(4)), guided.sample(range(4)))
    names = [field.name for field in dataclasses.fields(guided.denoiser)]  # type: ignore[arg-type]
    settings = [name for name in names if name not in ("base", "other")]
    assert all(getattr(again.denoiser, name) == getattr(guided.denoiser, name) for name in settings)
    rule = guided.denoiser
    assert isinstance(rule, Guide)
    assert len({base.hash, guided.hash, base.with_denoiser(rule.with_strength(0.25)).hash}) == 3
    monkeypatch.delitem(RULES, kind)  # as where the file of the rule was not imported
    with pytest.raises(UserError, match=f"unknown kind '{kind}'.*imported first"):
        load(tmp_path / "model")


@pytest.mark.parametrize("kind", KINDS)
def test_it_moves(models: tuple[Model, dict[str, Model]], kind: str, tmp_path: Path) -> None:
    moved = load(models[1][kind].save(tmp_path / "model"), "meta")
    rule = moved.denoiser
    assert isinstance(rule, Guide) and len(networks_of(rule)) == len(rule.children)
    weights = [weight for network in networks_of(rule) for weight in network.parameters()]
    assert weights and all(weight.device.type == "meta" for weight in weights)
    assert rule.device == device_of(rule) == device_of(moved) == torch.device("meta")


@pytest.mark.parametrize("kind", KINDS)
def test_the_commands_know_it(models: tuple[Model, dict[str, Model]], kind: str, tmp_path: Path, say: tiny.Say) -> None:
    guided = models[1][kind]
    guided.save(tmp_path / "model")
    status, out, _ = say("inspect", tmp_path / "model")
    rule = guided.denoiser
    assert isinstance(rule, Guide) and status == 0
    summary = (type(rule).__doc__ or "").splitlines()[0]
    for words in (f"{kind}: {summary}", f"{rule.w:g}", *rule.children, guided.hash, f"{nfe(guided, guided.sampler)}"):  # type: ignore[arg-type]
        assert words in out, words
    status, _, err = say("export", tmp_path / "model", tmp_path / "out")
    assert status == 2 and f"{kind} cannot be exported" in err and not (tmp_path / "out").exists()
    words = ("--seeds", "0-3", "--w", "0", "--out", tmp_path / "samples")
    assert say("sample", tmp_path / "model", *words)[0] == 0
    assert say("synthesize", tmp_path / "model", "--out", tmp_path / "store", "--count", "4")[0] == 0
    made = json.loads((tmp_path / "store" / "header.json").read_text())["provenance"]
    assert made["method"] == "guided" and made["w"] == rule.w


def test_a_rule_with_a_correction_is_cached(models: tuple[Model, dict[str, Model]], tmp_path: Path) -> None:
    """Fewer evaluations, samples that come closer with more of them; the rule lies in the model's directory."""
    base, guided = models[0], models[1]["damped"]
    damped, options = guided.denoiser, SamplerOptions(steps=9)
    assert isinstance(damped, CorrectionGuide) and not isinstance(models[1]["pushed"].denoiser, CorrectionGuide)
    rule = CacheRule.from_pilot(damped, range(32), options, refreshes=4)
    full, plain = (model.sample(range(16), sampler=options) for model in (guided, base))
    errors = []
    for refreshes in (1, 4, 9):
        cached = base.with_denoiser(damped.with_cache(rule.with_refreshes(refreshes)))
        assert nfe(cached, options) <= nfe(base, options) + refreshes  # type: ignore[arg-type]
        errors.append(float((cached.sample(range(16), sampler=options) - full).norm() / (plain - full).norm()))
    assert errors[0] < 1 and errors == sorted(errors, reverse=True) and errors[1] < 0.3, errors
    again = load(cached.save(tmp_path / "model"))
    assert again.hash == cached.hash and nfe(again, options) < nfe(guided, options)  # type: ignore[arg-type]
    assert nfe(damped.limited((1.0, 2.0)), options) < nfe(damped, options)


def test_what_has_no_kind_cannot_be_stored(models: tuple[Model, dict[str, Model]], tmp_path: Path) -> None:
    class Nameless(Extrapolate):
        kind = ""

    base = models[0]
    model = base.with_denoiser(Nameless(base.denoiser, base.denoiser, 1.0))
    with pytest.raises(UserError, match="a Nameless cannot be saved"):
        model.save(tmp_path / "model")
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    "change", [{"w": None}, {"cache": {"gram": []}}, {"interval": None}, {"children": {}}, {"codec": {"kind": "pixel"}}]
)
def test_a_damaged_description_is_named(
    models: tuple[Model, dict[str, Model]], change: dict[str, object], tmp_path: Path
) -> None:
    file = models[1]["damped"].save(tmp_path / "model") / "model.json"
    entry = json.loads(file.read_text())
    file.write_text(json.dumps({**entry, **change}))
    with pytest.raises(UserError, match="does not describe a model"):
        load(tmp_path / "model")


def test_rules_are_frozen(models: tuple[Model, dict[str, Model]]) -> None:
    for model in models[1].values():
        with pytest.raises(dataclasses.FrozenInstanceError):
            model.denoiser.w = 2.0  # type: ignore[attr-defined]
        assert dataclasses.replace(model.denoiser, w=2).w == 2.0  # type: ignore[type-var]
