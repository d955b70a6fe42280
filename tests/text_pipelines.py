"""Tiny pipelines of diffusers that draw images of a text, with random weights: SD 1.x, SDXL and SD3."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

KINDS = ("sd", "sdxl", "sd3")
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
SIZE, LENGTH, WIDTH, POOLED = 8, 5, 32, 16  # of latents, prompts, embeddings, pooled embeddings


def _unet(**more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIZE,
        block_out_channels=(32, 32),
        layers_per_block=2,
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=8,
        **more,
    )


def _network(kind: str) -> nn.Module:
    if kind == "sd":
        return _unet()
    if kind == "sdxl":
        embedding = 8
        return _unet(
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=embedding,
            projection_class_embeddings_input_dim=POOLED + 6 * embedding,
        )
    return SD3Transformer2DModel(
        sample_size=SIZE,
        patch_size=2,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=WIDTH,
        caption_projection_dim=32,
        pooled_projection_dim=POOLED,
        out_channels=4,
    )


@functools.cache
def _weights(kind: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    network = _network(kind)
    with torch.no_grad():
        for parameter in network.parameters():  # some begin at zero, where a change would not be seen
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return network.state_dict()


def pipeline(kind: str, cls: str = "") -> Any:
    """A pipeline without text encoders: prompts are embeddings."""
    network = _network(kind).eval()
    network.load_state_dict(_weights(kind))
    torch.manual_seed(1)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=SIZE).eval()
    none = {"text_encoder": None, "tokenizer": None}
    if kind == "sd3":
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        pair = {"text_encoder_2": None, "tokenizer_2": None, "text_encoder_3": None, "tokenizer_3": None}
        made = getattr(diffusers, cls or "StableDiffusion3Pipeline")(
            transformer=network, scheduler=scheduler, vae=vae, **none, **pair
        )
    elif kind == "sdxl":
        made = getattr(diffusers, cls or "StableDiffusionXLPipeline")(
            unet=network, scheduler=euler(), vae=vae, text_encoder_2=None, tokenizer_2=None, **none
        )
    else:
        made = getattr(diffusers, cls or "StableDiffusionPipeline")(
            unet=network,
            scheduler=diffusers.DDIMScheduler(beta_schedule="scaled_linear", steps_offset=1, clip_sample=False),
            vae=vae,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
            **none,
        )
    made.set_progress_bar_config(disable=True)
    return made


def euler() -> Any:
    return diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1)


def component(kind: str) -> str:
    return "transformer" if kind == "sd3" else "unet"


def network_of(pipe: Any) -> Any:
    return getattr(pipe, "transformer", None) or pipe.unet


def embeddings(kind: str, number: int) -> dict[str, Tensor]:
    """The prompt of this number and the empty one, as what the text encoders would say."""
    random = torch.Generator().manual_seed(number)
    empty = torch.Generator().manual_seed(999)
    found = {
        "prompt_embeds": torch.randn(1, LENGTH, WIDTH, generator=random),
        "negative_prompt_embeds": torch.randn(1, LENGTH, WIDTH, generator=empty),
    }
    if kind != "sd":
        found["pooled_prompt_embeds"] = torch.randn(1, POOLED, generator=random)
        found["negative_pooled_prompt_embeds"] = torch.randn(1, POOLED, generator=empty)
    return found


def draw(
    pipe: Any, kind: str, numbers: Sequence[int] = (0,), scale: float = 3.0, steps: int = 4, **more: Any
) -> Tensor:
    """Latents (B, 4, 8, 8) of these prompts, from noise that follows from the number of each."""
    prompts = [embeddings(kind, number) for number in numbers]
    noise = [torch.randn(1, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(100 + n)) for n in numbers]
    return pipe(  # type: ignore[no-any-return]
        **{name: torch.cat([prompt[name] for prompt in prompts]) for name in prompts[0]},
        latents=torch.cat(noise),
        guidance_scale=scale,
        num_inference_steps=steps,
        height=SIZE,
        width=SIZE,
        output_type="latent",
        **more,
    ).images


def inputs(kind: str, batch: int = 2) -> dict[str, Any]:
    """What one call of the network takes."""
    random = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=random)

    found: dict[str, Any] = {"timestep": torch.tensor([400.0] * batch), "encoder_hidden_states": normal(LENGTH, WIDTH)}
    if kind == "sd3":
        return {**found, "hidden_states": normal(4, SIZE, SIZE), "pooled_projections": normal(POOLED)}
    found["sample"] = normal(4, SIZE, SIZE)
    if kind == "sdxl":
        found["added_cond_kwargs"] = {"text_embeds": normal(POOLED), "time_ids": normal(6).abs()}
    return found


def trained(kind: str, rank: int = 4, alpha: float = 2.0, targets: Sequence[str] = ATTENTION) -> dict[str, Tensor]:
    """A LoRA as training would leave it, random and not small: peft's tensors, of this rank and alpha."""
    network = network_of(pipeline(kind))
    network.add_adapter(LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets)), adapter_name="own")
    random = torch.Generator().manual_seed(7)
    tensors = get_peft_model_state_dict(network, adapter_name="own")
    return {name: 0.3 * torch.randn(tensor.shape, generator=random) for name, tensor in tensors.items()}


def merged(network: nn.Module, tensors: dict[str, Tensor], factor: float) -> None:
    """Add factor * B A to the network's own weights, by hand."""
    weights = network.state_dict()
    for name in [name for name in tensors if name.endswith("lora_A.weight")]:
        module = name.removesuffix(".lora_A.weight")
        down, up = tensors[name], tensors[f"{module}.lora_B.weight"]
        weight = weights[f"{module}.weight"]
        delta = up @ down if weight.ndim == 2 else torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
        weights[f"{module}.weight"] = weight + factor * delta
    network.load_state_dict(weights)
