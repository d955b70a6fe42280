"""What the how-to pages say can be typed is typed, with less data."""

from __future__ import annotations

import importlib
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import pages
from sims.cli import COMMANDS, parse
from sims.data.sources import load
from test_your_model import IMPROVE

MLP = "--network.width 32 --network.blocks 1 --network.embedding 16 --base.images 640 --base.train.batch 64"
#: Less of everything; these options follow those of the page and win over them.
LESS = {
    "train": MLP,
    "sample": "--steps 3 --seeds 0-39",
    "evaluate": "--resamples 2 --extractor pca",
    "improve": f"{MLP} {IMPROVE}",
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Iterator[Path]:
    """A folder to type in, with pictures and an earlier run where the pages have them."""
    folder = tmp_path_factory.mktemp("desk")
    for name in ("images", "scraped", "known-real"):
        (folder / "my" / name).mkdir(parents=True)
    for number, image in enumerate(load("digits", limit=120).raw):  # (1, 8, 8), values 0..16
        for name in ("images", "scraped", *(["known-real"] if number < 20 else [])):
            Image.fromarray(image[0] * 15).save(folder / "my" / name / f"{number}.png")
    shutil.copytree(finished / "references", folder / "runs/mine/references")
    shutil.copytree(finished / "sims/base", folder / "runs/base/model")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("COLUMNS", "160")
        pages.check("sims sample runs/base/model --seeds 0-39 --out samples/base", [])
        yield folder


def said(page: str, *, without: str = "nothing") -> dict[str, str]:
    """What every command of a page prints, one after the other."""
    lines = [line for line in pages.lines("sh", pages.read(page)) if without not in line]
    assert lines
    return {line: pages.check(line, shlex.split(LESS[line.split()[1]])) for line in lines}


def test_checkpoints_are_compared(desk: Path) -> None:
    page = pages.read("docs/which-checkpoint.md")
    for code in pages.blocks("python", page):
        exec(compile(code, "which-checkpoint.md", "exec"), {})
    assert len(list((desk / "my/pictures").iterdir())) == 150 and len(list((desk / "my/held-out").iterdir())) == 300
    found = said("docs/which-checkpoint.md")
    first, paired = (out for line, out in found.items() if line.startswith("sims evaluate"))
    for title in ("FD", "FD to held-out", "precision (k=3)", "copied share", "closer than real", "nearest ratio"):
        assert f"│ {title} " in first and f"│ {title} " in page, title
    assert first.count("samples/64k") == 2 and "real against real" in first, "each alone, and side by side"
    assert "no difference in fd can be shown" in paired or "is better than" in paired
    for line in pages.lines("text", page):
        _, name, *words = shlex.split(line)
        assert type(parse(name, words)) is COMMANDS[name].options


def test_models_are_improved_without_real_data(desk: Path) -> None:
    said("docs/no-real-data.md")
    assert "not verified" in (desk / "runs/blind/report.html").read_text().lower()
    assert (desk / "my-images.safetensors").is_file() and (desk / "samples/weaker/000000.png").is_file()


def test_a_polluted_set_is_cleaned(desk: Path) -> None:
    said("docs/polluted-data.md", without="sims pollution")
    assert (desk / "runs/cleaned/improved/model.json").is_file()


def test_the_pictures_of_a_report_are_made_by_one_command(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("playwright", reason="needs playwright: pip install '.[test]'")
    if shutil.which("chromium") is None:
        pytest.skip("needs chromium (Debian: package chromium)")
    monkeypatch.syspath_prepend(pages.ROOT / "benchmarks")
    pictures = importlib.import_module("pictures")
    assert pictures.main([str(finished), "--out", str(tmp_path)]) == 0
    made = {file.name for file in tmp_path.iterdir()}
    assert made == {f"{name}.png" for name in (*pictures.REPORT, *pictures.VIEW)}
    shown = [name for page in (pages.ROOT / "docs").glob("*.md") for name in made if name in page.read_text("utf-8")]
    assert set(shown) == made, "no page shows it"
    assert pictures.main([str(tmp_path)]) == 2 and "has no report.html" in capsys.readouterr().err


def test_the_exact_example_is_exact() -> None:
    (code,) = pages.blocks("python", pages.read("docs/why-it-works.md"))
    names: dict[str, Any] = {}
    exec(compile(code, "why-it-works.md", "exec"), names)
    for found, power in zip(names["variances"], (1.0, 0.5, 0.0, -0.5)):
        assert found == pytest.approx(1.2**power, rel=0.05)  # five standard errors of a variance of 20,000 values
