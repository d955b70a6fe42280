"""Files of tensors: what is in them comes out under the network's own names, averages first, and nothing is run."""

from __future__ import annotations

import argparse
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sims.errors import UserError
from sims.interop.state_dicts import read, read_state_dict


class Net(nn.Module):
    """Two layers, one within another, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, 3)


def state(add: float = 0.0) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {name: tensor + add for name, tensor in Net().state_dict().items()}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in tensors.items()}


def optimizer() -> dict[str, Any]:
    net = Net()
    made = torch.optim.Adam(net.parameters())
    net.head(net.model(torch.randn(2, 3))).sum().backward()
    made.step()
    return made.state_dict()


def litema(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Averages of parameters under names without dots."""
    return {
        f"model_ema.{n.replace('.', '')}": t + 1 for n, t in tensors.items() if "running" not in n and "num_" not in n
    }


def shadows(tensors: dict[str, Tensor]) -> list[Tensor]:
    return [tensors[name] + 1 for name, _ in Net().named_parameters()]


WRITTEN: dict[str, tuple[Callable[[], Any], str]] = {  # what trainers write: content, and what is said of it
    "bare": (lambda: state(1), ""),
    "Lightning": (lambda: {"state_dict": state(1), "epoch": 3, "optimizer_states": [optimizer()]}, "'state_dict'"),
    "model": (lambda: {"model": state(1), "optimizer": optimizer(), "step": 10}, "under 'model'"),
    "compiled": (lambda: {"model": under("module._orig_mod.", state(1))}, "'model.module._orig_mod'"),
    "DiT": (
        lambda: {"model": state(), "ema": state(1), "opt": optimizer(), "args": argparse.Namespace(model="DiT-S/2")},
        "averages of the weights ('ema') are taken, and not the weights ('model')",
    ),
    "averages alone": (lambda: under("ema_model.module.", state(1)), "averages of the weights ('ema_model') are taken"),
    "ema_pytorch": (
        lambda: {"model": state(), "ema": {
            **under("online_model.", state()), **under("ema_model.", state(1)), "step": torch.tensor(3)}},
        "('ema') are taken, and not the weights",
    ),
    "k-diffusion": (lambda: {"config": {"a": 1}, "model": state(), "model_ema": state(1)}, "('model_ema') are taken"),
    "latent diffusion": (
        lambda: {"state_dict": {**under("model.", state()), **litema(state())}}, "averages of the weights ('ema')"),
    "latent diffusion, counted": (
        lambda: {"state_dict": {**under("model.", state()), **litema(state()), "model_ema.decay": torch.tensor(0.999),
                                "model_ema.num_updates": torch.tensor(5)}},
        "averages of the weights ('ema')"),
    "capitals": (lambda: {"model": state(), "model_EMA": state(1)}, "('model_EMA') are taken, and not the weights"),
    "humps": (lambda: {"model": state(), "emaModel": state(1)}, "('emaModel') are taken, and not the weights"),
    "shadow parameters": (
        lambda: {"model": state(), "ema": {"decay": 0.9, "shadow_params": shadows(state())}, "optimizer": optimizer()},
        "averages of the weights ('ema')"),
    "flow matching": (
        lambda: {"model": {**under("model.", state()), "num_updates": torch.tensor(3),
                           **{f"shadow_params.{i}": t for i, t in enumerate(shadows(state()))}}},
        "averages of the weights ('ema')"),
    "AveragedModel": (lambda: {**under("module.", state(1)), "n_averaged": torch.tensor(7)}, "under 'module'"),
}  # fmt: skip


def test_of_several_averages_the_others_are_named(tmp_path: Path) -> None:
    """Lists, and keys with dots, which look like names within names, are told as they are written."""
    for content, taken, left in (
        ({"model": state(), "ema": [state(1), state(2)]}, "('ema.0')", "'ema.1'"),
        ({"model": state(), "ema_0.99": state(1), "ema_0.9999": state(2)}, "('ema_0.99')", "'ema_0.9999'"),
    ):
        torch.save(content, tmp_path / "net.pt")
        tensors, notes = read_state_dict(tmp_path / "net.pt", list(state()))
        torch.testing.assert_close(tensors["head.weight"], state(1)["head.weight"])
        assert taken in notes[0] and notes[1] == f"there are other averages, which are not taken: {left}"


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_checkpoint_wrapped_module"])
def test_parts_that_were_compiled_or_checkpointed_have_their_names(wrapper: str, tmp_path: Path) -> None:
    inside = {name.replace("model.0.", f"model.0.{wrapper}."): tensor for name, tensor in state(1).items()}
    torch.save({"state_dict": inside}, tmp_path / "net.pt")
    tensors, _ = read_state_dict(tmp_path / "net.pt", list(state()))
    assert set(tensors) == set(state()) and torch.equal(tensors["model.0.weight"], state(1)["model.0.weight"])


BESIDE: dict[str, Callable[[], Any]] = {
    "words": lambda: np.array(["a", "bc"]), "a word": lambda: np.str_("x"), "objects": lambda: np.array([{}, None]),
    "records": lambda: np.zeros(2, [("a", "f4"), ("b", "i8")]), "a date": lambda: np.datetime64("2024-01-01"),
    "long": lambda: np.longdouble(1.5), "keys": lambda: {(1, 2): 3, np.dtype("f4"): 4},
    "expanded": lambda: torch.ones(1).expand(1000), "a set": lambda: {(1, 2), 3},
}  # fmt: skip


@pytest.mark.parametrize("name", BESIDE)
def test_what_lies_beside_the_weights_keeps_nobody_from_them(name: str, tmp_path: Path) -> None:
    torch.save({"model": state(1), "history": {"of": BESIDE[name]()}, "last": [BESIDE[name]()]}, tmp_path / "net.pt")
    tensors, _ = read_state_dict(tmp_path / "net.pt", list(state()))
    assert all(torch.equal(tensors[key], value) for key, value in state(1).items())


def test_a_parameter_with_an_attribute_is_a_parameter(tmp_path: Path) -> None:
    parameters = {name: nn.Parameter(value) for name, value in state(1).items() if value.is_floating_point()}
    for parameter in parameters.values():
        parameter.no_weight_decay = True
    torch.save(parameters, tmp_path / "net.pt")
    assert set(read_state_dict(tmp_path / "net.pt")[0]) == set(parameters)


NEW_AND_OLD = [True, False]


@pytest.mark.parametrize("wanted", [True, False], ids=["names known", "names unknown"])
@pytest.mark.parametrize("name", WRITTEN)
def test_what_trainers_write_is_read(name: str, wanted: bool, tmp_path: Path) -> None:
    make, said = WRITTEN[name]
    torch.save(make(), tmp_path / "net.pt")
    tensors, notes = read_state_dict(tmp_path / "net.pt", list(state()) if wanted else ())
    for key, value in state(1).items():
        if key in dict(Net().named_parameters()):  # some averages leave out buffers
            torch.testing.assert_close(tensors[key], value)
        assert tensors[key].shape == value.shape
    assert set(tensors) - {"n_averaged"} == set(state())
    assert said in " ".join(notes)
    assert bool(notes) == bool(said)


def test_safetensors_and_the_old_format_of_torch(tmp_path: Path) -> None:
    save_file(under("module.", state()), tmp_path / "a.safetensors", {"step": "3"})
    torch.save({"model": under("module.", state())}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "b.pt"):
        tensors, _ = read_state_dict(tmp_path / name, list(state()))
        torch.testing.assert_close(tensors, state())
    assert read(tmp_path / "a.safetensors").values == {"step": 3}


def test_a_network_with_a_part_called_model_keeps_it(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "net.pt")
    assert set(read_state_dict(tmp_path / "net.pt")[0]) == set(state())


def test_a_module_saved_whole_gives_its_tensors_alone(tmp_path: Path) -> None:
    net = Net()
    torch.save(net, tmp_path / "net.pt")
    torch.testing.assert_close(read_state_dict(tmp_path / "net.pt")[0], dict(net.state_dict()))


def test_a_module_saved_whole_gives_what_its_lists_and_tables_hold(tmp_path: Path) -> None:
    """Whatever holds modules; and no buffer that its state dict is without."""
    net = nn.Module()
    net.parts = nn.ModuleDict({"list": nn.ModuleList([nn.Linear(2, 3, bias=False), nn.Sequential(nn.BatchNorm1d(3))])})
    net.numbers = nn.ParameterList([nn.Parameter(torch.rand(2))])
    net.table = nn.ParameterDict({"one": nn.Parameter(torch.rand(2))})
    net.register_buffer("kept", torch.rand(3))
    net.register_buffer("made", torch.rand(3), persistent=False)
    torch.save(net, tmp_path / "net.pt")
    torch.testing.assert_close(read(tmp_path / "net.pt").tensors, dict(net.state_dict()))


def test_views_types_and_plain_values(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.float64).reshape(4, 6)
    content = {
        "view": whole[1:3, ::2], "half": torch.ones(3).half(), "brain": torch.ones(3).bfloat16(),
        "yes": torch.tensor([True, False]), "empty": torch.zeros(0, 3), "parameter": nn.Parameter(torch.ones(2)),
        "args": {"size": 32, "path": Path("a")},
    }  # fmt: skip
    torch.save(content, tmp_path / "net.pt")
    found = read(tmp_path / "net.pt")
    for name, tensor in found.tensors.items():
        torch.testing.assert_close(tensor, content[name].detach())
        assert tensor.dtype == content[name].dtype
    assert len(found.tensors) == 6
    assert found.values["args.size"] == 32


def test_an_archive_that_was_packed_again_is_read(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "net.pt")
    for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
        with zipfile.ZipFile(tmp_path / "net.pt") as old, zipfile.ZipFile(tmp_path / "again.pt", "w", method) as new:
            for info in old.infolist():
                new.writestr(info.filename, old.read(info))
        torch.testing.assert_close(read_state_dict(tmp_path / "again.pt")[0], state())


class Canary:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("new", NEW_AND_OLD)
def test_nothing_in_a_file_is_run(new: bool, tmp_path: Path) -> None:
    torch.save(
        {"w": torch.ones(2), "harm": Canary(tmp_path / "ran")}, tmp_path / "a.pt", _use_new_zipfile_serialization=new
    )
    if new:
        assert list(read_state_dict(tmp_path / "a.pt")[0]) == ["w"]
    else:
        with pytest.raises(UserError, match="asks for more"):
            read_state_dict(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


def write_broken(folder: Path) -> dict[str, str]:
    """Files that are none, and what is to be said of them."""
    torch.save(state(), folder / "whole.pt")
    save_file(state(), folder / "whole.safetensors")
    (folder / "cut.pt").write_bytes((folder / "whole.pt").read_bytes()[:-200])
    (folder / "cut.safetensors").write_bytes((folder / "whole.safetensors").read_bytes()[:-20])
    (folder / "empty.pt").touch()
    (folder / "lfs.pt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n")
    (folder / "page.pt").write_text("\n<!DOCTYPE html><html></html>")
    (folder / "keras.pt").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    (folder / "noise.pt").write_bytes(bytes(range(200, 250)))
    (folder / "words.ckpt").write_text("nothing")
    np.savez(folder / "arrays.npz", a=np.ones(3))
    torch.save({"step": 3}, folder / "none.pt")
    torch.jit.script(nn.Linear(2, 2)).save(str(folder / "script.pt"))
    return {
        "cut.pt": "damaged", "cut.safetensors": "damaged", "empty.pt": "empty", "lfs.pt": "git lfs pull",
        "page.pt": "web page", "keras.pt": "HDF5", "noise.pt": "no file of tensors",
        "words.ckpt": "no file of tensors",
        "arrays.npz": "an .npz of numpy", "none.pt": "no tensors", "script.pt": "TorchScript",
        "absent.pt": "no file .*check the path",
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_other_files_are_named(tmp_path: Path) -> None:
    for name, words in write_broken(tmp_path).items():
        with pytest.raises(UserError, match=words) as caught:
            read_state_dict(tmp_path / name)
        assert "\n" not in str(caught.value), name


@pytest.mark.parametrize("change", ["longer", "other storage"])
def test_an_archive_whose_pickle_lies_is_refused(change: str, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1000)}, tmp_path / "net.pt")
    with zipfile.ZipFile(tmp_path / "net.pt") as old, zipfile.ZipFile(tmp_path / "lie.pt", "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith("data.pkl"):
                data = (
                    data.replace(b"M\xe8\x03", b"M\xff\xff") if change == "longer" else data.replace(b"Float", b"Flout")
                )
            new.writestr(info.filename, data)
    with pytest.raises(UserError, match="damaged"):
        read_state_dict(tmp_path / "lie.pt")
