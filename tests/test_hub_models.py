"""Models of the Hugging Face hub: fetched only where that is asked for, only what is read, and checked."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import sims
import tiny
from hub_server import COMMIT, ID, Hub, serving
from sims.experiments.options import ImproveOptions
from sims.experiments.runner import configuration
from sims.experiments.shift.options import ShiftOptions
from sims.interop import hub_models
from sims.interop.diffusers import load_diffusers
from sims.interop.opening import open_model
from test_your_model import TINY_UNET

diffusers = pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
hub = pytest.importorskip("huggingface_hub")

LARGE = "unet/diffusion_pytorch_model.safetensors"
NOT_READ = {
    "README.md": b"a toy",
    "unet/diffusion_pytorch_model.bin": b"\x80\x04.",
    "unet/diffusion_pytorch_model.fp16.safetensors": b"half",
    "text_encoder/model.safetensors": b"words",
    "text_encoder/config.json": b"{}",
    "../../outside.json": b"{}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of diffusers, as a hub would have it."""
    place = tmp_path_factory.mktemp("published") / "toy"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(**TINY_UNET)
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(place)
    return place


@pytest.fixture
def server(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub of this test, on this machine."""
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with serving(Hub({**files, **NOT_READ}), tmp_path / "hf", monkeypatch) as here:
        yield here


def snapshot(tmp_path: Path) -> Path:
    return tmp_path / "hf/hub/models--someone--toy/snapshots" / COMMIT


def test_a_model_is_fetched_once_and_is_that_of_the_folder(server: Hub, tmp_path: Path, folder: Path) -> None:
    """In a process of its own, with nothing set but the environment."""
    words = ["import", ID, str(tmp_path / "model"), "--download"]
    done = subprocess.run([sys.executable, "-m", "sims", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    settings = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]
    assert server.fetched() == [*settings, LARGE]
    assert [line.split(" of ")[0] for line in done.stderr.splitlines()] == [
        f"fetching {name}" for name in server.fetched()
    ]
    expected = load_diffusers(folder)
    assert torch.equal(sims.load(tmp_path / "model").sample(range(3)), expected.sample(range(3)))
    server.asked.clear()
    for download in (True, False):
        assert open_model(Path(ID), download=download).hash == expected.hash
    assert not server.asked


def test_nothing_is_asked_for_without_the_option(server: Hub, tmp_path: Path, say: tiny.Say) -> None:
    run = tmp_path / "run"
    for words in (
        ["import", ID, tmp_path / "model"],
        ["inspect", ID],
        ["check", ID],
        ["improve", "--model", ID, "--run", run],
        ["improve", "--model", ID, "--run", run, "--dry-run"],
        ["shift", "--model", ID, "--run", run],
    ):
        status, _, err = say(*words)
        assert status == 2, err
        assert f"sims: {ID} does not exist, and " in err and "give a path, or --download to fetch it\n" in err
        assert "Traceback" not in err
    assert not server.asked


def test_the_commands_that_take_it(server: Hub, tmp_path: Path, say: tiny.Say) -> None:
    """A rehearsal too, where it is told to; the run that it rehearses may be continued without the option."""
    words = ["improve", "--model", ID, "--download", "--data.path", "digits", "--data.source.size", "4", "--dry-run"]
    status, _, err = say(*words, "--run", tmp_path / "run")
    assert status == 2 and f"the model {ID} makes data of shape" in err.splitlines()[-1]
    assert LARGE in server.fetched()
    server.asked.clear()
    status, out, err = say("inspect", ID, "--download")
    assert status == 0 and "UNet2DModel" in out and not err
    status, out, err = say("check", ID, "--download", "--data.limit", "200", "--images", "32", "--json")
    assert status in (0, 1) and json.loads(out)["model"] == ID
    assert not server.asked and not (tmp_path / "run").exists()
    for kind in (ImproveOptions, ShiftOptions):
        assert "download" not in configuration("some", kind(model=Path(ID), download=True))


@pytest.mark.parametrize("name", [LARGE, "unet/config.json"])
def test_other_bytes_are_refused(server: Hub, tmp_path: Path, say: tiny.Say, name: str) -> None:
    content = bytearray(server.files[name])
    content[-1] ^= 1
    server.sent[name] = bytes(content)
    words = ["import", ID, tmp_path / "model", "--download"]
    status, _, err = say(*words)
    assert status == 2
    last = err.splitlines()[-1]
    assert name in last and "as the hub says: it is removed" in last and "Traceback" not in err
    assert not (snapshot(tmp_path) / name).exists() and not (tmp_path / "model").exists()
    left = {hashlib.sha256(file.read_bytes()).hexdigest() for file in (tmp_path / "hf").rglob("*") if file.is_file()}
    assert hashlib.sha256(content).hexdigest() not in left
    server.sent.clear()
    server.asked.clear()
    status, _, err = say(*words)
    assert status == 0, err
    assert name in server.fetched() and "model_index.json" not in server.fetched()


def test_a_copy_that_is_damaged_is_refused(server: Hub, tmp_path: Path, say: tiny.Say) -> None:
    open_model(Path(ID), download=True)
    file = snapshot(tmp_path) / LARGE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.resolve().write_bytes(content)
    status, _, err = say("inspect", ID, "--download")
    assert status == 2 and "as the hub says: it is removed" in err
    assert not file.exists()
    assert say("inspect", ID, "--download")[0] == 0


def test_a_copy_that_is_not_whole_is_completed(server: Hub, tmp_path: Path, folder: Path, say: tiny.Say) -> None:
    server.answers = {LARGE: 403}
    status, _, err = say("inspect", ID, "--download")
    assert status == 2 and "accept its conditions" in err
    server.answers, server.asked = {}, []
    assert open_model(Path(ID), download=True).hash == load_diffusers(folder).hash
    assert server.fetched() == [LARGE]


def test_pickles_are_never_asked_for(server: Hub, tmp_path: Path, say: tiny.Say) -> None:
    del server.files[LARGE], server.files["unet/diffusion_pytorch_model.fp16.safetensors"]
    for name in ("text_encoder/model.safetensors", "unet/config.json"):
        status, _, err = say("import", ID, tmp_path / "model", "--download")
        assert status == 2
        assert "only as unet/diffusion_pytorch_model.bin, a format that can run code" in err.splitlines()[-1]
        assert not any(line.endswith(".bin") for line in server.asked)
        del server.files[name]
    del server.files["unet/diffusion_pytorch_model.bin"]
    assert "no weights on the hub that can be read" in say("inspect", ID, "--download")[2]


def test_what_cannot_be_read_is_refused_before_its_weights_come(server: Hub, say: tiny.Say) -> None:
    config = json.loads(server.files["unet/config.json"])
    server.files["unet/config.json"] = json.dumps({**config, "_class_name": "UNet2DConditionModel"}).encode()
    status, _, err = say("inspect", ID, "--download")
    assert status == 2 and "choose an unconditional or a class-conditional model" in err
    assert LARGE not in server.fetched()


def test_a_model_of_ours_and_a_file_alone(server: Hub, tmp_path: Path, folder: Path) -> None:
    whole = load_diffusers(folder)
    whole.guided(whole, 0.5).save(tmp_path / "ours")
    ours = tmp_path / "ours"
    server.files = {file.relative_to(ours).as_posix(): file.read_bytes() for file in ours.rglob("*") if file.is_file()}
    assert open_model(Path(ID), download=True).hash == sims.load(ours).hash
    assert server.fetched()[-1] == "model.json"


def test_several_files_of_tensors_are_a_question(server: Hub, tmp_path: Path, say: tiny.Say) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    server.files = {"a.safetensors": content, "b.safetensors": content, "config.json": b"{}"}
    status, _, err = say("inspect", ID, "--download")
    assert status == 2 and "has 2 files of weights (a.safetensors, b.safetensors)" in err
    assert server.fetched() == ["config.json"]
    del server.files["b.safetensors"]
    assert hub_models.local_copy(Path(ID), download=True) == snapshot(tmp_path) / "a.safetensors"


def test_a_copy_that_another_program_made_is_used(server: Hub, tmp_path: Path) -> None:
    """Also one whose weights would not be fetched."""
    snapshot(tmp_path).mkdir(parents=True)
    torch.save({"a": torch.zeros(1)}, snapshot(tmp_path) / "a.pt")
    for download in (True, False):
        assert hub_models.local_copy(Path(ID), download) == snapshot(tmp_path) / "a.pt"
    assert not server.asked


@pytest.mark.parametrize(
    "status, words",
    [(401, "private or gated (401)"), (403, "log in"), (404, "it has no such model"), (418, "check the connection")],
)
def test_what_the_hub_refuses(server: Hub, tmp_path: Path, say: tiny.Say, status: int, words: str) -> None:
    server.answers[""] = status
    code, out, err = say("import", ID, tmp_path / "model", "--download")
    assert code == 2 and not out
    assert err.startswith(f"sims: {ID} cannot be fetched from the hub: ") and words in err and err.count("\n") == 1


def test_no_hub_no_room_and_no_library(
    server: Hub, tmp_path: Path, say: tiny.Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(words: str) -> None:
        status, _, err = say("inspect", ID, "--download")
        assert status == 2 and words in err.splitlines()[-1] and "Traceback" not in err, err

    with monkeypatch.context() as patch:
        patch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
        fails("HF_HUB_OFFLINE forbids it")
    with monkeypatch.context() as patch:
        patch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        fails("check the connection")
    with monkeypatch.context() as patch:
        patch.setattr(hub_models.shutil, "disk_usage", lambda path: type("Free", (), {"free": 3})())
        fails("0.00 GB are free")

    def full(*args: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(hub, "hf_hub_download", full)
        fails("no space is left in")
    with monkeypatch.context() as patch:
        (tmp_path / "a file").touch()
        patch.setenv("HF_HOME", str(tmp_path / "a file"))
        fails("set HF_HUB_CACHE to another folder")
    assert not server.fetched()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    fails("pip install 'sims-diffusion[hub]'")
