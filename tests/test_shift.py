"""Distribution control from end to end, at a size that takes seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import tiny
import tiny_shift
from sims.cli import main, parse
from sims.data.codec import Codec
from sims.data.sources import load_pair
from sims.experiments.cost.table import Estimate
from sims.experiments.shift import steering
from sims.experiments.shift.attributes import Classifier, derived
from sims.experiments.shift.contenders import has_gradient
from sims.experiments.shift.measuring import Seen
from sims.experiments.shift.shift_job import shift
from sims.experiments.shift.shift_result import worse_groups
from sims.metrics.custom import to_8_bit
from sims.model import load
from sims.results.shift import Group, ShiftResult
from sims.runs.measure import rounded
from sims.sampling import nfe

LABELS = ["base", "steered", "steered (cached)", "distilled", "classifier guidance", "fine-tuning", "rejection"]


@pytest.fixture(scope="module")
def run(finished_shift: Path) -> Path:
    """The tiny job, finished; tests must not change it."""
    return finished_shift


@pytest.fixture(scope="module")
def result(run: Path) -> ShiftResult:
    return tiny_shift.result_of(run)


def test_every_contender_is_in_one_table(result: ShiftResult) -> None:
    assert [row.label for row in result.rows] == LABELS == list(result.looks)
    assert (result.attribute, result.values, result.target) == ("zero", ("yes", "no"), (0.1, 0.9))
    for row in result.rows:
        shares = row.proportions
        assert sum(shares.values) == pytest.approx(1) and sum(shares.raw) == pytest.approx(1)
        assert all(low <= v <= high for low, v, high in zip(shares.low, shares.values, shares.high))
        tv = shares.tv
        assert tv.value == pytest.approx(abs(shares.values[0] - 0.1), abs=1e-9)
        assert tv.low <= tv.value <= tv.high
        assert {*row.figures} | {"tv", "kl"} == {*result.figures}
        assert row.figures["fd_target"].mean > 0 and row.figures["fd_held_out_target"].mean > 0
        assert [group.value for group in row.groups] == ["yes", "no"] and row.diverged == 0
        assert row.groups[1].fd > 0 and 0 <= row.groups[1].precision <= 1
    sizes = {row.groups[0].n for row in result.rows[:2]}
    assert len(sizes) == 1, "groups are compared at equal numbers"


def test_rejection_has_the_targets_proportions_and_states_its_cost(result: ShiftResult) -> None:
    base, rejected = result.rows[0], result.rows[-1]
    assert rejected.steering.values[0] == pytest.approx(0.1, abs=0.02)
    assert rejected.nfe == pytest.approx(base.nfe * rejected.drawn / rejected.n)
    assert rejected.nfe > base.nfe


def test_costs_are_in_network_evaluations(run: Path, result: ShiftResult) -> None:
    rows = {row.label: row for row in result.rows}
    base, improved = rows["base"].nfe, load(run / "improved")
    assert rows["steered"].nfe == 2 * base and rows["distilled"].nfe == base == rows["fine-tuning"].nfe
    assert rows["classifier guidance"].nfe == 3 * base
    assert rows[result.improved].nfe == nfe(improved, improved.sampler)
    steered, rounds = rows["steered"].cost, result.solver.rounds
    trained = len({entry.round for entry in rounds})
    assert steered.images == 12_800 + (trained - 1) * 6_400
    candidates = steered.labelled - 400 * len(rounds)
    assert candidates in (600, 1_200) and steered.evaluations == candidates * base + 400 * 2 * base * len(rounds)
    for entry in result.savings:
        for rejection in (entry.rejection, entry.rejection_at_equal_error):
            assert rejection.times == pytest.approx(rejection.nfe / entry.nfe)
            if rejection.break_even is not None:
                n, made = rejection.break_even, entry.cost.total
                assert made + n * entry.nfe <= n * rejection.nfe + 1e-6
                assert made + (n - 1) * entry.nfe > (n - 1) * rejection.nfe
        assert entry.rejection_at_equal_error.nfe <= entry.rejection.nfe


def test_the_solver_tells_what_it_did(result: ShiftResult) -> None:
    solver = result.solver
    assert [entry.chosen for entry in solver.rounds].count(True) == 1
    assert solver.reason and solver.met == solver.reason.startswith("met")
    first = solver.rounds[0]
    assert first.proportions[0] < solver.base.values[0], "the auxiliary sees fewer of what is to become more"
    assert first.values[0] > solver.base.values[0] * 0.8
    assert 1 <= first.candidates_per_sample < 3 and 200 <= first.samples <= 600


def test_groups_that_became_worse_are_named() -> None:
    def group(fd: float, precision: float, recall: float | None) -> Group:
        return Group(value="0", n=400, real=100, fd=fd, precision=precision, recall=recall)

    base = group(9.0, 0.8, 0.9)
    for after, said in (
        (group(8.0, 0.79, 0.85), []),  # within what so few can show
        (group(8.0, 0.7, 0.85), ["'0': precision 0.80 -> 0.70 (400 samples each, 100 real images)"]),
        (group(9.5, 0.8, 0.7), ["'0': FD 9.00 -> 9.50, recall 0.90 -> 0.70 (400 samples each, 100 real images)"]),
        (group(8.0, 0.8, None), []),
    ):
        assert worse_groups([base], [after], 1000) == said
    assert worse_groups([base], [group(8.0, 0.7, 0.9)], 50) == []


def test_the_results_are_models_rows_and_pictures(run: Path, result: ShiftResult, tmp_path: Path) -> None:
    assert load(run / "improved").provenance["target"] == {"yes": 0.1, "no": 0.9}
    assert main(["sample", str(run / "distilled"), "--seeds", "0-3", "--out", str(tmp_path / "samples")]) == 0
    grids = np.load(run / "grids.npz")
    assert all(grids[label].shape == (64, 8, 8, 1) for label in LABELS[:-1])
    assert all(len(grids[f"{label}#1"]) == 8 for label in LABELS[:-1])
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["label"] for row in rows} == {*LABELS}
    metrics = {row["metric"] for row in rows}
    assert {"fd_target", "fd_held_out_target", "tv", "kl", "share[yes]"} <= metrics
    values = [row["value"] for row in rows if row["label"] == "steered" and row["metric"] == "fd_target"]
    assert result.rows[1].figures["fd_target"].mean == pytest.approx(np.mean(values))
    assert len({row["settings"]["target"] for row in rows}) == 1 and {row["diverged"] for row in rows} == {0}


def test_a_dry_run_says_what_the_job_then_took(
    run: Path, result: ShiftResult, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiny.snapshot(run)
    estimate = shift(parse("shift", tiny_shift.shift_arguments(run, "--dry-run")[1:]))
    assert isinstance(estimate, Estimate) and str(estimate).startswith("dry run: nothing was run or written")
    assert tiny.snapshot(run) == before and capsys.readouterr() == ("", "")
    work = {stage.stage: stage for stage in estimate.work}
    rows = {row.label: row for row in result.rows}
    steered, distilled = rows["steered"].cost, rows["distilled"].cost
    trained = [work[stage].images for stage in ("train the auxiliary", "further rounds: train on")]
    assert steered.images in (trained[0], sum(trained))
    most = sum(work[stage].evaluations for stage in ("measure it", "further rounds: measure"))
    assert steered.evaluations <= most + (work["own samples"].most or 0)
    assert work["distil"].images == distilled.images - steered.images
    taught = 2 * work["distil"].images  # the teacher's two networks, in the time of a training step
    assert work["distil"].evaluations + taught == distilled.evaluations - steered.evaluations
    sampled = sum(row.nfe * row.n for row in rows.values() if row.label != "rejection")
    assert work["judge"].evaluations == pytest.approx(sampled, rel=0.05)
    assert all(estimate.seconds(stage) >= 0 for stage in work.values()) and estimate.total > 0
    disk = sum(file.stat().st_size for file in run.rglob("*") if file.suffix == ".safetensors")
    assert 0.4 < disk / sum(estimate.disk.values()) < 1.3


def test_samples_that_diverge_are_bad_samples_of_their_draw() -> None:
    x = torch.zeros(4, 1, 2, 2)
    x[2, 0, 0, 0] = torch.nan
    samples = rounded(x, Codec("pixels", 0, 255, "uint8"))
    assert samples.diverged == 1 and samples.bad is not None and torch.isfinite(samples.x).all()
    seen = Seen(np.zeros((4, 3)), np.zeros(4, int), np.zeros(4, int), samples.bad.numpy())
    assert [seen[:2].diverged, seen[2:].diverged, Seen.joined([seen, seen]).diverged] == [0, 1, 2]


def test_an_interrupted_job_ends_the_same(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "summary.json").unlink()
    for folder in sorted((copy / "draws").iterdir())[::2]:
        shutil.rmtree(folder)
    auxiliary = sorted((copy / "artefacts").glob("auxiliary-*"))[0]
    shutil.rmtree(auxiliary)
    assert main(tiny_shift.shift_arguments(copy)) == 0
    assert tiny_shift.figures(copy) == tiny_shift.figures(run)


def test_a_finished_job_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tiny.snapshot(run)
    assert main(tiny_shift.shift_arguments(run)) == 0
    err = capsys.readouterr().err
    assert "is finished" in err and "break-even" in err
    assert tiny.snapshot(run) == before


FAST = [
    "--distilled.samples",
    "0",
    "--baselines.methods",
    "rejection",
    "--solver.rounds",
    "1",
    "--solver.strengths",
    "1",
]


def own_classifier(folder: Path) -> str:
    """A weak classifier of round and open digits: by how dark the middle is."""
    (folder / "own.py").write_text("def shape(x):\n    return (x[:, :, 3:5, 3:5].mean(dim=(1, 2, 3)) < 0).long()\n")
    return f"{folder / 'own.py'}:shape"


SHAPE = {str(i): "round" if i in (0, 6, 8, 9) else "open" for i in range(10)}
SHAPES = "shape:" + "/".join(f"{v}={'+'.join(k for k in SHAPE if SHAPE[k] == v)}" for v in ("open", "round"))


def test_a_given_conditional_model_a_label_file_and_a_users_classifier(model: Path, tmp_path: Path) -> None:
    train, _ = load_pair("digits")
    attribute, values = derived(train, "shape", SHAPE)
    some = np.where(np.arange(len(values)) % 3 > 0, values, -1)  # a third is not labelled
    tiny_shift.write_labels(tmp_path / "labels.json", train, [(attribute, some)])
    words = ["--imbalance", "", "--model", str(model), "--labels", str(tmp_path / "labels.json"), *FAST]
    words += ["--attributes", "shape", "--target", "uniform", "--classifier", own_classifier(tmp_path)]
    words += ["--baselines.methods", "rejection,classifier"]
    assert main(tiny_shift.shift_arguments(tmp_path / "run", *words)) == 0
    log = (tmp_path / "run/log").read_text()
    assert "no gradients" in log and "counted on training images" in log
    result = tiny_shift.result_of(tmp_path / "run")
    assert (result.attribute, result.values, result.target) == ("shape", ("open", "round"), (0.5, 0.5))
    assert sum(result.real_counts) == (some >= 0).sum()
    classifiers = result.classifiers
    assert classifiers["steering"].accuracy < 0.8 < classifiers["judging"].accuracy
    assert [row.label for row in result.rows] == ["base", "steered", "steered (cached)", "rejection"]
    assert "fd_held_out_target" not in result.rows[0].figures, "the label file says nothing of held-out data"
    assert load(tmp_path / "run/improved").num_classes == 10


def numbers(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.stack([-x.numpy().mean((1, 2, 3)), x.numpy().mean((1, 2, 3))], 1))


class Bytes(torch.nn.Module):
    """Sees pixels as whole numbers, which have no gradient, but has weights, which do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.float().mean(dim=(1, 2, 3))[:, None])


@pytest.mark.parametrize("name", ["numbers", "bytes", "trained"])
def test_a_classifier_without_gradients_is_no_baseline(name: str, tmp_path: Path) -> None:
    train, _ = load_pair("digits", limit=400)
    labelled = derived(train, "shape", SHAPE)

    def outputs(x: torch.Tensor) -> torch.Tensor:
        return numbers(x) if name == "numbers" else Bytes()(to_8_bit(x) if name == "bytes" else x)

    classifier = Classifier(labelled[0], name, np.eye(2), outputs)
    meter = SimpleNamespace(steering=classifier, run=SimpleNamespace(device="cpu"))
    assert has_gradient(meter, train.data_shape) == (name == "trained")


def test_what_steers_must_not_judge(tmp_path: Path, say: tiny.Say) -> None:
    one = own_classifier(tmp_path)
    other = one.replace(str(tmp_path), f"{tmp_path}/.")
    words = ["--attributes", SHAPES, "--target", "uniform", "--classifier", one, "--judge", other]
    status, _, err = say(*tiny_shift.shift_arguments(tmp_path / "run", *words))
    assert status == 2 and "what steers must not judge" in err
    assert not (tmp_path / "run/base").exists()


def test_a_value_that_is_never_drawn_cannot_be_created(
    run: Path, tmp_path: Path, say: tiny.Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "summary.json").unlink()
    shutil.rmtree(copy / "draws")
    monkeypatch.setattr(steering.Candidates, "values", property(lambda self: np.ones(20_000, np.int64)))
    status, _, err = say(*tiny_shift.shift_arguments(copy))
    assert status == 2 and "never draws 'yes' of zero" in err and "cannot be created" in err
    assert not (copy / "draws").exists()


BAD = [
    (["--target", "yes=0.5,no=0.6"], "sum to 1.1"),
    (["--target", "maybe=1"], "unknown value 'maybe'"),
    (["--attributes", "zero:yes=0/no=1"], "no value for the class"),
    (["--attributes", "colour"], "unknown attribute 'colour'"),
    (["--target", "like:missing"], "no data at"),
    (["--labels", "missing.csv"], "no label file"),
    (["--imbalance", "0=0.9"], "only cut"),
    (["--model", "missing", "--imbalance", ""], "no model at"),
    (["--data.conditional"], "zero follows from them"),
    (["--imbalance", "0:0.02"], "write CLASS=SHARE"),
    (["--distilled.samples", "1"], "from at least 2"),
]


@pytest.mark.parametrize(("words", "needle"), BAD, ids=[needle for _, needle in BAD])
def test_bad_input_is_one_sentence_before_compute(words: list[str], needle: str, tmp_path: Path, say: tiny.Say) -> None:
    status, _, err = say(*tiny_shift.shift_arguments(tmp_path / "run", *words))
    assert status == 2 and needle in err, err
    assert not (tmp_path / "run/base").exists() and not (tmp_path / "run/artefacts").exists()


def test_labels_of_another_data_set_and_values_without_support(tmp_path: Path, say: tiny.Say) -> None:
    other, _ = load_pair("digits", limit=300)
    tiny_shift.write_labels(
        tmp_path / "other.json", other, [derived(other, "all", {str(i): "ab"[i % 2] for i in range(10)})]
    )
    words = ["--attributes", "all", "--labels", str(tmp_path / "other.json"), "--target", "uniform"]
    status, _, err = say(*tiny_shift.shift_arguments(tmp_path / "run", *words))
    assert status == 2 and "labels another data set" in err
    assert not (tmp_path / "run/base").exists()


def test_a_classifier_worse_than_chance_is_refused(tmp_path: Path, say: tiny.Say) -> None:
    words = ["--attributes", SHAPES]
    words += ["--target", "uniform", "--classifier", own_classifier(tmp_path), "--min-accuracy", "0.9"]
    status, _, err = say(*tiny_shift.shift_arguments(tmp_path / "run", *words))
    assert status == 2 and "min_accuracy is 90.0%" in err
    (tmp_path / "bad.py").write_text("import torch\ndef constant(x):\n    return torch.zeros(len(x)).long()\n")
    words = ["--classifier", f"{tmp_path / 'bad.py'}:constant"]
    status, _, err = say(*tiny_shift.shift_arguments(tmp_path / "constant", *words))
    assert status == 2 and "no better than chance" in err
    assert not (tmp_path / "run/base").exists()
