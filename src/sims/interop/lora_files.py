"""Files of LoRAs (low-rank changes of a network), in the naming of diffusers and in that of kohya, for other programs.

A LoRA adds scale * B A to a weight matrix. Programs disagree on where the scale stands: diffusers and peft take
alpha / rank from metadata, or 1; kohya, A1111 and ComfyUI from a tensor ``alpha`` beside each pair, or 1. Here it is
multiplied into B, and alpha equals the rank wherever it is written: every reader applies 1, and is right.

    diffusers   unet.down_blocks.1.attentions.0.(...).to_q.lora_A.weight      and lora_B, without alpha
    kohya       lora_unet_down_blocks_1_attentions_0_(...)_to_q.lora_down.weight   and lora_up, alpha
                of SDXL: lora_unet_input_blocks_4_1_(...)_to_q, the names of the network that was published first

Within this package a LoRA is a table of peft's names without a prefix: ``down_blocks.1. ... .to_q.lora_A.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sims.errors import UserError
from sims.files import atomic_path
from sims.interop.state_dicts import read, some

DOWN, UP = ".lora_A.weight", ".lora_B.weight"
_KOHYA = {".lora_down.weight": DOWN, ".lora_up.weight": UP}
_ALPHA, _PREFIX = ".alpha", "lora_unet_"
_WRAPPED = "base_model.model."  # before the names of networks that peft has wrapped as a whole

_OF_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE_BLOCKS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_BLOCK = re.compile(r"(down|mid|up)_block(?:s\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def scaled(tensors: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The LoRA that changes the network ``factor`` times as much: B is multiplied, in float32, and A stays.

    With the factor -w it is Neon: theta - w (theta_LoRA - theta) at strength 1.
    """
    return {
        name: (tensor.float() * factor).to(tensor.dtype) if name.endswith(UP) else tensor
        for name, tensor in tensors.items()
    }


def baked(tensors: Mapping[str, Tensor], alpha: float | None) -> dict[str, Tensor]:
    """The same LoRA with alpha equal to the rank, by peft's names without prefix; alpha None = it is already so.

    Errors: UserError for names that are not pairs of A and B (biases, DoRA), or ranks that differ within a pair.
    """
    plain = {name.removeprefix(_WRAPPED): tensor.detach() for name, tensor in tensors.items()}
    found = {}
    for module, down, up in _pairs(plain, "this LoRA"):
        found[module + DOWN] = down
        found[module + UP] = up if alpha is None else (up.float() * (alpha / down.shape[0])).to(up.dtype)
    return found


def write_lora(
    file: Path | str,
    tensors: Mapping[str, Tensor],
    component: str,
    alpha: float | None = None,
) -> None:
    """Write a LoRA in diffusers' naming, for ``load_lora_weights`` of a pipeline with this component.

    ``tensors`` are peft's (``get_peft_model_state_dict(network, adapter_name=...)``), ``alpha`` is the one that they
    were trained with (None: the rank), ``component`` is "unet" or "transformer". Errors: UserError as ``baked``.
    """
    _save(file, {f"{component}.{name}": tensor for name, tensor in baked(tensors, alpha).items()})


def write_kohya(
    file: Path | str,
    tensors: Mapping[str, Tensor],
    network: nn.Module,
    alpha: float | None = None,
) -> None:
    """Write a LoRA in kohya's naming, for A1111, ComfyUI, kohya and diffusers; errors as ``to_kohya``."""
    _save(file, to_kohya(baked(tensors, alpha), network))


def has_kohya_names(network: nn.Module) -> bool:
    """Whether kohya's naming is agreed on for such a network: U-Nets; programs differ in that of transformers."""
    return type(network).__name__ == "UNet2DConditionModel"


def to_kohya(tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """A LoRA (with alpha equal to the rank) under kohya's names; UserError for a network that is no U-Net."""
    if not has_kohya_names(network):
        raise UserError(
            f"LoRAs of a {type(network).__name__} have no name in kohya's naming, which only U-Nets have: "
            "write the file of diffusers' naming, which ComfyUI reads too"
        )
    found = {}
    for module, down, up in _pairs(tensors, "this LoRA"):
        name = _kohya_name(module, network)
        found[f"{name}.lora_down.weight"], found[f"{name}.lora_up.weight"] = down, up
        found[name + _ALPHA] = torch.tensor(float(down.shape[0]))
    return found


def read_lora(file: Path | str, network: nn.Module, component: str) -> dict[str, Tensor]:
    """The LoRA of a file in either naming, under peft's names and with alpha equal to the rank.

    Errors: UserError for a file that is missing, damaged or no LoRA, and for one of another network, or of another
    shape, which names the tensor.
    """
    tensors = read(file).tensors
    if any(name.startswith(_PREFIX) for name in tensors):
        found = _from_kohya(file, tensors, network)
    else:
        found = {name.removeprefix(f"{component}."): tensor for name, tensor in tensors.items()}
        if not any(name.endswith((DOWN, UP)) for name in found):
            raise UserError(
                f"{file} is no LoRA that can be read: it has tensors such as {next(iter(tensors))!r}, and those of a "
                f"LoRA are called {component}. ... {DOWN} and {UP}, or {_PREFIX} ...; give the file of a LoRA"
            )
    shapes = weight_shapes(network)
    for module, down, up in _pairs(found, str(file)):
        if module not in shapes:
            raise UserError(
                f"{file} is the LoRA of another network: the {type(network).__name__} has no {module!r}, which its "
                f"tensor {module + DOWN!r} changes; give the LoRA of this model"
            )
        out, *rest = shapes[module]
        rank = down.shape[0]
        for name, tensor, wanted in (
            (module + DOWN, down, (rank, *rest)),
            (module + UP, up, (out, rank, *[1] * (len(rest) - 1))),
        ):
            if tuple(tensor.shape) != wanted:
                raise UserError(
                    f"{file} is the LoRA of another network: its tensor {name!r} has the shape {tuple(tensor.shape)}, "
                    f"and this {type(network).__name__} needs {wanted}; give the LoRA of this model"
                )
    return found


def weight_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every module's weight, by names that do not change with the adapters the network carries."""
    shapes = {}
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and ".lora_" not in name and not hasattr(module, "base_layer"):
            shapes[name.removesuffix(".base_layer")] = tuple(weight.shape)
    return shapes


def _pairs(tensors: Mapping[str, Tensor], where: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(module, A, B) of each module; UserError for anything else."""
    if not tensors:
        raise UserError(f"{where} has no tensors: give a LoRA")
    others = [name for name in tensors if not name.endswith((DOWN, UP))]
    if others:
        raise UserError(
            f"{where} has tensors that are no LoRA's of this network: {some(others)}; give a LoRA without biases, "
            "DoRA or text encoders"
        )
    for module in dict.fromkeys(name.removesuffix(DOWN).removesuffix(UP) for name in tensors):
        down, up = tensors.get(module + DOWN), tensors.get(module + UP)
        if down is None or up is None:
            there, lacks = (UP, DOWN) if down is None else (DOWN, UP)
            raise UserError(f"{where} has {module + there!r} without {module + lacks!r}: restore or give another file")
        if down.ndim < 2 or up.ndim < 2 or down.shape[0] != up.shape[1]:
            raise UserError(
                f"{where} has tensors that do not fit each other: {module + DOWN!r} of the shape {tuple(down.shape)} "
                f"and {module + UP!r} of the shape {tuple(up.shape)}; give another file"
            )
        yield module, down, up


def _from_kohya(file: Path | str, tensors: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Kohya's names as peft's, by the names that the network has: dots cannot be told from underscores otherwise."""
    modules = {}
    for module in weight_shapes(network):
        modules[_underscored(module)] = module
        if has_kohya_names(network):
            modules[_kohya_name(module, network)] = module
    found = {}
    for name, tensor in tensors.items():
        short, dot, kind = name.partition(".")
        if short not in modules:
            raise UserError(
                f"{file} is the LoRA of another network: the {type(network).__name__} has nothing that its tensor "
                f"{name!r} changes; give the LoRA of this model"
            )
        if dot + kind == _ALPHA:
            continue
        module = modules[short]
        found[module + _KOHYA.get(dot + kind, dot + kind)] = tensor
        alpha = tensors.get(short + _ALPHA)
        if _KOHYA.get(dot + kind) == UP and alpha is not None and tensor.ndim > 1:
            factor = float(alpha) / tensor.shape[1]
            found[module + UP] = (tensor.float() * factor).to(tensor.dtype)
    return found


def _underscored(module: str) -> str:
    return _PREFIX + module.replace(".", "_")


def _kohya_name(module: str, network: nn.Module) -> str:
    """As kohya trains it: SD 1.x and 2.x on the network of diffusers, SDXL on the one that was published first."""
    config: Any = network.config
    if getattr(config, "addition_embed_type", None) != "text_time" or not isinstance(config.layers_per_block, int):
        return _underscored(module)
    if module in _OUTSIDE_BLOCKS:
        return _underscored(_OUTSIDE_BLOCKS[module])
    match = _BLOCK.fullmatch(module)
    if match is None:
        return _underscored(module)
    side, block, kind, place, rest = match.groups()
    number, layers = int(place), config.layers_per_block + 1
    if kind == "resnets":
        first, _, further = rest.partition(".")
        rest = _OF_RESNET.get(first, first) + ("." + further if further else "")
    if side == "mid":  # a resnet, an attention, a resnet
        return _underscored(f"middle_block.{2 * number if kind == 'resnets' else 1}.{rest}")
    inner = {"resnets": 0, "attentions": 1}
    if side == "down":
        if kind == "downsamplers":
            return _underscored(f"input_blocks.{(int(block) + 1) * layers}.0.op")
        return _underscored(f"input_blocks.{1 + int(block) * layers + number}.{inner[kind]}.{rest}")
    if kind == "upsamplers":  # after the last resnet of its block, and the attention where there is one
        attention = "Attn" in config.up_block_types[int(block)]
        return _underscored(f"output_blocks.{(int(block) + 1) * layers - 1}.{2 if attention else 1}.{rest}")
    return _underscored(f"output_blocks.{int(block) * layers + number}.{inner[kind]}.{rest}")


def _save(file: Path | str, tensors: Mapping[str, Tensor]) -> None:
    kept = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    with atomic_path(file) as temporary:
        save_file(kept, temporary, metadata={"format": "pt"})  # one entry: the order of several is left to chance
