"""Is a network read rightly? Networks that are, and the same ones read wrongly in every respect."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sims
import tiny
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.experiments import readings
from sims.experiments.adapter_check import check_adapter, linear_denoiser, look, posterior_mean
from sims.experiments.readings import Reading, Remembering
from sims.interop.wrapping import load_weights
from sims.model import Model
from sims.preconditioning import InterpolantPrecond

SHARED = Path(__file__).parents[2] / "shared"
WEIGHTS = SHARED / "models" / "mnist-flow-vit.safetensors"
DIGITS = SHARED / "data" / "mnist"
needs_mnist = pytest.mark.skipif(not WEIGHTS.is_file() or not DIGITS.is_dir(), reason="needs ../shared (MNIST's model)")
flows = sims.interpolants


class FlowViT(nn.Module):
    """The published transformer that predicts x1 of a rectified flow (sofia-dominguezc/MNIST-diffusion)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patch_embed, self.unpatch = nn.Conv2d(1, width, 7, 7), nn.ConvTranspose2d(width, 1, 7, 7)
        self.pos_embed, self.y_encoder = nn.Parameter(torch.zeros(1, 16, width)), nn.Embedding(11, 2 * width)
        self.transformer = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, activation="gelu", batch_first=True) for _ in range(4)
        )

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        image = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        angles = t[:, None] * 10_000 ** (-torch.arange(64) / 63)
        time = torch.cat([angles.sin(), angles.cos()], 1).reshape(len(x), 2, -1)
        tokens = torch.cat([image, time, self.y_encoder(y).reshape(len(x), 2, -1)], 1)
        for block in self.transformer:
            tokens = block(tokens)
        return self.unpatch(tokens[:, :16].transpose(1, 2).reshape(len(x), -1, 4, 4))


def mnist(**changes: object) -> Model:
    """The published model through its adapter, with other settings."""
    options = {
        "data_shape": (1, 28, 28), "prediction": "x0", "schedule": flows.rectified_flow(data_at=1),
        "data_range": (0, 1), "num_classes": 10, "null_class": 10,
    }  # fmt: skip
    return load_weights(sims.wrap(FlowViT(), **{**options, **changes}), WEIGHTS)


@needs_mnist
def test_the_published_model_through_its_adapter() -> None:
    from safetensors.torch import load_file

    golden = load_file(WEIGHTS.with_name("mnist-flow-vit.golden.safetensors"))
    model, x, t, labels = mnist(), golden["in.x"], golden["in.t"], golden["in.labels"]
    inside = (t > 0.01) & (t < 0.99)  # at the ends sigma is 0 or infinite
    t = t[inside].reshape(-1, 1, 1, 1)
    state, sigma = (x[inside] / t - 0.5) * 2, 2 * ((1 - t) / t).flatten()
    truth = 2 * golden["out.x1"][inside] - 1
    assert (model(state, sigma, labels[inside]) - truth).abs().max() < 1e-5 * truth.abs().max()


@pytest.fixture(scope="module")
def pictures() -> Dataset:
    return sims.load_data(DIGITS, limit=400)


@needs_mnist
@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, None),
        ({"prediction": "eps"}, "prediction='x0'"),
        ({"schedule": flows.rectified_flow(0)}, "data_at=1"),
    ],
)
def test_the_published_model_read_wrongly(pictures: Dataset, changes: dict, words: str | None) -> None:
    found = check_adapter(mnist(**changes), pictures, "mnist", images=32)
    if words is None:
        assert found.problems == ()
    else:
        assert words in found.problems[0], found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Dataset]:
    """A class-conditional network of the digits, trained here."""
    folder = tmp_path_factory.mktemp("trained")
    data = {"path": "digits", "conditional": True}
    how = {"network": {"width": 64, "blocks": 1, "embedding": 32}, "base": {"images": 100_000, "train": {"batch": 128}}}
    return sims.train(folder, data, quiet=True, **how), sims.load_data("digits")


def wrapped(trained: Model, **changes: object) -> Model:
    options = {
        "data_shape": (1, 8, 8), "prediction": "edm", "schedule": flows.edm(), "num_classes": 10, "null_class": -1,
        "sigma_data": trained.denoiser.sigma_data,
    }  # fmt: skip
    return sims.wrap(trained.denoiser.network, **{**options, **changes})


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, None),
        ({"schedule": flows.edm(told="sigma")}, "interpolants.edm() fits"),
        ({"data_range": (0, 1)}, "data_range=(-1, 1)"),
        ({"call": lambda net, x, t, y: -net(x, t, y)}, "sign of the output turned"),
        (
            {"call": lambda net, x, t, y: -net(x, t, y), "data_range": (0, 1)},
            "the sign of the output turned (in call) and data_range=(-1, 1)",
        ),
        ({"schedule": flows.rectified_flow(0, scale=1000), "prediction": "velocity"}, "prediction='edm'"),
        ({"call": lambda net, x, t, y: net(x, t, torch.where(y >= 0, 9 - y, y))}, "other classes"),
        ({"call": lambda net, x, t, y: net(x, t, y).flip(2)}, "likely wrong"),
    ],
)
def test_a_network_trained_here(trained: tuple[Model, Dataset], changes: dict, words: str | None) -> None:
    model, data = trained
    found = check_adapter(wrapped(model, **changes), data, "digits")
    assert (found.problems == ()) if words is None else (words in found.problems[0]), found
    if changes == {}:
        assert check_adapter(model, data, "digits").problems == ()  # not wrapped: its errors alone


def test_labels_and_a_reading_wrong_together(trained: tuple[Model, Dataset]) -> None:
    """Each hides the other: with wrong labels no reading beats the linear denoiser."""
    model, data = trained
    wrong = wrapped(model, call=lambda net, x, t, y: -net(x, t, torch.where(y >= 0, 9 - y, y)))
    found = check_adapter(wrong, data, "digits")
    assert "sign of the output turned" in found.problems[0], found
    assert found.swapped == {str(k): str(9 - k) for k in range(10)}


def test_labels_that_some_pictures_lack(trained: tuple[Model, Dataset]) -> None:
    model, data = trained
    some = replace(data, labels=np.where(np.arange(len(data)) % 3, data.labels, -1))
    wrong = wrapped(model, call=lambda net, x, t, y: net(x, t, torch.where(y >= 0, 9 - y, y)))
    assert check_adapter(wrong, some, "digits").swapped == {str(k): str(9 - k) for k in range(10)}


def test_an_adapter_that_no_alternative_would_be(trained: tuple[Model, Dataset]) -> None:
    """EDM's prediction with a flow's times is not tried, but where it was given its errors are what they are."""
    model, data = trained
    sight = look(wrapped(model), data, 128, 0)
    wrong = wrapped(model, schedule=flows.rectified_flow())
    errors = [sight.of(made)[sight.start :].mean(1) for made in (wrong, wrapped(model))]
    found = check_adapter(wrong, data, "digits").better[0]
    assert found.times == pytest.approx(float(np.exp(np.log(errors[0] / errors[1]).mean())), rel=0.2)


def test_a_call_that_fails_at_other_times(trained: tuple[Model, Dataset]) -> None:
    """Whatever a call raises at times that only other readings tell, those are not the right ones."""
    model, data = trained

    def call(net: nn.Module, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if (t.abs() > 2).any():
            raise KeyError("no such time")
        return net(x, t, y)

    assert check_adapter(wrapped(model, call=call), data, "digits").problems == ()


@pytest.mark.parametrize(
    "given",
    [
        flows.linear(50, end=0.5, first=1), flows.cosine(scale=1e-3), flows.of_betas([0.01, 0.1, 0.4], first=1),
        flows.rectified_flow(1), flows.vp_sde(), flows.edm(), flows.Interpolant(lambda t: t, lambda t: 1 - t, 0.9, 0.1),
    ],
)  # fmt: skip
def test_what_is_said_is_what_was_tried(given: flows.Interpolant) -> None:
    """Options that are written as the words say give the same numbers, also where two respects changed."""
    first = Reading(given, "eps", (-1.0, 1.0))
    network = InterpolantPrecond(nn.Identity(), (1, 2, 2), 0, given, "eps", (-1.0, 1.0))
    for i, one in enumerate(first.others()):
        for reading in (one, *[other for j, other in enumerate(one.others()) if (i + j) % 5 == 0]):
            if not reading.makes_sense:
                continue
            options, sign = {"schedule": given, "prediction": "eps"}, 1.0
            known = dict(given.settings or {}).get("alphas_cumprod")
            for word in reading.words:
                name, _, value = word.partition("=")
                if value:
                    options[name] = eval(value.replace("(...", "(known"), {"sims": sims, "known": known})
                elif "sign" in word:
                    sign = -1.0
                else:
                    options["schedule"] = retold(options["schedule"], word)
            wanted, made = InterpolantPrecond(nn.Identity(), (1, 2, 2), **options), reading.denoiser(network)
            sigma = wanted.round_sigma(torch.tensor([0.3, 1.0, 3.0]))
            numbers = torch.stack(wanted.coefficients(sigma)) * torch.tensor([1, sign, 1, 1])[:, None]
            torch.testing.assert_close(torch.stack(made.coefficients(sigma)), numbers, msg=" and ".join(reading.words))


def test_of_readings_that_are_as_good_the_nearest_is_named() -> None:
    """A continuous schedule that is nearly that of linear betas is not named beside the prediction, though it is it."""
    data, schedule = sims.load_data("digits"), flows.vp_sde()
    wiener = linear_denoiser(data.batch(range(len(data)))[0])

    class Noise(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            time = t[:1].double().clamp(1, 1000) / 1000
            sigma, state = schedule.sigma(time), x / schedule.alpha(time)
            return ((state - wiener(state, sigma)) / sigma).float()

    model = sims.wrap(Noise(), data_shape=(1, 8, 8), prediction="v", schedule="linear")
    assert check_adapter(model, data, "digits").better[0].words == "prediction='eps'"


def test_a_wrong_direction_in_another_unit_of_time() -> None:
    """One alone does not help; both are tried together, with every prediction, range and sign."""
    first = Reading(flows.rectified_flow(1), "x0", (0.0, 1.0))
    right = flows.rectified_flow(0, scale=1000).settings
    tried = {
        (reading.prediction, reading.data_range, reading.sign)
        for reading in first.combined()
        if reading.schedule.settings == right
    }
    predictions = ("x0", "eps", "v", "velocity", "score")
    assert tried == {*itertools.product(predictions, readings.RANGES, (1.0, -1.0))}


def retold(given: flows.Interpolant, words: str) -> flows.Interpolant:
    """What the words on the time told say."""
    if "other direction" in words:
        ends = given.clean + given.noisy
        return replace(given, told=lambda t: given.tell(ends - t), settings=None)
    factor = float(words.split()[3])
    return replace(given, told=lambda t: factor * given.tell(t), settings=None)


def test_a_network_that_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked the same again it is not evaluated again, while there is room."""
    asked, x = [], torch.randn(2, 1, 2, 2, generator=torch.Generator().manual_seed(0))

    class Net(nn.Module):
        def forward(self, x: torch.Tensor, time: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
            asked.append(time)
            return x * time

    network = Remembering(Net())
    for time in (1.0, 2.0, 1.0, 2.0):
        assert torch.equal(network(x, torch.tensor([time])), time * x)
    assert len(asked) == 2
    monkeypatch.setattr(readings, "REMEMBERED", 1)
    for time in (3.0, 1.0, 1.0):
        assert torch.equal(network(x, torch.tensor([time])), time * x)
    assert len(asked) == 4


def test_the_linear_denoiser_is_the_wiener_filter() -> None:
    """Of Gaussian data: error sum(v sigma^2 / (v + sigma^2)), and no other map is better."""
    rng = torch.Generator().manual_seed(0)
    scale = torch.logspace(-1.5, 0.3, 16)
    x = (torch.randn(40_000, 16, generator=rng) * scale).reshape(-1, 1, 4, 4)
    denoise = linear_denoiser(x[:20_000])
    for sigma in (0.1, 0.5, 2.0):
        noisy = x[20_000:] + sigma * torch.randn(20_000, 1, 4, 4, generator=rng)
        error = (denoise(noisy, torch.tensor(sigma)) - x[20_000:]).square().mean()
        truth = (scale**2 * sigma**2 / (scale**2 + sigma**2)).mean()
        assert float(error) == pytest.approx(float(truth), rel=0.02)


def test_the_linear_denoiser_of_few_large_pictures() -> None:
    """Where there are fewer pictures than pixels it is diagonal in the cosine transform, and still close."""
    rng = torch.Generator().manual_seed(0)
    from scipy.fft import idctn

    scale = 1 / (1 + torch.arange(32)[:, None] + torch.arange(32)).double()  # a stationary spectrum
    z = torch.randn(600, 1, 32, 32, generator=rng, dtype=torch.float64) * scale
    x = torch.from_numpy(idctn(z.numpy(), axes=(2, 3), norm="ortho"))
    noisy = x[300:] + 0.2 * torch.randn(300, 1, 32, 32, generator=rng, dtype=torch.float64)
    error = (linear_denoiser(x[:300])(noisy, torch.tensor(0.2)) - x[300:]).square().mean()
    assert float(error) == pytest.approx(float((scale**2 * 0.04 / (scale**2 + 0.04)).mean()), rel=0.05)


def test_the_posterior_mean_of_two_pictures() -> None:
    two = torch.tensor([-1.0, 1.0]).reshape(2, 1, 1, 1)
    x = torch.tensor([0.3, -0.2]).reshape(2, 1, 1, 1)
    torch.testing.assert_close(posterior_mean(two)(x, torch.tensor(0.7)), (x / 0.49).tanh())  # tanh(x / sigma^2)


def test_the_command(trained: tuple[Model, Dataset], tmp_path: Path, say: tiny.Say) -> None:
    model = trained[0].save(tmp_path / "model")
    words = ("check", model, "--data.path", "digits", "--images", 64)
    status, out, err = say(*words)
    assert (status, err) == (0, "")
    assert "read rightly" in out
    status, out, _ = say(*words, "--json")
    assert json.loads(out)["num_images"] == 64
    np.savez(tmp_path / "other.npz", images=np.random.default_rng(0).integers(0, 255, (99, 3, 8, 8), dtype=np.uint8))
    for path, text in ((tmp_path / "other.npz", "the model makes"), (tmp_path / "none", "none")):
        status, _, err = say("check", model, "--data.path", path)
        assert status == 2
        assert text in err
    (tmp_path / "net.py").write_text(
        "import sims\n"
        "def make():\n"
        f"    given = sims.load({str(tmp_path / 'model')!r}).denoiser\n"
        "    how = dict(prediction='x0', schedule=sims.interpolants.edm(), sigma_data=given.sigma_data)\n"
        "    return sims.wrap(given.network, data_shape=(1, 8, 8), num_classes=10, **how)\n"
    )
    status, out, _ = say("check", f"{tmp_path / 'net.py'}:make", "--data.path", "digits")
    assert status == 1
    assert "prediction='edm'" in out


def test_too_few_pictures(trained: tuple[Model, Dataset]) -> None:
    with pytest.raises(UserError, match="20 pictures: at least 32"):
        check_adapter(trained[0], trained[1].subset(range(20)), "digits")


def test_a_run_looks_first(trained: tuple[Model, Dataset], tmp_path: Path) -> None:
    """improve warns of a network that is likely read wrongly, and its page shows the errors."""
    wrong = wrapped(trained[0], call=lambda net, x, t, y: net(x, t, y).flip(2))
    how = {"evaluation": {"extractor": "pca", "draws": 1, "samples": 60}, "methods": ("base",), "sampler": {"steps": 4}}
    result = sims.improve(run=tmp_path / "run", model=wrong, data="digits", quiet=True, **how)
    assert any("read wrongly" in text for text in result.warnings)
    assert result.adapter is not None
    assert "WARNING" in (tmp_path / "run" / "log").read_text()
    assert "The network on real pictures" in (tmp_path / "run" / "report.html").read_text()
