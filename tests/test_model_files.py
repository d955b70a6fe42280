"""Networks in the forms in which people have them, and files that only say that they are networks."""

from __future__ import annotations

import argparse
import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.interop import nvidia
from sims.interop.diffusers import load_diffusers
from sims.interop.nvidia import build
from sims.interop.opening import open_model
from sims.interop.recognize import described
from sims.model import Model, load
from sims.safe_pickle import PersistentObject
from snapshots import IMAGES, SONG, network, theirs

diffusers = pytest.importorskip("diffusers")

WEIGHTS = "diffusion_pytorch_model"
TINY: dict[str, Any] = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def unet(**more: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return diffusers.UNet2DModel(**{**TINY, **more}).eval()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original") / "pipeline"
    diffusers.DDPMPipeline(unet(), diffusers.DDPMScheduler(num_train_timesteps=50)).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "pipeline"))


@pytest.fixture(scope="module")
def whole(original: Path) -> dict[str, Tensor]:
    return load_file(original / "unet" / f"{WEIGHTS}.safetensors")


def read(folder: Path) -> dict[str, Tensor]:
    return load_diffusers(folder).denoiser.network.model.state_dict()  # type: ignore[attr-defined,no-any-return]


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    file = folder / "unet" / f"{WEIGHTS}.safetensors"
    save_file({name: value.contiguous().clone() for name, value in change(load_file(file)).items()}, file)


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# ---- shards, variants, prefixes


@pytest.mark.parametrize(
    "pattern",
    ["{w}-{i:05d}-of-00003", "{w}.fp16-{i:05d}-of-00003", "{w}-{i:05d}-of-00003.fp16", "model-{i:05d}-of-00003"],
)
@pytest.mark.parametrize("index", [True, False])
def test_shards_are_read_whatever_their_names(
    folder: Path, whole: dict[str, Tensor], pattern: str, index: bool
) -> None:
    (folder / "unet" / f"{WEIGHTS}.safetensors").unlink()
    names, weight_map = sorted(whole), {}
    for i in range(3):
        file = folder / "unet" / f"{pattern.format(w=WEIGHTS, i=i + 1)}.safetensors"
        save_file({name: whole[name] for name in names[i::3]}, file)
        weight_map |= dict.fromkeys(names[i::3], file.name)
    if index:
        (folder / "unet" / f"{WEIGHTS}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert same(read(folder), whole)
    file.unlink()
    with pytest.raises(UserError, match="has 2 of the 3 files of its weights"):
        read(folder)


def test_the_plain_weights_go_before_a_variant(folder: Path, whole: dict[str, Tensor]) -> None:
    half = {name: value.half() for name, value in whole.items()}
    file = folder / "unet" / f"{WEIGHTS}.safetensors"
    save_file({name: value + 1 for name, value in half.items()}, file.with_suffix(".fp16.safetensors"))
    assert same(read(folder), whole)
    file.unlink()
    assert same(read(folder), {name: (value + 1).float() for name, value in half.items()})


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "ema_model.", "module._orig_mod.", "a.b.c."])
def test_a_prefix_that_all_names_have_is_read_without_it(
    folder: Path, whole: dict[str, Tensor], prefix: str, say: tiny.Say, tmp_path: Path
) -> None:
    rewrite(folder, lambda tensors: {f"{prefix}{name}": value for name, value in tensors.items()})
    model = load_diffusers(folder)
    assert same(model.denoiser.network.model.state_dict(), whole)  # type: ignore[attr-defined]
    status, out, err = say("import", folder, tmp_path / "model")
    assert status == 0 and f"weights: their names are read without '{prefix}'" in out and err == ""


def test_attention_as_it_was_once_written_is_read(folder: Path, whole: dict[str, Tensor]) -> None:
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def once(name: str) -> str:
        return next((name.replace(f".{new}.", f".{was}.") for new, was in old.items() if f".{new}." in name), name)

    rewrite(folder, lambda tensors: {f"module.{once(name)}": value for name, value in tensors.items()})
    assert same(read(folder), whole)


OTHERS: dict[str, tuple[Callable[[dict[str, Tensor]], dict[str, Tensor]], str]] = {
    "two prefixes": (
        lambda tensors: {f"{p}.{name}": value for name, value in tensors.items() for p in ("ema", "model")},
        r"lack \d+ tensors \(conv_in.*have \d+ that it has no place for \(ema\.conv",
    ),
    "one too many": (lambda tensors: {**tensors, "extra.weight": torch.zeros(2)}, r"have 1 .*\(extra\.weight\)"),
    "another shape": (lambda tensors: {**tensors, "conv_in.bias": torch.zeros(7)}, r"conv_in\.bias has shape \(7,\)"),
    "whole numbers": (lambda t: {**t, "conv_in.bias": t["conv_in.bias"].to(torch.int8)}, "quantized"),
    "nothing": (lambda tensors: {}, r"lack \d+ tensors"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_weights_that_do_not_fit_are_one_sentence(folder: Path, what: str, capfd: pytest.CaptureFixture[str]) -> None:
    change, words = OTHERS[what]
    rewrite(folder, change)
    with pytest.raises(UserError, match=words) as caught:
        read(folder)
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # nothing of the library's own


def test_the_library_keeps_silent_about_what_it_does_not_know(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    edit(folder / "unet" / "config.json", my_own=1)
    edit(folder / "scheduler" / "scheduler_config.json", my_own=1)
    assert load_diffusers(folder).sample([0]).isfinite().all()
    assert capfd.readouterr() == ("", "")


# ---- a class for "no class"


def test_the_class_for_none_is_named_and_left_out(tmp_path: Path, say: tiny.Say) -> None:
    folder = tmp_path / "eleven"
    diffusers.DDPMPipeline(unet(num_class_embeds=11), diffusers.DDPMScheduler(num_train_timesteps=50)).save_pretrained(
        folder
    )
    edit(folder / "model_index.json", id2label={str(i): f"class {i}" for i in range(11)})
    status, out, _ = say("import", folder, tmp_path / "all")
    assert status == 0 and "all 11 are drawn" in out and "--null-class" in out
    assert load(tmp_path / "all").num_classes == 11
    status, out, _ = say("import", folder, tmp_path / "ten", "--null-class")
    model = load(tmp_path / "ten")
    assert status == 0 and "drawn" not in out and model.num_classes == 10 and model.class_names[-1] == "class 9"
    assert say("import", folder, tmp_path / "ten", "--null-class")[1] == f"{tmp_path / 'ten'} is finished: " + (
        "it was imported from this file\n"
    )
    status, _, err = say("import", folder, tmp_path / "ten")
    assert status == 2 and "another model" in err


def test_a_class_for_none_needs_classes(folder: Path, tmp_path: Path, say: tiny.Say) -> None:
    status, _, err = say("import", folder, tmp_path / "out", "--null-class")
    assert status == 2 and "network of 0 classes" in err and "--null-class" in err
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02}.")
    status, _, err = say("import", tmp_path / "a.pkl", tmp_path / "out", "--null-class")
    assert status == 2 and "UNet2DModel" in err


# ---- what a file is


class Secret:
    """Would tell if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("canary"),))


def torch_save(content: Any, old: bool = False) -> Callable[[Path], None]:
    return lambda file: torch.save(content(), file, _use_new_zipfile_serialization=not old)


def written(data: bytes) -> Callable[[Path], None]:
    return lambda file: file.write_bytes(data) and None


def cut(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def made(file: Path) -> None:
        make(file)
        file.write_bytes(file.read_bytes()[:2000])

    return made


def of_tensors(*names: str) -> Callable[[Path], None]:
    return lambda file: save_file({name: torch.zeros(1) for name in names}, file)


def state() -> dict[str, Tensor]:
    return unet().state_dict()


def script(file: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(file))  # type: ignore[no-untyped-call]


FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "tensors": (lambda file: save_file(state(), file), "network of diffusers: give its folder"),
    "tensors of sims": (of_tensors("network.read.weight"), r"without its model\.json"),
    "tensors of EDM": (of_tensors("model.enc.16x16_conv.weight"), r"EDM or EDM2 .*own \.pkl"),
    "a LoRA": (of_tensors("unet.down.lora_A.weight"), "LoRA"),
    "Stable Diffusion": (
        of_tensors("model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"),
        "text steers",
    ),
    "a part of a DiT": (of_tensors("x_embedder.proj.weight", "blocks.0.attn.qkv.weight"), "DiT"),
    "DDPM": (of_tensors("temb.dense.0.weight"), "DDPM in its authors' form"),
    "a part of guided-diffusion": (of_tensors("input_blocks.0.0.weight"), "guided-diffusion"),
    "cut tensors": (cut(of_tensors("a" * 3000)), "damaged"),
    "a state dict": (torch_save(state), "network of diffusers: give its folder"),
    "an old state dict": (torch_save(state, old=True), "network of diffusers: give its folder"),
    "the average": (
        torch_save(lambda: {"model": state(), "args": argparse.Namespace(ema=1), "ema": state()}),
        "network of diffusers: give its folder",
    ),
    "EDM's tensors": (torch_save(lambda: {"net": {"model.dec.8x8_up.weight": torch.ones(1)}}), r"own \.pkl"),
    "a module": (torch_save(unet), "network of diffusers: give its folder"),
    "an old module": (torch_save(unet, old=True), "asks for more than tensors"),
    "an attack": (torch_save(lambda: {"ema": Secret(), "model": state()}), "network of diffusers: give its folder"),
    "an old attack": (torch_save(lambda: {"ema": Secret(), "model": state()}, old=True), "asks for more than tensors"),
    "a tensor": (torch_save(lambda: torch.ones(3)), "holds no tensors"),
    "nothing": (torch_save(dict), "holds no tensors"),
    "cut archive": (cut(torch_save(state)), "cut off or damaged"),
    "cut old file": (cut(torch_save(state, old=True)), "damaged"),
    "TorchScript": (script, "TorchScript"),
    "numpy": (lambda file: np.savez(file.open("wb"), a=1), "npz"),
    "a web page": (written(b"\n<!DOCTYPE html><html>"), "web page"),
    "a pointer": (written(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7\nsize 1\n"), "git lfs pull"),
    "HDF5": (written(b"\x89HDF\r\n\x1a\n" + bytes(99)), "HDF5"),
    "GGUF": (written(b"GGUF\3\0\0\0"), "GGUF"),
    "ONNX": (written(b"\x08\x08\x12\x07pytorch\x1a\x052.0.0"), "ONNX"),
    "gzip": (written(b"\x1f\x8b\x08\x00"), "unpack"),
    "a picture": (written(b"\x89PNG\r\n\x1a\n"), "picture"),
    "JSON": (written(b'{"a": 1}'), "JSON"),
    "zeros": (written(bytes(999)), "zeros"),
    "empty": (written(b""), "empty"),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["model.pkl", "model.pt", "model.safetensors", "model"])
@pytest.mark.parametrize("what", FILES)
def test_what_a_file_is_stands_in_one_true_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make, words = FILES[what]
    make(tmp_path / name)
    with pytest.raises(UserError, match=words) as caught:
        open_model(tmp_path / name)
    told = str(caught.value)
    assert name in told and told.isprintable() and len(told) < 1000 and not (tmp_path / "canary").exists()
    damaged = what.startswith(("cut", "an old")) or what == "empty"
    assert damaged or not any(word in told for word in ("damaged", "no pickle", "opcode", "ask its author"))


def test_commands_say_what_a_file_is(tmp_path: Path, say: tiny.Say) -> None:
    torch.save(state(), tmp_path / "state.pt")
    for words in (
        ("import", tmp_path / "state.pt", tmp_path / "out"),
        ("inspect", tmp_path / "state.pt"),
        ("improve", "--model", tmp_path / "state.pt", "--run", tmp_path / "run", "--data.path", "digits"),
    ):
        status, _, err = say(*words)
        assert status == 2 and "network of diffusers: give its folder" in err and "Traceback" not in err


@pytest.mark.parametrize("text", ["<!doctype html>", "version https://git-lfs.github.com/spec/v1\noid"])
def test_weights_that_are_something_else_say_so(folder: Path, text: str) -> None:
    (folder / "unet" / f"{WEIGHTS}.safetensors").write_text(text)
    with pytest.raises(UserError, match=r"web page|Git LFS"):
        read(folder)


@given(st.binary(max_size=300))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_something_or_nothing(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any"
    for start in (b"", bytes.fromhex("80028a0a6cfc9c46f9206aa850192e"), b"PK\x03\x04", len(data).to_bytes(8, "little")):
        file.write_bytes(start + data)
        told = described(file)
        assert told is None or told.isprintable()


# ---- nothing declared is believed before it is paid for


@pytest.fixture(scope="module")
def model(digits: Dataset) -> Model:
    return tiny.model(digits.without_labels())


@pytest.fixture(scope="module")
def saved(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model.guided(model, 0.5).save(tmp_path_factory.mktemp("saved") / "model")


HUGE: dict[str, dict[str, Any]] = {
    "blocks": {"network.blocks": 10**9},
    "width": {"network.width": 10**9},
    "width within the limit": {"network.width": 10**6},
    "a width of words": {"network.width": "wide"},
    "half a width": {"network.width": 1.5},
    "no width": {"network.width": 0},
    "a width below none": {"network.width": -8},
    "classes": {"num_classes": 10**9},
    "other classes": {"num_classes": 10},
    "pixels": {"data_shape": [1, 10**6, 10**6]},
    "another shape": {"data_shape": [1, 9, 9]},
    "no shape": {"data_shape": []},
    "a shape of words": {"data_shape": ["a"]},
    "steps": {"sampler.steps": 10**7},
    "another network": {"network": {"type": "edm2_unet", "num_blocks": 10**6}},
    "taps": {"network": {"type": "song_unet", "resample_filter": [1] * 50_000}},
    "levels": {"preconditioning": {"type": "iddpm", "M": 10**9}},
    "a network of diffusers": {
        "network": {"type": "diffusers", "settings": {"layers_per_block": 10**9}},
        "preconditioning": {"type": "diffusers", "scheduler": {"_class_name": "DDPMScheduler"}},
    },
    "timesteps": {"preconditioning": {"type": "diffusers", "scheduler": {"num_train_timesteps": 10**9}}},
    "no numbers": {"preconditioning.sigma_data": [1]},
    "a number of many digits": {"preconditioning.sigma_data": 10**200},
    "a list": {"network": []},
    "no kind": {"kind": 3},
    "a future": {"format": 99},
    "a codec": {"codec.dtype": "object" * 1000},
    "names": {"class_names": 5},
}


@pytest.mark.parametrize("what", HUGE)
def test_a_model_json_that_asks_for_too_much_is_a_sentence(model: Model, tmp_path: Path, what: str) -> None:
    model.save(tmp_path)
    entry = json.loads((tmp_path / "model.json").read_text())
    for path, value in HUGE[what].items():
        *tables, last = path.split(".")
        place = entry
        for name in tables:
            place = place[name]
        place[last] = value
    (tmp_path / "model.json").write_text(json.dumps(entry))
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    told = str(caught.value)
    assert str(tmp_path) in told and "\n" not in told and len(told) < 1000


def test_children_lie_within_their_model(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    for child in (".", "..", "../model", "/etc", ""):
        edit(folder / "model.json", children={"base": child, "aux": "aux"})
        with pytest.raises(UserError, match="a child is a folder in the model's own"):
            load(folder)
    edit(folder / "model.json", children={"base": "base"})
    with pytest.raises(UserError, match="aux"):
        load(folder)
    shutil.rmtree(folder / "base")
    (folder / "base").symlink_to(folder)
    edit(folder / "model.json", children={"base": "base", "aux": "aux"})
    with pytest.raises(UserError):
        load(folder)


def test_settings_of_a_rule_have_their_types(saved: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    for values in ({"interval": 3}, {"interval": ["a", "b"]}, {"w": "much"}, {"w": None}, {"cache": {"sigmas": 1}}):
        edit(folder / "model.json", **{"interval": [0.0, None], "w": 0.5, "cache": None, **values})
        with pytest.raises(UserError):
            load(folder)


FOLDERS: dict[str, tuple[str, dict[str, Any]]] = {
    "layers": ("unet/config.json", {"layers_per_block": 10**9}),
    "many layers": ("unet/config.json", {"layers_per_block": 10**5}),
    "channels": ("unet/config.json", {"block_out_channels": [10**9, 16]}),
    "channels within the limit": ("unet/config.json", {"block_out_channels": [10**6, 10**6]}),
    "pixels": ("unet/config.json", {"sample_size": 10**6}),
    "many pixels": ("unet/config.json", {"sample_size": 10**12}),
    "a size of words": ("unet/config.json", {"sample_size": "large"}),
    "three sizes": ("unet/config.json", {"sample_size": [8, 8, 8]}),
    "no size": ("unet/config.json", {"sample_size": 0}),
    "classes": ("unet/config.json", {"num_class_embeds": 10**6}),
    "blocks of words": ("unet/config.json", {"down_block_types": "DownBlock2D"}),
    "unknown blocks": ("unet/config.json", {"down_block_types": ["Down", "Up"]}),
    "blocks": ("unet/config.json", {"down_block_types": ["DownBlock2D"] * 99_999}),
    "no embedding of time": ("unet/config.json", {"time_embedding_type": None}),
    "no blocks": ("unet/config.json", {"down_block_types": []}),
    "a class of another kind": ("unet/config.json", {"_class_name": ["UNet2DModel"]}),
    "timesteps": ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**9}),
    "floating timesteps": ("scheduler/scheduler_config.json", {"num_train_timesteps": 1e9}),
    "betas": ("scheduler/scheduler_config.json", {"trained_betas": [0.1] * 200_000}),
    "betas of words": ("scheduler/scheduler_config.json", {"beta_start": "small"}),
    "betas of nothing": ("scheduler/scheduler_config.json", {"beta_end": float("nan")}),
    "an order": (
        "scheduler/scheduler_config.json",
        {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 10**9},
    ),
    "notes": ("sims.json", {"timesteps": "often"}),
    "other notes": ("sims.json", {"sigma_data": [1]}),
    "an index": ("model_index.json", {"unet": 3}),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_a_folder_that_asks_for_too_much_is_a_sentence(
    folder: Path, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    name, values = FOLDERS[what]
    if not (folder / name).exists():
        (folder / name).write_text("{}")
    edit(folder / name, **values)
    with pytest.raises(UserError) as caught:
        load_diffusers(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000
    assert capfd.readouterr() == ("", "")


def test_positions_of_a_transformer_are_counted_first(folder: Path) -> None:
    dit = {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "num_layers": 1, "patch_size": 1}
    (folder / "unet" / "config.json").write_text(
        json.dumps({"_class_name": "DiTTransformer2DModel", **dit, "sample_size": 10**6})
    )
    with pytest.raises(UserError, match=r"tables would have [\d,]+ numbers: at most 67,108,864"):
        load_diffusers(folder)


#: Arguments of a snapshot that make no network, and what is said.
ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "blocks": ({"num_blocks": 10**9}, "at most"),
    "blocks at many levels": ({"num_blocks": 600, "channel_mult": [1, 2]}, "1,200 blocks: at most 1,000"),
    "channels": ({"model_channels": 10**9}, "at most 1,048,576"),
    "many channels": ({"model_channels": 2**20, "channel_mult": [2**20]}, "cannot be made|overflow|do not fit"),
    "pixels": ({"img_resolution": 2**30}, "at most|values"),
    "classes": ({"label_dim": 10**9}, "classes"),
    "taps": ({"resample_filter": [1.0] * 100_000}, "at most 64"),
    "attention": ({"attn_resolutions": [8] * 1_000_000}, "1,000,000 entries"),
    "levels": ({"M": 10**9}, "M"),
    "labels of augmentation": ({"augment_dim": 10**7}, "at most"),
}


@pytest.mark.parametrize("what", ARGUMENTS)
def test_arguments_of_a_snapshot_are_held_against_limits(what: str) -> None:
    class_name = "iDDPMPrecond" if what == "levels" else "VEPrecond"
    init = {**IMAGES, **SONG}
    tensors = theirs(class_name, network(class_name, init))
    changes, words = ARGUMENTS[what]
    with pytest.raises(UserError, match=words) as caught:
        build(class_name, {**init, **changes}, tensors)
    assert len(str(caught.value)) < 1000


def test_one_storage_is_not_many_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.zeros(1000)
    held = {f"w{i}": one.view(10, 100) for i in range(50)}  # a kilobyte of a file could make gigabytes of copies
    content = PersistentObject("VEPrecond", (), {**IMAGES, **SONG}, {"_parameters": held}, "")
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02" + bytes(8000))
    monkeypatch.setattr(nvidia, "load", lambda path: {"ema": content})
    with pytest.raises(UserError, match="tensors of 200,000 bytes, more than it has"):
        nvidia.open_snapshot(tmp_path / "a.pkl")


# ---- any JSON in place of what is expected

ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [where, *(place for key, item in inside for place in places(item, (*where, key)))]


def replaced(value: Any, place: tuple[Any, ...], new: Any) -> Any:
    if not place:
        return new
    changed = copy.copy(value)
    changed[place[0]] = replaced(value[place[0]], place[1:], new)
    return changed


def try_any_value(file: Path, read: Callable[[], object], data: st.DataObject) -> None:
    """With any value in any place of a JSON file, what reads it makes something, or says why not in a sentence."""
    text = file.read_text()
    entry = json.loads(text)
    place = data.draw(st.sampled_from(places(entry)))
    try:
        file.write_text(json.dumps(replaced(entry, place, data.draw(ANY))))
        read()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
    finally:
        file.write_text(text)


@pytest.mark.parametrize("name", ["base/model.json", "model.json"])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_value_in_a_model_json_is_a_model_or_a_sentence(saved: Path, name: str, data: st.DataObject) -> None:
    try_any_value(saved / name, lambda: load(saved), data)


@pytest.mark.parametrize("name", ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"])
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_any_value_in_a_folder_of_diffusers_is_a_model_or_a_sentence(
    original: Path, name: str, data: st.DataObject
) -> None:
    try_any_value(original / name, lambda: load_diffusers(original), data)
