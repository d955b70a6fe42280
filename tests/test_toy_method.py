"""A method is one file and one line: a toy one is registered, and stands wherever a method stands."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tiny
from sims.cli import main
from sims.data.dataset import Dataset
from sims.experiments.cost import rates
from sims.methods import METHODS, Artefact, Base, Continuous, Expected, Method, Settings
from sims.methods.guided import extrapolate
from sims.results.common import Look
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.runs.directory import Run
from sims.runs.work import Leaves, Work

# ---- the one file


def _prepare(base: Base, real: Dataset | None, settings: Settings, run: Run) -> Artefact:
    """A copy of the base with noise on its weights: a worse model that no training made."""
    folder = run.artefact("noisy", base.key, settings.seed)
    if run.is_main and not (folder / "model.json").is_file():
        noisy, generator = copy.deepcopy(base.model.denoiser), torch.Generator().manual_seed(settings.seed)
        with torch.no_grad():
            for parameter in noisy.parameters():  # type: ignore[attr-defined]
                parameter += 0.05 * parameter.std() * torch.randn(parameter.shape, generator=generator)
        base.model.with_denoiser(noisy).save(folder)
    run.barrier()
    return Artefact(folder.name, {0: folder})


def _work(expected: Expected) -> Work:
    return Work("", leaves=(Leaves("noisy copy", networks=1),))


NOISY = Method(
    "noisy",
    "guided away from a copy with noise on its weights",
    Look("Noisy copy", "#123456", "#abcdef", "d"),
    Continuous(),
    _prepare,
    extrapolate,
    _work,
    networks=2,
    prepared_as="noisy copy",
)

# ---- the one line


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, NOISY.name, NOISY)
        patch.setattr(rates, "SECONDS", 0.1)
        yield


# ---- where it is seen


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("toy") / "run"
    words = ["--methods", "base,sims,noisy", "--guidance.cache-cost", "0"]
    assert main(tiny.improve_arguments(run, *tiny.PCA, *words)) == 0
    return run


def test_in_the_help(say: tiny.Say) -> None:
    status, out, _ = say("improve", "--help")
    assert status == 0 and ",neon,distilled,noisy)" in out.replace("\n", "").replace("│", "").replace(" ", "")


def test_in_the_dry_run_with_stages_of_its_own(tmp_path: Path, say: tiny.Say) -> None:
    words = tiny.improve_arguments(tmp_path / "run", *tiny.PCA, "--dry-run")
    status, out, _ = say(*words)
    assert status == 0 and not (tmp_path / "run").exists()
    stages = {line[:30].strip() for line in out.splitlines()}
    assert {"prepare noisy copy", "search noisy", "evaluate noisy"} <= stages and "  noisy copy" in out
    _, without, _ = say(*words, "--methods", ",".join(name for name in METHODS if name != NOISY.name))
    assert "noisy" not in without


def test_in_the_result_and_its_files(run: Path) -> None:
    result = read_result(run, ImproveResult)
    row = result.row("noisy")
    assert row is not None and row.nfe == 22 and row.figures["fd"].mean > 0 and row.cost.evaluations > 0
    assert result.looks["noisy"] == NOISY.look
    assert result.search is not None and result.search.chosen["noisy"].w == row.w
    assert "noisy" in {entry.b for entry in result.comparisons}
    assert {"prepare noisy copy", "search noisy"} <= {stage.name for stage in result.reproduction.stages}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"fd", "precision"} <= {line["metric"] for line in lines if line["method"] == "noisy"}


def test_in_the_closing_table(run: Path, say: tiny.Say) -> None:
    status, _, err = say(*tiny.improve_arguments(run, *tiny.PCA, "--methods", "base,sims,noisy",
                                                 "--guidance.cache-cost", "0"))  # fmt: skip
    assert status == 0 and any(line.startswith("│ noisy ") for line in err.splitlines())


def test_on_the_page_by_name_title_and_colour(run: Path) -> None:
    page = (run / "report.html").read_text()
    assert "noisy" in page and NOISY.look.title in page
    assert NOISY.look.light in page and NOISY.look.dark in page


def test_a_preparation_that_nobody_counts_is_refused() -> None:
    facts = {name: getattr(NOISY, name) for name in ("summary", "look", "strengths", "preparation", "construction")}
    with pytest.raises(TypeError, match="what it counts"):
        Method("forgotten", **facts, prepared_as="a stage that the dry run would not have")
