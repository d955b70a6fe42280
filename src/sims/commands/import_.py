"""sims import: a model directory from a checkpoint of another project."""

from __future__ import annotations

from sims.commands.options import ImportCommand
from sims.config import JSON, read_as
from sims.errors import UserError
from sims.files import digest_file
from sims.interop.diffusers import is_diffusers, load_diffusers
from sims.interop.nvidia import import_model
from sims.model import load
from sims.screen import show


def import_checkpoint(options: ImportCommand) -> int:
    """Write the model directory; UserError for a bad checkpoint, or where something else is in the way."""
    out, folder = options.out, options.file.is_dir() and is_diffusers(options.file)
    if options.null_class and not folder:
        raise UserError("option 'null_class' is for a UNet2DModel of diffusers: leave it out for other models")
    null_class = True if options.null_class else None  # as the folder itself says
    if (out / "model.json").is_file():
        if folder:
            same = load(out).hash == load_diffusers(options.file, null_class=null_class).hash
        else:
            there = read_as(out / "model.json", dict[str, JSON]).get("provenance")
            same = isinstance(there, dict) and there.get("sha256") == digest_file(options.file)
        if not same:
            raise UserError(f"{out} holds another model: delete it, or give another directory")
        show(f"{out} is finished: it was imported from this file")
        return 0
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is in use: give a directory that is empty or does not exist")
    model = load_diffusers(options.file, null_class=null_class) if folder else import_model(options.file)
    model.save(out)
    show(f"{out} is a model of {options.file.name}: sims inspect {out}")
    for name in ("weights", "classes"):
        if name in model.provenance:
            show(f"{name}: {model.provenance[name]}")
    return 0
