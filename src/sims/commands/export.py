"""sims export: a folder that diffusers opens, LoRAs, or tensors under the names that their own classes load."""

from __future__ import annotations

from sims.commands.options import ExportCommand
from sims.errors import UserError
from sims.interop.diffusers import save_diffusers
from sims.interop.nvidia import export_tensors, has_their_network
from sims.interop.opening import load
from sims.interop.text_export import export_adapters, is_on_pipeline
from sims.interop.wrapping import export_state_dict, keeps_its_names
from sims.screen import show


def export(options: ExportCommand) -> int:
    """Write the folder or file; UserError for a model that neither has a class for, or if something is in the way."""
    model = load(options.model, download=options.download)
    if is_on_pipeline(model):
        if options.like is not None:
            raise UserError("LoRAs are written for the pipeline that they were made on: leave out option 'like'")
        show(export_adapters(model, options.out))
    elif keeps_its_names(model):
        export_state_dict(model, options.out)
        show(f"{options.out} holds the tensors under their own names: load_state_dict(load_file(...)) takes them")
    elif options.like is None and has_their_network(model):
        export_tensors(model, options.out)
        show(f"{options.out} holds the tensors under NVIDIA's names: net.load_state_dict(load_file(...)) takes them")
    else:
        save_diffusers(model, options.out, options.like)
        show(f"{options.out} is a folder of diffusers")
    return 0
