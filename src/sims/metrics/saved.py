"""The package's safetensors files of features, statistics and extractors: tensors with a JSON header."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sims.errors import UserError


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the JSON header of one of this package's safetensors files; UserError where it is damaged."""
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; make it first or give another path.")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("sims", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}); make it again.") from error
    if not isinstance(header, dict):
        raise UserError(f"{path} was not written by sims (no header); give the right file.")
    return tensors, header
