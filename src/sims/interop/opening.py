"""One door for models in all forms: directories of ours, code of a user, checkpoints and folders of other projects."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from sims.config import read_as
from sims.errors import UserError
from sims.interop.checkpoints import read_checkpoint
from sims.interop.diffusers import is_diffusers, load_diffusers
from sims.interop.hub_models import local_copy, origin
from sims.interop.nvidia import import_model
from sims.interop.reading import Assumptions
from sims.interop.recognize import holds_tensors
from sims.interop.wrapping import from_code
from sims.model import Model
from sims.model import load as load_directory
from sims.processes import join


def load(path: Path | str, device: torch.device | str = "cpu", *, download: bool = False) -> Model:
    """Open a model directory, or a model of the Hugging Face hub: ``hf:owner/name``, ``hf:owner/name@revision``.

    The hub's are found in its cache, and fetched into it only with ``download``; of theirs all forms are read that
    `sims import` reads. UserError: no model there, truncated or altered weights, an unknown kind, or a model that
    cannot be fetched.

    >>> import sims
    >>> sims.load(EXAMPLE).data_shape
    (1, 8, 8)
    """
    copy = fetched(Path(path), download)
    return load_directory(copy, device) if origin(copy) is None else open_model(copy).to(device)


def fetched(path: Path, download: bool) -> Path:
    """``local_copy``, where one process of a machine fetches, and the others find what it has fetched."""
    if not download:
        return local_copy(path)
    with join().local_main_process_first():
        return local_copy(path, download)


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
    ``download``; where it comes from stands in its provenance.
    """
    path = local_copy(path, download)
    model = _opened(path, weights, given, null_class)
    if (source := origin(path)) is None:
        return model
    if (file := path / "model.json").is_file() and model.hash != (said := read_as(file, Written, rest=True).hash):
        raise UserError(
            f"{source} says that its hash is {said!r:.60}, and it is {model.hash}: its model.json was altered after it "
            "was written, so ask its owner, or give an earlier commit"
        )
    return replace(model, provenance={**model.provenance, "hub": source})


@dataclass(frozen=True)
class Written:
    """What a model directory says of its own content."""

    hash: str


def _opened(path: Path, weights: Path | None, given: Assumptions | None, null_class: bool) -> Model:
    """What ``open_model`` gives of a path that is there."""
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
    return load_directory(path)


def is_code(path: Path) -> bool:
    """Whether ``file.py:function`` is meant, rather than a path."""
    return ".py:" in str(path) and not path.exists()
