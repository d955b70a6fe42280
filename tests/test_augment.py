"""Augmentation: what is done to images, what the network is told of it, and that nothing else depends on it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

import tiny
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.model import Model, make_network
from sims.networks import MLP, NETWORKS
from sims.training.augment import (
    ANISOTROPY,
    SCALE,
    TRANSFORMS,
    TRANSLATION,
    TURNED,
    Augment,
    Mirrored,
    augment_dim,
    backward,
    transform,
    wavelet,
)
from sims.training.trainer import Trainer, TrainOptions
from sims.training.training_noise import TrainingNoise

NAMES = ("xflip", "yflip", "scale", "rotation", "angle", "amount", "right", "down")
EXACT = 2e-5  # float32 coordinates of up to 100 fine samples, times the steepest slope of white noise
FAST = TrainOptions(batch=32, warmup=64, ema_halflife=200, checkpoint_seconds=1e9)


def images(count: int, height: int, width: int = 0, seed: int = 0) -> Tensor:
    """White noise: no smoothness for errors to hide behind."""
    return torch.randn(count, 3, height, width or height, generator=torch.Generator().manual_seed(seed))


def parameters(count: int = 1, **values: Any) -> Tensor:
    """Parameters (count, 8) with these values, all others zero."""
    table = torch.zeros(count, len(NAMES), dtype=torch.float64)
    for name, value in values.items():
        table[:, NAMES.index(name)] = torch.as_tensor(value, dtype=torch.float64)
    return table


def waves(height: int, width: int, x: float = 0.0, y: float = 0.0) -> Tensor:
    """A smooth image, (1, 1, H, W), moved by (x, y) pixels."""
    rows, columns = torch.arange(height).double()[:, None] - y, torch.arange(width).double()[None] - x
    return (torch.cos(columns * 0.7 + 0.2) * torch.sin(rows * 0.5) + 0.1 * rows)[None, None].float()


def test_probability_zero_changes_no_bit() -> None:
    x = images(300, 8)
    same, labels = Augment(0, 0.0)(x, 17)
    assert torch.equal(same, x) and labels.shape == (300, 9) and not labels.any()


def test_images_without_a_transform_are_not_touched() -> None:
    augment, x = Augment(3, 0.12), images(500, 8)
    changed, labels = augment(x, 0)
    flipped = labels[:, 0] != 0
    still = ~(labels[:, 1:] != 0).any(1)
    assert 150 < int(still.sum()) < 400
    assert torch.equal(changed[still & ~flipped], x[still & ~flipped])
    assert torch.equal(changed[still & flipped], x[still & flipped].flip(3))


def test_flips_are_exact() -> None:
    x = images(4, 7, 6)
    table = parameters(4, xflip=[0, 1, 0, 1], yflip=[0, 0, 1, 1])
    expected = torch.stack([x[0], x[1].flip(2), x[2].flip(1), x[3].flip(1, 2)])
    assert torch.equal(transform(x, table), expected)


@given(st.integers(2, 9), st.integers(2, 9), st.integers(-25, 25), st.integers(-25, 25))
@settings(max_examples=60, deadline=None)
def test_whole_pixels_of_translation_are_exact(height: int, width: int, right: int, down: int) -> None:
    x = images(2, height, width)
    moved = transform(x, parameters(2, right=right / width / TRANSLATION, down=down / height / TRANSLATION))
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (25, 25), (25, 25)), mode="reflect")
    expected = padded[:, :, 25 - down : 25 - down + height, 25 - right : 25 - right + width]
    torch.testing.assert_close(moved, torch.from_numpy(expected), rtol=0, atol=EXACT)


@pytest.mark.parametrize("size", [2, 5, 8, 32])
@pytest.mark.parametrize("quarters", [-1, 1, 2])
def test_quarter_turns_are_exact_and_counterclockwise(size: int, quarters: int) -> None:
    x = images(2, size)
    turned = transform(x, parameters(2, rotation=quarters * math.pi / 2))
    torch.testing.assert_close(turned, torch.rot90(x, quarters, (2, 3)), rtol=0, atol=EXACT)


def test_transforms_commute_with_turning_the_image() -> None:
    """A filter with a phase would shift what it rotates."""
    x, table = images(2, 16), parameters(2, scale=0.7, rotation=0.4)
    turned = transform(torch.rot90(x, 1, (2, 3)), table)
    torch.testing.assert_close(turned, torch.rot90(transform(x, table), 1, (2, 3)), rtol=0, atol=EXACT)


def test_parts_of_pixels_move_smooth_images_smoothly() -> None:
    for right, down in ((0.5, 0.0), (0.25, -0.4), (1.3, 2.75)):
        table = parameters(right=right / 24 / TRANSLATION, down=down / 24 / TRANSLATION)
        inside = (..., slice(6, -6), slice(6, -6))
        error = transform(waves(24, 24), table)[inside] - waves(24, 24, right, down)[inside]
        assert float(error.abs().max()) < 0.023  # bilinear, half pixels apart: ((0.7 / 2)^2 + (0.5 / 2)^2) / 8


def test_scale_and_anisotropy_stretch_what_they_say() -> None:
    factor = SCALE**1.5
    rows = torch.arange(33).double() - 16
    for table, x_factor, y_factor in (
        (parameters(scale=1.5), factor, factor),
        (parameters(amount=1.5), ANISOTROPY**1.5, ANISOTROPY**-1.5),
        (parameters(amount=1.5, angle=math.pi / 2), ANISOTROPY**-1.5, ANISOTROPY**1.5),
    ):
        image = torch.exp(-(rows[:, None] ** 2 + rows[None] ** 2) / 18)
        expected = torch.exp(-((rows[:, None] / y_factor) ** 2 + (rows[None] / x_factor) ** 2) / 18)
        stretched = transform(image[None, None].float(), table)[0, 0]
        assert float((stretched - expected).abs().max()) < 0.01


def test_the_image_goes_on_as_its_mirror_image() -> None:
    """A constant stays one, however far it is looked up."""
    table = Augment(0, 1.0).parameters(0, 200)
    x = torch.full((200, 1, 9, 12), 0.3)
    torch.testing.assert_close(transform(x, table), x, rtol=0, atol=1e-5)


def test_matrices_are_the_product_of_the_table() -> None:
    table = Augment(1, 1.0).parameters(0, 50)
    for row, inverse in zip(table.numpy(), backward(table, 20, 10).numpy()):
        _, _, scale, rotation, angle, amount, right, down = row

        def turn(a: float) -> np.ndarray:
            return np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])

        stretch = np.diag([ANISOTROPY**amount, ANISOTROPY**-amount, 1])
        shift = np.array([[1, 0, right * 10 / 8], [0, 1, down * 20 / 8], [0, 0, 1]])
        forward = shift @ turn(-angle) @ stretch @ turn(angle) @ turn(-rotation) @ np.diag([SCALE**scale] * 2 + [1])
        np.testing.assert_allclose(np.vstack([inverse, [0, 0, 1]]) @ forward, np.eye(3), atol=1e-12)


def test_the_wavelet_is_orthonormal_with_six_vanishing_moments() -> None:
    taps = wavelet()
    assert np.array_equal(taps, taps[::-1])
    products = np.correlate(taps, taps, "full")
    even = products[(len(taps) - 1) % 2 :: 2]
    np.testing.assert_allclose(even, np.arange(len(even)) == len(even) // 2, atol=1e-6)
    positions = np.arange(len(taps)) - len(taps) // 2
    moments = [np.sum((-1.0) ** positions * taps * positions**k) for k in range(6)]
    np.testing.assert_allclose(moments, 0, atol=0.05)  # the taps cut off, 1e-7, times their distance to the fifth
    # the response of sym6, whose 12 taps are these (Daubechies 1992, table 6.3, to six digits)
    sym6 = [0.015404, 0.003491, -0.11799, -0.048312, 0.491056, 0.787641]
    sym6 += [0.337929, -0.072638, -0.02106, 0.044725, 0.001768, -0.007801]
    response = [np.abs(np.fft.fft(h, 64)) for h in (taps, sym6)]
    np.testing.assert_allclose(*response, atol=1e-5)


def test_labels_tell_the_transform() -> None:
    augment = Augment(5, 0.5)
    table = augment.parameters(0, 400)
    labels = augment.labels(table).double()
    a = dict(zip(NAMES, table.T))
    told = [a["xflip"], a["yflip"], a["scale"], a["rotation"].cos() - 1, a["rotation"].sin()]
    told += [a["amount"] * a["angle"].cos(), a["amount"] * a["angle"].sin(), a["right"], a["down"]]
    torch.testing.assert_close(labels, torch.stack(told, 1), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(torch.atan2(labels[:, 4], labels[:, 3] + 1), a["rotation"], rtol=1e-5, atol=1e-6)
    assert torch.equal((labels != 0).any(1), (table != 0).any(1))


@given(st.lists(st.sampled_from(TRANSFORMS), unique=True, min_size=1), st.integers(0, 2**31 - 1))
@settings(max_examples=30, deadline=None)
def test_fewer_transforms_leave_the_others_as_they_were(names: list[Any], seed: int) -> None:
    all_of_them, some = Augment(seed, 0.5), Augment(seed, 0.5, names)
    columns = {"scale": [2], "rotation": [3], "anisotropy": [4, 5], "translation": [6, 7], "xflip": [0], "yflip": [1]}
    kept = [column for name in names for column in columns[name]]
    table, whole = some.parameters(0, 40), all_of_them.parameters(0, 40)
    assert torch.equal(table[:, kept], whole[:, kept])
    assert not table[:, [column for column in range(8) if column not in kept]].any()
    assert some.labels(table).shape == (40, augment_dim(names)) == (40, some.dim)


def test_parameters_are_distributed_as_the_table_says() -> None:
    count, p = 40_000, 0.12
    a = dict(zip(NAMES, Augment(2, p).parameters(0, count).numpy().T))
    tolerance = 4 * math.sqrt(p / count)  # four standard deviations of a share
    assert abs(a["xflip"].mean() - 0.5) < 0.01 and set(a["xflip"]) == {0.0, 1.0}
    assert abs(a["yflip"].mean() - p / 2) < tolerance and set(a["yflip"]) == {0.0, 1.0}
    for name in ("scale", "rotation", "angle", "amount", "right", "down"):
        on, share = a[name] != 0, p * TURNED if name == "angle" else p
        assert abs(on.mean() - share) < tolerance
        width, highest = (math.pi / math.sqrt(3), math.pi) if name in ("rotation", "angle") else (1.0, math.inf)
        assert abs(a[name][on].mean()) < 4 * width / math.sqrt(on.sum())
        assert abs(a[name][on].std() / width - 1) < 0.05 and np.abs(a[name]).max() <= highest
    assert np.array_equal(a["right"] != 0, a["down"] != 0) and np.all((a["angle"] == 0) | (a["amount"] != 0))
    joint = [(a[left] != 0) & (a[right] != 0) for left, right in (("scale", "rotation"), ("amount", "right"))]
    assert all(abs(both.mean() - p * p) < 4 * p / math.sqrt(count) for both in joint)


def test_augmentation_and_noise_share_no_numbers() -> None:
    normals = TrainingNoise(7, (8,)).draw(0, 2000)[0].numpy()
    own = Augment(7, 1.0).noise.draw(0, 2000)[1]
    assert np.abs(np.corrcoef(normals.T, own.T)[:8, 8:]).max() < 0.1


@given(st.integers(0, 2**31 - 1), st.integers(0, 5000), st.lists(st.integers(1, 90), min_size=1, max_size=5))
@settings(max_examples=20, deadline=None)
def test_sample_i_depends_on_seed_and_index_alone(seed: int, start: int, counts: list[int]) -> None:
    x = images(sum(counts), 6)
    whole, labels = Augment(seed, 0.3)(x, start)
    first = 0
    for count in counts:
        part, told = Augment(seed, 0.3)(x[first : first + count], start + first)
        assert torch.equal(told, labels[first : first + count])
        torch.testing.assert_close(part, whole[first : first + count], rtol=0, atol=1e-5)
        first += count


class Told(MLP):
    """A network that takes augmentation labels, and remembers them."""

    def __init__(self, data_shape: tuple[int, ...], num_classes: int = 0, augment_dim: int = 9, **rest: Any) -> None:
        super().__init__(data_shape, num_classes, **rest)
        self.config |= {"augment_dim": augment_dim}
        self.told = nn.Linear(augment_dim, math.prod(data_shape), bias=False)

    def forward(
        self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        if augment is not None:
            HEARD.append(augment)
            x = x + self.told(augment).reshape(x.shape)
        return super().forward(x, c_noise, labels)


HEARD: list[Tensor] = []


def told_model(data: Dataset, dim: int = 9) -> Model:
    plain = tiny.model(data)
    network = {"type": "told", "width": 32, "blocks": 1, "embedding": 16, "augment_dim": dim}
    torch.manual_seed(0)
    return plain.with_denoiser(make_network(data.data_shape, 0, network, {"type": "edm"}))


def train(start: Model, data: Any, folder: Path, options: TrainOptions, images: int = 320, **more: Any) -> Any:
    return Trainer(start, data, options, folder, images=images, seed=5, **more).run(log=lambda text: None)


def weights(trained: Any) -> dict[str, Tensor]:
    return load_file(trained.last / "model.safetensors")


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_tells_the_network(plain: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "told", Told)
    HEARD.clear()
    options = replace(FAST, augment=0.5)
    train(told_model(plain), plain, tmp_path / "1", options)
    once = torch.cat(HEARD)
    assert torch.equal(once, Augment(5, 0.5).labels(Augment(5, 0.5).parameters(0, 320)))
    HEARD.clear()
    train(told_model(plain), plain, tmp_path / "2", replace(options, accumulate=2, batch=64))
    assert torch.equal(torch.cat(HEARD), once)
    HEARD.clear()
    train(told_model(plain), plain, tmp_path / "0", FAST)
    assert not HEARD


def test_interrupted_augmented_training_ends_the_same(
    plain: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETWORKS, "told", Told)
    options = replace(FAST, augment=0.5, xflip=True)
    whole = train(told_model(plain), plain, tmp_path / "whole", options)
    part = train(told_model(plain), plain, tmp_path / "part", options, images=160)
    rest = train(told_model(plain), plain, tmp_path / "rest", options, earlier=part.folder)
    assert equal(weights(whole), weights(rest))
    assert not equal(weights(whole), weights(train(told_model(plain), plain, tmp_path / "plain", FAST)))


def test_what_cannot_be_augmented_is_refused(plain: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"takes 0 augmentation labels, .* have 9: use xflip"):
        train(tiny.model(plain), plain, tmp_path, replace(FAST, augment=0.1))
    monkeypatch.setitem(NETWORKS, "told", Told)
    with pytest.raises(UserError, match="takes 9 augmentation labels, and xflip, scale have 2: make the network"):
        few = replace(FAST, augment=0.1, augment_transforms=("xflip", "scale"))
        train(told_model(plain), plain, tmp_path, few)
    with pytest.raises(UserError, match="teacher"):
        train(told_model(plain), plain, tmp_path, replace(FAST, augment=0.1), teacher=tiny.model(plain))
    points = Dataset(np.zeros((5, 2), np.float32), None, replace(plain.codec, kind="identity", dtype="float32"))
    with pytest.raises(UserError, match=r"shape \(2,\)"):
        train(tiny.model(points), points, tmp_path, replace(FAST, xflip=True))
    for change in ({"augment": 1.5}, {"augment_transforms": ()}, {"augment_transforms": ("xflip", "xflip")}):
        with pytest.raises(UserError, match="augment"):
            replace(FAST, **change)


def test_mirrored_data_hold_every_image_twice(digits: Dataset) -> None:
    both = Mirrored(digits)
    count = len(digits)
    assert len(both) == 2 * count
    x, labels = both.batch(np.array([0, count, 7, count + 7]))
    original, classes = digits.batch([0, 0, 7, 7])
    assert torch.equal(x[::2], original[::2]) and torch.equal(x[1::2], original[1::2].flip(3))
    assert labels is not None and classes is not None and torch.equal(labels, classes)


def test_xflip_trains_on_mirror_images(plain: Dataset, tmp_path: Path) -> None:
    """Data without and with their mirror images: as if these had been in the data set."""
    doubled = replace(plain, raw=np.concatenate([plain.raw, plain.raw[..., ::-1]]))
    options = replace(FAST, xflip=True)
    assert equal(
        weights(train(tiny.model(plain), plain, tmp_path / "a", options)),
        weights(train(tiny.model(plain), doubled, tmp_path / "b", FAST)),
    )
