"""The parts: docs/parts.md runs from top to bottom, and so does the example of every public function and class."""

from __future__ import annotations

import doctest
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import pages
import sims
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.guidance import RULES, Guide
from sims.model import load, reinitialized

PAGE = pages.read("docs/parts.md")
LONGEST = 10  # lines of code in a block

#: Types that say what others give and take, and a package: nothing to call (CacheRule.from_pilot has one).
NO_EXAMPLE = {"SOLVERS", "CacheRule", "Dataset", "Denoiser", "ImproveOptions", "SamplingStep", "UserError"}
NO_EXAMPLE |= {"metrics", "interpolants"}
PARTS = [*(getattr(sims, name) for name in sims.__all__ if name not in (*NO_EXAMPLE, "__version__")), Guide]
PARTS += [sims.CacheRule.from_pilot, sims.Model.sample, sims.Model.guided, sims.Model.sheet]
PARTS += [getattr(sims.interpolants, name) for name in ("linear", "of_alphas_cumprod", "rectified_flow", "interpolant")]


def test_the_page_runs_from_top_to_bottom(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished / "sims", tmp_path / "runs/digits/sims")
    names: dict[str, Any] = {"__name__": "parts"}
    monkeypatch.setitem(sys.modules, "parts", ModuleType("parts"))  # dataclasses look it up
    blocks = pages.blocks("python", PAGE)
    try:
        for block in blocks:
            assert sum(1 for line in block.splitlines() if line.strip()) <= LONGEST, block
            exec(compile(block, "parts.md", "exec"), names)
    finally:
        RULES.pop("sharpened", None)
    assert torch.isfinite(names["x"]).all() and names["images"].shape == (16, 1, 8, 8)
    assert sims.nfe(names["cached"], names["model"].sampler) < sims.nfe(names["guided"], names["model"].sampler)
    assert load(tmp_path / "models/guided").denoiser.w == 1.0  # type: ignore[attr-defined]


def test_names_and_links_of_the_page_exist() -> None:
    for name in re.findall(r"\bsims\.([A-Za-z_]+)\b(?!\.)", PAGE):
        assert hasattr(sims, name) or name in ("metrics", "guidance"), name
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", PAGE):
        assert (pages.ROOT / "docs" / target).exists(), target


@pytest.fixture(scope="module")
def example(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the examples find: two models of digits with classes, a guided pair, and a folder to write to."""
    folder = tmp_path_factory.mktemp("examples")
    base = load(model)
    other = reinitialized(base, 1)
    other.save(folder / "other")
    base.guided(other, 0.3).save(folder / "guided")
    names = {"EXAMPLE": model, "OTHER": folder / "other", "GUIDED": folder / "guided", "FOLDER": folder / "out"}
    return {name: str(path) for name, path in names.items()}


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__qualname__)
def test_public_parts_have_an_example_that_runs(
    part: Any, example: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if part in (sims.improve, sims.shift, sims.loop, sims.pollution):  # minutes: here only their options are looked at
        monkeypatch.setattr(f"sims.api.run_{part.__name__}", lambda options, quiet: options)
    tests = doctest.DocTestFinder(recurse=False).find(part, part.__qualname__, globs=dict(example))
    assert tests and tests[0].examples, f"{part.__qualname__} has no example in its docstring"
    said: list[str] = []
    for test in tests:
        doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert not said, "".join(said)


# ---- arrays and tensors


@pytest.mark.parametrize(
    ("shape", "dtype", "data_range", "kept"),
    [
        ((6, 8, 8, 3), np.uint8, None, (3, 8, 8)),
        ((6, 3, 8, 8), np.uint8, None, (3, 8, 8)),
        ((6, 8, 8), np.uint8, (0, 16), (1, 8, 8)),
        ((6, 1, 8, 8), np.float64, (0, 1), (1, 8, 8)),
        ((6, 8, 8, 1), np.float32, (-1, 1), (1, 8, 8)),
        ((6, 2), np.float64, None, (2,)),
    ],
)
def test_arrays_become_data_with_the_range_that_is_said(
    shape: tuple[int, ...], dtype: Any, data_range: Any, kept: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    low, high = data_range or (0, 255)
    values = (low + rng.random(shape) * (high - low)).astype(dtype)
    data = sims.load_data(values, labels=np.arange(6) % 2, data_range=data_range)
    assert data.data_shape == kept and data.num_classes == 2
    x, labels = data.all()
    values = values.astype(np.float64)
    first = values if len(shape) < 4 or kept == shape[1:] else values.transpose(0, 3, 1, 2)
    expected = first.reshape(6, *kept) if kept == (2,) else 2 * (first.reshape(6, *kept) - low) / (high - low) - 1
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-6)
    assert labels is not None and labels.tolist() == [0, 1] * 3
    values = torch.from_numpy(values.astype(dtype))
    again = sims.load_data(values, labels=torch.arange(6) % 2, data_range=data_range)
    assert again.fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("values", "options", "words"),
    [
        (np.zeros((4, 1, 8, 8), np.float32), {}, "data_range=\\(0, 1\\)"),
        (np.zeros((4, 1, 8, 8), np.int32), {}, "data_range"),
        (np.full((4, 1, 8, 8), 1.5), {"data_range": (0, 1)}, "outside data_range"),
        (np.full((4, 1, 8, 8), np.nan), {"data_range": (0, 1)}, "finite"),
        (np.zeros((4, 7)), {}, "has shape"),
        (np.zeros((0, 1, 8, 8), np.uint8), {}, "empty"),
        (np.zeros((4, 1, 8, 8), np.uint8), {"labels": [0]}, "1 labels for 4 samples"),
        (np.zeros((4, 1, 8, 8), np.uint8), {"data_range": (1, 1)}, "value range"),
        ("digits", {"labels": [0]}, "go with arrays"),
        ("digits", {"data_range": (0, 1)}, "go with arrays"),
    ],
)
def test_nothing_is_guessed(values: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        sims.load_data(values, **options)


def test_arrays_are_scored_as_files_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (200, 8, 8, 3), np.uint8) for _ in range(2))
    np.savez(tmp_path / "a.npz", images=a)
    np.savez(tmp_path / "b.npz", images=b)
    how: dict[str, Any] = {"options": {"extractor": "pca", "metrics": ["fd"]}, "quiet": True, "cache": tmp_path / "c"}
    scores = sims.evaluate(a, b, **how)
    files = sims.evaluate(tmp_path / "a.npz", tmp_path / "b.npz", **how)
    assert scores.figures["fd"].mean == files.figures["fd"].mean
    both = sims.compare([torch.from_numpy(a), b], b, **how)
    assert both.scores[0].figures == scores.figures and both.differences
    with pytest.raises(UserError, match="data_range"):
        sims.evaluate(a / 255, b, **how)


# ---- fine_tune


def test_an_auxiliary_is_made_and_continued(model: Path, tmp_path: Path) -> None:
    base = load(model)
    x, labels = base.sample_labelled(range(64))
    how: dict[str, Any] = {"images": 256, "batch": 32, "quiet": True}
    made = sims.fine_tune(base, x, labels=labels, **how)
    assert made.hash != base.hash == load(model).hash and made.codec == base.codec
    assert torch.isfinite(base.guided(made, 1.0).sample(range(4))).all()
    kept = sims.fine_tune(base, x, labels=labels, folder=tmp_path / "aux", **how)
    assert kept.hash == made.hash, "the same data, options and seed give the same weights"
    assert sims.fine_tune(base, x, labels=labels, folder=tmp_path / "aux", **how).hash == made.hash
    with pytest.raises(UserError, match="another configuration"):
        sims.fine_tune(base, x, labels=labels, folder=tmp_path / "aux", **{**how, "lr": 1e-4})
    raw = base.codec.decode(x)
    assert sims.fine_tune(base, raw, labels=labels, **how).hash != made.hash  # rounded to the data's own format


def test_a_store_and_a_data_set_are_samples_too(model: Path, store: Path) -> None:
    base = load(model)
    how: dict[str, Any] = {"images": 64, "batch": 32, "quiet": True, "train": {"ema_rampup": 0.1}}
    assert sims.fine_tune(base, store, **how).hash == sims.fine_tune(base, sims.load_data(store), **how).hash


def test_what_does_not_fit_is_refused(model: Path, plain: Dataset) -> None:
    base = load(model)
    x, labels = base.sample_labelled(range(8))
    for samples, given, words in [
        (x, None, "0 classes and the model 10"),
        (x[..., :4], labels, "do not fit a model"),
        (x * torch.nan, labels, "not finite"),
        (plain, None, "classes"),
        (plain, labels, "their own labels"),
        (base.codec.decode(x).astype(np.float32), labels, "float32"),
    ]:
        with pytest.raises(UserError, match=words):
            sims.fine_tune(base, samples, labels=given, images=32, quiet=True)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Extrapolate cannot be fine-tuned"):
        sims.fine_tune(base.guided(base, 1.0), x, labels=labels, images=32)
    with pytest.raises(UserError, match="budget of 0 images"):
        sims.fine_tune(base, x, labels=labels, images=0)
    with pytest.raises(UserError, match="did you mean 'beta2'"):
        sims.fine_tune(base, x, labels=labels, images=32, train={"beta": 0.9})
