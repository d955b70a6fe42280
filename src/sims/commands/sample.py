"""sims sample and sims synthesize: images of chosen seeds, a file each and a contact sheet; or a store."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sims import api
from sims.api import at_least, progress
from sims.commands.options import SampleCommand, SynthesizeCommand
from sims.config import to_dict
from sims.data.codec import Codec, finite
from sims.data.pictures import contact_sheet, encode_png
from sims.errors import UserError
from sims.files import digest, write_arrays, write_atomic
from sims.interop.latents import Autoencoder, has_vae, open_vae, with_vae
from sims.interop.opening import load
from sims.model import Model
from sims.processes import agree, collect, join
from sims.runs.progress import Advance
from sims.sampling import SamplerOptions
from sims.screen import show
from sims.seeds import NUM_SEEDS

MOST = 1_000_000  # files in one folder
BEGUN = ".sampling"  # in a folder while it is filled: what with
SHEET = 64  # images on the contact sheet

Drawn = tuple[int, list[int], torch.Tensor, torch.Tensor | None]  # position, seeds, x in model space, labels


def sample_images(options: SampleCommand) -> int:
    """Write the images of the seeds, or one npz of data that are no pictures; the processes share the batches."""
    seeds = parse_seeds(options.seeds)
    at_least(1, batch_size=options.batch_size)
    if options.out.exists() and not options.out.is_dir():
        raise UserError(f"{options.out} is a file: give another folder with --out")
    accelerator = join()
    device = accelerator.device
    model = load(options.model, device, download=options.download)
    if options.w is not None:
        model = model.at_strength(options.w)
    if options.vae is not None:
        model = replace(model, codec=with_vae(model.codec, options.vae, model.data_shape))
    sampler = model.sampler.changed(options.solver, options.steps)
    if options.class_shares:
        sampler = replace(sampler, class_shares=options.class_shares)
    decoder = open_vae(model.codec, device) if has_vae(model.codec) else None
    pixels = model.codec.kind == "pixels" and len(model.data_shape) == 3 and model.data_shape[0] in (1, 3, 4)
    pictures = decoder is not None or pixels
    firsts: Sequence[int] = range(0, len(seeds), options.batch_size)
    if pictures:
        firsts = _left(options, seeds, [model.hash, to_dict(sampler), options.label], accelerator.is_main_process)
    left = sum(len(seeds[first : first + options.batch_size]) for first in firsts)
    with progress("sample", left, quiet=not accelerator.is_main_process) as advance:
        own = firsts[accelerator.process_index :: accelerator.num_processes]
        share = accelerator.num_processes
        batches = _batches(model, seeds, own, options, sampler, lambda count: advance(count * share))
        if pictures:
            names = _write_pictures(model.codec, decoder, batches, options.out, accelerator.is_main_process)
        else:
            names = _write_arrays(model, batches, options.out, accelerator.is_main_process)
    if accelerator.is_main_process:
        show(f"{len(seeds):,} samples in {options.out}: {names}")
    return 0


def parse_seeds(text: str) -> list[int]:
    """ "0-3,7" -> [0, 1, 2, 3, 7], each once, in the order given; UserError for anything else."""
    ranges = []
    for part in text.split(","):
        found = re.fullmatch(r"\s*(\d{1,20})\s*(?:-\s*(\d{1,20})\s*)?", part)
        if found is None:
            raise UserError(f"seeds {text!r}: {part.strip()!r} is neither a seed nor a range: write 0-63 or 1,5,10-20")
        first = int(found[1])
        last = int(found[2] or first)
        if last < first:
            raise UserError(f"seeds {text!r}: the range {part.strip()} runs backwards: write {last}-{first}")
        if last >= NUM_SEEDS:
            raise UserError(f"seeds {text!r}: {last} is too large: seeds lie below {NUM_SEEDS:,}")
        ranges.append(range(first, last + 1))
    if (total := sum(len(part) for part in ranges)) > MOST:
        raise UserError(f"seeds {text!r} are {total:,} seeds: at most {MOST:,} at once; `sims synthesize` writes more")
    return list(dict.fromkeys(seed for part in ranges for seed in part))


def _left(options: SampleCommand, seeds: Sequence[int], key: Sequence[object], is_main: bool) -> list[int]:
    """Where the batches begin that are still to be drawn: all, unless the same command was interrupted in this folder.

    Those of the contact sheet are drawn again. Only a folder that is being filled says what with, so that a finished
    one is written anew, whatever has become of it.
    """
    begun, size = options.out / BEGUN, options.batch_size
    told = digest(*key, list(seeds), size, str(options.vae)).encode()
    continued = agree(begun.is_file() and begun.read_bytes() == told)
    if is_main and not continued:
        write_atomic(begun, told)

    def done(first: int) -> bool:
        return all((options.out / _name(seed)).is_file() for seed in seeds[first : first + size])

    found = range(0, len(seeds), size)
    return agree([first for first in found if first < SHEET or not (continued and done(first))])


def _name(seed: int) -> str:
    return f"{seed:06d}.png"


def _batches(
    model: Model,
    seeds: Sequence[int],
    positions: Sequence[int],
    options: SampleCommand,
    sampler: SamplerOptions,
    advance: Advance,
) -> Iterator[Drawn]:
    for first in positions:
        part = list(seeds[first : first + options.batch_size])
        labels = None if options.label is None else [options.label] * len(part)
        x, drawn = model.sample_labelled(part, labels=labels, sampler=sampler, batch_size=options.batch_size)
        if bad := int(finite(x)[1].sum()):
            raise UserError(f"{bad} of {len(x)} samples are not finite: the model diverges, lower --w or raise --steps")
        yield first, part, x, drawn
        advance(len(part))


def _write_pictures(
    codec: Codec, decoder: Autoencoder | None, batches: Iterator[Drawn], out: Path, is_main: bool
) -> str:
    """A PNG per seed, rounded to the values that the data can have; 16 bits where grey data have them."""
    kept: list[tuple[int, np.ndarray]] = []
    for first, seeds, x, _ in batches:
        raw = decoder.decode(x) if decoder else codec.decode(x)
        shown = raw.transpose(0, 2, 3, 1) if decoder else codec.to_images(codec.encode(raw))  # (n, H, W, C)
        deep = raw.dtype == np.uint16 and raw.shape[1] == 1
        for i, seed in enumerate(seeds):
            write_atomic(out / _name(seed), encode_png(raw[i] if deep else shown[i].transpose(2, 0, 1)))
        if first < SHEET:
            kept.append((first, shown[: SHEET - first]))
    sheet = np.concatenate([shown for _, shown in sorted(collect(kept), key=lambda entry: entry[0])])
    if is_main:
        write_atomic(out / "grid.png", encode_png(contact_sheet(sheet)))
        (out / BEGUN).unlink(missing_ok=True)
    return f"one PNG per seed, the first {len(sheet)} together in grid.png"


def _write_arrays(model: Model, batches: Iterator[Drawn], out: Path, is_main: bool) -> str:
    """samples.npz: data (n, *data_shape) as the codec stores them, seeds, and labels where there are any."""
    parts = sorted(collect(list(batches)), key=lambda drawn: drawn[0])
    key = "latents" if model.codec.kind != "pixels" and len(model.data_shape) == 3 else "data"
    arrays = {key: np.concatenate([model.codec.decode(x) for _, _, x, _ in parts])}
    arrays["seeds"] = np.array([seed for _, seeds, _, _ in parts for seed in seeds], dtype=np.int64)
    if model.num_classes:
        arrays["labels"] = np.concatenate([labels.numpy() for _, _, _, labels in parts if labels is not None])
        arrays["class_names"] = np.array(model.class_names)
    if is_main:
        write_arrays(out / "samples.npz", arrays)
    return f"samples.npz with {', '.join(arrays)}"


def synthesize_store(options: SynthesizeCommand) -> int:
    """Write or continue the store OUT."""
    data = api.synthesize(
        options.model,
        options.out,
        options.count,
        first_seed=options.first_seed,
        label=options.label,
        sampler={"class_shares": options.class_shares} if options.class_shares else None,
        batch_size=options.batch_size,
        download=options.download,
    )
    if not join().is_main_process:
        return 0
    last = options.first_seed + options.count - 1
    show(f"{options.out} is finished: {len(data):,} samples, seeds {options.first_seed} to {last}")
    return 0
