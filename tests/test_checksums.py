"""A flipped bit of a float is a valid float: every file of arrays that a run reads again tells by its checksum."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from sims.checksum import checksum
from sims.errors import UserError
from sims.metrics.saved import read_tensors, write_tensors


@pytest.mark.parametrize("kind", ["draws", "search", "references"])
def test_a_flipped_bit_of_what_a_run_kept_is_found(finished: Path, tmp_path: Path, kind: str, say: tiny.Say) -> None:
    """A run that must find its result anew, from all that it kept, names the file: no figure comes from it."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    for file in (run / "summary.json", *run.glob("search/*/chosen.json")):
        file.unlink()
    file = max(run.glob(f"{kind}/**/*.safetensors"), key=lambda path: ("test" in path.name, path))
    data = bytearray(file.read_bytes())
    data[-(len(data) // 4) & ~7] ^= 1  # of a value: neither its sign nor its exponent
    file.write_bytes(bytes(data))
    status, _, err = say(*tiny.improve_arguments(run, *tiny.PCA))
    assert status == 2 and file.name in err.replace("\n", "") and "checksum" in err
    assert file.read_bytes() == bytes(data) and not (run / "summary.json").exists()


def test_reading_back_gives_what_was_written(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3)[:, ::2], "none": np.empty((0, 4)), "one": np.float64(3.0), "yes": True}
    write_tensors(tmp_path / "a.safetensors", arrays, {"kind": "x", "list": [1, 2.5, None]})  # type: ignore[arg-type]
    tensors, header = read_tensors(tmp_path / "a.safetensors")
    assert header == {"kind": "x", "list": [1, 2.5, None]}
    assert all(np.array_equal(tensors[name].numpy(), value) for name, value in arrays.items())
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes().replace(b"2.5", b"3.5"))
    with pytest.raises(UserError, match=r"a\.safetensors is damaged .* checksum"):
        read_tensors(tmp_path / "a.safetensors")


def test_names_values_and_what_is_told_count_and_order_does_not() -> None:
    x, y = torch.arange(4.0), torch.ones(1).expand(1)
    found = checksum({"x": x, "y": y}, {"a": 1, "b": 2})
    assert found == checksum({"y": y.clone(), "x": x.reshape(2, 2).T.T}, {"b": 2, "a": 1})
    others = [({"x": y, "y": x}, {"a": 1, "b": 2}), ({"x": x, "y": y + 1e-7}, {"a": 1, "b": 2}), ({"x": x, "y": y}, {})]
    assert all(checksum(*other) != found for other in others)
    assert checksum({"half": torch.ones(3, dtype=torch.bfloat16)}, {}) != checksum({"half": torch.ones(3)}, {})
