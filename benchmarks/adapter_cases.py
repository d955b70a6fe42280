"""Networks for the benchmark of adapters, one published and some trained here, and ways to read them wrongly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sims
from sims.data.dataset import Dataset
from sims.interop.wrapping import load_weights
from sims.model import Model

flows = sims.interpolants
CLASSES = 10
SCHEDULES: dict[str, Any] = {
    "linear": flows.linear(),
    "scaled linear": flows.scaled_linear(),
    "cosine": flows.cosine(),
    "flow to the noise": flows.rectified_flow(0),
    "flow to the data": flows.rectified_flow(1),
    "trigonometric to the noise": flows.trigonometric(0),
    "trigonometric to the data": flows.trigonometric(1),
    "VP": flows.vp_sde(),
    "VE": flows.ve_sde(),
    "EDM told ln(sigma) / 4": flows.edm(),
    "EDM told sigma": flows.edm(told="sigma"),
}
RANGES = {"[-1, 1]": (-1, 1), "[0, 1]": (0, 1), "[0, 255]": (0, 255)}


@dataclass(frozen=True)
class Case:
    """An adapter: ``changes`` of the right one's options, and what call does to x, t and y and to the output.

    ``labels`` maps every class that is told to the class that the network then takes it for.
    """

    name: str
    should: str
    changes: dict[str, Any] = field(default_factory=dict)
    before: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda x, t: (x, t)
    after: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda output, x, t: output
    labels: tuple[int, ...] = tuple(range(CLASSES))


@dataclass(frozen=True)
class Subject:
    """A network with its right adapter's options, pictures of its data, and the adapters to be tried."""

    name: str
    network: nn.Module
    options: dict[str, Any]
    data: Dataset
    right: tuple[Case, ...]
    wrong: tuple[Case, ...]

    def model(self, case: Case, named: dict[str, Any] | None = None) -> Model:
        """Through an adapter, with what was named for it changed."""
        changes = dict(named or {})
        sign, table = changes.pop("sign", 1.0), torch.tensor([*case.labels, CLASSES])

        def call(net: nn.Module, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            y = torch.where(y < 0, y, table[y])
            return sign * case.after(net(*case.before(x, t), y), x, t)

        return sims.wrap(self.network, **{**self.options, **case.changes, **changes, "call": call})

    def truth(self, case: Case) -> Model:
        """Through the right adapter, but for the labels of a case."""
        return self.model(Case("", "", labels=case.labels))


# -- wrong in every respect --------------------------------------------------------------------------------------------


def swapped(*pairs: tuple[int, int]) -> tuple[int, ...]:
    table = list(range(CLASSES))
    for a, b in pairs:
        table[a], table[b] = b, a
    return tuple(table)


NEXT = tuple((k + 1) % CLASSES for k in range(CLASSES))
BACKWARDS = tuple(range(CLASSES))[::-1]


def cell(value: Tensor) -> Tensor:
    return value.reshape(-1, 1, 1, 1)


def wrong_predictions(options: dict[str, Any], but: tuple[str, ...] = ()) -> Iterator[Case]:
    right = f"prediction={options['prediction']!r}"
    for name in ("x0", "eps", "v", "velocity", "score", "edm"):
        if name not in (options["prediction"], *but):
            yield Case(f"prediction {name}", right, {"prediction": name})


def wrong_ranges(options: dict[str, Any]) -> Iterator[Case]:
    for name, span in RANGES.items():
        if span != options["data_range"]:
            yield Case(f"range {name}", f"data_range={options['data_range']}", {"data_range": span})


def wrong_schedules(right: str, *names: str) -> Iterator[Case]:
    for name in names or SCHEDULES:
        if name != right:
            yield Case(f"schedule {name}", f"schedule {right}", {"schedule": SCHEDULES[name]})


def wrong_labels() -> tuple[Case, ...]:
    return (
        Case("labels shifted by one", "labels", labels=NEXT),
        Case("labels 3 and 5 swapped", "labels", labels=swapped((3, 5))),
        Case("labels reversed", "labels", labels=BACKWARDS),
    )


def negative(output: Tensor, x: Tensor, t: Tensor) -> Tensor:
    return -output


# -- the published network ---------------------------------------------------------------------------------------------


class FlowViT(nn.Module):
    """A transformer of 28 x 28 digits that predicts the clean one (sofia-dominguezc/MNIST-diffusion, MIT)."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patch_embed, self.unpatch = nn.Conv2d(1, width, 7, 7), nn.ConvTranspose2d(width, 1, 7, 7)
        self.pos_embed, self.y_encoder = nn.Parameter(torch.zeros(1, 16, width)), nn.Embedding(11, 2 * width)
        self.transformer = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, activation="gelu", batch_first=True) for _ in range(4)
        )

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        image = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        angles = t[:, None] * 10_000 ** (-torch.arange(64) / 63)
        time = torch.cat([angles.sin(), angles.cos()], 1).reshape(len(x), 2, -1)
        tokens = torch.cat([image, time, self.y_encoder(y).reshape(len(x), 2, -1)], 1)
        for block in self.transformer:
            tokens = block(tokens)
        return self.unpatch(tokens[:, :16].transpose(1, 2).reshape(len(x), -1, 4, 4))


def published(shared: Path) -> Subject:
    options = {
        "data_shape": (1, 28, 28), "prediction": "x0", "schedule": flows.rectified_flow(1), "data_range": (0, 1),
        "num_classes": CLASSES, "null_class": CLASSES,
    }  # fmt: skip
    network = FlowViT()
    load_weights(sims.wrap(network, **options), shared / "models" / "mnist-flow-vit.safetensors")
    to_noise, x0, unit = {"schedule": flows.rectified_flow(0)}, "prediction='x0'", "data_range=(0, 1)"
    at_1 = "data_at=1"
    right = (
        Case("as it is", ""),
        Case("time and direction turned twice", "", to_noise, before=lambda x, t: (x, 1 - t)),
        Case("time scaled twice", "", {"schedule": flows.rectified_flow(1, scale=1000)}, lambda x, t: (x, t / 1000)),
        Case("velocity made in call", "", {"prediction": "velocity"},
             after=lambda output, x, t: (output - x) / cell(1 - t)),
        Case("noise made in call", "", {"prediction": "eps"},
             after=lambda output, x, t: (x - cell(t) * output) / cell(1 - t)),
        Case("range moved in call", "",
             {"data_range": (-1, 1), "schedule": flows.Interpolant(lambda t: t, lambda t: 2 - 2 * t, 0.998, 0.002)},
             lambda x, t: ((x + cell(t)) / 2, t), lambda output, x, t: 2 * output - 1),
        Case("a schedule of one's own", "",
             {"schedule": flows.Interpolant(lambda t: t, lambda t: 1 - t, 0.998, 0.002)}),
        Case("a prediction of one's own", "", {"prediction": lambda output, x, alpha, s: output}),
    )  # fmt: skip
    wrong = (
        *wrong_predictions(options), *wrong_ranges(options), *wrong_schedules("flow to the data"),
        Case("time turned in call", "data_at=0", before=lambda x, t: (x, 1 - t)),
        Case("time x 1000", "scale=1", {"schedule": flows.rectified_flow(1, scale=1000)}),
        Case("time / 1000", "scale=1", {"schedule": flows.rectified_flow(1, scale=1e-3)}),
        Case("time x 1000 in call", "scale=0.001", before=lambda x, t: (x, 1000 * t)),
        Case("sign", "the sign", after=negative),
        *wrong_labels(),
        Case("prediction eps, range [-1, 1]", f"{x0}, {unit}", {"prediction": "eps", "data_range": (-1, 1)}),
        Case("prediction velocity, range [0, 255]", f"{x0}, {unit}",
             {"prediction": "velocity", "data_range": (0, 255)}),
        Case("direction, range [-1, 1]", f"{at_1}, {unit}", {**to_noise, "data_range": (-1, 1)}),
        Case("direction, prediction velocity", f"{at_1}, {x0}", {**to_noise, "prediction": "velocity"}),
        Case("direction, prediction eps", f"{at_1}, {x0}", {**to_noise, "prediction": "eps"}),
        Case("schedule linear, prediction eps", f"flow to the data, {x0}",
             {"schedule": flows.linear(), "prediction": "eps"}),
        Case("schedule cosine, prediction v", f"flow to the data, {x0}",
             {"schedule": flows.cosine(), "prediction": "v"}),
        Case("schedule and prediction EDM", f"flow to the data, {x0}", {"schedule": flows.edm(), "prediction": "edm"}),
        Case("time x 1000, prediction velocity", f"scale=1, {x0}",
             {"schedule": flows.rectified_flow(1, scale=1000), "prediction": "velocity"}),
        Case("sign, range [-1, 1]", f"the sign, {unit}", {"data_range": (-1, 1)}, after=negative),
        Case("time turned in call, prediction v", f"data_at=0, {x0}", {"prediction": "v"}, lambda x, t: (x, 1 - t)),
        Case("direction, labels shifted by one", f"{at_1}, labels", to_noise, labels=NEXT),
        Case("schedule trigonometric, labels 3 and 5 swapped", "flow to the data, labels",
             {"schedule": flows.trigonometric(1)}, labels=swapped((3, 5))),
        Case("prediction eps, labels reversed", f"{x0}, labels", {"prediction": "eps"}, labels=BACKWARDS),
    )  # fmt: skip
    return Subject("published", network, options, sims.load_data(shared / "data" / "mnist"), right, wrong)


# -- networks that are trained here ------------------------------------------------------------------------------------


class Small(nn.Module):
    """A perceptron of 8 x 8 digits; sines of ``unit`` times the time, or a table of whole times up to ``last``."""

    def __init__(self, unit: float = 1.0, last: int = 0, width: int = 256, blocks: int = 3) -> None:
        super().__init__()
        self.unit, self.given, self.made = unit, nn.Linear(64, width), nn.Linear(width, 64)
        self.time, self.label = nn.Linear(64, width), nn.Embedding(CLASSES + 1, width)
        self.table = nn.Embedding(last + 1, 64) if last else None
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if self.table is None:
            angles = self.unit * t[:, None] * 10_000 ** (-torch.arange(32) / 31)
            place = torch.cat([angles.sin(), angles.cos()], 1)
        else:
            place = self.table(t.round().long())
        told = self.time(place) + self.label(y)
        hidden = self.given(x.flatten(1)) + told
        for block in self.blocks:
            hidden = hidden + block(hidden + told)
        return self.made(hidden).reshape(x.shape)


TARGETS: dict[str, Callable[..., Tensor]] = {
    "eps": lambda x0, noise, alpha, s: noise,
    "v": lambda x0, noise, alpha, s: alpha * noise - s * x0,
    "velocity": lambda x0, noise, alpha, s: noise - x0,  # of a rectified flow to the noise
}


def trained(data: Dataset, options: dict[str, Any], steps: int, seed: int, **how: Any) -> Small:
    """A network trained as its options say; a tenth of its labels are left out."""
    torch.manual_seed(seed)
    network, schedule = Small(**how), options["schedule"]
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    pictures, labels = data.batch(range(len(data)))
    low, high = options["data_range"]
    pictures = (pictures + 1) / 2 * (high - low) + low
    assert labels is not None
    for _ in range(steps):
        chosen = torch.randint(len(pictures), (256,))
        time = schedule.time(schedule.draw(torch.rand(256, dtype=torch.float64)))
        x0, alpha, s = pictures[chosen], cell(schedule.alpha(time)).float(), cell(schedule.s(time)).float()
        noise, told = torch.randn_like(x0), torch.where(torch.rand(256) < 0.1, CLASSES, labels[chosen])
        output = network(alpha * x0 + s * noise, schedule.tell(time).float(), told)
        loss = (output - TARGETS[options["prediction"]](x0, noise, alpha, s)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
    return network


def common(prediction: str, schedule: Any, span: tuple[int, int]) -> dict[str, Any]:
    classes = {"num_classes": CLASSES, "null_class": CLASSES}
    return {"data_shape": (1, 8, 8), "prediction": prediction, "schedule": schedule, "data_range": span} | classes


def noise_network(data: Dataset, steps: int) -> Subject:
    """Predicts the noise, at 1,000 whole times of linear betas, in [-1, 1]."""
    options = common("eps", flows.linear(), (-1, 1))
    betas, eps, span = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), "prediction='eps'", "data_range=(-1, 1)"
    s_of = {t: float(v) for t, v in enumerate(flows.linear().s(torch.arange(1000.0, dtype=torch.float64)))}

    def score(output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        return -output / cell(torch.tensor([s_of[round(float(one))] for one in t]))

    right = (
        Case("as it is", ""),
        Case("the score made in call", "", {"prediction": "score"}, after=score),
        Case("betas as a list", "", {"schedule": flows.of_betas(betas)}),
        Case("times from 1, less 1 in call", "", {"schedule": flows.linear(first=1)}, lambda x, t: (x, t - 1)),
        Case("times in [0, 1], scaled in call", "", {"schedule": flows.linear(scale=1e-3)}, lambda x, t: (x, 1000 * t)),
        Case("sign turned twice", "", {"prediction": lambda output, x, alpha, s: (x + s * output) / alpha},
             after=negative),
    )  # fmt: skip
    turned: Any = lambda x, t: (x, 999 - t)  # noqa: E731
    wrong = (
        *wrong_predictions(options, ("velocity",)), *wrong_ranges(options), *wrong_schedules("linear"),
        Case("schedule cosine, not cut", "schedule linear", {"schedule": flows.cosine(high=None)}),
        Case("time turned in call", "the other direction", before=turned),
        Case("times from 1", "first=0", {"schedule": flows.linear(first=1)}),
        Case("times off by one in call", "first=1", before=lambda x, t: (x, t - 1)),
        Case("time / 1000", "scale=1", {"schedule": flows.linear(scale=1e-3)}),
        Case("time x 1000", "scale=1", {"schedule": flows.linear(scale=1000)}),
        Case("sign", "the sign", after=negative),
        *wrong_labels(),
        Case("prediction x0, range [0, 255]", f"{eps}, {span}", {"prediction": "x0", "data_range": (0, 255)}),
        Case("prediction v, range [0, 1]", f"{eps}, {span}", {"prediction": "v", "data_range": (0, 1)}),
        Case("schedule cosine, prediction v", f"linear, {eps}", {"schedule": flows.cosine(), "prediction": "v"}),
        Case("flow to the noise, prediction velocity", f"linear, {eps}",
             {"schedule": flows.rectified_flow(0), "prediction": "velocity"}),
        Case("time turned in call, range [0, 1]", f"the other direction, {span}", {"data_range": (0, 1)}, turned),
        Case("schedule cosine, times from 1", "linear, first=0", {"schedule": flows.cosine(first=1)}),
        Case("schedule cosine, labels shifted by one", "linear, labels", {"schedule": flows.cosine()}, labels=NEXT),
        Case("prediction x0, labels 3 and 5 swapped", f"{eps}, labels", {"prediction": "x0"}, labels=swapped((3, 5))),
        Case("betas as a list, times from 1", "first=0", {"schedule": flows.of_betas(betas, first=1)}),
        Case("betas as a list, prediction v", eps, {"schedule": flows.of_betas(betas), "prediction": "v"}),
    )  # fmt: skip
    return Subject("noise", trained(data, options, steps, 0), options, data, right, wrong)


def v_network(data: Dataset, steps: int) -> Subject:
    """Predicts v, at 1,000 whole times of cosine betas, told t / 1000 from 1 on, in [0, 1]."""
    options = common("v", flows.cosine(first=1, scale=1e-3), (0, 1))
    right_v, unit = "prediction='v'", "data_range=(0, 1)"
    right = (
        Case("as it is", ""),
        Case("sign turned twice", "", {"prediction": lambda output, x, alpha, s: alpha * x + s * output},
             after=negative),
    )  # fmt: skip
    wrong = (
        *wrong_predictions(options, ("velocity",)), *wrong_ranges(options),
        Case("schedule linear", "cosine", {"schedule": flows.linear(first=1, scale=1e-3)}),
        Case("schedule scaled linear", "cosine", {"schedule": flows.scaled_linear(first=1, scale=1e-3)}),
        Case("times from 0", "first=1", {"schedule": flows.cosine(scale=1e-3)}),
        Case("time not scaled", "scale=0.001", {"schedule": flows.cosine(first=1)}),
        Case("a flow's velocity", f"cosine, {right_v}",
             {"schedule": flows.rectified_flow(0), "prediction": "velocity"}),
        Case("time turned in call", "the other direction", before=lambda x, t: (x, 1.001 - t)),
        Case("schedule linear, range [-1, 1]", f"cosine, {unit}",
             {"schedule": flows.linear(first=1, scale=1e-3), "data_range": (-1, 1)}),
        Case("sign, labels reversed", "the sign, labels", after=negative, labels=BACKWARDS),
    )  # fmt: skip
    return Subject("v", trained(data, options, steps, 1, unit=1000.0), options, data, right, wrong)


def flow_network(data: Dataset, steps: int) -> Subject:
    """Predicts the velocity of a rectified flow to the noise, told 1000 t, in [-1, 1]."""
    options = common("velocity", flows.rectified_flow(0, scale=1000), (-1, 1))
    right = (
        Case("as it is", ""),
        Case("time and direction turned twice", "", {"schedule": flows.rectified_flow(1, scale=1000)},
             lambda x, t: (x, 1000 - t), negative),
    )  # fmt: skip
    wrong = (
        *wrong_predictions(options), *wrong_ranges(options),
        *wrong_schedules("flow to the noise", "trigonometric to the noise", "VP", "EDM told sigma"),
        Case("schedule linear, prediction eps", "flow to the noise, scale=1000, prediction='velocity'",
             {"schedule": flows.linear(), "prediction": "eps"}),
        Case("schedule cosine, prediction v", "flow to the noise, scale=1000, prediction='velocity'",
             {"schedule": flows.cosine(), "prediction": "v"}),
        Case("direction", "data_at=0", {"schedule": flows.rectified_flow(1, scale=1000)}),
        Case("time not scaled", "scale=1000", {"schedule": flows.rectified_flow(0)}),
        Case("sign", "the sign", after=negative),
        Case("direction, time not scaled", "data_at=0, scale=1000", {"schedule": flows.rectified_flow(1)}),
        Case("direction, labels shifted by one", "data_at=0, labels",
             {"schedule": flows.rectified_flow(1, scale=1000)}, labels=NEXT),
    )  # fmt: skip
    return Subject("flow", trained(data, options, steps, 2), options, data, right, wrong)


def table_network(data: Dataset, steps: int) -> Subject:
    """Predicts the noise, at 100 whole times from 1 on that it looks up in a table."""
    how = {"steps": 100, "start": 1e-3, "end": 0.2}
    options = common("eps", flows.linear(**how, first=1), (-1, 1))
    from_0, eps = {"schedule": flows.linear(**how)}, "prediction='eps'"
    right = (Case("as it is", ""), Case("times from 0, and 1 more in call", "", from_0, lambda x, t: (x, t + 1)))
    wrong = (
        *wrong_predictions(options, ("velocity",)), *wrong_ranges(options),
        Case("times from 0", "first=1", from_0),
        Case("times from 0, prediction v", f"first=1, {eps}", {**from_0, "prediction": "v"}),
        Case("times from 0, range [0, 1]", "first=1, data_range=(-1, 1)", {**from_0, "data_range": (0, 1)}),
        Case("times from 0, labels 3 and 5 swapped", "first=1, labels", from_0, labels=swapped((3, 5))),
        Case("time turned in call", "the other direction", before=lambda x, t: (x, 101 - t)),
        Case("sign", "the sign", after=negative),
    )  # fmt: skip
    return Subject("table", trained(data, options, steps, 3, last=100), options, data, right, wrong)


TRAINED = {"noise": noise_network, "v": v_network, "flow": flow_network, "table": table_network}
NETWORKS = ("published", *TRAINED)


def subjects(shared: Path, steps: int, names: Sequence[str] = NETWORKS) -> Iterator[Subject]:
    """The published network where its files are, and those of the bundled digits."""
    there = (shared / "models" / "mnist-flow-vit.safetensors").is_file() and (shared / "data" / "mnist").is_dir()
    if "published" in names and there:
        yield published(shared)
    elif "published" in names:
        print(f"the published network is left out: {shared} lacks models/mnist-flow-vit.safetensors or data/mnist")
    digits = sims.load_data("digits")
    for name in names:
        if name in TRAINED:
            yield TRAINED[name](digits, steps)


def levels(low: float = 0.05, high: float = 20.0, count: int = 10) -> Tensor:
    return torch.logspace(math.log10(low), math.log10(high), count)
