"""Folders of diffusers: where things lie in them, reading weights, and writing a folder whole or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from sims.config import JSON, fitted, read_as, to_dict
from sims.errors import UserError
from sims.files import write_json
from sims.interop.diffusers_network import Timesteps
from sims.interop.diffusers_weights import UNSAFE

COMPONENTS = ("unet", "transformer")  # what pipelines call the network
NOTES = "sims.json"  # what diffusers has no place for
FORMAT = 1


@dataclass(frozen=True)
class Notes:
    """What ``save_diffusers`` leaves to remember; the defaults are for folders from elsewhere.

    ``kind`` is "network" or that of a guide; ``settings`` are the guide's own, and stand beside the others in the file.
    """

    format: int = FORMAT
    kind: str = "network"
    null_class: bool = False
    timesteps: Timesteps | None = None
    sigma_data: float | None = None
    settings: dict[str, JSON] = field(default_factory=dict)

    def to_json(self) -> dict[str, JSON]:
        """What the file holds."""
        own = {name: value for name, value in to_dict(self).items() if name != "settings"}
        return {**own, **self.settings}

    @classmethod
    def read(cls, file: Path) -> Notes:
        """The notes in a file. Errors: UserError for a newer format, or where something else is in it."""
        told = read_as(file, dict[str, JSON])
        if (format := told.get("format", FORMAT)) != FORMAT:
            raise UserError(f"{file} has format {ascii(format)[:40]}, this version reads {FORMAT}: update sims")
        own = {entry.name for entry in fields(cls)}
        notes: Notes = fitted(told, cls, str(file), rest=True)
        return replace(notes, settings={name: value for name, value in told.items() if name not in own})


@dataclass(frozen=True)
class Layout:
    """Where things lie in a folder.

    ``component`` is the network's subfolder ("" = the folder itself), ``index`` its model_index.json (empty without).
    """

    folder: Path
    component: str
    scheduler: Path
    index: dict[str, JSON]

    @property
    def network(self) -> Path:
        return self.folder / self.component

    @property
    def aux(self) -> Path:
        return self.folder / aux_component(self.component)

    @property
    def vae(self) -> Path | None:
        """The folder of the autoencoder that the index lists, under whichever name; None without one."""
        return next((self.folder / name for name in autoencoders(self.index)), None)

    @property
    def notes(self) -> Notes:
        """What ``save_diffusers`` left to remember."""
        file = self.folder / NOTES
        return Notes.read(file) if file.is_file() else Notes()


def aux_component(component: str) -> str:
    """The subfolder of the auxiliary of a guided pair."""
    return f"{component}_aux" if component else "aux"


def listed(index: Mapping[str, JSON], component: str) -> str | None:
    """The class of a component that a model index lists; None for one that is left out, listed as [null, null]."""
    entry = index.get(component)
    return str(entry[1]) if isinstance(entry, list) and len(entry) == 2 and entry[1] is not None else None


def autoencoders(index: Mapping[str, JSON]) -> dict[str, str]:
    """The components that make latents of pictures, each with its class: known by their names, or by their classes."""
    kinds = {name: kind for name in index if not name.startswith("_") and (kind := listed(index, name)) is not None}
    return {
        name: kind
        for name, kind in kinds.items()
        if name in ("vae", "vqvae", "movq", "autoencoder") or kind.startswith("VQ") or "Autoencoder" in kind
    }


def find_layout(folder: Path) -> Layout:
    """The parts of a pipeline folder, or of a network's folder with its scheduler; UserError where one is missing."""
    index: dict[str, JSON] = {}
    component, schedulers = "", [folder / "scheduler_config.json", folder / "scheduler" / "scheduler_config.json"]
    if (folder / "model_index.json").is_file():
        index = read_as(folder / "model_index.json", dict[str, JSON])
        listing = next((name for name in COMPONENTS if listed(index, name)), None)
        if listing is None:
            raise UserError(
                f"{folder} is a {index.get('_class_name')} without {' or '.join(COMPONENTS)}: choose another model"
            )
        averaged = f"{listing}_ema"  # what training scripts leave beside the network
        listing = averaged if (folder / averaged / "config.json").is_file() else listing
        component = listing if (folder / listing).is_dir() else ""  # early pipelines have all in one folder
    elif (folder / "config.json").is_file():
        schedulers.append(folder.parent / "scheduler" / "scheduler_config.json")
    else:
        raise UserError(
            f"no model of diffusers at {folder}: give a pipeline folder (with model_index.json), or a folder with "
            "config.json, its weights and scheduler_config.json"
        )
    scheduler = next((file for file in schedulers if file.is_file()), None)
    if scheduler is None:
        raise UserError(f"{folder} has no scheduler_config.json, which says what the network predicts: put it there")
    for kind in autoencoders(index).values():
        if kind != "AutoencoderKL":
            raise UserError(
                f"{folder} has the autoencoder {kind}: only AutoencoderKL can be read, choose another model"
            )
    return Layout(folder, component, scheduler, index)


def copy_rest(folder: Path, component: str, scheduler: Mapping[str, JSON], like: Layout | None) -> None:
    """Everything of a pipeline but the network: scheduler, other components and, last, model_index.json.

    Without an original, the scheduler, and for a ``component`` the index of a DDPMPipeline.
    """
    if like is None:
        place = folder / "scheduler" if component else folder
        place.mkdir(exist_ok=True)
        write_json(place / "scheduler_config.json", scheduler)
        if component:
            parts = {component: ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", scheduler["_class_name"]]}
            write_json(folder / "model_index.json", {"_class_name": "DDPMPipeline", **parts})
        return
    inside = like.scheduler.is_relative_to(like.folder)
    place = folder / (like.scheduler.relative_to(like.folder) if inside else like.scheduler.name)
    place.parent.mkdir(exist_ok=True)
    shutil.copyfile(like.scheduler, place)
    for name in like.index:
        if listed(like.index, name) and name not in ("scheduler", *COMPONENTS) and (like.folder / name).is_dir():
            shutil.copytree(like.folder / name, folder / name, ignore=shutil.ignore_patterns(*UNSAFE))
    if like.index:
        write_json(folder / "model_index.json", like.index)


@contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder``, moved onto it when the block ends; UserError if something is there."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: choose another folder, or remove it")
    target = folder.absolute()
    temporary = target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if target.is_dir():
            target.rmdir()
        temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
