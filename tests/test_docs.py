"""What docs/comparing.md and the section of docs/usage.md about scores say can be typed is typed, with less data."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pages
from pages import blocks, check, lines, typed
from sims.cli import main, parse
from sims.commands.options import EvaluateCommand
from sims.config import to_dict
from sims.data.sources import load
from sims.metrics.comparison import COMPARED
from sims.metrics.infinity import PARTS
from sims.metrics.pretrained import FITTED, NAMES
from sims.metrics.weights import WEIGHTS, cache_folder
from sims.model import load as load_model
from sims.model import reinitialized
from sims.scoring.figures import K_COVER, K_PAIR, METRICS
from sims.scoring.suite import CACHE

PAGE = pages.read("docs/comparing.md")
SECTION = pages.read("docs/usage.md").split("\n## Scores that can be trusted\n")[1].split("\n## ")[0]

#: Less data: these options follow those of the page and win over them.
LESS = {
    "train": "--network.width 32 --network.blocks 1 --network.embedding 16 --base.images 6400 --sampler.steps 5",
    "synthesize": "--count 240",
    "evaluate": "--samples 60 --resamples 4 --neighbours 120",
}


def less(line: str) -> list[str]:
    """What is put behind a line."""
    _, name, *words = shlex.split(line, comments=True)
    more = shlex.split(LESS[name])
    if "efficientnet-lite0" in words:
        more += shlex.split("--reference few.npz --limit 20")  # its images are large for a CPU
    elif (limit := re.search(r"--limit (\d+)", line)) is not None:
        more += ["--limit", str(int(limit[1]) // 10)]
    return more


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Iterator[Path]:
    """A folder to type in, with models and images where the pages have them, and no weights on this machine."""
    folder = tmp_path_factory.mktemp("desk")
    np.savez(folder / "few.npz", images=load("digits", limit=40).raw)
    (folder / "my/images").mkdir(parents=True)
    for number, image in enumerate(load("digits", limit=150).raw):  # (1, 8, 8), values 0..16
        Image.fromarray(image[0] * 15).save(folder / f"my/images/{number}.png")
    shutil.copytree(model, folder / "runs/digits/improved")
    base = load_model(model)
    base.guided(reinitialized(base, 1), 0.3).save(folder / "runs/digits/distilled")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SIMS_CACHE", str(folder / "weights"))
        patch.setenv("COLUMNS", "160")
        assert main(shlex.split("sample runs/digits/improved --seeds 0-63 --out my/samples")) == 0
        yield folder


def test_every_command_of_the_page_runs(desk: Path) -> None:
    said = {line: check(line, less(line)) for line in lines("sh", PAGE)}
    assert {line.split()[1] for line in said} == set(LESS)
    whole = next(out for line, out in said.items() if "--out scores.jsonl" in line)
    for words in ("real against real", "side by side", "first minus second", "interval from", "subsets of the same"):
        assert words in whole, words
    assert re.search(r"is better than|no difference in \w+ can be shown: it lies between", whole)
    assert any("paired draws of the same seeds" in out for out in said.values())
    assert any("modes hit" in out for out in said.values()), "the points have no figures of their own"
    assert not cache_folder().exists(), "something was downloaded"
    for code in blocks("python", PAGE):  # after the commands, whose samples it reads
        exec(compile(code, "comparing.md", "exec"), {})


def test_every_command_of_the_section_runs(desk: Path) -> None:
    found = lines("sh", SECTION)
    assert found and all(line.startswith("sims evaluate ") for line in found)
    for line in found:
        assert "real against real" in check(line, less(line))


def test_commands_that_need_weights_parse_and_say_what_they_need(desk: Path) -> None:
    found = lines("text", PAGE)
    assert found
    for line in found:
        _, name, *words = shlex.split(line)
        options = parse(name, words)
        assert isinstance(options, EvaluateCommand) and options.download and options.extractor in WEIGHTS
    for name, files in WEIGHTS.items():
        line = f"sims evaluate few.npz --reference few.npz --extractor {name}"
        status, _, err = typed(line, less(line))
        assert status == 2, name
        for file in files:
            assert f"\n{file.name}\n" in PAGE, file.name
            for part in (str(cache_folder()), Path(file.name).name, file.url, file.sha256, "--download"):
                assert part in err, part
    assert not cache_folder().exists()


def test_the_page_names_what_is_there() -> None:
    fields = re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\|.*\| (`.*`) \|$", PAGE, flags=re.MULTILINE)))
    assert set(fields) == set(COMPARED), "the table of what is compared"
    for name in (*NAMES, *FITTED):
        assert re.search(rf"^\| `{name}(:FILE)?` \|", PAGE, flags=re.MULTILINE), name
    known = {f"--{name}".replace("_", "-") for name in to_dict(EvaluateCommand())} | {"--help"}
    for option in re.findall(r"`[^`\n]*?(--[a-z][a-z-]+)", PAGE):  # --source of --source.size
        assert option in known, option
    for groups in re.findall(r"--metrics ([a-z_,]+)", PAGE):
        assert set(groups.split(",")) <= set(METRICS), groups
    defaults = EvaluateCommand()
    assert (K_PAIR, K_COVER, PARTS[-1]) == (3, 5, 5) and "Here k = 3" in PAGE and "a fifth of the samples" in PAGE
    assert (defaults.samples, defaults.neighbours, defaults.resamples) == (5_000, 5_000, 20)
    assert f"`--cache` (`{CACHE}`)" in PAGE
