"""One door for models in all forms: directories of ours, code of a user, checkpoints and folders of other projects."""

from __future__ import annotations

from pathlib import Path

from sims.errors import UserError
from sims.interop.checkpoints import read_checkpoint
from sims.interop.diffusers import is_diffusers, load_diffusers
from sims.interop.hub_models import local_copy
from sims.interop.nvidia import import_model
from sims.interop.reading import Assumptions
from sims.interop.recognize import holds_tensors
from sims.interop.wrapping import from_code
from sims.model import Model, load


def open_model(
    path: Path,
    weights: Path | None = None,
    given: Assumptions | None = None,
    null_class: bool = False,
    download: bool = False,
) -> Model:
    """The model at a path, or of ``my_model.py:make``, whose code is run, with ``weights``; UserError for all else.

    ``given`` is what is known of a checkpoint of tensors beyond these; with ``null_class`` the last class of a folder
    of diffusers stands for no class. A name of the Hugging Face hub is looked for in its cache, and fetched only with
    ``download``.
    """
    path = local_copy(path, download)
    if given not in (None, Assumptions()) and not holds_tensors(path):
        raise UserError(f"{path} says of itself what it is: leave out prediction, schedule, size, heads and the like")
    if is_code(path):
        return from_code(str(path), weights)
    if weights is not None:
        raise UserError(f"weights go with code that makes a network, such as my_model.py:make; {path} has its own")
    if holds_tensors(path):
        return read_checkpoint(path, given)
    foreign = path.is_dir() and not (path / "model.json").is_file() and is_diffusers(path)
    if null_class and not foreign:
        raise UserError("option 'null_class' is for a UNet2DModel of diffusers: leave it out for other models")
    if foreign:
        return load_diffusers(path, null_class=null_class or None)
    if path.suffix and not path.exists():
        raise UserError(f"no file {path}: check the path")
    if path.is_file():
        return import_model(path)
    return load(path)


def is_code(path: Path) -> bool:
    """Whether ``file.py:function`` is meant, rather than a path."""
    return ".py:" in str(path) and not path.exists()
