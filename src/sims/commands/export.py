"""sims export: a folder that diffusers opens."""

from __future__ import annotations

from sims.commands.options import ExportCommand
from sims.interop.diffusers import save_diffusers
from sims.model import load


def export(options: ExportCommand) -> int:
    """Write the folder; UserError for a model that diffusers has no class for, or where something is in the way."""
    save_diffusers(load(options.model), options.out, options.like)
    print(f"{options.out} is a folder of diffusers")
    return 0
