"""LoRA files: what diffusers makes of them is the base plus the change, computed by hand; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sims.errors import UserError
from sims.interop.lora_files import (
    baked,
    has_kohya_names,
    read_lora,
    scaled,
    to_kohya,
    weight_shapes,
    write_kohya,
    write_lora,
)
from text_pipelines import KINDS, component, inputs, merged, network_of, pipeline, trained

ALL = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "conv1", "time_emb_proj"]
MORE = ["conv2", "conv_shortcut", "downsamplers.0.conv", "conv_in", "conv_out", "linear_1", "linear_2"]
FACTOR = 2.0 / 4  # alpha / rank of what ``trained`` gives


def output(network: Any, kind: str) -> Tensor:
    with torch.no_grad():
        return network(**inputs(kind), return_dict=False)[0]  # type: ignore[no-any-return]


def by_hand(kind: str, tensors: dict[str, Tensor], factor: float) -> Tensor:
    network = network_of(pipeline(kind))
    merged(network, tensors, factor)
    return output(network, kind)


def loaded(kind: str, file: Path) -> Tensor:
    pipe = pipeline(kind)
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    return output(network_of(pipe), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_applies_the_change_once(kind: str, tmp_path: Path) -> None:
    tensors = trained(kind)
    write_lora(tmp_path / "a.safetensors", tensors, component(kind), alpha=2.0)
    wanted = by_hand(kind, tensors, FACTOR)
    assert (wanted - output(network_of(pipeline(kind)), kind)).abs().max() > 0.05
    assert (loaded(kind, tmp_path / "a.safetensors") - wanted).abs().max() < 1e-5


@pytest.mark.parametrize(("kind", "targets"), [("sd", ALL[:7]), ("sdxl", ALL), ("sdxl", ALL + MORE)])
def test_diffusers_reads_the_kohya_file_alike(kind: str, targets: list[str], tmp_path: Path) -> None:
    tensors = trained(kind, targets=targets)
    write_kohya(tmp_path / "k.safetensors", tensors, network_of(pipeline(kind)), alpha=2.0)
    assert (loaded(kind, tmp_path / "k.safetensors") - by_hand(kind, tensors, FACTOR)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_negative_factor_is_subtracted_at_strength_1(kind: str, tmp_path: Path) -> None:
    tensors = trained(kind)
    write_lora(tmp_path / "n.safetensors", scaled(tensors, -1.5), component(kind), alpha=2.0)
    assert (loaded(kind, tmp_path / "n.safetensors") - by_hand(kind, tensors, -1.5 * FACTOR)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_read_back(kind: str, tmp_path: Path) -> None:
    network = network_of(pipeline(kind))
    targets = ALL + MORE + ["upsamplers.0.conv"] if kind != "sd3" else ["to_q", "proj_out", "proj", "linear_1"]
    tensors = trained(kind, targets=targets)
    wanted = baked(tensors, 2.0)
    write_lora(tmp_path / "a.safetensors", tensors, component(kind), alpha=2.0)
    files = ["a.safetensors"]
    if has_kohya_names(network):
        write_kohya(tmp_path / "k.safetensors", tensors, network, alpha=2.0)
        files.append("k.safetensors")
    assert len(wanted) > 8 and any(tensor.ndim == 4 for tensor in wanted.values())
    for file in files:
        found = read_lora(tmp_path / file, network, component(kind))
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_alphas_of_kohya_files_of_others_are_applied(tmp_path: Path) -> None:
    tensors, network = trained("sdxl"), network_of(pipeline("sdxl"))
    kohya = to_kohya(tensors, network)
    plain = {f"lora_unet_{name.replace('.', '_')}": name for name in weight_shapes(network)}
    for name in list(kohya):
        if name.endswith(".alpha"):
            kohya[name] = torch.tensor(2.0)
    save_file(kohya, tmp_path / "k.safetensors")
    wanted = baked(tensors, 2.0)
    found = read_lora(tmp_path / "k.safetensors", network, "unet")
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    blocks = {}  # the other spelling: blocks as diffusers counts them
    for short, name in plain.items():
        if name + ".lora_A.weight" in tensors:
            blocks[f"{short}.lora_down.weight"] = tensors[name + ".lora_A.weight"]
            blocks[f"{short}.lora_up.weight"] = tensors[name + ".lora_B.weight"]
    save_file(blocks, tmp_path / "b.safetensors")
    found = read_lora(tmp_path / "b.safetensors", network, "unet")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_names_of_sdxl_are_those_of_the_published_network() -> None:
    """The places of attentions in SDXL, by kohya's own files: 4, 5, 7, 8; the middle; 0 to 5 (three levels)."""
    from types import SimpleNamespace

    from sims.interop.lora_files import _kohya_name

    config = SimpleNamespace(
        addition_embed_type="text_time",
        layers_per_block=2,
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    )
    network: Any = SimpleNamespace(config=config)
    end = "transformer_blocks.0.attn1.to_q"
    for module, wanted in {
        f"down_blocks.1.attentions.0.{end}": "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
        f"down_blocks.2.attentions.1.{end}": "input_blocks_8_1_transformer_blocks_0_attn1_to_q",
        f"mid_block.attentions.0.{end}": "middle_block_1_transformer_blocks_0_attn1_to_q",
        f"up_blocks.0.attentions.0.{end}": "output_blocks_0_1_transformer_blocks_0_attn1_to_q",
        f"up_blocks.1.attentions.2.{end}": "output_blocks_5_1_transformer_blocks_0_attn1_to_q",
        "down_blocks.0.resnets.1.conv1": "input_blocks_2_0_in_layers_2",
        "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
        "up_blocks.1.upsamplers.0.conv": "output_blocks_5_2_conv",
        "mid_block.resnets.1.time_emb_proj": "middle_block_2_emb_layers_1",
        "add_embedding.linear_2": "label_emb_0_2",
    }.items():
        assert _kohya_name(module, network) == f"lora_unet_{wanted}"


def test_what_is_no_lora_of_this_network_is_refused(tmp_path: Path) -> None:
    sd, sd3 = network_of(pipeline("sd")), network_of(pipeline("sd3"))
    tensors = trained("sd")
    save_file({"conv.weight": torch.zeros(2)}, tmp_path / "none.safetensors")
    with pytest.raises(UserError, match=r"no LoRA that can be read.*'conv.weight'"):
        read_lora(tmp_path / "none.safetensors", sd, "unet")
    write_lora(tmp_path / "sd.safetensors", tensors, "unet")
    with pytest.raises(UserError, match=r"another network.*SD3Transformer2DModel has no 'unet\.down_blocks"):
        read_lora(tmp_path / "sd.safetensors", sd3, "transformer")
    first = next(name for name in tensors if name.endswith("attn2.to_k.lora_A.weight"))
    save_file(
        {f"unet.{name}": tensor[:, :7].contiguous() if name == first else tensor for name, tensor in tensors.items()},
        tmp_path / "shape.safetensors",
    )
    with pytest.raises(UserError, match=rf"its tensor '{first}' has the shape \(4, 7\).*needs \(4, 32\)"):
        read_lora(tmp_path / "shape.safetensors", sd, "unet")
    half = {f"unet.{name}": tensor for name, tensor in tensors.items() if name != first}
    save_file(half, tmp_path / "half.safetensors")
    with pytest.raises(UserError, match=r"lora_B.weight' without .*lora_A.weight'"):
        read_lora(tmp_path / "half.safetensors", sd, "unet")
    write_kohya(tmp_path / "k.safetensors", trained("sdxl"), network_of(pipeline("sdxl")))
    with pytest.raises(UserError, match=r"has nothing that its tensor 'lora_unet_input_blocks_"):
        read_lora(tmp_path / "k.safetensors", sd, "unet")
    with pytest.raises(UserError, match="only U-Nets"):
        to_kohya(trained("sd3"), sd3)
    with pytest.raises(UserError, match=r"without biases, DoRA or text encoders"):
        baked({**tensors, "x.lora_magnitude_vector": torch.zeros(3)}, None)
    (tmp_path / "text.safetensors").write_bytes(b"hello")
    with pytest.raises(UserError):
        read_lora(tmp_path / "text.safetensors", sd, "unet")


def test_a_network_that_carries_an_adapter_is_read_for_alike(tmp_path: Path) -> None:
    pipe, tensors = pipeline("sd"), trained("sd")
    bare = weight_shapes(pipe.unet)
    write_lora(tmp_path / "a.safetensors", tensors, "unet", alpha=2.0)
    pipe.load_lora_weights(tmp_path, weight_name="a.safetensors")
    assert weight_shapes(pipe.unet) == bare
    assert read_lora(tmp_path / "a.safetensors", pipe.unet, "unet").keys() == tensors.keys()
    assert load_file(tmp_path / "a.safetensors")["unet." + next(iter(tensors))].is_contiguous()
