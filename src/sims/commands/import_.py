"""sims import: a model directory from a checkpoint of another project."""

from __future__ import annotations

from sims.commands.options import ImportCommand
from sims.errors import UserError
from sims.files import digest_file, read_json
from sims.interop.diffusers import is_diffusers, load_diffusers
from sims.interop.nvidia import import_model
from sims.model import load
from sims.screen import show


def import_checkpoint(options: ImportCommand) -> int:
    """Write the model directory; UserError for a bad checkpoint, or where something else is in the way."""
    out, folder = options.out, options.file.is_dir() and is_diffusers(options.file)
    if (out / "model.json").is_file():
        there = read_json(out / "model.json").get("provenance", {})
        if folder:
            same = load(out).hash == load_diffusers(options.file).hash
        else:
            same = there.get("sha256") == digest_file(options.file)
        if not same:
            raise UserError(f"{out} holds another model: delete it, or give another directory")
        show(f"{out} is finished: it was imported from this file")
        return 0
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is in use: give a directory that is empty or does not exist")
    model = load_diffusers(options.file) if folder else import_model(options.file)
    model.save(out)
    show(f"{out} is a model of {options.file.name}: sims inspect {out}")
    return 0
