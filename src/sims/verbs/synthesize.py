"""Synthesize: a model's own samples, in a store that remembers where each came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

from sims.data.dataset import Dataset
from sims.data.store import Store, StoreHeader
from sims.model import Model
from sims.sampling import SamplerOptions


def synthesize(
    model: Model,
    folder: Path,
    seeds: range,
    *,
    method: str,
    w: float = 0.0,
    sampler: SamplerOptions | None = None,
    batch_size: int = 500,
    labels: int | None = None,
    accelerator: Accelerator | None = None,
    advance: Callable[[int], None] | None = None,
) -> Dataset:
    """Samples of ``seeds`` as a store in ``folder``; continues a store that is not complete.

    One shard is one compute batch, so that an interruption changes no bit. Errors: UserError if the folder
    holds a store of another model, other seeds or another sampler.
    """
    accelerator = accelerator or Accelerator()
    sampler = sampler or model.sampler
    header = _header(model, seeds, batch_size, method, w, sampler, labels)
    if accelerator.is_main_process:
        Store.open(folder, header)
    accelerator.wait_for_everyone()
    store = Store.open(folder, header)
    missing = store.missing()
    if advance:
        advance(len(seeds) - sum(len(header.indices(shard)) for shard in missing))
    for shard in missing[accelerator.process_index :: accelerator.num_processes]:
        part = [seeds[index] for index in header.indices(shard)]
        fixed = None if labels is None else [labels] * len(part)
        x, drawn = model.sample_labelled(part, labels=fixed, sampler=sampler, batch_size=batch_size)
        store.write(shard, model.codec.decode(x), part, drawn, model=model.hash, method=method, w=w)
        if advance:
            advance(len(part) * accelerator.num_processes)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not store.complete:
        store.finish()
    accelerator.wait_for_everyone()
    return Store.read(folder)
