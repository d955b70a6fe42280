"""No code in the documentation that nothing runs: every fenced block of every page is run, checked, or said why not."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch

import pages
from sims.cli import COMMANDS, parse
from sims.config import override
from sims.denoiser import Denoiser
from sims.experiments.options import ImproveOptions
from sims.gaussians import GaussianMixture
from sims.guidance import RULES, Guide
from sims.methods import METHODS, Method, default_methods
from sims.sampling import SamplerOptions, sample_seeds

FILES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md")
    for path in pages.ROOT.glob(pattern)
    if "results" not in path.parts
)

#: Python blocks run where their models and data are: page -> the test that runs every one of them.
RUN_BY = {
    "README.md": "test_readme.test_python_runs",
    "docs/usage.md": "test_readme.test_python_runs",
    "docs/parts.md": "test_parts.test_the_page_runs_from_top_to_bottom",
    "docs/comparing.md": "test_docs.test_every_command_of_the_page_runs",
    "docs/your-model.md": "test_your_model.test_every_command_of_the_page_runs",
    "docs/edm.md": "test_your_model.test_every_command_of_the_page_runs",
    "docs/edm2.md": "test_your_model.test_every_command_of_the_page_runs",
    "docs/diffusers.md": "test_your_model.test_every_command_of_the_page_runs",
    "docs/text-to-image.md": "test_text_page.test_the_page_runs_from_top_to_bottom",
    "docs/which-checkpoint.md": "test_how_to.test_checkpoints_are_compared",
    "docs/why-it-works.md": "test_how_to.test_the_exact_example_is_exact",
    "CONTRIBUTING.md": "test_markdown.test_what_contributing_says_can_be_added_can_be_added",
}
#: Lines of shell blocks that are not commands of this package, and why they are not run here.
NOT_OURS = {
    "python3 -m venv": "an environment of the system's Python",
    ".venv/bin/pip install": "downloads",
    ".venv/bin/python -m pytest": "this is it",
    ".venv/bin/mkdocs build": "test_site builds it",
    ".ci/run": "runs the tests",
    "#": "a comment",
    "first=$(scontrol": "SLURM's",
}
#: What is put before a command that runs in several processes, or in another environment.
BEFORE = re.compile(r"^(?:srun +)?(?:torchrun .*?-m -- +)?(?:\.venv/bin/)?(?=sims )")
#: Rows of the README's table that are not called what their results call them.
README_ROWS = {
    "base with the sampler that suits it best": "base (tuned)",
    "trained on, with as much compute": "continued",
    "sims, cached (Fashion-MNIST": "sims (cached)",
    "the best of them, distilled into one network": "distilled",
}
NO_CODE = {"", "text", "json"}


class Block(NamedTuple):
    page: str
    line: int
    language: str
    code: str


def fenced(path: Path) -> list[Block]:
    """Every fenced block of a page, also one that is indented."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(r"^( *)```+ *([\w-]*)[^\n]*\n(.*?)^\1```+ *$", text, flags=re.MULTILINE | re.DOTALL)
    page = path.relative_to(pages.ROOT).as_posix()
    return [Block(page, text.count("\n", 0, match.start()) + 1, match[2], match[3]) for match in found]


BLOCKS = [block for path in FILES for block in fenced(path) if block.language not in NO_CODE]


def check_shell(block: Block) -> None:
    """Commands of this package have options that there are; scripts exist; the rest is on the list above."""
    for line in re.sub(r" *\\\n *", " ", block.code).splitlines():
        for command in (part.strip() for part in line.split("&&")):
            ours = BEFORE.sub("", command)
            if not command or any(command.startswith(prefix) for prefix in NOT_OURS):
                continue
            if script := re.match(r"(?:\.venv/bin/)?python +(benchmarks/\S+)", command):
                assert (pages.ROOT / script[1]).is_file(), command
                continue
            assert ours.startswith("sims "), f"{block.page}:{block.line}: nothing checks {command!r}"
            if "# refused:" not in ours:  # those of the pages that a test types
                name, *words = shlex.split(ours, comments=True)[1:]
                assert type(parse(name, words)) is COMMANDS[name].options


def check_python(block: Block) -> None:
    """A test runs all blocks of the page: it asks for them, and executes them."""
    assert block.page in RUN_BY, f"{block.page}:{block.line}: no test runs this block; name one in RUN_BY"
    module, name = RUN_BY[block.page].split(".")
    source = (pages.ROOT / "tests" / f"{module}.py").read_text(encoding="utf-8")
    function = next(node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef) and node.name == name)
    text = ast.unparse(function)
    assert re.search(rf"blocks\('{block.language}'", text) and "exec(compile(" in text, RUN_BY[block.page]
    ast.parse(block.code)


def check_toml(block: Block) -> None:
    override(ImproveOptions(), tomllib.loads(block.code))


CHECKS = {"sh": check_shell, "python": check_python, "py": check_python, "toml": check_toml}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: f"{block.page}:{block.line}")
def test_every_block_is_run_or_checked(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, recipe in enumerate(pages.blocks("toml", (pages.ROOT / block.page).read_text(encoding="utf-8"))):
        name = re.match(r"# (\S+\.toml)", recipe)
        (tmp_path / (name[1] if name else f"{number}.toml")).write_text(recipe)
    assert block.language in CHECKS, f"{block.page}:{block.line}: nothing checks blocks of {block.language}"
    CHECKS[block.language](block)


def test_blocks_are_found_and_bad_ones_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {block.language for block in BLOCKS} >= {"sh", "python", "py", "toml"}
    assert {block.page for block in BLOCKS} >= {"README.md", "CONTRIBUTING.md", "docs/parts.md"}
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    page = tmp_path / "new.md"
    page.write_text("- x\n\n  ```sh\n  sims improve --runn x\n  ```\n\n```python\n1\n```\n```sh\nrm -r /\n```\n")
    indented, python, shell = fenced(page)
    assert (indented.line, python.line, shell.line) == (3, 7, 10)
    with pytest.raises(SystemExit):
        check_shell(indented)
    with pytest.raises(AssertionError, match="no test runs"):
        check_python(python)
    with pytest.raises(AssertionError, match="nothing checks 'rm"):
        check_shell(shell)


def test_what_contributing_says_can_be_added_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its blocks as files: a method that has its place in METHODS, and a rule that guides."""
    made: list[Method | type[Guide]] = []
    for number, code in enumerate(pages.blocks("py", pages.read("CONTRIBUTING.md"))):
        module = ModuleType(f"contributed_{number}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(code, "CONTRIBUTING.md", "exec"), vars(module))
        made += [thing for name, thing in vars(module).items() if name.lower() == "mine"]
    method, rule = made
    assert isinstance(method, Method) and method.name not in METHODS
    monkeypatch.setitem(METHODS, method.name, method)
    assert method.name in default_methods() and method.feeds_loops
    assert isinstance(rule, type) and RULES.pop("mine") is rule
    one, two = (GaussianMixture([1.0], torch.full((1, 2), mean), torch.eye(2)[None]) for mean in (0.0, 0.5))
    guided = rule(one, two, 1.0)  # type: ignore[call-arg]
    assert isinstance(guided, Denoiser)
    x, _ = sample_seeds(guided, range(500), SamplerOptions())
    assert abs(float(x.mean()) + 0.25) < 0.1  # pushed away from the auxiliary's mean by w / 2 of the difference
    off = sample_seeds(guided.with_strength(0.0), range(5), SamplerOptions())[0]
    assert torch.equal(off, sample_seeds(one, range(5), SamplerOptions())[0])


def test_modules_that_pages_import_are_there() -> None:
    """Also in what is not run here: no page imports a name that is not there."""
    for block in BLOCKS:
        if block.language not in ("py", "python"):
            continue
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "sims":
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def anchors(text: str) -> set[str]:
    """The headings of a page, as links name them."""
    found = re.findall(r"^#+ (.+)$", pages.prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in found}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(pages.ROOT).as_posix())
def test_links_lead_somewhere(file: Path) -> None:
    for target, anchor in re.findall(
        r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", pages.prose(file.read_text(encoding="utf-8"))
    ):
        page = file.parent / target if target else file
        assert page.exists(), target
        assert not anchor or anchor in anchors(page.read_text(encoding="utf-8")), f"{target}#{anchor}"


def test_every_page_is_one_step_from_the_readme_and_that_is_short() -> None:
    text = pages.read("README.md")
    assert len(text.splitlines()) <= 150
    linked = {(pages.ROOT / target).resolve() for target in re.findall(r"\]\((?!http)([^)#]+)", text)}
    assert linked >= {file.resolve() for file in FILES if file.name != "README.md"}


def changed(row: dict[str, Any], figure: str) -> str:
    """A row's mean change from the base, as pages write it."""
    mean = f"{row[figure]['change_percent']['mean']:+.0f} %".replace("-", "−")
    return "0 %" if mean in ("+0 %", "−0 %") else mean


@pytest.mark.parametrize(
    ("bed", "heading", "told", "labels"),
    [
        (
            "fashion-mnist", "Fashion-MNIST, a base of a million images", "judged by EfficientNet too",
            ("sims (fast)", "sims (cached)", "sims", "neon"),
        ),
        ("cifar10-32x32", "CIFAR-10, 32×32 colour", "[32×32]", ("sims (within cost)", "neon")),
    ],
)  # fmt: skip
def test_the_table_of_a_real_size_says_what_its_result_says(
    bed: str, heading: str, told: str, labels: tuple[str, ...]
) -> None:
    rows = json.loads(pages.read(f"benchmarks/results/claim-{bed}.json"))["rows"]
    section = pages.read("docs/figures.md").split(f"### {heading}\n")[1].split("\n#")[0]
    written = [re.findall(r"(\S+ %) \[", line) for line in section.splitlines() if line.count("[") == 3]
    expected = [[changed(row, name) for name in ("fd", "fd_held_out", "check_fd_held_out")] for row in rows[1:]]
    assert sorted(written) == sorted(expected) and len(written) >= 5
    pairs = re.findall(r"(\S+ %) \((\S+ %)\)", pages.read("README.md").split(told)[1].split("\n")[0])
    by = {row["label"]: (changed(row, "fd_held_out"), changed(row, "check_fd_held_out")) for row in rows}
    assert pairs[: len(labels)] == [by[label] for label in labels]


HEADINGS = {
    "digits-5k": "Digits, base of 5,000 steps",
    "cifar10-8x8": "CIFAR-10 at 8×8, grey",
    "fashion-mnist": "Fashion-MNIST, every method on one base",
}


@pytest.mark.parametrize("bed", HEADINGS)
def test_the_tables_of_rivals_say_what_their_results_say(bed: str) -> None:
    rows = {row["label"]: row for row in json.loads(pages.read(f"benchmarks/results/rivals-{bed}.json"))["rows"]}
    section = pages.read("docs/figures.md").split(f"### {HEADINGS[bed]}\n")[1].split("\n#")[0]
    written = [re.findall(r"(\S+ %)(?: \[|(?= \|))", line)[:3] for line in section.splitlines() if line.count("[") == 3]
    found = {tuple(changed(row, name) for name in ("fd", "fd_held_out", "check_fd_held_out")) for row in rows.values()}
    assert len(written) > 15 and {tuple(line) for line in written} <= found
    if bed == "fashion-mnist":  # README's column is of another run
        return
    column = {"digits-5k": 4, "cifar10-8x8": 5}[bed]
    lines = [line.split("|") for line in pages.read("README.md").splitlines() if line.startswith("| ") and "%" in line]
    for cells in lines:
        title = cells[1].strip().split(":")[0].replace("*", "").replace("`", "").strip()
        label = README_ROWS.get(title, title)
        expected = f"{changed(rows[label], 'fd_held_out')} ({changed(rows[label], 'check_fd_held_out')})"
        assert cells[column].strip() == expected, label
    assert len(lines) == 13
