"""Snapshots of EDM and EDM2: read without running their code, rebuilt, inspected, imported."""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from sims.cli import main
from sims.data.codec import UINT8
from sims.errors import UserError
from sims.files import digest_file
from sims.interop.nvidia import _tensors, build, import_model, read
from sims.model import load
from sims.preconditioning import Preconditioned
from sims.safe_pickle import PersistentObject
from sims.sampling import SamplerOptions, nfe, sample_seeds
from snapshots import ADM, CANARY, EDM2, IMAGES, LATENTS, SONG, network, theirs, writer
from tiny import Say

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "EDMPrecond": ("EDMPrecond", {**IMAGES, **SONG, "augment_dim": 9, "resample_filter": [1, 1]}),
    "EDMPrecond of ADM": ("EDMPrecond", {**IMAGES, **ADM, "label_dim": 4, "use_fp16": True}),
    "VPPrecond": ("VPPrecond", {**IMAGES, **SONG, "encoder_type": "skip", "decoder_type": "skip"}),
    "VEPrecond": (
        "VEPrecond",
        {**IMAGES, **SONG, "embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]},
    ),
    "iDDPMPrecond": ("iDDPMPrecond", {**IMAGES, **ADM, "M": 60}),
    "Precond": ("Precond", {**LATENTS, **EDM2}),
    "unconditional Precond": ("Precond", {**LATENTS, **EDM2, "label_dim": 0, "logvar_channels": 32}),
}


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Writes a snapshot as NVIDIA's code does."""
    yield writer(tmp_path, monkeypatch)
    assert not (tmp_path / CANARY).exists(), "code of a snapshot was run"


def inputs(denoiser: Preconditioned) -> tuple[Tensor, Tensor, Tensor | None]:
    torch.manual_seed(1)
    sigma = torch.tensor([0.05, 1.0, 30.0])
    x = torch.randn(3, *denoiser.data_shape) * (1 + sigma)[:, None, None, None]
    return x, sigma, torch.tensor([1, -1, 3]) if denoiser.num_classes else None


@pytest.mark.parametrize("case", CASES)
def test_a_snapshot_comes_back(case: str, write: Any, tmp_path: Path, say: Say) -> None:
    class_name, init = CASES[case]
    original = network(class_name, init)
    state = theirs(class_name, original)
    path = write(class_name, state, **init)
    name, arguments, tensors = read(path)
    assert name == class_name and tensors.keys() == state.keys()
    assert init.items() <= arguments.items() and "use_fp16" in arguments
    made = build(name, arguments, tensors)
    x, sigma, labels = inputs(original)
    assert torch.equal(made(x, sigma, labels), original(x, sigma, labels))
    assert not made.training and not any(weight.requires_grad for weight in made.parameters())

    status, out, err = say("import", path, tmp_path / "model")
    assert (status, err) == (0, "") and "sims inspect" in out
    model = load(tmp_path / "model")
    assert torch.equal(model(x, sigma, labels), original(x, sigma, labels))
    assert model.provenance["sha256"] == digest_file(path) and model.provenance["imported"] == path.name
    assert model.class_names == tuple(str(i) for i in range(init["label_dim"]))
    assert model.codec == UINT8 if init["img_channels"] == 3 else model.codec.kind == "identity"
    assert model.sampler.steps == (32 if class_name == "Precond" else 18)
    levels = model.sampler.planned(model)  # type: ignore[arg-type]
    assert 0.0019 < float(levels.min()) < 0.05 and 30 < float(levels.max()) <= 80.001
    samples, _ = sample_seeds(model, range(2), SamplerOptions(steps=3))  # type: ignore[arg-type]
    assert bool(torch.isfinite(samples).all())

    status, out, err = say("export", tmp_path / "model", tmp_path / "back.safetensors")
    assert (status, err) == (0, "") and "load_state_dict" in out
    back = load_file(tmp_path / "back.safetensors")
    assert back.keys() == state.keys() and all(torch.equal(back[name], state[name]) for name in state)


def test_what_has_no_tensors_to_export(write: Any, tmp_path: Path, say: Say) -> None:
    class_name, init = CASES["EDMPrecond"]
    model = import_model(write(class_name, theirs(class_name, network(class_name, init)), **init))
    model.save(tmp_path / "model")
    model.guided(model, 0.5).save(tmp_path / "pair")
    (tmp_path / "there.safetensors").touch()
    for name, out, message in (
        ("pair", "new.safetensors", "is guided.*folders 'base' and 'aux' within"),
        ("model", "folder", "no .safetensors file"),
        ("model", "there.safetensors", "exists"),
    ):
        status, _, err = say("export", tmp_path / name, tmp_path / out)
        assert status == 2 and re.search(message, err), err
    assert say("export", tmp_path / "pair" / "aux", tmp_path / "aux.safetensors")[0] == 0


def test_half_precision_positions_and_other_keys(write: Any) -> None:
    class_name, init = CASES["Precond"]
    original = network(class_name, init)
    state = {name: value.half() for name, value in theirs(class_name, original).items()}
    rest = {name: value for name, value in init.items() if name not in LATENTS}
    path = write(class_name, state, 8, 4, np.int64(5), False, key="net", **rest)
    name, arguments, tensors = read(path)
    assert (arguments["label_dim"], arguments["use_fp16"], arguments["sigma_data"]) == (5, False, 0.5)
    made = build("edm2.Precond", arguments, tensors)
    assert {value.dtype for value in made.state_dict().values()} == {torch.float32}
    x, sigma, labels = inputs(original)
    torch.testing.assert_close(made(x, sigma, labels), original(x, sigma, labels), rtol=0.05, atol=0.05)
    bare = {**{name: init[name] for name in ("img_resolution", "img_channels")}, **rest, "label_dim": 5}
    assert torch.equal(build(name, bare, tensors)(x, sigma, labels), made(x, sigma, labels))


@pytest.mark.parametrize(
    "init, encoder, steps, evaluations, kind",
    [
        ({**IMAGES, **SONG, "img_resolution": 32}, None, 18, 35, "pixels"),
        ({**IMAGES, **SONG, "img_resolution": 64}, None, 40, 79, "pixels"),
        ({**IMAGES, **ADM, "img_resolution": 64}, None, 256, 511, "pixels"),
        ({**IMAGES, **EDM2}, "StandardRGBEncoder", 32, 63, "pixels"),
        ({**LATENTS, **EDM2}, "StabilityVAEEncoder", 32, 63, "latents"),
    ],
)
def test_published_samplers(
    init: dict[str, Any], encoder: str | None, steps: int, evaluations: int, kind: str, write: Any
) -> None:
    class_name = "EDMPrecond" if "model_type" in init else "Precond"
    model = import_model(write(class_name, theirs(class_name, network(class_name, init)), encoder=encoder, **init))
    assert model.sampler.steps == steps and nfe(model, model.sampler) == evaluations  # type: ignore[arg-type]
    assert (model.sampler.s_churn > 0) == (steps == 256) and model.codec.kind == kind
    assert (model.sigma_min, model.sigma_max) == (0.002, 80.0)


def test_limits_that_a_network_sets_are_kept() -> None:
    class_name, init = CASES["EDMPrecond"]
    state = theirs(class_name, network(class_name, init))
    made = build(class_name, {**init, "sigma_min": 0.01, "sigma_max": 50.0}, state)
    assert (made.sigma_min, made.sigma_max) == (0.01, 50.0)


def wrong(class_name: str, init: dict[str, Any], state: dict[str, Tensor]) -> str:
    with pytest.raises(UserError) as caught:
        build(class_name, init, state)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    return str(caught.value)


def test_what_does_not_fit_is_one_clear_error() -> None:
    class_name, init = CASES["VEPrecond"]
    state = theirs(class_name, network(class_name, init))
    assert "unknown class 'EDMPrecnd'; did you mean 'EDMPrecond'" in wrong("EDMPrecnd", init, state)
    assert "unknown argument 'num_block'; did you mean" in wrong(class_name, {**init, "num_block": 2}, state)
    assert "unknown argument 'out_channels'" in wrong(class_name, {**init, "out_channels": 2}, state)
    assert "lacks the argument 'img_channels'" in wrong(class_name, {"img_resolution": 8}, state)
    assert "unknown model_type 'UNet'" in wrong(class_name, {**init, "model_type": "UNet"}, state)
    assert "unknown model_type '[1]'" in wrong(class_name, {**init, "model_type": [1]}, state)
    assert "'channel_mult' is a dict" in wrong(class_name, {**init, "channel_mult": {}}, state)
    told = wrong(class_name, {**init, "img_resolution": None}, state)
    assert "'img_resolution' is None: it must be a whole number" in told
    for changes in ({"model_channels": "many"}, {"model_channels": 16.5}, {"num_blocks": []}):
        assert "is not a valid" in wrong(class_name, {**init, **changes}, state)
    assert "even number of taps" in wrong(class_name, {**init, "resample_filter": [1, 2, 1]}, state)
    first, second, *_ = state
    assert f"1 missing ({first})" in wrong(class_name, init, {k: v for k, v in state.items() if k != first})
    assert "1 unknown (a\\nb)" in wrong(class_name, init, {**state, "a\nb": torch.ones(1)})
    said = wrong(class_name, init, {**state, first: torch.ones(2, 3), second: state[second][..., None]})
    assert "2 of another shape" in said and f"{first} (2, 3) instead of" in said
    assert "another filter" in wrong(
        class_name, init, {k: v * (2 if k.endswith("resample_filter") else 1) for k, v in state.items()}
    )
    said = wrong(class_name, init, {})
    assert f"{len(state)} missing" in said and said.count("model.") == 3 and "..." in said


def test_files_that_hold_something_else(write: Any, tmp_path: Path, say: Say) -> None:
    file = tmp_path / "stats.pkl"
    file.write_bytes(pickle.dumps({"fid": {"mu": np.ones(3)}}))
    for command in (("inspect", file), ("import", file, tmp_path / "out")):
        status, out, err = say(*command)
        assert status == 2 and "holds no network" in err and "fid" in err and out == ""
    status, _, err = say("inspect", write("Generator", {}, 8))
    assert status == 2 and "unknown class 'Generator'" in err
    (tmp_path / "bad.pkl").write_bytes(b"cos\nsystem\n.")
    status, _, err = say("import", tmp_path / "bad.pkl", tmp_path / "out")
    assert status == 2 and "os.system" in err and not (tmp_path / "out").exists()
    status, _, err = say("import", tmp_path / "none.pkl", tmp_path / "out")
    assert status == 2 and "no file" in err


def test_modules_within_themselves_end() -> None:
    loop = PersistentObject("Precond", (), {}, {}, "")
    loop.state["_modules"] = {"unet": loop}
    with pytest.raises(UserError, match="unet appears twice"):
        dict(_tensors(loop, "", set()))


def test_inspect_a_checkpoint(write: Any, say: Say) -> None:
    class_name, init = CASES["Precond"]
    original = network(class_name, init)
    path = write(class_name, theirs(class_name, original), **init)
    status, out, _ = say("inspect", path)
    count = sum(weight.numel() for weight in original.parameters())
    assert status == 0
    for said in ("Precond", f"{count:,}", "4 × 8 × 8", "5: 0, 1, 2, 3, 4", "channel_mult [1, 2]", "identity",
                 "steps 32", "63 network evaluations", digest_file(path), f"sims import {path} OUT"):  # fmt: skip
        assert said in out, said


def test_many_classes_are_not_all_listed(write: Any, tmp_path: Path, say: Say) -> None:
    class_name, init = CASES["Precond"]
    init = {**init, "label_dim": 1000}
    path = write(class_name, theirs(class_name, network(class_name, init)), **init)
    for target in (path, tmp_path / "model"):
        assert main(["import", str(path), str(tmp_path / "model")]) == 0
        assert "1000: 0, 1, 2, ..., 999" in say("inspect", target)[1]


def test_import_spares_what_is_there(write: Any, tmp_path: Path, say: Say) -> None:
    class_name, init = CASES["EDMPrecond"]
    path = write(class_name, theirs(class_name, network(class_name, init)), **init)
    out = tmp_path / "model"
    assert say("import", path, out)[0] == 0
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    status, said, _ = say("import", path, out)
    assert status == 0 and "is finished" in said
    assert before == {file: file.stat().st_mtime_ns for file in out.iterdir()}
    other = write(
        class_name, theirs(class_name, network(class_name, init)), name="other.pkl", **{**init, "dropout": 0.2}
    )
    assert "holds another model" in say("import", other, out)[2]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    assert "is in use" in say("import", path, tmp_path / "full")[2]
    assert "is in use" in say("import", path, path)[2]
