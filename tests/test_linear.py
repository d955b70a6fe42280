"""The linear layer that samples are drawn with: the same values from either library, and the faster one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sims.networks import MLP, linear
from sims.networks.linear import LEAST, WORTH, Linear, onednn_speed


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SIMS_CACHE", str(tmp_path / "cache"))
    onednn_speed.cache_clear()
    yield tmp_path / "cache" / "arithmetic.json"
    onednn_speed.cache_clear()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What is multiplied by oneDNN."""
    found: list[Tensor] = []
    real = linear._onednn

    def spy(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found.append(x)
        return real(x, weight, bias)

    monkeypatch.setattr(linear, "_onednn", spy)
    return found


def fast(monkeypatch: pytest.MonkeyPatch, speed: float = 2.0) -> None:
    monkeypatch.setattr(linear, "_measured", lambda: speed)


@pytest.mark.parametrize("shape", [(300, 128), (7, 60, 128)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_both_give_the_same(
    shape: tuple[int, ...], bias: bool, calls: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast(monkeypatch)
    torch.manual_seed(0)
    layer, x = Linear(128, 128, bias=bias), torch.randn(shape)
    with torch.no_grad():
        y = layer(x)
        expected = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    assert len(calls) == 1 and y.shape == expected.shape
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)


def test_only_where_samples_are_drawn_and_it_is_faster(calls: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    layer, x = Linear(64, 64), torch.randn(LEAST // 64**2 + 1, 64)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        layer(x[: len(x) // 2])
        layer.double()(x.double())
        layer.float()
        with torch.autocast("cpu", torch.bfloat16):
            layer(x)
        assert not calls
        layer(x)
        assert len(calls) == 1
        onednn_speed.cache_clear()
        fast(monkeypatch, WORTH - 0.01)
        monkeypatch.setattr(linear, "kept", lambda what, measure: measure())
        layer(x)
        assert len(calls) == 1


def test_it_is_measured_once_for_the_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch, 1.7)
    assert onednn_speed() == 1.7 and list(json.loads(home.read_text()).values()) == [1.7]
    onednn_speed.cache_clear()
    monkeypatch.setattr(linear, "_measured", lambda: 1 / 0)
    assert onednn_speed() == 1.7
    onednn_speed.cache_clear()
    monkeypatch.setattr(linear.torch.backends.mkldnn, "is_available", lambda: False)
    assert onednn_speed() == 0


def test_the_measurement_gives_a_number_and_leaves_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    assert 0.01 < linear._measured() < 100
    assert torch.equal(torch.get_rng_state(), state)


def test_names_and_first_weights_are_those_of_torchs_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    ours = MLP((1, 8, 8))
    monkeypatch.setattr("sims.networks.mlp.Linear", nn.Linear)
    torch.manual_seed(0)
    theirs = MLP((1, 8, 8))
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))
