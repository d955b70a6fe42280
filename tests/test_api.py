"""The functions that the package offers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sims
from sims.errors import UserError
from sims.experiments.options import ImproveOptions
from sims.sampling import SamplerOptions


def test_the_package_offers_what_it_lists() -> None:
    for name in sims.__all__:
        assert getattr(sims, name) is not None and name in dir(sims)
    with pytest.raises(AttributeError, match="improvee"):
        sims.improvee  # type: ignore[attr-defined]  # noqa: B018


def test_train_as_a_function_is_the_command(home: Path) -> None:
    made = sims.train(
        home / "run",
        {"limit": 300, "conditional": True},
        network={"width": 32, "blocks": 1, "embedding": 16},
        base={"images": 12800, "train": {"batch": 128}},
        sampler=sims.SamplerOptions(steps=5),
        quiet=True,
    )
    assert made.hash == sims.load(home / "run" / "model").hash
    assert made.sample(seeds=range(4)).shape == (4, 1, 8, 8)


def test_synthesize_and_evaluate_take_what_is_in_memory(home: Path, model: Path, store: Path) -> None:
    data = sims.synthesize(sims.load(model), store, 60, batch_size=30, quiet=True)
    assert data.fingerprint == sims.load_data(store).fingerprint
    real = sims.load_data("digits", limit=300)
    how: dict[str, Any] = {"options": {"extractor": "pca", "metrics": ["fd", "kid"]}, "cache": home / "cache"}
    found = sims.evaluate(data, real, quiet=True, **how)
    assert found.figures == sims.evaluate(store, real, quiet=True, **how).figures
    with pytest.raises(UserError, match="did you mean 'neighbours'"):
        sims.evaluate(data, real, options={"neighbors": 10}, quiet=True)


def test_improve_takes_tables_as_a_recipe_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[ImproveOptions] = []
    monkeypatch.setattr("sims.api.run_improve", lambda options, quiet: given.append(options) or {"quiet": quiet})
    (tmp_path / "mine.toml").write_text("seed = 3\nrounds = 3\n")
    summary = sims.improve(
        recipe=str(tmp_path / "mine.toml"),
        run="runs/mine",
        data=tmp_path,
        rounds=2,
        methods=["base", "sims", "distilled"],
        sampler=SamplerOptions(steps=9),
        search={"rungs": [10, 20]},
        quiet=True,
    )
    options = given[0]
    assert summary == {"quiet": True}
    assert (options.run, options.data.path, options.rounds, options.seed) == (Path("runs/mine"), str(tmp_path), 2, 3)
    assert options.methods == ("base", "sims", "distilled") and options.search.rungs == (10, 20)
    assert options.sampler == SamplerOptions(steps=9)
    sims.improve(options)
    assert given[1] == options
    for wrong in ({"round": 2}, {"sampler": {"step": 3}}, {"data": {"pth": "x"}}):
        with pytest.raises(UserError, match="did you mean"):
            sims.improve(**wrong)
    assert len(given) == 2


def test_shift_takes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr("sims.api.run_shift", lambda options, quiet: given.append(options) or {"quiet": quiet})
    target = "even=0.3,odd=0.7"
    assert sims.shift(run="runs/mine", data=tmp_path, target=target, attributes=["parity:even=0/odd=1"], quiet=True)
    assert (given[0].run, given[0].data.path, given[0].target) == (Path("runs/mine"), str(tmp_path), target)
    assert given[0].attributes == ("parity:even=0/odd=1",)
    with pytest.raises(UserError, match="did you mean 'target'"):
        sims.shift(traget="uniform")
