"""Pages of documentation: what can be typed in them, and typing it with less data."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from sims.cli import main

ROOT = Path(__file__).parent.parent


def read(name: str) -> str:
    """A page by its path in the repository."""
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(language: str, text: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def lines(language: str, text: str) -> list[str]:
    """The commands of this package in the blocks of one language; one that is continued with a \\ is one line."""
    joined = (re.sub(r" *\\\n *", " ", block) for block in blocks(language, text))
    return [line for block in joined for line in block.splitlines() if line.startswith("sims ")]


def typed(line: str, less: Sequence[str]) -> tuple[int, str, str]:
    """Run a line in this process, with further options that win over its own: exit status, stdout and stderr."""
    _, *words = shlex.split(line, comments=True)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main([*words, *less])
    return status, out.getvalue(), err.getvalue()


def check(line: str, less: Sequence[str]) -> str:
    """Type a line; it is refused with the words of its comment, or works. What it printed."""
    refused = re.search(r"# refused: (.+)", line)
    status, out, err = typed(line, less)
    if refused is None:
        assert status == 0, f"{line}: {err}"
    else:
        assert status == 2 and refused[1] in err, f"{line}: {err or out}"
    return out
