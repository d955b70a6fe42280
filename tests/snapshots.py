"""Snapshots as NVIDIA's code writes them (.pkl of EDM and EDM2), with random weights at toy size."""

from __future__ import annotations

import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sims.model import make_network
from sims.preconditioning import Preconditioned

CANARY = "canary"  # a file that the source code within a snapshot creates where it is run
SONG: dict[str, Any] = {
    "model_type": "SongUNet",
    "model_channels": 16,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
}
ADM = {**SONG, "model_type": "DhariwalUNet", "model_channels": 32}
EDM2 = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 16}
IMAGES = {"img_resolution": 8, "img_channels": 3, "label_dim": 0}
LATENTS = {"img_resolution": 8, "img_channels": 4, "label_dim": 5}
KINDS = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm", "Precond": "edm2"}


def network(class_name: str, init: dict[str, Any]) -> Preconditioned:
    """The same network made by this package, with random weights."""
    outer = ("img_resolution", "img_channels", "label_dim", "model_type", "use_fp16", "M", "logvar_channels")
    kind = {"SongUNet": "song_unet", "DhariwalUNet": "adm_unet", None: "edm2_unet"}[init.get("model_type")]
    table = {"type": kind, **{name: value for name, value in init.items() if name not in outer}}
    if class_name == "iDDPMPrecond":
        table["out_channels"] = 2 * init["img_channels"]
    precond = {"type": KINDS[class_name], **{name: init[name] for name in ("M", "logvar_channels") if name in init}}
    torch.manual_seed(0)
    side = init["img_resolution"]
    denoiser = make_network((init["img_channels"], side, side), init["label_dim"], table, precond)
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight += 0.1 * torch.randn(weight.shape)
    return denoiser.eval().requires_grad_(False)


def theirs(class_name: str, denoiser: Preconditioned) -> dict[str, Tensor]:
    """The tensors under NVIDIA's names."""
    inner = "unet." if class_name == "Precond" else "model."
    names = {"network.": inner, "loss_head.fourier.": "logvar_fourier.", "loss_head.linear.": "logvar_linear."}
    state = {}
    for name, value in denoiser.state_dict().items():
        old = next((old for old in names if name.startswith(old)), "")
        state[names.get(old, "") + name.removeprefix(old)] = value
    return state


def writer(folder: Path, patch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A function that writes a snapshot into ``folder`` as NVIDIA's code does; its source makes CANARY where it is run.

    ``write(class_name, state, *args, key="ema", name="network-snapshot.pkl", encoder=None, **init)`` returns the file.
    """
    module, package = types.ModuleType("torch_utils.persistence"), types.ModuleType("torch_utils")

    def _reconstruct_persistent_obj(meta: dict) -> None:
        exec(meta["module_src"])

    _reconstruct_persistent_obj.__module__ = module.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    patch.setitem(sys.modules, "torch_utils", package)
    patch.setitem(sys.modules, module.__name__, module)

    class Persistent(torch.nn.Module):
        def __init__(self, class_name: str, *args: Any, **kwargs: Any) -> None:
            super().__init__()
            self.class_name, self._init_args, self._init_kwargs = class_name, args, kwargs

        def __reduce__(self) -> tuple:
            meta = {"type": "class", "version": 6, "module_src": f"open({str(folder / CANARY)!r}, 'w')"}
            return _reconstruct_persistent_obj, ({**meta, "class_name": self.class_name, "state": self.__dict__},)

    def grow(root: torch.nn.Module, state: dict[str, Tensor]) -> torch.nn.Module:
        for name, value in state.items():
            module, (*path, last) = root, name.split(".")
            for part in path:
                if part not in module._modules:
                    made = torch.nn.ModuleDict() if part in ("enc", "dec") else Persistent("Layer")
                    module.add_module(part, made)
                module = module._modules[part]  # type: ignore[assignment]
            if last in ("freqs", "phases", "resample_filter", "u"):
                module.register_buffer(last, value)
            else:
                module.register_parameter(last, torch.nn.Parameter(value))
        return root

    def write(
        class_name: str,
        state: dict[str, Tensor],
        *args: Any,
        key: str = "ema",
        name: str = "network-snapshot.pkl",
        encoder: str | None = None,
        **init: Any,
    ) -> Path:
        root = grow(Persistent(class_name, *args, **init), state)
        root.register_buffer("absent", None)
        content: dict[str, Any] = {key: root, "dataset_kwargs": {"path": "x"}}
        if encoder is not None:
            content["encoder"] = Persistent(encoder)
        (folder / name).write_bytes(pickle.dumps(content))
        return folder / name

    return write
