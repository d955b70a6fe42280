"""The codec and the data set: exact round trips, splits that are partitions, hashes that follow the content."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from sims.data.codec import UINT8, Codec
from sims.data.dataset import Dataset
from sims.errors import UserError

QUICK = settings(max_examples=30, deadline=None)


def pictures(count: int = 6, channels: int = 3, height: int = 5, width: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, channels, height, width), dtype=np.uint8)


@QUICK
@given(hnp.arrays(np.uint8, (2, 3, 2, 2)))
def test_uint8_round_trip_and_range(raw: np.ndarray) -> None:
    x = UINT8.encode(raw)
    assert x.dtype == torch.float32 and x.min() >= -1 and x.max() <= 1
    assert np.array_equal(UINT8.decode(x), raw) and np.array_equal(UINT8.decode(x.double()), raw)
    assert torch.equal(x, torch.from_numpy(raw).float() / 127.5 - 1)  # EDM's scale
    assert torch.equal(UINT8.encode(torch.from_numpy(raw)), x)
    assert np.array_equal(UINT8.to_images(x), raw.transpose(0, 2, 3, 1))


@QUICK
@given(hnp.arrays(np.uint16, (2, 1, 2, 2)), st.integers(1, 65535))
def test_any_integer_range_round_trips(raw: np.ndarray, high: int) -> None:
    codec = Codec("pixels", 0, high, "uint16")
    raw = np.minimum(raw, high).astype(np.uint16)
    assert np.array_equal(codec.decode(codec.encode(raw)), raw)


@QUICK
@given(hnp.arrays(np.float32, (3, 2, 2), elements=st.floats(-3, 5, width=32)))
def test_floats_come_back_clipped_not_rounded(raw: np.ndarray) -> None:
    codec = Codec("pixels", -3, 5, "float32")
    assert np.allclose(codec.decode(codec.encode(raw)), raw, atol=1e-6)
    assert codec.decode(torch.tensor([-9.0, 9.0])).tolist() == [-3.0, 5.0]
    identity = Codec("identity", -3, 5, "float32")
    assert np.array_equal(identity.decode(identity.encode(raw * 7)), raw * 7)


def test_decode_rounds_as_edm_and_clips() -> None:
    x = torch.tensor([-5.0, -1.0, 0.0, 0.999, 1.0, 5.0], dtype=torch.float64)
    assert UINT8.decode(x).tolist() == (x * 127.5 + 128).clip(0, 255).to(torch.uint8).tolist()


@pytest.mark.parametrize(
    "bad", [("rgb", 0, 1, "uint8"), ("pixels", 1, 1, "uint8"), ("pixels", 0, np.nan, "uint8"), ("pixels", 0, 1, "u")]
)
def test_bad_codecs_are_refused(bad: tuple[str, float, float, str]) -> None:
    with pytest.raises(UserError):
        Codec(*bad)
    with pytest.raises(UserError):
        Codec.from_json({"kind": "pixels"})


def test_codec_json_and_display() -> None:
    latents = Codec("identity", -2, 2, "float32")
    assert Codec.from_json(json.loads(json.dumps(latents.to_json()))) == latents
    assert latents.to_images(torch.zeros(2, 4, 3, 3)).shape == (2, 3, 3, 3)
    assert UINT8.to_images(torch.zeros(2, 2, 3, 3)).shape == (2, 3, 3, 1)
    with pytest.raises(UserError, match="not images"):
        latents.to_images(torch.zeros(2, 2))


@QUICK
@given(st.integers(2, 60), st.integers(1, 5), st.floats(0.01, 0.99), st.integers(0, 9), st.booleans())
def test_split_is_a_partition(count: int, classes: int, fraction: float, seed: int, labelled: bool) -> None:
    raw = np.arange(count * 2, dtype=np.float32).reshape(count, 2)
    labels = np.arange(count) % classes if labelled else None
    data = Dataset(raw, labels, Codec("identity", 0, 1, "float32"))
    if not 0 < round(count * fraction) < count:
        with pytest.raises(UserError, match="test fraction"):
            data.split(fraction, seed)
        return
    train, test = data.split(fraction, seed)
    assert len(test) == round(count * fraction)
    assert sorted([*train.raw[:, 0], *test.raw[:, 0]]) == raw[:, 0].tolist()
    assert np.array_equal(data.split(fraction, seed)[1].raw, test.raw)
    assert train.num_classes == test.num_classes == data.num_classes


def test_dataset_views() -> None:
    raw = pictures(6, 1)
    data = Dataset(raw, np.array([0, 1, 2, -1, 1, 0]), UINT8)
    x, labels = data.batch(torch.tensor([4, 0]))
    assert x.shape == (2, 1, 5, 4) and labels is not None and labels.tolist() == [1, 0] and labels.dtype == torch.int64
    assert data.all()[0].shape == (6, 1, 5, 4) and data.batch([])[0].shape == (0, 1, 5, 4)
    assert data.num_classes == 3 and data.subset([0]).num_classes == 3  # a subset keeps the classes
    assert data.without_labels().num_classes == 0 and data.without_labels().all()[1] is None
    assert data.std() == pytest.approx(float(data.all()[0].double().std(correction=0)))
    assert Dataset(raw, np.full(6, -1), UINT8).labels is None


def test_fingerprint_follows_content_not_name() -> None:
    raw = pictures()
    data = Dataset(raw, None, UINT8, name="a")
    others = [
        Dataset(raw, np.zeros(6, int), UINT8),
        Dataset(raw, None, Codec("pixels", 0, 256, "uint8")),
        Dataset(raw[::-1], None, UINT8),
        Dataset(raw.reshape(6, 3, 4, 5), None, UINT8),
    ]
    assert data.fingerprint == Dataset(raw.copy(), None, UINT8, name="b").fingerprint
    assert len({data.fingerprint, *(other.fingerprint for other in others)}) == 5
