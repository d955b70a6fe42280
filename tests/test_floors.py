"""The house stands: a module imports only lower floors, and importing does nothing else."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import sims

ROOT = Path(sims.__file__).parent

# Lowest first. Units of one floor do not see each other; within a unit imports are free.
# A new module or package belongs on a floor: name it here.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "screen", "allocator"),
    ("limits", "notebook"),
    ("threads",),
    ("files", "denoiser", "processes", "seeds", "checksum"),
    ("config", "arrays", "safe_pickle"),
    ("results", "user_code", "measured"),
    ("networks", "interpolants", "sampling", "gaussians", "data", "metrics"),
    ("preconditioning", "guidance"),
    ("model", "heads"),
    ("interop",),
    ("training",),
    ("scoring",),
    ("runs",),
    ("methods",),
    ("report",),
    ("experiments",),
    ("api", "fitting"),
    ("app",),
    ("commands",),
    ("cli",),
    ("__main__",),
)
HEIGHT = {unit: height for height, floor in enumerate(FLOORS) for unit in floor}
HEIGHT["__init__"] = HEIGHT["api"] + 1  # the package itself offers the API
REPORT_MAY_IMPORT = {"errors", "screen", "files", "arrays", "config", "results"}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def dotted(path: Path) -> str:
    """src/sims/data/store.py -> data.store; the package itself -> __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def unit(name: str) -> str:
    return name.split(".")[0]


def exists(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module (below sims) of every import in a file: in functions and for type checkers too."""
    package = ["sims", *path.relative_to(ROOT).parent.parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "sims":
                    yield node.lineno, alias.name.removeprefix("sims").lstrip(".") or "__init__"
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) + 1 - node.level] if node.level else []
            full = [*start, *(node.module.split(".") if node.module else [])]
            if full[:1] != ["sims"]:
                continue
            for alias in node.names:
                inner = ".".join([*full[1:], alias.name])
                yield node.lineno, inner if exists(inner) else ".".join(full[1:]) or "__init__"


def violations(path: Path) -> list[str]:
    here = unit(dotted(path))
    found = []
    for line, name in imported(path):
        there = unit(name)
        if there == here:
            continue
        if there not in HEIGHT:
            found.append(f"line {line}: {name} has no floor")
        elif HEIGHT[there] >= HEIGHT[here]:
            found.append(f"line {line}: {here} (floor {HEIGHT[here]}) imports {name} (floor {HEIGHT[there]})")
    return found


def test_every_module_has_a_floor() -> None:
    homeless = {dotted(path) for path in modules() if unit(dotted(path)) not in HEIGHT}
    assert not homeless, f"give {sorted(homeless)} a floor in FLOORS"


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_imports_only_lower_floors(path: Path) -> None:
    assert not violations(path)


def test_the_report_reads_run_directories_only() -> None:
    for path in sorted((ROOT / "report").rglob("*.py")):
        others = {unit(name) for _, name in imported(path)} - {"report"}
        assert others <= REPORT_MAY_IMPORT, f"{dotted(path)} imports {sorted(others - REPORT_MAY_IMPORT)}"


def test_the_check_sees_lazy_and_relative_imports(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "cli.py").touch()
    file = tmp_path / "data" / "store.py"
    file.write_text(
        "def f():\n    from sims.cli import main\n    from .. import cli\n    import sims.cli\nfrom . import hf\n"
    )
    assert [name for _, name in imported(file)] == ["data", "cli", "cli", "cli"]
    assert len(violations(file)) == 3


def _python(code: str, folder: Path) -> str:
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV")}
    environment = {**kept, "HOME": str(folder), "TMPDIR": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return done.stdout


def test_importing_has_no_side_effects(tmp_path: Path) -> None:
    names = [f"sims.{dotted(path)}" for path in modules() if dotted(path) not in ("__init__", "__main__")]
    code = f"""
import importlib, sys, threading
import numpy, torch
before = numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
settings = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
for name in {names!r}:
    importlib.import_module(name)
assert before == (numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()), "random state"
assert settings == (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()), "torch settings"
assert threading.active_count() == 1, threading.enumerate()
assert "torchvision" not in sys.modules, "torchvision"
"""
    assert _python(code, tmp_path) == ""
    assert not list(tmp_path.rglob("*")), "importing wrote files"


def test_importing_the_package_is_quick(tmp_path: Path) -> None:
    code = "import sys, sims; print(sorted({'torch', 'numpy', 'matplotlib', 'torchvision'} & set(sys.modules)))"
    assert _python(code, tmp_path).strip() == "[]"
