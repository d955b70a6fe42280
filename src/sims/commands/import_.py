"""sims import: a model directory from a checkpoint of another project, or from a network of a user's."""

from __future__ import annotations

from dataclasses import fields

from sims.commands.flags import in_flags
from sims.commands.options import ImportCommand
from sims.errors import UserError
from sims.interop.opening import is_code, open_model
from sims.interop.reading import Assumptions, said
from sims.model import load
from sims.screen import show


def import_checkpoint(options: ImportCommand) -> int:
    """Write the model directory; UserError for a bad checkpoint, or where something else is in the way."""
    out, given = options.out, Assumptions(**{f.name: getattr(options, f.name) for f in fields(Assumptions)})
    model = open_model(options.file, options.weights, given, options.null_class, options.download)
    for line in said(model):
        show(in_flags(line, ImportCommand))
    if (out / "model.json").is_file():
        if load(out).hash != model.hash:
            raise UserError(f"{out} holds another model: delete it, or give another directory")
        show(f"{out} is finished: it was imported from this file")
        return 0
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is in use: give a directory that is empty or does not exist")
    model.save(out)
    code = f" --code {options.file}" if is_code(options.file) else ""
    show(f"{out} is a model of {options.file.name}: sims inspect {out}{code}")
    for name in ("weights", "classes"):
        if name in model.provenance:
            show(in_flags(f"{name}: {model.provenance[name]}", ImportCommand))
    return 0
