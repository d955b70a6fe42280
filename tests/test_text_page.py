"""What docs/text-to-image.md says can be typed is typed, with tiny pipelines and few samples."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pages
from sims.experiments.cost import rates
from sims.experiments.job_sizes import sized_for_text
from sims.experiments.options import ImproveOptions

PAGE = pages.read("docs/text-to-image.md")
#: Less of everything; these options follow those of the page and win over them.
LESS = {
    "improve": "--text.steps 5 --data.source.size 16 --auxiliary.samples 24 --auxiliary.budgets 32,64 "
    "--auxiliary.train.batch 8 --auxiliary.train.lr 0.01 --auxiliary.train.warmup 16 --auxiliary.lora.rank 2 "
    "--search.rungs 16,24 --search.w 0.5 --evaluation.samples 24 --evaluation.draws 2 --evaluation.extractor pca "
    "--evaluation.manifold-samples 20 --guidance.pilot 8 --batch-size 8 --methods base,sims,neon",
    "sample": "--seeds 0-1",
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to type in, with tiny pipelines and pictures under the names that the page has."""
    pytest.importorskip("peft", reason="needs the package peft: pip install '.[text]'")
    text_folders = pytest.importorskip("text_folders", reason="needs diffusers and transformers: pip install '.[text]'")
    folder = tmp_path_factory.mktemp("desk")
    (folder / "my").mkdir()
    for kind, name in (("sd", "sd15"), ("sdxl", "sdxl"), ("sd3", "sd3")):
        text_folders.write_pipeline(kind, folder / "my" / name)
    text_folders.write_pictures(folder / "my/pictures")
    (folder / "my/prompts.txt").write_text("\n".join(text_folders.PROMPTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(rates, "SECONDS", 0.1)
        patch.setenv("COLUMNS", "160")
        yield folder


def test_the_page_runs_from_top_to_bottom(desk: Path) -> None:
    """Its commands, then its Python on what they left; what is only rehearsed of SDXL is also run."""
    found = [*pages.lines("sh", PAGE), *pages.lines("text", PAGE)]
    rehearsed = next(line for line in found if "my/sdxl" in line)
    assert rehearsed.endswith(" --dry-run")
    run = re.sub(r"--fit-memory|--dry-run", "", rehearsed)
    for line in (*found, run):
        pages.check(line, shlex.split(LESS[line.split()[1]]))
    left = {path.name for path in (desk / "runs/sd15/text-to-image").iterdir()}
    table = PAGE.split("| who reads it |")[1].split("\n\n")[0]
    assert left == set(re.findall(r"`([a-z-]+\.(?:safetensors|json))`", table))
    assert "nothing tells whether samples show their prompts" in (desk / "runs/sd15/log").read_text()
    assert "not verified" in (desk / "runs/sd3/report.html").read_text().lower()
    for code in pages.blocks("python", PAGE):
        here = code.replace('"cuda"', '"cpu"').replace("num_inference_steps=25", "num_inference_steps=2")
        names: dict[str, Any] = {}
        exec(compile(here, "text-to-image.md", "exec"), names)
        assert names["image"].size == (16, 16)


def test_the_defaults_that_the_page_has_are_those_of_the_code(desk: Path) -> None:
    here = sized_for_text(ImproveOptions(model=desk / "my/sd15"))
    auxiliary, train, search, evaluation = here.auxiliary, here.auxiliary.train, here.search, here.evaluation
    rows = {
        "--methods": ["`" + ",".join(here.methods) + "`"],
        "--batch-size": [here.batch_size],
        "--auxiliary.samples": [auxiliary.samples],
        "--auxiliary.budgets": auxiliary.budgets,
        "--auxiliary.train.batch": [train.batch, train.warmup, train.ema_rampup],
        "--search.rungs": [*search.rungs, search.limit],
        "--guidance.pilot": [here.guidance.pilot],
        "--evaluation.samples": [evaluation.samples, evaluation.draws],
    }
    table = PAGE.split("| option | otherwise | here |\n|---|---|---|\n")[1].split("\n\n")[0]
    written = {re.findall(r"`(.+?)`", line)[0]: line.split(" | ")[2].rstrip(" |") for line in table.splitlines()}
    said = {name: [one if isinstance(one, str) else f"{one:,}" for one in values] for name, values in rows.items()}
    assert {name: re.split("[;,] (?=.)", text) for name, text in written.items()} == said
