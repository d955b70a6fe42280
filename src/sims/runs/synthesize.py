"""Synthesize: a model's own samples, in a store that remembers where each came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from sims.config import JSON, to_dict
from sims.data.codec import finite
from sims.data.dataset import Dataset
from sims.data.store import Store, StoreHeader
from sims.errors import UserError
from sims.model import Model
from sims.processes import agree, join
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

    Errors: UserError if the folder holds a store of another model, other seeds or another sampler, or if samples
    are not finite.
    """
    accelerator = accelerator or join()
    sampler = sampler or model.sampler
    header = _header(model, seeds, batch_size, method, w, sampler, labels)
    if accelerator.is_main_process:
        Store.open(folder, header)
    accelerator.wait_for_everyone()
    store = Store.open(folder, header)
    missing = agree(store.missing())  # the same in every process, or the shares would not fit together
    if advance:
        advance(len(seeds) - sum(len(header.indices(shard)) for shard in missing))
    for shard in missing[accelerator.process_index :: accelerator.num_processes]:
        part = [seeds[index] for index in header.indices(shard)]
        fixed = None if labels is None else [labels] * len(part)
        x, drawn = model.sample_labelled(part, labels=fixed, sampler=sampler, batch_size=batch_size)
        if bad := int(finite(x)[1].sum()):
            raise UserError(f"{bad} of {len(x)} samples are not finite: the model diverges at w = {w:g}, lower it")
        raw, drawn_labels = model.codec.decode(x), None if drawn is None else drawn.numpy()
        store.write(shard, raw, np.asarray(part), drawn_labels, model=model.hash, method=method, w=w)
        if advance:
            advance(len(part) * accelerator.num_processes)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process and not store.complete:
        store.finish()
    accelerator.wait_for_everyone()
    return Store.read(folder)


def _header(
    model: Model, seeds: range, batch_size: int, method: str, w: float, sampler: SamplerOptions, labels: int | None
) -> StoreHeader:
    provenance: dict[str, JSON] = {
        "model": model.hash,
        "method": method,
        "w": w,
        "sampler": to_dict(sampler),
        "seeds": [seeds.start, seeds.stop],
        "label": labels,
    }
    return StoreHeader(
        space="latents" if model.codec.kind == "latents" else "pixels",
        data_shape=model.data_shape,
        codec=model.codec,
        total=len(seeds),
        num_classes=model.num_classes,
        class_names=model.class_names,
        provenance=provenance,
        # Whole compute batches: an interruption then changes no bit.
        shard_size=batch_size * max(1, 1000 // batch_size),
    )
