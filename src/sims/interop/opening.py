"""One door for models in all forms: directories of ours, code of a user, checkpoints and folders of other projects."""

from __future__ import annotations

from pathlib import Path

from sims.errors import UserError
from sims.interop.diffusers import is_diffusers, load_diffusers
from sims.interop.nvidia import import_model
from sims.interop.wrapping import from_code
from sims.model import Model, load


def open_model(path: Path, weights: Path | None = None) -> Model:
    """The model at a path, or of ``my_model.py:make``, whose code is run, with ``weights``; UserError for all else."""
    if is_code(path):
        return from_code(str(path), weights)
    if weights is not None:
        raise UserError(f"weights go with code that makes a network, such as my_model.py:make; {path} has its own")
    if path.is_file() and path.suffix == ".pkl":
        return import_model(path)
    if not (path / "model.json").is_file() and is_diffusers(path):
        return load_diffusers(path)
    return load(path)


def is_code(path: Path) -> bool:
    """Whether ``file.py:function`` is meant, rather than a path."""
    return ".py:" in str(path) and not path.exists()
