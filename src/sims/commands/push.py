"""sims push: a model of a finished run with its card, as a folder or as a repository of the Hugging Face hub."""

from __future__ import annotations

import re
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sims.commands.inspect import parameters
from sims.commands.options import PushCommand
from sims.config import read_as
from sims.denoiser import networks_of
from sims.errors import UserError
from sims.files import read_json_lines, write_atomic
from sims.guidance import Guide
from sims.interop.hub_models import OUR_FILES, HubName
from sims.interop.hub_upload import checked_name, upload
from sims.interop.text_export import is_on_pipeline
from sims.model import Model, load
from sims.report.card import PICTURE, CardFacts, model_card, samples_png
from sims.report.context import base_row
from sims.report.strips import read_pictures
from sims.results.common import Result, Row
from sims.results.improve import ImproveResult
from sims.results.scores import RunRow
from sims.results.shift import ShiftResult
from sims.results.summaries import read_result
from sims.screen import show

_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]{1,63}")
CARD = "README.md"


@dataclass(frozen=True)
class Began:
    """What ``config.json`` says of how a run began: with a model, or by training one (None)."""

    command: str
    model: str | None = None


def push(options: PushCommand) -> int:
    """Write the folder, or upload it; UserError for a run without that model, or whatever the hub refuses."""
    name, licence = checked_name(options.name), _licence(options.licence)
    if options.out is not None:
        if options.private:
            raise UserError("option 'private' is for what is uploaded: leave it out, or leave out option 'out'")
        if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
            raise UserError(f"{options.out} is in use: give a folder that is empty or does not exist")
        write_folder(options.run, options.model, name, licence, options.out)
        show(f"{options.out} holds the model and its card, {options.out / CARD}; nothing is uploaded")
        show(f"as it is it goes to the hub with: {shlex.join(['hf', 'upload', name, str(options.out)])}")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        write_folder(options.run, options.model, name, licence, Path(folder))
        done = upload(Path(folder), name, options.private)
    show(f"{done.address} holds it: sims sample hf:{name}@{done.commit} --download")
    return 0


def _licence(given: str | None) -> str:
    if given is None:
        raise UserError(
            "what others may do with the model is for you to say: give option 'licence', such as apache-2.0, mit, "
            "cc-by-4.0 or other"
        )
    if not _LICENCE.fullmatch(given.lower()):
        raise UserError(f"licence {given!r:.80} is no name of one: write it as the hub does, such as apache-2.0 or mit")
    return given.lower()


def write_folder(run: Path, which: str, name: str, licence: str, out: Path) -> None:
    """The model directory ``which`` of a run with its card, and pictures where the run has some, in ``out``."""
    if not (run / "config.json").is_file():
        raise UserError(f"{run} is no run: give the directory of a finished run, such as runs/digits")
    began = read_as(run / "config.json", Began, rest=True)
    result = read_result(run, Result)
    if not isinstance(result, ImproveResult | ShiftResult):
        raise UserError(f"{run} is a run of {result.experiment}, which leaves no model: give one of improve or shift")
    folder = _folder(run, which, began)
    model = load(folder)
    if is_on_pipeline(model):
        raise UserError(
            f"{folder} lies on a text-to-image pipeline that is not its own: upload the LoRAs in "
            f"{run / 'text-to-image'}, which any program loads"
        )
    row, first = measured_row(result, folder, model)
    rows = tuple(one for one in result.rows if first or one.w == 0)
    facts = _facts(model, began, name, licence, row, rows if row in rows else (*rows, row))
    file = run / "metrics.jsonl"
    measured = [RunRow.from_json(entry) for entry in read_json_lines(file)] if file.is_file() else []
    picture = samples_png(read_pictures(run), facts) if first else None
    card = model_card(result, facts, measured if first else [], picture is not None)
    model.save(out)
    for file in [file for file in out.rglob("*") if file.is_file() and file.name not in OUR_FILES]:
        file.unlink()  # code of a network: it is published by who wrote it
    if picture is not None:
        write_atomic(out / PICTURE, picture)
    write_atomic(out / CARD, card.encode())


def _folder(run: Path, which: str, began: Began) -> Path:
    """The model directory of a run that has this name: of a network trained there, its last snapshot."""
    there = {file.parent.name: file.parent for file in sorted(run.glob("*/model.json"))}
    for file in sorted(run.glob("*/snapshots/*/model.json")):
        there[file.parents[2].name] = file.parent
    if which not in there:
        given = f"; it began with {began.model}, which is not its own" if began.model else ""
        raise UserError(
            f"{run} has no model {which!r:.60}{given}: give option 'model' one of {', '.join(sorted(there)) or 'none'}"
        )
    return there[which]


def measured_row(result: ImproveResult | ShiftResult, folder: Path, model: Model) -> tuple[Row, bool]:
    """What was measured of a model, and whether that was in the first round, which tables and pictures are of."""
    base = base_row(result.rows)
    label = str(model.provenance.get("label" if isinstance(result, ShiftResult) else "method") or "")
    if folder.parent.name == "snapshots" and base is not None:
        return base, True
    rounds = result.rounds if isinstance(result, ImproveResult) else ()
    kept = [one for k, one in enumerate(rounds) if k and all(before.accepted for before in rounds[: k + 1])]
    for rows, first in (*((one.rows, False) for one in reversed(kept)), (result.rows, True)):
        if (found := next((row for row in rows if row.label == label), None)) is not None:
            return found, first
    raise UserError(f"{folder} is {label!r:.60}, which the run has not measured: give one that stands in its table")


def _facts(model: Model, began: Began, name: str, licence: str, row: Row, rows: tuple[Row, ...]) -> CardFacts:
    networks = len(networks_of(model.denoiser))
    kind = "one network" if networks == 1 else f"{networks} networks"
    if isinstance(model.denoiser, Guide):
        kind += f", {model.denoiser.kind} with w = {model.denoiser.w:g}"
    source = HubName.parse(str(model.provenance.get("hub") or ""))
    latent = model.codec.latents
    code = any(hasattr(getattr(one, "network", None), "beside") for one in networks_of(model.denoiser))
    needs = ["Its samples are latents: pictures need the autoencoder that they were made with."] if latent else []
    needs += ["Its network is made by code that is not here: ask its owner for it, and give it with `--code`."] * code
    numbers = tuple(map(str, range(model.num_classes)))
    return CardFacts(
        name=name,
        licence=licence,
        row=row,
        rows=rows,
        what=f"{kind}, {parameters(model.denoiser):,} parameters",
        hash=model.hash,
        shape=model.data_shape,
        pictures=model.codec.kind == "pixels" or latent is not None,
        classes=(model.class_names or numbers) if model.num_classes else (),
        trained_on=str(model.provenance.get("data") or ""),
        fingerprint=str(model.provenance.get("data_fingerprint") or ""),
        origin=f"{source.name}@{source.revision}" if source else "",
        given=began.model is not None,
        needs=" ".join(needs),
    )
