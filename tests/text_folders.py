"""Folders of tiny text-to-image pipelines with text encoders, random weights, and captioned pictures."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

KINDS = ("sd", "sdxl", "sd3")
PROMPTS = ("red", "green", "blue")
TOKENS = 12
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEADING: dict[str, Any] = {"steps_offset": 1, "timestep_spacing": "leading"}


def tokenizer(folder: Path) -> CLIPTokenizer:
    """Of letters."""
    letters = string.ascii_lowercase
    words = [*letters, *(f"{letter}</w>" for letter in letters), "ab", "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)


def encoder(cls: Any = CLIPTextModel) -> Any:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 53, "eos_token_id": 54, "pad_token_id": 54}
    return cls(
        CLIPTextConfig(vocab_size=55, max_position_embeddings=TOKENS, projection_dim=16, **sizes, **special)
    ).eval()


def autoencoder() -> AutoencoderKL:
    """16 x 16 pixels to 8 x 8 latents."""
    return AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        block_out_channels=[8, 8],
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    )


def unet(**more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        block_out_channels=[8, 16],
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        **{"cross_attention_dim": 16, **more},
    )


def write_pipeline(kind: str, folder: Path, **more: Any) -> Path:
    """A pipeline of this kind in a folder, as the library writes it; ``more`` configures an SD's network."""
    torch.manual_seed(0)
    words = tokenizer(folder.with_name(f"{folder.name}-tokenizer"))
    scheduler: Any = EulerDiscreteScheduler(**BETAS, **LEADING)
    if kind == "sd":
        made: Any = diffusers.StableDiffusionPipeline(
            vae=autoencoder(), text_encoder=encoder(), tokenizer=words, unet=unet(**more), scheduler=scheduler,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    elif kind == "sdxl":
        sizes = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
        network = unet(cross_attention_dim=32, projection_class_embeddings_input_dim=16 + 6 * 8, **sizes)
        made = diffusers.StableDiffusionXLPipeline(
            vae=autoencoder(), text_encoder=encoder(), text_encoder_2=encoder(CLIPTextModelWithProjection),
            tokenizer=words, tokenizer_2=words, unet=network, scheduler=scheduler,
        )  # fmt: skip
    else:
        network = diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
            num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=32,
        )  # fmt: skip
        with torch.no_grad():
            for weight in network.parameters():  # some begin at zero, where a change would not be seen
                weight.add_(0.02 * torch.randn(weight.shape))
        made = diffusers.StableDiffusion3Pipeline(
            transformer=network, scheduler=FlowMatchEulerDiscreteScheduler(), vae=autoencoder(),
            text_encoder=encoder(CLIPTextModelWithProjection), text_encoder_2=encoder(CLIPTextModelWithProjection),
            tokenizer=words, tokenizer_2=words, text_encoder_3=None, tokenizer_3=None,
        )  # fmt: skip
    made.save_pretrained(folder)
    return folder


def opened(kind: str, folder: Path) -> Any:
    """The pipeline by the library alone."""
    absent = {"sd": ["safety_checker"], "sdxl": [], "sd3": ["text_encoder_3", "tokenizer_3"]}[kind]
    made: Any = diffusers.DiffusionPipeline.from_pretrained(folder, **dict.fromkeys(absent))
    made.set_progress_bar_config(disable=True)
    return made


def write_pictures(folder: Path, train: int = 60, test: int = 30) -> Path:
    """Noisy pictures of 16 x 16 pixels in one of three colours, with captions and labels."""
    rng = np.random.default_rng(0)
    for part, count in (("train", train), ("test", test)):
        (folder / part).mkdir(parents=True)
        rows = []
        for index in range(count):
            colour = int(rng.integers(3))
            pixels = rng.integers(0, 80, (16, 16, 3))
            pixels[..., colour] += 120
            name = f"{index:03d}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name)
            rows.append({"file_name": name, "text": PROMPTS[colour], "label": colour})
        (folder / part / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder
