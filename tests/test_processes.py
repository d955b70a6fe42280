"""Two processes do what one does, to the last figure; they continue each other's runs, and they end together."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import tiny
import tiny_shift
from sims import cli, processes  # noqa: F401 (cli: for the worker)
from sims.cli import main
from sims.data.dataset import Dataset
from sims.data.sources import load_pair
from sims.errors import UserError
from sims.experiments.options import ImproveOptions
from sims.experiments.shift import attributes
from sims.runs.directory import Run
from sims.runs.synthesize import synthesize
from sims.training.trainer import Trainer, TrainOptions, read_trained

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("this PyTorch has no gloo, which processes on CPUs talk through", allow_module_level=True)

#: The main job, smaller still.
SMALL = [*tiny.PCA, "--base.images", "5120", "--base.train.batch", "128", "--auxiliary.budgets", "1280,2560"]
SMALL += ["--methods", "base,sims,history", "--guidance.cache-cost", "0", "--search.rungs", "50"]


def job(run: Path) -> list[str]:
    """The command of the main job, on the pictures beside its folder."""
    return tiny.improve_arguments(run, *SMALL, "--data.path", str(run.parent / "digits.npz"))


def training(out: Path) -> list[str]:
    """The command of a training, with a state saved after every step."""
    words = ["--base.images", "1280", "--base.train.checkpoint-seconds", "0"]
    return ["train", "--out", str(out), *tiny.TRAIN, "--data.path", str(out.parent / "digits.npz"), *words]


def steering(run: Path) -> list[str]:
    """Distribution control without a distilled model and what gradients guide, which magnify the last digits."""
    words = ["--imbalance", "", "--target", "yes=0.3,no=0.7", "--data.path", str(run.parent / "digits.npz")]
    words += ["--base.images", "25600", "--baselines.methods", "rejection", "--distilled.samples", "0"]
    return tiny_shift.shift_arguments(run, *words)


def commands(out: Path) -> list[list[str]]:
    """All commands that share their work out, one after the other."""
    model, store = out / "train" / "model", out / "store"
    return [
        job(out / "run"),
        steering(out / "shift"),
        training(out / "train"),
        ["sample", str(model), "--out", str(out / "samples"), "--seeds", "0-9", "--batch-size", "3"],
        ["synthesize", str(model), "--out", str(store), "--count", "100", "--batch-size", "2"],
        [
            *f"evaluate {store} --reference {out / 'digits.npz'} --extractor pca --json --cache".split(),
            str(out / "cache"),
        ],
    ]


def work(out: Path) -> None:
    """Everything, on as many processes as there are; the training ``continued`` goes on if it has begun."""
    torch.set_num_threads(1)
    attributes.EPOCHS = 150.0  # for 300
    for words in [*commands(out), training(out / "continued")]:
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            assert main(words) == 0, words
        (out / f"{words[0]}-{processes.rank()}.txt").write_text(said.getvalue())
    parts(out)


def parts(out: Path) -> None:
    """Gradients in parts, and work shared out by hand."""
    data, accelerator = pictures(out), processes.join()
    assert accelerator.num_processes == processes.started()
    options = TrainOptions(batch=32, warmup=64, ema_halflife=200, checkpoint_seconds=0.0, accumulate=2)
    Trainer(tiny.model(data), data, options, out / "trained", images=320, seed=5).run()
    synthesize(tiny.model(data), out / "shards", range(3500), method="base", batch_size=500)
    run = Run(out / "shared", {"some": "options"}, quiet=True)
    items = list(range(40))

    def file(item: int) -> Path:
        return run.path / f"{item}.txt"

    def write(item: int) -> None:
        file(item).write_text(str(run.rank))

    run.spread(items, file, write)
    assert run.once(run.path / "result.json", lambda: [run.num_processes], together=True) == [run.num_processes]
    assert {file(item).read_text() for item in items} == {str(rank) for rank in range(run.num_processes)}
    assert processes.agree(run.rank) == 0 and processes.collect([run.rank]) == list(range(run.num_processes))
    run.close()


def pictures(out: Path) -> Dataset:
    return load_pair(str(out / "digits.npz"), limit=300)[0].without_labels()


def fail(options: Any) -> int:
    """A command that goes wrong in the second process, while the first waits for it."""
    if processes.rank() == 1:
        raise UserError("nothing is right: change it")
    processes.join().wait_for_everyone()
    raise AssertionError("nobody was waited for")


def launched(*words: str) -> list[str]:
    """The command line that starts two processes on this machine."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *words]


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": ENVIRONMENT}


def killed(command: list[str], run: Path, file: str) -> None:
    """Start a run, and kill what was started when a file is there."""
    process = subprocess.Popen(command, **QUIET)  # type: ignore[call-overload]
    while process.poll() is None and not any(run.glob(file)):
        time.sleep(0.01)
    assert process.poll() is None, f"ended before it had {file}"
    process.send_signal(signal.SIGKILL)
    process.wait()


@dataclass(frozen=True)
class Both:
    one: Path
    two: Path
    errors: str
    """What two processes said on stderr; their last command fails."""
    status: int


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    """The same work by one process, and by two after one that was killed."""
    out = tmp_path_factory.mktemp("both")
    one, two = out / "one", out / "two"
    digits = load_digits()  # in a file, since it takes long to import what they come with
    for path in (one, two):
        path.mkdir()
        np.savez(path / "digits.npz", images=(digits.images * 15).astype(np.uint8)[:600], labels=digits.target[:600])
    work(one)
    killed(
        [sys.executable, "-m", "sims", *training(two / "continued")], two / "continued", "training/state.safetensors"
    )
    worker = out / "worker.py"
    worker.write_text(
        "import dataclasses, sys, pathlib, test_processes as t\n"
        "t.work(pathlib.Path(sys.argv[1]))\n"
        "t.cli.COMMANDS['sample'] = dataclasses.replace(t.cli.COMMANDS['sample'], run=t.fail)\n"
        "sys.exit(t.main(['sample', 'model', '--out', 'nowhere', '--seeds', '0']))\n"
    )
    done = subprocess.run(launched(str(worker), str(two)), capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    yield Both(one, two, done.stderr, done.returncode)


def rows(run: Path) -> list[tuple[Any, ...]]:
    """What a run chose, and the figures of every row."""
    found = json.loads((run / "summary.json").read_text())["rows"]
    names = ("fd", "fd_held_out", "precision", "recall")
    return [(row["label"], row["w"], row["budget"], *(row["figures"][name]["mean"] for name in names)) for row in found]


def same_rows(a: Path, b: Path) -> None:
    for first, second in zip(rows(a), rows(b), strict=True):
        assert first[:3] == second[:3]
        np.testing.assert_allclose(first[3:], second[3:], rtol=2e-3, atol=0.02)


def test_the_main_job(both: Both) -> None:
    assert (both.two / "run" / "summary.json").is_file(), both.errors[-3000:]
    same_rows(both.one / "run", both.two / "run")
    losses = [read_trained(path / "run" / "base").losses for path in (both.one, both.two)]  # type: ignore[union-attr]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)


def test_two_continue_what_one_began(both: Both) -> None:
    one, two = (load_file(path / "continued" / "model" / "model.safetensors") for path in (both.one, both.two))
    assert all(torch.allclose(one[name], two[name], rtol=1e-3, atol=1e-5) for name in one)


def test_one_continues_what_two_began(both: Both) -> None:
    """Only the launcher is killed: the two must notice that they are alone, and let go of the run directory."""
    run = both.two / "killed"
    words = job(run)
    killed(launched("-m", "--", "sims", *words), run, "artefacts/auxiliary-*/snapshots/*")
    assert not (run / "summary.json").exists()
    for _ in range(300):
        if main(words) == 0:
            break
        time.sleep(0.1)
    same_rows(both.one / "run", run)


def test_distribution_control(both: Both) -> None:
    one, two = (tiny_shift.result_of(path / "shift") for path in (both.one, both.two))
    assert [entry.round for entry in one.solver.rounds] == [entry.round for entry in two.solver.rounds]
    for first, second in zip(one.rows, two.rows, strict=True):
        assert first.label == second.label and first.nfe == pytest.approx(second.nfe, rel=0.05)
        shares = [row.proportions.values[0] for row in (first, second)]
        assert shares[0] == pytest.approx(shares[1], abs=0.02)
        assert first.mean("fd_target") == pytest.approx(second.mean("fd_target"), rel=0.05)


def test_training(both: Both) -> None:
    for folder, start in (("train/training", None), ("trained", tiny.model)):
        one, two = (read_trained(path / folder) for path in (both.one, both.two))
        assert one is not None and two is not None
        np.testing.assert_allclose(two.losses, one.losses, rtol=1e-4)
        a, b = (load_file(trained.last / "model.safetensors") for trained in (one, two))
        if start is not None:
            new = start(pictures(both.one)).denoiser.state_dict()  # type: ignore[attr-defined]
            moved = sum(float((a[name] - new[name]).square().sum()) for name in a)
            assert sum(float((a[name] - b[name]).square().sum()) for name in a) < 1e-4 * moved


def test_samples(both: Both) -> None:
    assert tiny.snapshot(both.one / "shards") == tiny.snapshot(both.two / "shards")  # of equal weights: bit for bit
    one, two = (tiny.snapshot(path / "samples") for path in (both.one, both.two))
    assert list(one) == list(two) and len(one) == 11
    assert [len(list((path / "store").glob("part-*"))) for path in (both.one, both.two)] == [1, 1]


def test_scores(both: Both) -> None:
    one, two = (json.loads((path / "evaluate-0.txt").read_text())["metrics"] for path in (both.one, both.two))
    assert one.keys() == two.keys()
    for name, entry in one.items():
        np.testing.assert_allclose(two[name]["mean"], entry["mean"], rtol=2e-3, atol=1e-3)


def test_only_the_main_process_speaks(both: Both) -> None:
    assert [(both.two / f"{name}-1.txt").read_text() for name in ("improve", "shift", "sample", "evaluate")] == [""] * 4
    for run in ("run", "shift"):
        assert (both.two / run / "log").read_text().count("measuring the real data") == 1
    assert both.errors.count("measuring the real data") == 2


def test_an_error_in_one_process_ends_both_with_one_sentence(both: Both) -> None:
    assert both.status != 0
    before, _, _ = both.errors.partition("ChildFailedError")
    assert re.findall("sims: nothing is right.*", before)[0].startswith("sims: nothing is right: change it (process 1")
    assert before.count("nothing is right") == 1
    assert "AssertionError" not in both.errors and "destroy_process_group" not in both.errors
    assert "nothing is right" in both.errors.partition("Root Cause")[2]  # torchrun repeats it at the end


def test_a_batch_that_two_cannot_share_is_refused() -> None:
    with pytest.raises(UserError, match="batch 33 cannot be split over 2 parts: choose a multiple of 2"):
        TrainOptions(batch=33).check_parts(2)
    ImproveOptions().base.train.check_parts(8)


def test_commands_of_one_process_leave_the_others_idle(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["inspect", "no such folder"]) == 0
    assert main(["no such command"]) == 2
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert main(["inspect", "no such folder"]) == 2
    assert capsys.readouterr().err


def test_a_launcher_that_starts_less_than_was_asked_for_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    assert processes.lonely() is None
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert processes.lonely() is None
    for words in (["--num_processes", "2"], ["--num-processes=2"]):
        launcher = SimpleNamespace(cmdline=lambda words=words: ["accelerate", "launch", "--cpu", *words, "-m", "sims"])
        monkeypatch.setattr(psutil.Process, "parent", lambda process, launcher=launcher: launcher)
        assert "asked for 2 processes and started one" in (processes.lonely() or "")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    assert "4 tasks" in (processes.lonely() or "")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert processes.lonely() is None


class Store:
    """A store of one process's memory."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    def check(self, names: list[str]) -> bool:
        return all(name in self.values for name in names)

    def get(self, name: str) -> bytes:
        return self.values[name]


def test_silence_counts_from_the_last_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = object.__new__(processes._Watch)
    store, now = Store(), [0.0]
    watch.store, watch.parting = store, False  # type: ignore[assignment]
    monkeypatch.setattr(processes.time, "monotonic", lambda: now[0])
    heard = {1: (b"", 0.0), 2: (b"", 0.0)}
    for beat in range(10):  # both work for long
        now[0] += processes.SILENCE - 1
        store.values |= {"life/1": str(beat).encode(), "life/2": str(beat).encode()}
        assert watch._silent(heard) is None
    now[0] += processes.SILENCE - 1
    store.values["life/1"] = b"again"
    assert watch._silent(heard) is None
    now[0] += 2
    assert watch._silent(heard) == 2
    watch.parting = True
    assert watch._silent(heard) is None
