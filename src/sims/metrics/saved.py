"""The package's safetensors files of features, statistics and extractors: arrays with a JSON header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sims.checksum import checksum
from sims.config import JSON
from sims.errors import UserError
from sims.files import parse_json, write_atomic
from sims.metrics.matrices import Array


def write_tensors(path: Path | str, arrays: Mapping[str, Array | Tensor], header: Mapping[str, JSON]) -> None:
    """Write arrays, a JSON header and a checksum to a safetensors file, atomically; ``read_tensors`` reads it."""
    tensors = {name: torch.as_tensor(np.asarray(array)).contiguous() for name, array in arrays.items()}
    told = {**header, "crc32": checksum(tensors, header)}
    write_atomic(Path(path), save(tensors, metadata={"sims": json.dumps(told, sort_keys=True)}))


class Held(dict[str, Any]):
    """What a file holds by name; what is missing is a UserError that names the file."""

    def __init__(self, path: Path | str, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise UserError(f"{self.path} holds no {name!r}: make it again, or give the right file")


def read_tensors(path: Path | str) -> tuple[Held, Held]:
    """The tensors and the JSON header of one of this package's safetensors files; UserError where it is damaged.

    That is, cut short, or not what its checksum was made of.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; make it first or give another path.")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = parse_json((file.metadata() or {}).get("sims", "null"), "its header")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        written = header.pop("crc32", None) if isinstance(header, dict) else None  # an older version wrote none
        if written not in (None, checksum(tensors, header)):
            raise UserError("what it holds does not have its checksum")
    except (SafetensorError, OSError, UserError) as error:
        raise UserError(
            f"{path} is damaged or no safetensors file ({error}): delete it and run the same command again, or give "
            "the right file"
        ) from error
    if not isinstance(header, dict):
        raise UserError(f"{path} was not written by sims (no header); give the right file.")
    return Held(path, tensors), Held(path, header)
