"""Networks that a user's file makes: named, run once, kept beside their weights, and never run by a directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import sims
import tiny
from sims.errors import UserError
from sims.files import read_json
from sims.interop import wrapping

CODE = '''
import torch
from torch import nn
import helper_of_net
import sims

class Net(nn.Module):
    """The velocity of a rectified flow that runs to the data in [0, 1]."""
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(65 + 3, 32), nn.SiLU(), nn.Linear(32, 64))
        self.classes = nn.Embedding(3, 3)
    def forward(self, x, t, y):
        h = torch.cat([x.flatten(1), t[:, None], self.classes(y)], 1)
        return {"velocity": self.inner(h).reshape(x.shape) * helper_of_net.ONE}

def make():
    return sims.wrap(
        Net(), data_shape=(1, 8, 8), prediction="velocity", schedule=sims.interpolants.rectified_flow(1),
        data_range=(0, 1), num_classes=2, null_class=2, call=lambda net, x, t, y: net(x, t, y)["velocity"],
        sampler=sims.SamplerOptions(steps=5),
    )

def wrong():
    return Net()

def broken():
    return 1 / 0
'''


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wrapping, "MADE", {})
    for name in [name for name in sys.modules if name.startswith("sims_user_") or name == "helper_of_net"]:
        del sys.modules[name]


@pytest.fixture
def code(tmp_path: Path) -> str:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "helper_of_net.py").write_text("ONE = 1.0\n")
    (folder / "net.py").write_text(CODE)
    return f"{folder / 'net.py'}:make"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    shapes = {"inner.0.weight": (32, 68), "inner.0.bias": (32,), "inner.2.weight": (64, 32), "inner.2.bias": (64,)}
    tensors = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file({**tensors, "classes.weight": torch.eye(3)}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


def test_a_file_of_code_and_its_weights(tmp_path: Path, code: str, weights: Path, say: tiny.Say) -> None:
    out = tmp_path / "model"
    for words in (f"--code {code}", "is finished"):
        status, text, err = say("import", code, out, "--weights", weights)
        assert status == 0, err
        assert words in text
    assert (out / "net.py").read_text() == CODE
    entry = read_json(out / "model.json")
    assert entry["network"]["file"] == "net.py"
    assert entry["preconditioning"]["prediction"] == "velocity"
    assert entry["provenance"]["weights"] == "w.safetensors"
    model = sims.load(out)
    state = load_file(weights)
    assert all(torch.equal(model.denoiser.network.module.state_dict()[key], state[key]) for key in state)
    x = model.sample(range(4))
    assert torch.equal(x, wrapping.from_code(code, weights).sample(range(4)))


def test_nothing_runs_unless_it_is_named(tmp_path: Path, code: str, weights: Path) -> None:
    """In a process of its own: the directory alone is a sentence, its own copy may be named, a changed one may not."""
    out = tmp_path / "model"
    wrapping.from_code(code, weights).save(out)

    def sample(*more: str) -> subprocess.CompletedProcess:
        words = ["sample", str(out), "--seeds", "0-1", "--out", str(tmp_path / "pictures"), *more]
        return subprocess.run([sys.executable, "-m", "sims", *words], capture_output=True, text=True, check=False)

    (out / "helper_of_net.py").write_text("ONE = 1.0\n")
    done = sample()
    assert done.returncode == 2
    assert "no directory makes code run" in done.stderr
    assert f"--code ({out / 'net.py'}:make)" in done.stderr
    assert "Traceback" not in done.stderr
    done = sample("--code", f"{out / 'net.py'}:make")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pictures" / "000001.png").is_file()
    (out / "net.py").write_text(CODE + "\n# changed\n")
    done = sample("--code", f"{out / 'net.py'}:make")
    assert done.returncode == 2
    assert "it must be unchanged" in done.stderr


def test_a_run_from_the_command_line(tmp_path: Path, code: str, weights: Path, say: tiny.Say) -> None:
    """improve takes it, the results are models of the same code, and the same command continues."""
    data = tmp_path / "data.npz"
    rng = np.random.default_rng(0)
    np.savez(data, images=rng.integers(0, 255, (120, 1, 8, 8), dtype=np.uint8), labels=np.arange(120) % 2)
    run = tmp_path / "run"
    words = tiny.improve_arguments(
        run, "--model", code, "--weights", str(weights), "--data.path", str(data), *tiny.PCA,
        "--methods", "base,sims,neon,distilled", "--auxiliary.train.lr", "1e-4", "--distilled.train.lr", "1e-4",
    )  # fmt: skip
    status, _, err = say(*words)
    assert status == 0, err
    first = tiny.snapshot(run / "improved")
    (run / "summary.json").unlink()
    status, _, err = say(*words)
    assert status == 0, err
    assert tiny.snapshot(run / "improved") == first
    for name in ("distilled", "neon"):
        assert sims.load(run / name).denoiser.network.source.file == "net.py"
    status, _, err = say("export", run / "neon", tmp_path / "neon.safetensors")
    assert status == 0, err
    assert set(load_file(tmp_path / "neon.safetensors")) == set(load_file(weights))
    status, out, err = say("inspect", run / "distilled")
    assert status == 0, err
    assert "net.py" in out


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda w: {k: v for k, v in w.items() if k != "inner.0.bias"}, "it lacks inner.0.bias"),
        (
            lambda w: {**w, **{f"extra.{i}": torch.zeros(1) for i in range(12)}},
            "the module has no extra.0.* and 2 more",
        ),
        (lambda w: {**w, "inner.0.bias": torch.zeros(31)}, r"inner.0.bias is \(31,\) and not \(32,\)"),
        (lambda w: {**w, "inner.0.bias": torch.full((32,), torch.nan)}, "not finite"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, code: str, weights: Path, change: object, words: str) -> None:
    save_file(change(load_file(weights)), tmp_path / "other.safetensors")  # type: ignore[operator]
    with pytest.raises(UserError, match=words):
        wrapping.from_code(code, tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    "function, words",
    [
        ("wrong", "it must return what sims.wrap returns"),
        ("broken", "ZeroDivisionError in line"),
        ("mak", "did you mean 'make'"),
    ],
)
def test_functions_that_make_no_model(code: str, function: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        wrapping.from_code(code.replace(":make", f":{function}"))


def test_code_that_is_not_there(tmp_path: Path, say: tiny.Say) -> None:
    (tmp_path / "syntax.py").write_text("def make(:\n")
    for name, words in {"no.py:make": "no code", f"{tmp_path / 'syntax.py'}:make": "SyntaxError"}.items():
        status, _, err = say("improve", "--model", name, "--run", tmp_path / "run")
        assert status == 2
        assert words in err
    status, _, err = say("improve", "--model", tmp_path, "--weights", tmp_path / "w", "--run", tmp_path / "run")
    assert status == 2
    assert "weights go with code" in err


def test_a_module_of_the_session() -> None:
    """Models of modules that no file makes work in their process: fine-tuning, saving, loading."""

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    model = sims.wrap(Net(), data_shape=(1, 8, 8), prediction="x0", schedule="cosine")
    x = model.sample(range(32))
    tuned = sims.fine_tune(model, x, images=64, batch=32, quiet=True)
    assert tuned.hash != model.hash
    assert torch.isfinite(model.guided(tuned, 0.5).sample(range(2))).all()


def test_a_module_of_another_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = torch.nn.Conv2d(1, 1, 3, padding=1)
    options = {"data_shape": (1, 8, 8), "prediction": "x0", "schedule": "cosine", "call": lambda net, x, t, y: net(x)}
    model = sims.wrap(net, **options)
    model.guided(model, 0.5).save(tmp_path / "m")
    monkeypatch.setattr(wrapping, "MADE", {})
    with pytest.raises(UserError, match="wrap the same"):
        sims.load(tmp_path / "m")
    sims.wrap(torch.nn.Conv2d(1, 1, 3, padding=1), **options)  # other weights: those of the file count
    assert sims.load(tmp_path / "m").hash == model.guided(model, 0.5).hash
