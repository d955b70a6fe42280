"""What the README, and the pages it leads a user to first, say can be typed can be typed."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pages
import sims
import tiny
from sims.cli import COMMANDS, parse
from sims.data.dataset import Dataset

README = pages.read("README.md")
PAGES = "\n".join([README, pages.read("docs/your-pictures.md"), pages.read("docs/usage.md")])


def blocks(language: str, text: str = PAGES) -> list[str]:
    """The fenced blocks of one language."""
    return pages.blocks(language, text)


def section(title: str) -> str:
    return README.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def commands() -> list[str]:
    """Every sims command in the sh blocks and in inline code, without the program."""
    lines = [part for block in blocks("sh") for line in block.splitlines() for part in line.split("&&")]
    lines += re.findall(r"`([^`\n]+)`", pages.prose(PAGES))
    found = [re.fullmatch(r"(?:.*(?:/|-m ))?sims +([a-z].*)", line.strip()) for line in lines]
    return list(dict.fromkeys(match[1] for match in found if match))


def test_quick_start_is_two_blocks_of_one_command_line() -> None:
    install, tests = blocks("sh", section("Quick start"))[:2]
    for block in (install, tests):
        assert len(block.splitlines()) == 1
        assert block.startswith("python3 -m venv .venv && .venv/bin/pip install ")
        assert "-c constraints.txt" in block
    assert install.rstrip().endswith(".venv/bin/sims improve")
    assert ".[test]" in install + tests and "pytest" in tests


def test_the_commands_are_found() -> None:
    assert {command.split()[0] for command in commands()} == set(COMMANDS)


@pytest.mark.parametrize("command", commands())
def test_commands_parse(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(blocks("toml")[0])
    name, *arguments = shlex.split(command)
    assert type(parse(name, arguments)) is COMMANDS[name].options


def test_the_recipe_says_what_it_is_called() -> None:
    assert blocks("toml")[0].startswith("# mine.toml")
    assert tomllib.loads(blocks("toml")[0])["rounds"] == 2


def test_options_that_are_mentioned_exist() -> None:
    from sims.commands.options import EvaluateCommand
    from sims.config import to_dict
    from sims.experiments.options import ImproveOptions

    known = _flags(to_dict(ImproveOptions())) | _flags(to_dict(EvaluateCommand())) | {"recipe", "help", "out", "count"}
    for option in re.findall(r"`--([a-z][a-z.-]+)", PAGES):
        assert option in known, option


def _flags(options: dict[str, Any], prefix: str = "") -> set[str]:
    names = {f"{prefix}{key}".replace("_", "-") for key in options}
    inner = (_flags(value, f"{prefix}{key}.") for key, value in options.items() if isinstance(value, dict))
    return names.union(*inner)


def test_python_runs(finished: Path, digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every python block, on tiny runs: paths lead to what the tests made, and lengths are those of the tiny job."""
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "mine.npz", images=digits.raw, labels=digits.labels)
    options = parse("improve", [*tiny.JOB, *tiny.PCA, "--methods", "base,sims"])
    improve, evaluate = sims.improve, sims.evaluate
    few = {"draws": 2, "samples": 50}
    monkeypatch.setattr(sims, "improve", lambda **given: improve(options, quiet=True, **given), raising=False)
    monkeypatch.setattr(sims, "evaluate", lambda *given: evaluate(*given, options=few, quiet=True), raising=False)
    for block in blocks("python"):
        code = block.replace("runs/digits/improved", str(finished / "improved")).replace("my/images", "mine.npz")
        names: dict[str, Any] = {}
        exec(compile(code, "pages", "exec"), names)
        if "x" in names:
            assert tuple(names["x"].shape) == (16, 1, 8, 8)
    assert (tmp_path / "runs" / "mine" / "report.html").is_file()
