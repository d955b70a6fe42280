"""The checksum that this package's files carry: a flipped bit of a float is a valid float, and nothing else tells."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def checksum(tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> str:
    """CRC-32 (8 hex digits) of tensors with their names, and of plain values told beside them; order counts nothing."""
    found = zlib.crc32(json.dumps(told, sort_keys=True).encode())
    for name in sorted(tensors):
        flat = tensors[name].detach().cpu().flatten().clone(memory_format=torch.contiguous_format)
        values = flat.view(torch.uint8)  # whose stride must be 1, also where there is one value
        found = zlib.crc32(values.numpy().data, zlib.crc32(name.encode(), found))
    return f"{found:08x}"
