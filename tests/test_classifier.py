"""Feature extractors and the training of the classifiers behind them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.model_selection import train_test_split

from sims.errors import UserError
from sims.metrics.extractors import ClassifierExtractor, Extractor, PCAExtractor, extract, load_extractor
from sims.metrics.frechet import Moments, frechet_distance
from sims.metrics.small_classifier import ConvClassifier
from sims.training.classifier import _shifted, train_classifier

SHARED = Path(__file__).parents[2] / "shared"
Split = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def digits() -> Split:
    data = load_digits()
    images = (data.data / 16 * 2 - 1).astype(np.float32).reshape(-1, 1, 8, 8)
    x, test_x, y, test_y = train_test_split(images, data.target, test_size=360, random_state=0, stratify=data.target)
    return x, y, test_x, test_y


@pytest.fixture(scope="module", params=["a", "b"])
def trained(request: pytest.FixtureRequest, digits: Split) -> tuple[ClassifierExtractor, float]:
    return train_classifier(*digits, variant=request.param)


def test_digits_accuracy_and_features(trained: tuple[ClassifierExtractor, float], digits: Split) -> None:
    extractor, accuracy = trained
    x, _, test_x, test_y = digits
    assert accuracy >= 0.98
    assert (extractor.predict(test_x) == test_y).mean() == accuracy
    features, test_features = extract(extractor, x), extract(extractor, test_x)
    variances = features.var(axis=0)
    assert features.dtype == np.float32 and features.shape == (len(x), 64)
    assert variances.min() > 1e-3  # no feature is dead
    assert variances.mean() == pytest.approx(100, rel=1e-3)
    assert 10 < frechet_distance(Moments.of(features), Moments.of(test_features)) < 40


def test_distance_grows_with_damage(trained: tuple[ClassifierExtractor, float], digits: Split) -> None:
    extractor, _ = trained
    x, _, test_x, _ = digits
    real, noise = Moments.of(extract(extractor, x)), np.random.default_rng(0).normal(size=test_x.shape)
    damaged = [extract(extractor, (test_x + level * noise).astype(np.float32)) for level in (0, 0.2, 0.4, 0.8)]
    distances = [frechet_distance(real, Moments.of(each)) for each in damaged]
    assert distances == sorted(distances) and distances[-1] > 2 * distances[0]


def test_extractor_round_trip(trained: tuple[ClassifierExtractor, float], digits: Split, tmp_path: Path) -> None:
    extractor, _ = trained
    path = tmp_path / "extractor.safetensors"
    extractor.save(path)
    loaded = load_extractor(path)
    assert isinstance(loaded, ClassifierExtractor) and isinstance(loaded, Extractor)
    assert (loaded.hash, loaded.name, loaded.num_classes) == (extractor.hash, extractor.name, 10)
    np.testing.assert_array_equal(extract(loaded, digits[2]), extract(extractor, digits[2]))
    with pytest.raises(UserError, match="pca"):
        PCAExtractor.load(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="damaged"):
        load_extractor(path)


def test_training_is_deterministic_and_leaves_the_global_state_alone(digits: Split) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, _ = train_classifier(*digits, steps=5, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    again, _ = train_classifier(*digits, steps=5, seed=3)
    other, _ = train_classifier(*digits, steps=5, seed=4)
    second, _ = train_classifier(*digits, steps=5, seed=3, variant="b")
    assert first.hash == again.hash
    assert len({first.hash, other.hash, second.hash}) == 3
    assert (first.name, second.name) == ("classifier-a", "classifier-b")


@pytest.mark.parametrize("variant", ["a", "b"])
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 7, 20), (2, 5, 4), (3, 40, 33), (1, 17, 64)])
def test_any_image_shape(shape: tuple[int, int, int], variant: str) -> None:
    x = torch.randn(6, *shape)
    network = ConvClassifier(shape, 3, width=4, variant=variant).eval()
    assert network(x).shape == (6, 3)
    logits, features = network(x), network.features(x)
    network.rescale(3.0)
    torch.testing.assert_close(network(x), logits)
    torch.testing.assert_close(network.features(x), 3 * features)
    extractor, _ = train_classifier(x, [0, 1, 2, 0, 1, 2], x, [0, 1, 2, 0, 1, 2], steps=2, width=4, variant=variant)
    assert np.isfinite(extract(extractor, x)).all()


def test_shift_moves_whole_images() -> None:
    batch = torch.arange(2 * 3 * 5 * 4.0).reshape(2, 3, 5, 4)
    moved = _shifted(batch, 1)
    assert moved.shape == batch.shape
    padded = torch.nn.functional.pad(batch, (1, 1, 1, 1), mode="replicate")
    for image, candidates in zip(moved, padded):
        assert any(torch.equal(image, candidates[:, i : i + 5, j : j + 4]) for i in range(3) for j in range(3))


def test_training_refuses(digits: Split) -> None:
    x, y, test_x, test_y = digits
    with pytest.raises(UserError, match=r"expected \(1437,\)"):
        train_classifier(x, y[:5], test_x, test_y)
    with pytest.raises(UserError, match="-1"):
        train_classifier(x, y - 1, test_x, test_y)
    with pytest.raises(UserError, match="Label 9 with 5 classes"):
        train_classifier(x, y, test_x, test_y, num_classes=5)
    with pytest.raises(UserError, match="4 or more"):
        train_classifier(x[..., :3], y, test_x[..., :3], test_y)
    with pytest.raises(UserError, match="at least 2"):
        train_classifier(x, y * 0, test_x, test_y * 0)
    with pytest.raises(UserError, match="variant 'c'"):
        train_classifier(x, y, test_x, test_y, variant="c")
    with pytest.raises(UserError, match="for a classifier of"):
        ConvClassifier((1, 8, 8), 2)(torch.zeros(1, 1, 4, 8))


def test_pca_matches_scikit_learn(digits: Split, tmp_path: Path) -> None:
    x, _, test_x, _ = digits
    extractor = PCAExtractor.fit(x, 20)
    truth = PCA(20, svd_solver="full").fit(x.reshape(len(x), -1))
    found, expected = extract(extractor, test_x, batch_size=100), truth.transform(test_x.reshape(len(test_x), -1))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)
    assert PCAExtractor.fit(torch.from_numpy(x), 20).hash == extractor.hash
    extractor.save(tmp_path / "pca.safetensors")
    loaded = load_extractor(tmp_path / "pca.safetensors")
    assert loaded.hash == extractor.hash
    np.testing.assert_array_equal(extract(loaded, test_x), extract(extractor, test_x))


def test_pca_of_few_large_images() -> None:
    x = torch.rand(9, 3, 40, 20) * 2 - 1
    extractor = PCAExtractor.fit(x)
    assert extractor.num_features == 8 and isinstance(extractor, Extractor)
    pixels = torch.nn.functional.adaptive_avg_pool2d(x, (16, 16)).flatten(1)
    distances = torch.cdist(torch.from_numpy(extract(extractor, x)), torch.from_numpy(extract(extractor, x)))
    torch.testing.assert_close(distances, torch.cdist(pixels, pixels), atol=1e-2, rtol=1e-3)  # 8 dimensions hold all
    with pytest.raises(UserError, match="for an extractor of"):
        extractor(x[:, :1])
    with pytest.raises(UserError, match="N >= 2"):
        PCAExtractor.fit(x[:1])


def test_photographs_8x8_grey() -> None:
    path = SHARED / "data" / "cifar10-jpeg-test.parquet"
    if not path.is_file():
        pytest.skip("shared/data/cifar10-jpeg-test.parquet is not beside the project")
    import pyarrow.parquet as parquet
    from PIL import Image

    table = parquet.read_table(path).slice(0, 4000)
    pictures = [Image.open(io.BytesIO(row["bytes"])).convert("L") for row in table["img"].to_pylist()]
    small = np.stack([np.asarray(picture.resize((8, 8), Image.Resampling.BOX)) for picture in pictures])
    x = (small[:, None] / 127.5 - 1).astype(np.float32)
    y = np.array(table["label"].to_pylist())
    _, accuracy = train_classifier(x[:3000], y[:3000], x[3000:], y[3000:], steps=200)
    assert accuracy > 0.3  # chance: 0.1; the full 50,000 reach 0.55
