"""Reference statistics of other projects: read as they are, or refused with a reason."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sims.errors import UserError
from sims.files import digest_file
from sims.metrics.foreign import UNKNOWN_COUNT, ForeignStatistics, read_foreign_statistics
from sims.metrics.frechet import Moments, frechet_distance


def moments(seed: int, width: int = 5) -> Moments:
    return Moments.of(np.random.default_rng(seed).normal(size=(50, width)) + seed)


def entry(of: Moments) -> dict[str, np.ndarray]:
    return {"mu": of.mean, "sigma": of.covariance}


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def pkl(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def equal(read: ForeignStatistics, of: Moments) -> bool:
    return np.array_equal(read.moments.mean, of.mean) and np.array_equal(read.moments.covariance, of.covariance)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("metric", [None, "fid"])
def test_npz(save: Callable[..., None], metric: str | None, tmp_path: Path) -> None:
    path, truth = tmp_path / "cifar10-32x32.npz", moments(0)
    save(path, **entry(truth), unrelated=np.zeros(3))
    read = read_foreign_statistics(path, metric)
    assert equal(read, truth) and read.moments.count == UNKNOWN_COUNT == 0
    assert (read.name, read.metric, read.extractor) == ("cifar10-32x32", "fid", "inception")
    assert read.hash == digest_file(path)[:16]
    assert frechet_distance(read.moments, moments(1)) == frechet_distance(truth, moments(1))


@pytest.mark.parametrize("protocol", range(6))
def test_references_of_edm2(protocol: int, tmp_path: Path) -> None:
    a, b = moments(0), moments(1, 3)
    path = pkl(tmp_path / "img512.pkl", {"num_images": 1281167, "fid": entry(a), "fd_dinov2": entry(b)}, protocol)
    inception, dinov2 = read_foreign_statistics(path, "fid"), read_foreign_statistics(str(path), "fd_dinov2")
    assert equal(inception, a) and equal(dinov2, b)
    assert (inception.extractor, dinov2.extractor, dinov2.name) == ("inception", "dinov2", "img512")
    assert inception.moments.count == dinov2.moments.count == 1281167
    with pytest.raises(UserError, match=r"img512\.pkl has statistics for fid, fd_dinov2: say which"):
        read_foreign_statistics(path)
    with pytest.raises(UserError, match="no statistics for 'kid', only for fid, fd_dinov2"):
        read_foreign_statistics(path, "kid")


def test_one_metric_needs_no_choice(tmp_path: Path) -> None:
    path = pkl(tmp_path / "a.pkl", {"fd_dinov2": entry(moments(0)), "other": entry(moments(1))})
    assert read_foreign_statistics(path).metric == "fd_dinov2"
    with pytest.raises(UserError, match="no statistics for 'fid', only for fd_dinov2"):
        read_foreign_statistics(path, "fid")
    with pytest.raises(UserError, match="no statistics for 'fd_dinov2', only for fid"):
        read_foreign_statistics(npz(tmp_path / "a.npz", **entry(moments(0))), "fd_dinov2")


@pytest.mark.parametrize("count", [None, 0, 1, -5, "many", 2.5, True])
def test_a_count_that_says_nothing_is_unknown(count: Any, tmp_path: Path) -> None:
    path = pkl(tmp_path / "a.pkl", {"num_images": count, "fid": entry(moments(0))})
    assert read_foreign_statistics(path).moments.count == UNKNOWN_COUNT


def test_single_precision_is_read_as_double(tmp_path: Path) -> None:
    truth = moments(0)
    sigma = truth.covariance.astype(np.float32)
    sigma[0, 1] *= 1 + 1e-6  # what summing in float32 leaves
    read = read_foreign_statistics(npz(tmp_path / "a.npz", mu=truth.mean.astype(np.float32), sigma=sigma))
    assert read.moments.mean.dtype == read.moments.covariance.dtype == np.float64
    assert np.allclose(read.moments.covariance, truth.covariance, rtol=1e-5)


EYE = np.eye(3)
BAD = {
    "shape (3, 1)": (np.ones((3, 1)), EYE),
    "shape ()": (np.float64(1), EYE),
    "shape (0,)": (np.ones(0), np.ones((0, 0))),
    "sigma (3, 3)": (np.ones(4), EYE),
    "sigma (3,)": (np.ones(3), np.ones(3)),
    "NaN": (np.array([1, np.nan, 0]), EYE),
    "infinity": (np.ones(3), np.full((3, 3), np.inf)),
    "transpose by up to 0.5 (largest entry 1)": (np.ones(3), EYE + 0.5 * np.eye(3, k=1)),
    "complex128": (np.ones(3), EYE + 0j),
    "bool": (np.ones(3, bool), EYE),
}


@pytest.mark.parametrize("reason", BAD)
def test_what_is_no_mean_and_covariance(reason: str, tmp_path: Path) -> None:
    mu, sigma = (np.asarray(value) for value in BAD[reason])
    for path in (
        npz(tmp_path / "a.npz", mu=mu, sigma=sigma),
        pkl(tmp_path / "a.pkl", {"fid": {"mu": mu, "sigma": sigma}}),
    ):
        with pytest.raises(UserError) as caught:
            read_foreign_statistics(path)
        assert str(path) in str(caught.value) and reason in str(caught.value)


def test_files_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("mu, sigma")
    for path, reason in (
        (tmp_path / "missing.npz", "no file"),
        (tmp_path / "text.npz", "no pickle"),
        (npz(tmp_path / "images.npz", arr_0=np.zeros(3)), r"lacks the arrays mu and sigma \(it has arr_0\)"),
        (npz(tmp_path / "half.npz", mu=np.zeros(3)), r"\(it has mu\)"),
        (npz(tmp_path / "objects.npz", mu=np.array([{}]), sigma=EYE), "cannot be read as numpy arrays"),
        (pkl(tmp_path / "list.pkl", [1, 2]), "holds a list"),
        (pkl(tmp_path / "keys.pkl", {"a": 1, "fid": {"mu": EYE}}), "holds 'a', 'fid' and not mu and sigma"),
        (pkl(tmp_path / "lists.pkl", {"fid": {"mu": [1.0], "sigma": [[1.0]]}}), "mu is list and not an array"),
        (pkl(tmp_path / "objects.pkl", {"fid": {"mu": np.array([{}]), "sigma": EYE}}), "asks for a numpy array of"),
        (pkl(tmp_path / "code.pkl", {"fid": print}), "asks for builtins.print"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            read_foreign_statistics(path)
        assert str(path) in str(caught.value)


def test_damaged_files(tmp_path: Path) -> None:
    for path in (
        npz(tmp_path / "a.npz", **entry(moments(0, 2))),
        pkl(tmp_path / "a.pkl", {"fid": entry(moments(0, 2))}),
    ):
        data = path.read_bytes()
        for end in range(0, len(data), 7):
            path.write_bytes(data[:end])
            with pytest.raises(UserError, match=r"cannot be read|damaged|asks for"):
                read_foreign_statistics(path)
