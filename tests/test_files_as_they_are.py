"""Files of weights and tables as trainers and exporters write them: read as they are meant, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

import sims
from sims.data.check import check
from sims.data.pictures import encode_png
from sims.data.sources import load
from sims.errors import UserError
from sims.experiments.loop.schedule import CountOptions, schedule
from sims.interop.state_dicts import read_state_dict, unlike


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.bn1 = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)
        self.bn2, self.c2 = nn.BatchNorm2d(8), nn.Conv2d(8, 1, 3)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.b.weight = self.a.weight


@pytest.mark.parametrize("kind", [Normed, Tied])
def test_averages_by_number_are_those_of_their_parameters(kind: type[nn.Module], tmp_path: Path) -> None:
    """Buffers have no averages, and a parameter that is stored twice has one."""
    module = kind()
    shadow = [parameter.detach() + 1 for parameter in module.parameters()]
    ema = {"decay": 0.9, "num_updates": 3, "shadow_params": shadow}
    torch.save({"state_dict": module.state_dict(), "ema": ema}, tmp_path / "net.pt")
    found, notes = read_state_dict(tmp_path / "net.pt", list(module.state_dict()))
    assert "averages of the weights ('ema') are taken" in notes[0]
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    for name, value in module.state_dict().items():
        torch.testing.assert_close(found[name], value + 1 if name in parameters else value)


def test_averages_that_fit_in_several_ways_are_not_taken(tmp_path: Path) -> None:
    """A table that is no parameter lies before, between or behind parameters of its shape."""
    weights = {name: torch.full((4,), float(i)) for i, name in enumerate(("one", "two", "three"))}
    ema = {"shadow_params": [torch.zeros(4), torch.ones(4)]}
    torch.save({"state_dict": weights, "ema": ema}, tmp_path / "net.pt")
    found, notes = read_state_dict(tmp_path / "net.pt", list(weights))
    assert all(torch.equal(found[name], value) for name, value in weights.items())
    assert any("fit in several ways, and are not taken" in note for note in notes)


PAIRS = [
    ("params", "params_ema"), ("net", "net_ema"), ("net", "ema_net"), ("unet", "unet_ema"), ("model", "ema_params"),
    ("model", "ema_weights"), ("model_state_dict", "ema_model_state_dict"), ("model", "model_averaged"),
    ("model", "averaged_model"), ("model", "shadow"), ("G", "G_ema"), ("state_dict", "ema_state"),
]  # fmt: skip


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(("weights", "averages"), PAIRS)
def test_averages_come_before_weights(weights: str, averages: str, named: bool, tmp_path: Path) -> None:
    if not named and weights in ("unet", "G"):
        pytest.skip("no usual name of a wrapping")
    state = {"first.w": torch.zeros(3), "second.w": torch.zeros(2)}
    torch.save({weights: state, averages: {name: value + 1 for name, value in state.items()}}, tmp_path / "net.pt")
    found, notes = read_state_dict(tmp_path / "net.pt", list(state) if named else ())
    assert found.keys() == state.keys() and all((value == 1).all() for value in found.values())
    assert averages in notes[0]


def test_of_two_sets_that_fit_the_other_is_named(tmp_path: Path) -> None:
    state = {"first.w": torch.zeros(3)}
    torch.save({"student": state, "teacher": {"first.w": torch.ones(3)}}, tmp_path / "net.pt")
    found, notes = read_state_dict(tmp_path / "net.pt", ["first.w"])
    assert len(found) == 1 and any("would fit as well, and are not taken" in note for note in notes)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.complex64, torch.complex128, torch.bfloat16])
def test_tensors_of_every_type_may_lie_beside_weights(dtype: torch.dtype, tmp_path: Path) -> None:
    state = {"w": torch.randn(3)}
    torch.save({"model": state, "rng": torch.get_rng_state(), "table": torch.ones(3).to(dtype)}, tmp_path / "net.pt")
    found, _ = read_state_dict(tmp_path / "net.pt", ["w"])
    assert torch.equal(found["w"], state["w"])


def test_weights_that_no_training_leaves_are_named() -> None:
    own = {"a": torch.zeros(3), "n": torch.zeros(1, dtype=torch.int64)}
    assert unlike({"a": torch.ones(3), "n": torch.ones(1, dtype=torch.int64)}, own) == ""
    broken = {"a": torch.tensor([1.0, float("nan"), 0.0]), "n": own["n"]}
    assert unlike(broken, own) == "values that are not finite in a"
    quantized = {"a": torch.ones(3, dtype=torch.int8), "n": own["n"]}
    assert unlike(quantized, own) == "a is of torch.int8 and not torch.float32"
    assert "n is of torch.float32" in unlike({"a": own["a"], "n": torch.tensor([2.7])}, own)


# -- parquet -----------------------------------------------------------------------------------------------------------

PICTURES = np.random.default_rng(0).integers(0, 256, (60, 1, 8, 8), dtype=np.uint8)
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(rows: range, labels: pa.Array, names: tuple[str, ...] = (), struct: bool = True) -> pa.Table:
    data = [encode_png(PICTURES[i]) for i in rows]
    image = pa.array([{"bytes": one, "path": None} for one in data], STRUCT) if struct else pa.array(data, pa.binary())
    made = pa.table({"image": image, "label": labels})
    if names:
        label = {"_type": "ClassLabel", "names": list(names)}
        told = {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}
        made = made.replace_schema_metadata({"huggingface": __import__("json").dumps(told)})
    return made


def test_every_file_has_class_names_of_its_own(tmp_path: Path) -> None:
    numbers = [i % 3 for i in range(30)]
    pq.write_table(table(range(30), pa.array(numbers), ("x", "y", "z")), tmp_path / "a.parquet")
    pq.write_table(table(range(30, 60), pa.array(numbers), ("y", "x", "w")), tmp_path / "b.parquet")
    data = load(tmp_path)
    assert data.labels is not None and data.class_names == ("x", "y", "z", "w")
    words = [data.class_names[label] for label in data.labels]
    assert words == [("x", "y", "z")[n] for n in numbers] + [("y", "x", "w")[n] for n in numbers]


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (pa.array([0, 1] * 15, pa.int32()), pa.array([1, 0] * 15, pa.int64()), [0, 1] * 15 + [1, 0] * 15),
        (pa.array(["a", "b"] * 15), pa.array(["b", "c"] * 15), [0, 1] * 15 + [1, 2] * 15),
        (pa.array(["a", "b"] * 15), pa.nulls(30), [0, 1] * 15 + [-1] * 30),
        (pa.nulls(30), pa.array([0, 1] * 15), [-1] * 30 + [0, 1] * 15),
        (pa.array([0, 1] * 15), pa.array(["a", "b"] * 15), None),
    ],
)
def test_labels_of_several_files_are_one_list(one: pa.Array, other: pa.Array, found: Any, tmp_path: Path) -> None:
    pq.write_table(table(range(30), one), tmp_path / "a.parquet")
    pq.write_table(table(range(30, 60), other), tmp_path / "b.parquet")
    if found is None:
        with pytest.raises(UserError, match=r"a\.parquet: labels are numbers, and names in other files"):
            load(tmp_path)
        return
    labels = load(tmp_path).labels
    assert labels is not None and labels.tolist() == found


@pytest.mark.parametrize("struct", [True, False])
def test_pictures_may_be_packed_otherwise_in_every_file(struct: bool, tmp_path: Path) -> None:
    pq.write_table(table(range(30), pa.array([0] * 30), struct=struct), tmp_path / "a.parquet")
    pq.write_table(table(range(30, 60), pa.array([1] * 30), struct=not struct), tmp_path / "b.parquet")
    assert np.array_equal(load(tmp_path).raw, PICTURES)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({0: (4, 16)}, "rows differ in shape"),
        ({9: (4, 16)}, "rows differ in shape"),
        ({9: (16, 4)}, "rows differ in shape"),
        ({9: None, 10: (16, 8)}, r"empty \(null\)"),
    ],
)
def test_arrays_have_one_shape(change: dict[int, Any], says: str, tmp_path: Path) -> None:
    rows: list[Any] = [[[float(i)] * 8] * 8 for i in range(60)]
    for i, shape in change.items():
        rows[i] = None if shape is None else np.full(shape, 7.0).tolist()
    pq.write_table(pa.table({"x": pa.array(rows)}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=says):
        load(tmp_path)
    good = pa.table({"x": pa.array([rows[20]] * 3)})
    pq.write_table(good, tmp_path / "x.parquet")
    assert check(tmp_path / "x.parquet", sims.data.pictures.SourceOptions()).count == 3


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (np.array(["a", "b"] * 25), "not whole numbers"),
        (np.zeros((50, 1), np.int64), r"labels of shape \(50, 1\) for 50 samples"),
    ],
)
def test_labels_of_arrays_that_are_none(labels: np.ndarray, says: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", images=PICTURES[:50], labels=labels)
    with pytest.raises(UserError, match=says):
        load(tmp_path / "x.npz")


# -- numbers of a loop, and of a call ----------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [15, 100, 101, 103])
@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.0), (1 / 3, 1 / 3, 1 / 3), (0.7, 0.2, 0.1)])
def test_shares_add_up_to_the_total(total: int, shares: tuple[float, float, float]) -> None:
    entry = schedule("counts", CountOptions(total=total, shares=shares), 1)[1]
    found = [entry.real, sum(entry.synthetic.values()), entry.fresh]
    assert sum(found) == total and all(abs(n - total * share) < 1 for n, share in zip(found, shares))
    assert all(n == 0 for n, share in zip(found, shares) if share == 0)


def shrink(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    return x / (1 + sigma[:, None] ** 2)


def nothing(x: torch.Tensor, sigma: torch.Tensor) -> Any:
    return None


CLASSES, FEW = sims.as_denoiser(shrink, (2,), num_classes=2), sims.SamplerOptions(steps=2)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda model: sims.sample_seeds(CLASSES, range(2), FEW, labels=[1.7, 0]), "labels are whole numbers"),
        (lambda model: sims.sample_seeds(CLASSES, range(2), FEW, labels=["a", "b"]), "labels are whole numbers"),
        (lambda model: model.sample(seeds=3), "give several, such as range"),
        (lambda model: sims.edm_sigmas(5.5, 0.002, 80.0), "whole number"),  # type: ignore[arg-type]
        (lambda model: sims.Extrapolate(model.denoiser, model.denoiser, "1"), "finite number"),  # type: ignore[arg-type]
        (lambda model: sims.SamplerOptions(class_shares=(1e308, 1e308)), "class shares"),
        (lambda model: sims.load_data(PICTURES, data_range=(0,)), "values of black and white"),
        (lambda model: sims.load_data(PICTURES, labels=["a"] * 60), "not whole numbers"),
        (
            lambda model: sims.sample(lambda x, sigma: None, torch.randn(2, 2), sims.edm_sigmas(3, 0.1, 9.0)),
            "a NoneType",
        ),
    ],
)
def test_a_mistaken_call_is_one_sentence(call: Any, says: str, finished: Path) -> None:
    model = sims.load(next((finished / "base" / "snapshots").glob("*12800")))
    with pytest.raises(UserError, match=says):
        call(model)


def test_arrays_and_lists_do_as_well() -> None:
    noise, sigmas = torch.randn(3, 2), sims.edm_sigmas(3, 0.1, 9.0)
    expected = sims.sample(shrink, noise, sigmas)
    assert torch.equal(sims.sample(shrink, noise.numpy(), sigmas.tolist()), expected)  # type: ignore[arg-type]
    assert sims.as_denoiser(shrink, 2).data_shape == (2,)  # type: ignore[arg-type]
