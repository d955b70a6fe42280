"""Attributes from labels and label files, the classifiers that tell them apart, and guidance by their gradients."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import tiny
from sims.data.dataset import Dataset
from sims.data.sources import load_pair
from sims.denoiser import Denoiser
from sims.errors import UserError
from sims.experiments.shift.attributes import (
    Attribute,
    Classifier,
    LabelFile,
    Labelled,
    classes,
    derived,
    joint,
    load,
    product,
    save,
    trained,
)
from sims.experiments.shift.user_classifiers import from_callable, torchscript
from sims.gaussians import GaussianMixture
from sims.guidance.classifier_gradient import GradientGuide
from sims.metrics.proportions import proportions
from sims.sampling import SamplerOptions, nfe, sample_seeds
from tiny_shift import write_labels

PARITY = {str(digit): "odd" if digit % 2 else "even" for digit in range(10)}
LOOP = {str(digit): "loop" if digit in (0, 6, 8, 9) else "no loop" for digit in range(10)}


@pytest.fixture(scope="module")
def pair() -> tuple[Dataset, Dataset]:
    return load_pair("digits")


@pytest.fixture(scope="module")
def steering(pair: tuple[Dataset, Dataset]) -> Classifier:
    return trained(pair[0], derived(pair[0], "parity", PARITY), steps=150)


@pytest.fixture(scope="module")
def judge(pair: tuple[Dataset, Dataset]) -> Classifier:
    train, test = pair
    held_out = (test, derived(test, "parity", PARITY)[1])
    return trained(train, derived(train, "parity", PARITY), architecture="b", steps=150, held_out=held_out)


# ---- labels


def test_classes_and_what_follows_from_them(digits: Dataset) -> None:
    attribute, labels = classes(digits)
    assert attribute == Attribute("class", tuple("0123456789")) and (labels == digits.labels).all()
    parity, odd = derived(digits, "parity", PARITY)
    assert parity.values == ("even", "odd") and (odd == labels % 2).all()
    both, values = joint([(parity, odd), derived(digits, "loop", LOOP)])
    assert both.name == "parity,loop" and both.values == ("even,loop", "even,no loop", "odd,loop", "odd,no loop")
    assert {int(labels[i]) for i in np.flatnonzero(values == both.index("odd,loop"))} == {9}
    assert joint([(parity, odd)])[0] == parity


@given(st.lists(st.integers(2, 4), min_size=1, max_size=3), st.data())
def test_a_joint_value_says_what_its_parts_were(sizes: list[int], data: st.DataObject) -> None:
    parts: list[Labelled] = []
    for place, size in enumerate(sizes):
        values = data.draw(st.lists(st.integers(-1, size - 1), min_size=5, max_size=5))
        parts.append((Attribute(f"a{place}", tuple(f"{place}{k}" for k in range(size))), np.array(values)))
    attribute, labels = joint(parts)
    assert len(attribute.values) == np.prod(sizes)
    for i, value in enumerate(labels):
        own = [part.values[column[i]] if column[i] >= 0 else None for part, column in parts]
        assert value == -1 if None in own else attribute.values[value] == ",".join(map(str, own))


def test_label_files_are_read_back(digits: Dataset, tmp_path: Path) -> None:
    labels = derived(digits, "parity", PARITY)[1].copy()
    labels[7] = -1
    parts = [(Attribute("parity", ("even", "odd")), labels), derived(digits, "loop", LOOP)]
    write_labels(tmp_path / "labels.json", digits, parts)
    names = [f"{'' if v < 0 else ('even', 'odd')[v]},{LOOP[str(c)]}" for v, c in zip(labels, classes(digits)[1])]
    (tmp_path / "labels.csv").write_text("\n".join(["parity,loop", *names]) + "\n")
    (tmp_path / "one.csv").write_text("\n".join(["parity", *(name.split(",")[0] for name in names)]) + "\n")
    for name in ("labels.json", "labels.csv", "one.csv"):
        attribute, values = LabelFile.read(tmp_path / name).labelled("parity", digits)
        assert attribute == parts[0][0] and (values == labels).all()
    attribute, values = LabelFile.read(tmp_path / "labels.csv").labelled("loop", digits)
    assert attribute.values == ("loop", "no loop") and (values == parts[1][1]).all()


def test_a_label_file_of_other_data_is_refused(digits: Dataset, tmp_path: Path) -> None:
    write_labels(tmp_path / "labels.json", digits.subset(range(299, -1, -1)), [classes(digits)])
    with pytest.raises(UserError, match="labels another data set"):
        LabelFile.read(tmp_path / "labels.json").labelled("class", digits)
    (tmp_path / "labels.csv").write_text("parity\neven\nodd\n")
    with pytest.raises(UserError, match=r"has 2 values of 'parity', and .* has 300 samples"):
        LabelFile.read(tmp_path / "labels.csv").labelled("parity", digits)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no CSV with a header"),
        ("parity,loop\neven,loop\nodd\n", "line 3 has 1 values for 2 attributes"),
        (json.dumps({"labels": [1, 2]}), "holds no labels"),
        ("{", "not valid JSON"),
    ],
)
def test_broken_label_files_are_one_sentence(content: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / ("labels.json" if content.startswith("{") else "labels.csv")
    file.write_text(content)
    with pytest.raises(UserError, match=words):
        LabelFile.read(file)


# ---- classifiers


def test_classifier_and_judge_share_nothing(steering: Classifier, judge: Classifier, pair: tuple) -> None:
    """Architecture, training half and seeds differ; each is tested on what it has not seen."""
    train, test = pair
    assert [each.network.variant for each in (*steering.trained, *judge.trained)] == ["a", "b"]
    assert steering.hash != judge.hash
    assert steering.confusion.sum() + judge.confusion.sum() == len(train) + len(test)
    assert steering.accuracy > 0.93 and judge.accuracy > 0.9


def test_opposite_halves_train_the_two(pair: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    train = pair[0]
    seen: list[set[bytes]] = []

    def stop(x: Tensor, labels: np.ndarray, *rest: object, **options: object) -> None:
        seen.append({image.numpy().tobytes() for image in x})
        raise InterruptedError

    monkeypatch.setattr("sims.experiments.shift.attributes.train_classifier", stop)
    for seed, architecture in ((0, "a"), (0, "b"), (5, "b")):
        with pytest.raises(InterruptedError):
            trained(train, derived(train, "parity", PARITY), seed, architecture)
    assert not seen[0] & seen[1] and seen[1] == seen[2] and len(seen[0] | seen[1]) == len(train)


def test_the_judge_measures_a_shifted_set(judge: Classifier, pair: tuple) -> None:
    """Of real digits in proportions 4 to 1, the corrected interval holds the truth."""
    train, _ = pair
    parity = derived(train, "parity", PARITY)[1]
    rows = np.concatenate([np.flatnonzero(parity == 0)[:600], np.flatnonzero(parity == 1)[:150]])
    found = proportions(judge(train.batch(rows)[0]), judge.confusion, names=judge.attribute.values)
    assert found.low[0] <= 0.8 <= found.high[0] and found.high[0] - found.low[0] < 0.12


def test_gradients_and_batches(steering: Classifier, pair: tuple) -> None:
    x = pair[1].all()[0][:20].requires_grad_()
    found = steering.log_probs(x)
    assert found is not None and found.shape == (20, 2)
    torch.testing.assert_close(found.exp().sum(dim=1), torch.ones(20))
    assert float(torch.autograd.grad(found[:, 0].sum(), x)[0].abs().max()) > 0
    assert (steering(x) == found.argmax(dim=1).numpy()).all()
    many = x.detach().repeat(120, 1, 1, 1)  # more than one batch
    assert (steering(many) == np.tile(steering(x), 120)).all()


def test_a_classifier_is_kept_in_a_file(steering: Classifier, pair: tuple, tmp_path: Path) -> None:
    save(steering, tmp_path / "steering")
    again, x = load(tmp_path / "steering"), pair[1].all()[0]
    assert (again.hash, again.attribute, again.accuracy) == (steering.hash, steering.attribute, steering.accuracy)
    assert (again(x) == steering(x)).all() and (again.confusion == steering.confusion).all()


def test_several_networks_are_one_classifier(digits: Dataset, tmp_path: Path) -> None:
    labelled = derived(digits, "parity", PARITY)
    one, two = (trained(digits, labelled, steps=40, members=members) for members in (1, 2))
    assert one.hash != two.hash and one.trained[0].hash == two.trained[0].hash != two.trained[1].hash
    x = digits.all()[0][:20]
    each = [torch.softmax(network.network(x), dim=1) for network in two.trained]
    found = two.log_probs(x)
    assert found is not None
    torch.testing.assert_close(found.exp(), sum(each) / 2)
    save(two, tmp_path / "two")
    again = load(tmp_path / "two")
    assert again.hash == two.hash and (again(x) == two(x)).all()
    (tmp_path / "two/1.safetensors").unlink()
    with pytest.raises(UserError):
        load(tmp_path / "two")


def test_training_is_repeatable_and_takes_a_labelled_subset(digits: Dataset) -> None:
    attribute, labels = derived(digits, "parity", PARITY)
    some = np.where(np.arange(len(digits)) < 120, labels, -1)
    first, again, other = (trained(digits, (attribute, some), seed, steps=60) for seed in (0, 0, 1))
    assert first.hash == again.hash != other.hash and first.confusion.sum() == 60


class Brightness(torch.nn.Module):
    """Logits of dark and bright."""

    def forward(self, x: Tensor) -> Tensor:
        mean = 50 * (x.mean(dim=(1, 2, 3)) + 0.4)
        return torch.stack([-mean, mean], dim=1)


def brightness(digits: Dataset) -> Labelled:
    means = digits.all()[0].mean(dim=(1, 2, 3)).numpy()
    return Attribute("brightness", ("dark", "bright")), (means > -0.4).astype(np.int64)


def bright(x: Tensor) -> Tensor:
    return (x.mean(dim=(1, 2, 3)) > -0.4).long()


def test_torchscript_and_callables_are_the_same_classifier(digits: Dataset, tmp_path: Path) -> None:
    labelled, x = brightness(digits), digits.all()[0]
    torch.jit.script(Brightness()).save(str(tmp_path / "brightness.pt"))
    (tmp_path / "mine.py").write_text("def one(x):\n    return 100 * (x.mean(dim=(1, 2, 3)) + 0.4)\n")
    script = torchscript(tmp_path / "brightness.pt", digits, labelled)
    for found in (
        script,
        from_callable(bright, digits, labelled),
        from_callable(Brightness(), digits, labelled),
        from_callable(f"{tmp_path}/mine.py:one", digits, labelled),
    ):
        assert found.accuracy == 1 and (found(x) == labelled[1]).all() and found.confusion.sum() == len(digits)
    assert script.log_probs(x).shape == (len(x), 2)  # type: ignore[union-attr]
    one = from_callable(f"{tmp_path}/mine.py:one", digits, labelled).log_probs(x)
    torch.testing.assert_close(one, script.log_probs(x), atol=1e-4, rtol=1e-4)
    assert from_callable(bright, digits, labelled).log_probs(x) is None  # whole values have no gradient


def test_modules_are_found_where_the_user_stands(
    digits: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sims_test_mine.py").write_text("def one(x):\n    return x.mean(dim=(1, 2, 3)) + 0.4\n")
    monkeypatch.chdir(tmp_path)
    found = from_callable("sims_test_mine:one", digits, brightness(digits))
    assert found.accuracy == 1
    (tmp_path / "sims_test_mine.py").write_text("def one(x):\n    return 2 * (x.mean(dim=(1, 2, 3)) + 0.4)\n")
    assert from_callable("sims_test_mine.py:one", digits, brightness(digits)).hash != found.hash


def test_classifiers_of_two_attributes_become_one(steering: Classifier, pair: tuple) -> None:
    data = pair[0].subset(range(400))
    labelled = brightness(data)
    light = from_callable(Brightness(), data, labelled)
    both = joint([derived(data, "parity", PARITY), labelled])
    x, found = data.all()[0], product([steering, light], data, both)
    assert (found(x) == steering(x) * 2 + light(x)).all() and found.attribute == both[0]
    torch.testing.assert_close(found.log_probs(x).exp().sum(dim=1), torch.ones(400))  # type: ignore[union-attr]
    hard = product([steering, from_callable(bright, data, labelled)], data, both)
    assert (hard(x) == found(x)).all() and hard.log_probs(x) is None
    with pytest.raises(UserError, match="do not fit"):
        product([light, steering], data, both)


# ---- bad input


def test_bad_attributes_are_one_sentence(digits: Dataset) -> None:
    parity = Attribute("parity", ("even", "odd"))
    with pytest.raises(UserError, match=r"unknown value 'evn' of parity; did you mean 'even'"):
        parity.index("evn")
    with pytest.raises(UserError, match="at least two"):
        Attribute("parity", ("even",))
    with pytest.raises(UserError, match="'even' twice"):
        Attribute("parity", ("even", "even"))
    with pytest.raises(UserError, match="names the class 'zero'"):
        derived(digits, "parity", {**PARITY, "zero": "even"})
    with pytest.raises(UserError, match="no value for the class '9'"):
        derived(digits, "parity", {key: value for key, value in PARITY.items() if key != "9"})
    with pytest.raises(UserError, match="has no classes"):
        classes(digits.without_labels())
    with pytest.raises(UserError, match="one data set"):
        joint([(parity, np.zeros(3, int)), (parity, np.zeros(4, int))])


def test_values_without_support_are_refused_before_training(digits: Dataset) -> None:
    labels = np.where(np.arange(len(digits)) < 3, 1, 0)
    with pytest.raises(UserError, match=r"3 labelled images of .* have the value 'rare'"):
        trained(digits, (Attribute("finding", ("none", "rare")), labels))
    with pytest.raises(UserError, match="no held-out sample has 'rare'"):
        from_callable(bright, digits, (Attribute("finding", ("none", "rare")), np.zeros(len(digits), int)))


def test_a_classifier_worse_than_chance_is_refused(digits: Dataset) -> None:
    attribute, labels = brightness(digits)
    with pytest.raises(UserError, match=r"no better than chance at telling '(dark|bright)' from"):
        from_callable(bright, digits, (attribute, 1 - labels))
    noise = np.random.default_rng(0).integers(0, 2, len(digits))
    with pytest.raises(UserError, match="no better than chance"):
        trained(digits, (attribute, noise), steps=20)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x, "makes .* of 300 images: it must give finite logits"),
        (lambda x: None, "makes NoneType"),
        (lambda x: torch.full((len(x), 2), torch.nan), "finite"),
        (lambda x: torch.full((len(x),), 5), "gives the value 5"),
        (lambda x: x.view(len(x), 3, 999), "does not take images of shape"),
        ("nowhere", "write module:function"),
        ("no_such_module:one", "cannot be imported"),
        ("no_such_file.py:one", "cannot be imported"),
        ("json:dum", "no function 'dum'; did you mean 'dump"),
    ],
)
def test_bad_classifiers_are_one_sentence(function: Callable | str, words: str, digits: Dataset) -> None:
    with pytest.raises(UserError, match=words):
        from_callable(function, digits, brightness(digits))


def test_bad_torchscript_files_are_one_sentence(digits: Dataset, tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    for name, words in (("missing.pt", "no classifier"), ("broken.pt", "no TorchScript file")):
        with pytest.raises(UserError, match=words):
            torchscript(tmp_path / name, digits, brightness(digits))


# ---- guidance by gradients

MEANS = torch.tensor([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]])
COVARIANCES = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.5, -0.2], [-0.2, 0.4]], [[0.2, 0.0], [0.0, 0.6]]])


def exact_log_probs(mixture: GaussianMixture) -> Callable[[Tensor, Tensor], Tensor]:
    """log p(component | x at sigma) of a mixture (B, K)."""

    def log_probs(x: Tensor, sigma: Tensor) -> Tensor:
        return mixture._posterior(x, sigma, None)[1].log_softmax(dim=1)

    return log_probs


def points(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    sigma = torch.logspace(-1, 1.5, count, dtype=torch.float64)
    return torch.randn(count, 2, generator=generator, dtype=torch.float64) * (1 + sigma[:, None]), sigma


def test_an_exact_classifier_guides_to_the_exact_conditional_mean() -> None:
    """With scale 1: D + sigma^2 grad log p(k | x) = E[x0 | x, k], for every component of a mixture."""
    base = GaussianMixture([0.2, 0.5, 0.3], MEANS, COVARIANCES)
    conditional = GaussianMixture([0.2, 0.5, 0.3], MEANS, COVARIANCES, [0, 1, 2])
    guide = GradientGuide(base, exact_log_probs(base), [1 / 3] * 3, 1.0, noisy=True)
    x, sigma = points()
    for value in range(3):
        labels = torch.full((len(x),), value)
        torch.testing.assert_close(guide(x, sigma, labels), conditional(x, sigma, labels), atol=1e-9, rtol=1e-9)
    mixed = torch.tensor([0, 1, 2, -1, 1, 0])  # every sample towards its own value, or none
    torch.testing.assert_close(guide(x, sigma, mixed), conditional(x, sigma, mixed), atol=1e-9, rtol=1e-9)


@settings(max_examples=20)
@given(st.floats(0.1, 3.0), st.floats(-2, 2), st.floats(-2, 2))
def test_on_the_denoised_estimate_a_linear_classifier_tilts_a_gaussian_exactly(
    scale: float, a: float, b: float
) -> None:
    """p(x0) exp(scale <v, x0>) is N(m + scale C v, C), and the guide is its denoiser, at every noise level."""
    v = torch.tensor([a, b], dtype=torch.float64)
    mean, covariance = MEANS[:1].double(), COVARIANCES[:1].double()
    base = GaussianMixture([1.0], mean, covariance)
    tilted = GaussianMixture([1.0], mean + scale * (covariance[0] @ v)[None], covariance)
    guide = GradientGuide(base, lambda d: torch.stack([d @ v, -d @ v], dim=1), [0.5, 0.5], scale)
    x, sigma = points()
    value = torch.zeros(len(x), dtype=torch.int64)
    torch.testing.assert_close(guide(x, sigma, value), tilted(x, sigma), atol=1e-9, rtol=1e-9)


def test_samples_have_the_proportions_that_were_asked_for() -> None:
    base = GaussianMixture([0.05, 0.6, 0.35], MEANS, COVARIANCES / 8)
    target, seeds = [0.5, 0.2, 0.3], range(3000)
    guide = GradientGuide(base, exact_log_probs(base), target, 1.0, noisy=True)
    labels = guide.wanted(seeds)
    assert isinstance(guide, Denoiser) and guide.num_classes == 3
    np.testing.assert_allclose(np.bincount(labels) / 3000, target, atol=0.03)
    assert torch.equal(guide.wanted(range(100, 200)), labels[100:200])  # seed i's value follows from seed i
    x, _ = sample_seeds(guide, seeds, SamplerOptions(steps=12), labels=labels, batch_size=3000)
    nearest = torch.cdist(x, MEANS).argmin(dim=1)
    assert (nearest == labels).float().mean() > 0.97
    assert abs(float(torch.corrcoef(torch.stack([labels.float(), noise_of(seeds)]))[0, 1])) < 0.05


def noise_of(seeds: range) -> Tensor:
    """The first number of each seed's noise, which its wanted value must not follow."""
    return torch.stack([torch.randn(1, generator=torch.Generator().manual_seed(seed))[0] for seed in seeds])


def test_without_scale_or_value_it_is_the_base() -> None:
    base = GaussianMixture([0.2, 0.5, 0.3], MEANS, COVARIANCES)
    x, sigma = points()
    labels = torch.zeros(len(x), dtype=torch.int64)
    off = GradientGuide(base, exact_log_probs(base), [1 / 3] * 3, 0.0, noisy=True)
    on = GradientGuide(base, exact_log_probs(base), [1 / 3] * 3, 2.0, noisy=True)
    for found in (off(x, sigma, labels), on(x, sigma), on(x, sigma, labels - 1)):
        assert torch.equal(found, base(x, sigma))
    options = SamplerOptions(steps=9)
    assert nfe(off, options) == nfe(on, options) == nfe(base, options)
    through = GradientGuide(base, lambda d: d, [0.5, 0.5], 1.0)
    assert nfe(through, options) == 3 * nfe(base, options)  # a gradient through the base


def test_a_base_with_classes_keeps_them() -> None:
    base = GaussianMixture([0.2, 0.5, 0.3], MEANS, COVARIANCES, [0, 1, 1])
    guide = GradientGuide(base, lambda d: torch.stack([d[:, 0], -d[:, 0]], dim=1), [0.9, 0.1], 0.5)
    classes_ = torch.tensor([0, 1] * 200)
    labels = guide.wanted(range(400), classes_)
    assert guide.num_classes == 4 and (labels // 2 == classes_).all()
    x, sigma = points(4)
    for label in range(4):
        single = torch.full((4,), label)
        moved = guide(x, sigma, single) - base(x, sigma, single // 2)
        assert (moved[:, 0] * (1 - 2 * (label % 2)) > 0).all()
    with pytest.raises(UserError, match="the base has 2 classes"):
        guide.wanted(range(3))


@pytest.mark.parametrize("log_probs", [lambda d: None, lambda d: torch.zeros(len(d), 2)])
def test_a_classifier_without_gradients_cannot_guide(log_probs: Callable) -> None:
    guide = GradientGuide(GaussianMixture([1.0], MEANS[:1], COVARIANCES[:1]), log_probs, [0.5, 0.5], 1.0)
    with pytest.raises(UserError, match="has no gradient"):
        guide(*points(), torch.zeros(6, dtype=torch.int64))


def test_bad_guides_are_one_sentence() -> None:
    base = GaussianMixture([1.0], MEANS[:1], COVARIANCES[:1])
    for target, scale, words in (
        ([0.5, 0.4], 1.0, "sum to 1"),
        ([1.0], 1.0, "at least two"),
        ([0.5, 0.5], float("nan"), "finite"),
    ):
        with pytest.raises(UserError, match=words):
            GradientGuide(base, lambda d: d, target, scale)
    guide = GradientGuide(base, lambda d: d, [0.2, 0.3, 0.5], 1.0)
    with pytest.raises(UserError, match=r"log-probabilities \(6, 3\)"):
        guide(*points(), torch.zeros(6, dtype=torch.int64))


def test_a_trained_classifier_guides_samples_of_digits(steering: Classifier, pair: tuple) -> None:
    """Through the sampler, which runs without gradients: an exact mixture of digits moves to the wanted parity."""
    x, _ = pair[0].all()
    parity = derived(pair[0], "parity", PARITY)[1]
    rows = np.concatenate([np.flatnonzero(parity == 0)[:180], np.flatnonzero(parity == 1)[:20]])
    base = GaussianMixture(torch.ones(200), x[rows], 0.02 * torch.eye(64).expand(200, 64, 64))
    guide = GradientGuide(base, steering.log_probs, [0.0, 1.0], 4.0)
    options, seeds = SamplerOptions(steps=8, sigma_max=20.0), range(60)
    plain = sample_seeds(base, seeds, options)[0]
    guided = sample_seeds(guide, seeds, options, labels=guide.wanted(seeds))[0]
    assert steering(guided).mean() > steering(plain).mean() + 0.3


def test_a_network_is_guided_through_its_own_gradient(digits: Dataset) -> None:
    """Against finite differences of log p(value | D(x)), and in any batch."""
    network = tiny.model(digits.without_labels()).denoiser
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(64, 2, generator=generator)  # without kinks, which differences do not see

    def smooth(d: Tensor) -> Tensor:
        return (d.flatten(1) @ weights).log_softmax(dim=1)

    guide = GradientGuide(network, smooth, [0.5, 0.5], 2.0)
    x, sigma = torch.randn(3, 1, 8, 8, generator=generator), torch.tensor([0.3, 1.0, 5.0])
    labels, step = torch.tensor([1, 0, 1]), torch.randn(3, 1, 8, 8, generator=generator) * 1e-2

    @torch.no_grad()
    def log_prob(x: Tensor) -> Tensor:
        return smooth(network(x, sigma)).double().gather(1, labels[:, None]).squeeze(1)

    with torch.no_grad():  # as a sampler runs it
        moved = guide(x, sigma, labels) - network(x, sigma)
    slope = (moved * step).flatten(1).sum(dim=1) / (2.0 * sigma.square())
    torch.testing.assert_close(slope.double(), (log_prob(x + step) - log_prob(x - step)) / 2, rtol=0.01, atol=1e-5)
    assert all(parameter.grad is None for parameter in network.parameters())  # type: ignore[attr-defined]
    options, seeds = SamplerOptions(steps=3), range(5)
    wanted = guide.wanted(seeds)
    together = sample_seeds(guide, seeds, options, labels=wanted)[0]
    one = sample_seeds(guide, seeds, options, labels=wanted, batch_size=1)[0]
    torch.testing.assert_close(together, one, atol=1e-4, rtol=1e-3)
