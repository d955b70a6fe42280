"""Checkpoints of the field as models: known by their tensors, read without code of theirs, assumptions said."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sims.config import JSON
from sims.errors import UserError
from sims.files import digest_file
from sims.interop.families import BY_THE_FILE, FAMILIES, OTHERS, Family, Understood
from sims.interop.reading import Assumptions, Reading
from sims.interop.state_dicts import choose, read, some, unlike
from sims.model import Model, make_network
from sims.sampling import SamplerOptions

HIGHEST = 160.0  # where sampling starts if the levels go far beyond
_SHOWS = 0.5  # correlation of a network's output with noise, above which it is the noise that it gives
#: The schedule that goes with a prediction.
SCHEDULES = {"velocity": "rectified_flow:data_at=1", "edm": "edm:scale=1000"}


def read_checkpoint(path: Path, given: Assumptions | None = None) -> Model:
    """A file of tensors as a model, in float32: a DiT, a SiT, a U-Net of guided-diffusion and its heirs, and others.

    Its provenance says by what it was recognized, what was chosen of the file and what was assumed, which ``given``
    changes. UserError for networks that are not known, and for what does not fit.
    """
    content = read(path)
    for family in FAMILIES:
        for inner in dict.fromkeys((family.inner, "")):
            wanted = [f"{inner}{mark}" for mark in family.marks]
            tensors, notes, prefix = choose(content.tensors, wanted)
            if all(name in tensors for name in wanted):
                own = {name.removeprefix(inner): value for name, value in tensors.items() if name.startswith(inner)}
                reading = Reading(content, own, tensors if inner else {}, prefix, given or Assumptions())
                return _model(family, reading, notes)
    raise UserError(_unknown(path, list(content.tensors)))


def _model(family: Family, reading: Reading, notes: tuple[str, ...]) -> Model:
    path = reading.content.path
    try:
        understood = family.understand(reading)
    except (IndexError, TypeError, ValueError, ArithmeticError) as error:  # of shapes that no such network has
        reason = ascii(" ".join(str(error).split())[:160])[1:-1]
        raise UserError(f"{path} was taken for {family.name}, whose tensors have other shapes ({reason})") from error
    shape, classes, table = understood.data_shape, understood.num_classes, dict(understood.network)
    with torch.device("meta"):  # the weights come from the file
        placeholder = make_network(shape, classes, dict(table), {"type": "edm"})
    own = placeholder.network.state_dict()
    if problem := unlike(reading.tensors, own):
        raise UserError(f"{path} was taken for {family.name}, but does not fit: {problem}")
    network = placeholder.network
    network.load_state_dict({name: _kept(tensor) for name, tensor in reading.tensors.items()}, assign=True)
    preconditioning = _preconditioning(reading, understood, network.eval())
    reading.check_all_asked(family.name)
    with torch.device("meta"):
        denoiser = make_network(shape, classes, dict(table), preconditioning)
    denoiser.load_state_dict({f"network.{name}": tensor for name, tensor in network.state_dict().items()}, assign=True)
    denoiser.eval().requires_grad_(False)
    about: dict[str, JSON] = {
        "imported": path.name,
        "sha256": digest_file(path),
        "recognized": f"{family.name}, by tensors such as {some(family.marks[:2])}",
        "weights": "; ".join(notes) or None,
        "assumed": list[JSON](reading.assumed),
    }
    names = tuple(map(str, range(classes)))
    return Model(denoiser, understood.codec, _sampler(denoiser, shape[1]), names, about)


def _kept(tensor: Tensor) -> Tensor:
    """A copy, since a file's tensors are mapped and may be of half precision."""
    return tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()


def _preconditioning(reading: Reading, understood: Understood, network: nn.Module) -> dict[str, JSON]:
    """The table of what the output means and which noise it was trained with: given, seen, or usual."""
    usual, why = understood.prediction, understood.why
    doubtful = usual in ("eps", "velocity") and why != BY_THE_FILE and not reading.given.prediction
    seen = _seen(network, understood) if doubtful else None
    if seen is not None:
        usual, why = seen, "as it shows when it is given pure noise"
    prediction = reading.ask("prediction", usual, why)
    if prediction == "consistency":
        return {"type": "consistency"}
    goes_with = understood.schedule if prediction == understood.prediction else ""
    if reading.given_for("schedule"):
        named = parsed(str(reading.given.schedule))
    elif isinstance(understood.schedule, Mapping):
        named = dict(understood.schedule)
    else:
        named = parsed(str(goes_with) or SCHEDULES.get(prediction, "linear"))
        told = "".join(f", {key} {value}" for key, value in named.items() if key != "name")
        reading.assumed.append(f"assumed schedule {named['name']}{told}: usual with it (option 'schedule' changes it)")
    reading.given_for("data_range")
    ends = list[JSON](reading.given.data_range or (-1.0, 1.0))
    return {"type": "interpolant", "schedule": named, "prediction": prediction, "data_range": ends}


def parsed(text: str) -> dict[str, JSON]:
    """The table of a schedule that is written as ``cosine:steps=4000,scale=0.25``; UserError for another form.

    >>> parsed("cosine:steps=4000,scale=0.25")
    {'name': 'cosine', 'steps': 4000, 'scale': 0.25}
    """
    name, _, rest = text.partition(":")
    table: dict[str, JSON] = {"name": name.strip()}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        try:
            table[key.strip()] = json.loads(value)
        except ValueError:
            table[key.strip()] = value.strip()
        if not equals or not isinstance(table[key.strip()], int | float | str | bool | None):
            raise UserError(f"schedule {text!r} is not understood: write it as cosine or cosine:steps=4000,scale=0.25")
    return table


@torch.no_grad()
def _seen(network: nn.Module, understood: Understood) -> str | None:
    """Whether a network gives the noise (eps) or what leads away from it (velocity); None where it shows neither.

    Pure noise is what is left of data at time 999 of the former, which then gives it back, and at time 0 of the latter,
    which gives data minus noise.
    """
    x = torch.randn(2, *understood.data_shape, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(2, dtype=torch.int64) if understood.num_classes else None

    def likeness(time: float) -> float:
        output = network(x, torch.full((2,), time), labels)[:, : x.shape[1]]
        return float(torch.corrcoef(torch.stack([output.flatten(), x.flatten()]))[0, 1].nan_to_num())

    return "eps" if likeness(999.0) > _SHOWS else "velocity" if likeness(0.0) < -_SHOWS else None


def _sampler(denoiser: Any, side: int) -> SamplerOptions:
    """One evaluation of a consistency function; else as EDM's networks of this size are sampled."""
    if denoiser.kind == "consistency":
        return SamplerOptions(steps=1)
    high = HIGHEST if denoiser.sigma_max > 1.25 * HIGHEST else None
    return SamplerOptions(steps=18 if side <= 32 else 40, sigma_max=high)


def _unknown(path: Path, names: list[str]) -> str:
    for pattern, what in OTHERS:
        if any(re.search(pattern, name) for name in names):
            return f"{path} is {what}"
    lacks = {family.name: next((m for m in family.marks if m not in names), family.marks[0]) for family in FAMILIES}
    looked = "; ".join(f"{name} (has {mark})" for name, mark in lacks.items())
    return (
        f"{path} holds no network that is known by its tensors ({some(names[:3])}, ...); looked for: {looked}; where "
        "it is a module of yours, say what it is with sims.wrap, or give my_model.py:make with option 'weights'"
    )
