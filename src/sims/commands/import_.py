"""sims import: a model directory from a checkpoint of another project."""

from __future__ import annotations

from sims.commands.options import ImportCommand
from sims.errors import UserError
from sims.files import digest_file, read_json
from sims.interop.nvidia import import_model


def import_checkpoint(options: ImportCommand) -> int:
    """Write the model directory; UserError for a bad checkpoint, or where something else is in the way."""
    out = options.out
    if (out / "model.json").is_file():
        there = read_json(out / "model.json").get("provenance", {})
        if there.get("sha256") != digest_file(options.file):
            raise UserError(f"{out} holds another model: delete it, or give another directory")
        print(f"{out} is finished: it was imported from this file")
        return 0
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is in use: give a directory that is empty or does not exist")
    model = import_model(options.file)
    model.save(out)
    print(f"{out} is a model of {options.file.name}: sims inspect {out}")
    return 0
