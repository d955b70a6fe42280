"""sims synthesize."""

from __future__ import annotations

from accelerate import PartialState

from sims import api
from sims.commands.options import SynthesizeCommand


def synthesize_store(options: SynthesizeCommand) -> int:
    """Write or continue the store OUT."""
    data = api.synthesize(
        options.model,
        options.out,
        options.count,
        first_seed=options.first_seed,
        label=options.label,
        batch_size=options.batch_size,
    )
    if not PartialState().is_main_process:
        return 0
    last = options.first_seed + options.count - 1
    print(f"{options.out} is finished: {len(data):,} samples, seeds {options.first_seed} to {last}")
    return 0
