"""sims inspect: what a model directory, a store, a run directory or a model of another project holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sims.commands.flags import in_flags
from sims.commands.options import ImportCommand, InspectCommand
from sims.config import JSON, read_as, to_dict, to_toml
from sims.data.codec import Codec
from sims.data.parquet import column_names
from sims.data.store import Store, StoreHeader, is_store
from sims.denoiser import Denoiser, weights_of
from sims.errors import UserError
from sims.files import read_json
from sims.guidance import Guide, innermost
from sims.interop.checkpoints import read_checkpoint
from sims.interop.diffusers import is_diffusers, load_diffusers
from sims.interop.hub_models import origin
from sims.interop.nvidia import open_snapshot, to_model
from sims.interop.opening import fetched, load
from sims.interop.reading import said
from sims.interop.recognize import holds_tensors
from sims.model import Model
from sims.results.summaries import FORMAT, read_result
from sims.sampling import SamplerOptions, nfe
from sims.screen import show

Line = tuple[str, Any]
NAMES = 20  # classes that are listed one by one


def inspect(options: InspectCommand) -> int:
    """Print what lies at the path. UserError where it is none of the five."""
    path = fetched(options.path, options.download)
    if holds_tensors(path):
        lines = tensor_lines(path)
    elif path.is_file():
        lines = checkpoint_lines(path)
    elif (path / "model.json").is_file():
        lines = model_lines(path)
    elif is_diffusers(path):
        lines = diffusers_lines(path)
    elif is_store(path):
        lines = store_lines(path)
    elif (path / "config.json").is_file():
        lines = run_lines(path)
    else:
        what = "is no model, store or run, no .pkl and no folder of diffusers" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}: give a directory that sims wrote (`sims data check PATH` looks at data)")
    if source := origin(path):
        lines.insert(1, ("hub", source))
    width = max(len(name) for name, _ in lines) + 2
    for name, value in lines:
        first, *rest = str(value).splitlines() or [""]
        show(f"{name:<{width}}{first}".rstrip())
        for line in rest:
            show(f"{'':<{width}}{line}".rstrip())
    return 0


def checkpoint_lines(path: Path) -> list[Line]:
    """A .pkl of NVIDIA's: its network, what it makes, and how it was published to be sampled."""
    snapshot = open_snapshot(path)
    model = to_model(snapshot, path)
    return [
        ("checkpoint", f"{path} (EDM or EDM2; its code is not run)"),
        ("class", snapshot.class_name),
        ("arguments", _table(snapshot.init)),
        ("parameters", f"{parameters(model.denoiser):,}"),
        ("tensors", f"{len(snapshot.state)}"),
        *_sampling_lines(model),
        ("use", f"sims import {path} OUT"),
    ]


def tensor_lines(path: Path) -> list[Line]:
    """A file of tensors: what it was taken for and what was assumed, and what it makes."""
    model = read_checkpoint(path)
    return [
        ("checkpoint", f"{path} (none of its code is run)"),
        ("taken for", "\n".join(in_flags(line, ImportCommand) for line in said(model))),
        ("parameters", f"{parameters(model.denoiser):,}"),
        *_sampling_lines(model),
        ("use", f"sims import {path} OUT"),
    ]


def diffusers_lines(path: Path) -> list[Line]:
    """A folder of diffusers: its network, and how it is sampled here."""
    model = load_diffusers(path)
    single = innermost(model.denoiser)
    schedule = single.schedule
    return [
        ("folder", f"{path} (diffusers)"),
        ("network", single.network.architecture + (", a guided pair" if single is not model.denoiser else "")),
        ("predicts", f"{schedule.prediction}, {schedule.num_timesteps} timesteps, {single.timesteps}"),
        ("parameters", f"{parameters(model.denoiser):,}"),
        *_sampling_lines(model),
        ("use", f"sims improve --model {path}, or sims import {path} OUT"),
    ]


def model_lines(path: Path) -> list[Line]:
    """A model: what it is made of, what it makes, and what a sample costs."""
    model, entry = load(path), read_json(path / "model.json")
    return [
        ("model", path),
        *_denoiser_lines(model.denoiser, entry, path),
        *_sampling_lines(model),
        ("hash", model.hash),
    ]


def _sampling_lines(model: Model) -> list[Line]:
    evaluations = nfe(model, model.sampler)  # type: ignore[arg-type]
    labels = f"{model.num_classes}: {_names(model.class_names)}" if model.num_classes else "none (unconditional)"
    if shares := model.class_shares:
        labels += f"; drawn in shares of {', '.join(f'{100 * share:.3g} %' for share in shares[:NAMES])}"
        labels += ", ..." * (len(shares) > NAMES)
    return [
        ("shape", _shape(model.data_shape)),
        ("classes", labels),
        ("codec", _codec(model.codec)),
        ("sigma", f"{model.sigma_min:g} to {model.sigma_max:g}"),
        ("sampler", _table(_sampler(model.sampler))),
        ("NFE", f"{evaluations} network evaluations a sample"),
        ("provenance", _provenance(model.provenance)),
    ]


def _names(names: tuple[str, ...]) -> str:
    """Class names; of many, the first and the last."""
    return ", ".join(names if len(names) <= NAMES else (*names[:3], "...", names[-1]))


def _denoiser_lines(denoiser: Denoiser, entry: Mapping[str, Any], path: Path) -> list[Line]:
    if not isinstance(denoiser, Guide):
        kind = f"network: {_table(entry['network'])}; preconditioning: {_table(entry['preconditioning'])}"
        return [("kind", kind), ("parameters", f"{parameters(denoiser):,}")]
    children = [
        f"{name} ({path / name}): {parameters(getattr(denoiser, name)):,} parameters" for name in denoiser.children
    ]
    return [
        *denoiser.describe().items(),
        ("children", "\n".join(children)),
        ("parameters", f"{parameters(denoiser):,}"),
    ]


def parameters(denoiser: Any) -> int:
    """Number of weights of a network, or of all networks of a guided model."""
    return sum(weight.numel() for weight in weights_of(denoiser))


def store_lines(path: Path) -> list[Line]:
    """A store of samples: how many there are, where they come from, and its columns."""
    header = StoreHeader.from_json(read_json(path / "header.json"), path / "header.json")
    store = Store(path, header)
    missing = store.missing()
    done = [shard for shard in range(header.num_shards) if shard not in set(missing)]
    there = sum(len(header.indices(shard)) for shard in done)
    unfinished = f" ({there:,} there; run the same command again to complete it)"
    columns = column_names(store.shard_path(done[0])) if done else []
    return [
        ("store", path),
        ("samples", f"{header.total:,}" + ("" if store.complete else unfinished)),
        ("shards", f"{len(done)} of {header.num_shards} complete"),
        ("space", header.space),
        ("shape", _shape(header.data_shape)),
        ("classes", f"{header.num_classes}: {', '.join(header.class_names)}" if header.num_classes else "none"),
        ("codec", _codec(header.codec)),
        ("columns", ", ".join(columns) or "none yet"),
        ("provenance", _provenance(header.provenance)),
    ]


def run_lines(path: Path) -> list[Line]:
    """A run: what it was asked for, what is finished, and what came out."""
    config = read_as(path / "config.json", dict[str, JSON])
    if config.get("format") != FORMAT:
        raise UserError(
            f"{path / 'config.json'} is not of run format {FORMAT}: look at it with the version that made it"
        )
    command = config.get("command")
    final = path / ("model/model.json" if command == "train" else "summary.json")
    models = sorted(file.parent for file in path.glob("*/model.json"))
    done = {file.parent: read_as(file, dict[str, JSON]) for file in sorted(path.rglob("done.json"))}
    trained = {place: images for place, told in done.items() if isinstance(images := told.get("images"), int)}
    stores = [file.parent for file in sorted(path.rglob("manifest.json"))]
    seconds = read_as(path / "seconds.json", dict[str, float]) if (path / "seconds.json").is_file() else {}
    lines: list[Line] = [
        ("run", f"{path} ({command})"),
        ("finished", "yes" if final.is_file() else "no: run the same command again to continue"),
        ("models", "\n".join(map(str, models)) or "none yet"),
        ("trained", "\n".join(f"{place.relative_to(path)}: {images:,} images" for place, images in trained.items())),
        ("stores", "\n".join(str(store.relative_to(path)) for store in stores)),
        ("stages", "\n".join(f"{name}: {value:.1f} s" for name, value in seconds.items())),
    ]
    if command != "train" and final.is_file():
        lines += [("headline", read_result(path).headline), ("report", path / "report.html")]
    return [line for line in (*lines, ("config", to_toml(config).strip())) if line[1]]


def _shape(shape: Iterable[int]) -> str:
    return " × ".join(str(size) for size in shape)


def _codec(codec: Codec) -> str:
    vae = f", autoencoder {codec.latents.vae or 'not named'}" if codec.latents else ""
    return f"{codec.kind}, {codec.dtype}, values {codec.low:g} to {codec.high:g}{vae}"


def _sampler(options: SamplerOptions) -> dict[str, JSON]:
    """What differs from the defaults, and always solver and steps."""
    default = to_dict(SamplerOptions())
    return {
        name: value
        for name, value in to_dict(options).items()
        if name in ("solver", "steps") or value != default.get(name)
    }


def _table(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _provenance(values: Mapping[str, JSON]) -> str:
    """A line for each entry, without those that are not set."""
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            value = _table({key: inner for key, inner in value.items() if inner is not None})
        if value is not None:
            lines.append(f"{name}: {value}")
    return "\n".join(lines) or "none"
