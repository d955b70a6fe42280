"""Networks of others, known by the names of their tensors: architecture from shapes, and what else is usual."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from sims.config import JSON
from sims.data.codec import UINT8, Codec, Latents
from sims.errors import UserError
from sims.interop.reading import Reading
from sims.interpolants import of_betas

_STABLE_DIFFUSION = Codec("latents", -3.0, 3.0, "float32", Latents(scale=(0.18215,)))
BY_THE_FILE = "the file says so"
_PLAIN_LATENTS = Codec("identity", -3.0, 3.0, "float32")


@dataclass(frozen=True)
class Understood:
    """What a file of tensors is: the network's table, its data and classes, and what its output usually means."""

    network: dict[str, JSON]
    data_shape: tuple[int, int, int]
    num_classes: int
    prediction: str
    why: str
    schedule: str | Mapping[str, JSON] = ""  # "" = that which goes with the prediction
    codec: Codec = UINT8


@dataclass(frozen=True)
class Family:
    """Networks of one kind: tensors that all of them have, and how one is understood from its tensors."""

    name: str
    marks: tuple[str, ...]
    understand: Callable[[Reading], Understood]
    inner: str = ""  # what may stand before its names, with tensors that say more beside it


# -- DiT and SiT -------------------------------------------------------------------------------------------------------


def _dit(reading: Reading) -> Understood:
    width, channels, patch, _ = reading.shape("x_embedder.proj.weight")
    positions = reading.shape("pos_embed")[1]
    side = math.isqrt(positions)
    if side * side != positions:
        raise UserError(f"{reading.content.path} has positions for {positions} patches: only square images can be read")
    outputs = reading.shape("final_layer.linear.weight")[0] // patch**2
    usual = 16 if width in (1024, 1152) else max(1, width // 64)
    heads = reading.ask("heads", usual, "as published for its width", ["num_heads"])
    classes, null = _classes(reading, "y_embedder.embedding_table.weight", null=True)
    network: dict[str, JSON] = {
        "type": "dit",
        "out_channels": outputs,
        "patch_size": patch,
        "hidden_size": width,
        "depth": reading.count("blocks"),
        "num_heads": heads,
        "mlp_ratio": reading.shape("blocks.0.mlp.fc1.weight")[0] / width,
        "null_class": null,
        "label_dropout": 0.1 if null and classes else 0.0,
    }
    words = " ".join(str(reading.told(name)).lower() for name in ("model", "class"))
    named = next((kind for kind in ("sit", "dit") for text in (words, reading.file) if kind in text), "")
    prediction, why = ("velocity", "of a SiT, by its name") if named == "sit" else ("eps", "of a DiT, by its name")
    if not named:
        why = "a DiT's; a SiT has the same tensors, and velocity with rectified_flow"
    prediction, why, path = _transport(reading, prediction, why, "Linear" if named == "sit" else "")
    data_shape = (channels, side * patch, side * patch)
    return Understood(network, data_shape, classes, prediction, why, path, _codec(reading, channels))


#: From data to noise, as SiT names it, and as REPA does, where time runs the other way.
_PATHS = {
    "Linear": "rectified_flow:data_at=1", "GVP": "trigonometric:data_at=1",
    "linear": "rectified_flow", "cosine": "trigonometric",
}  # fmt: skip
_GIVES = {"velocity": "velocity", "v": "velocity", "noise": "eps", "eps": "eps", "epsilon": "eps", "score": "score"}


def _transport(reading: Reading, prediction: str, why: str, usual: str) -> tuple[str, str, str]:
    """What a SiT gives, why, and its path, where the arguments in its file say so; else as it is usual.

    Options go before. UserError for arguments that nothing here stands for.
    """
    given, (path, gives) = reading.given, (reading.told("path_type"), reading.told("prediction"))
    for name, told, known in (("schedule", path, _PATHS), ("prediction", gives, _GIVES)):
        if told is not None and str(told) not in known and not getattr(given, name):
            raise UserError(
                f"{reading.content.path} says that it was trained with {told!r}, and {', '.join(known)} can be read: "
                f"choose another, or say with option {name!r} what it is"
            )
    if path is None and gives is None:
        return prediction, why, ""
    if gives is not None:
        prediction, why = _GIVES.get(str(gives), prediction), BY_THE_FILE
    return prediction, why, _PATHS.get(str(path or usual), "")


# -- the U-Nets of guided-diffusion ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Published:
    """Settings that tensors do not tell, of published networks known by their sizes."""

    name: str
    size: int
    schedule: str
    heads: int = 4
    head_channels: int | None = None
    order: str = "legacy"


_IMPROVED = "cosine:steps=4000,scale=0.25"
#: (channels, their multiples, blocks, learned variance)
_GUIDED: dict[tuple[int, tuple[float, ...], int, bool], _Published] = {
    (192, (1, 2, 3, 4), 3, True): _Published("ADM for 64x64", 64, "cosine", head_channels=64, order="new"),
    (256, (1, 1, 2, 3, 4), 2, True): _Published("ADM for 128x128", 128, "linear"),
    (256, (1, 1, 2, 2, 4, 4), 2, True): _Published("ADM for 256x256", 256, "linear", head_channels=64),
    (256, (0.5, 1, 1, 2, 2, 4, 4), 2, True): _Published("ADM for 512x512", 512, "linear", head_channels=64),
    (128, (1, 2, 2, 2), 3, True): _Published("improved-diffusion for 32x32", 32, _IMPROVED),
    (128, (1, 2, 3, 4), 3, True): _Published("improved-diffusion for 64x64", 64, _IMPROVED),
    (128, (2, 2, 2), 4, False): _Published("flow matching for 32x32", 32, "", heads=1, order="new"),
    (192, (1, 2, 3, 4), 3, False): _Published("those for 64x64", 64, "", head_channels=64, order="new"),
}


def _guided(reading: Reading) -> Understood:
    base = reading.shape("time_embed.0.weight")[1]
    channels = reading.shape("input_blocks.0.0.weight")[1]
    outputs = reading.shape("out.2.weight")[0]
    widths, blocks, attention, resampling = _levels(reading)
    learned = outputs == 2 * channels
    multiples = tuple(width / base for width in widths)
    flat = next((len(reading.shape(name)) for name in reading.tensors if name.endswith(".qkv.weight")), 3) == 3
    known = _GUIDED.get((base, multiples, blocks, learned))
    published = known or _Published("", 8 << (len(widths) - 1), "linear", order="legacy" if flat else "new")
    why = f"as published for {published.name}" if known else "usual"
    embedded = reading.shape("input_blocks.1.0.emb_layers.1.weight")[0]
    heads, each = _heads(reading, published, why, [widths[level] for level in attention] + [widths[-1]])
    classes, null = _classes(reading, "label_emb.weight", null=_last_row_is_zero(reading, "label_emb.weight"))
    network: dict[str, JSON] = {
        "type": "guided_unet", "out_channels": outputs, "model_channels": base, "widths": [*widths],
        "num_blocks": blocks, "attention": [*attention], "num_heads": heads, "head_channels": each,
        "resampling": resampling, "scale_shift": embedded == 2 * widths[0], "pointwise": 1 if flat else 2,
        "order": reading.ask("attention_order", published.order, why), "null_class": null,
    }  # fmt: skip
    size = _size(reading, published.size, "its lowest resolution taken for 8" if not known else why)
    prediction, because, schedule = _guided_prediction(reading, flat, resampling == "plain" or null)
    chosen = published.schedule if prediction == "eps" and not schedule else schedule
    codec = _PLAIN_LATENTS if "diffusion_model" in reading.prefix else _codec(reading, channels)
    return Understood(network, (channels, size, size), classes, prediction, because, chosen, codec)


_DOUBLING = re.compile(r"output_blocks\.(\d+)\.[12]\.in_layers\.2\.weight")


def _guided_prediction(reading: Reading, flat: bool, of_flow: bool) -> tuple[str, str, str]:
    """What such a network usually gives, why, and its schedule where that differs from the published one's."""
    if not flat or re.match(r"(cd|ct|edm)_", reading.file):
        if re.match(r"(cd|ct)_", reading.file):
            return "consistency", "a consistency model's, by its file's name", ""
        return "edm", "a teacher's of consistency models; those themselves have 'consistency'", ""
    if of_flow or "flow" in reading.file:
        return "velocity", "as of flow matching's networks", ""
    return "eps", "as of guided-diffusion's networks", ""


def _levels(reading: Reading) -> tuple[list[int], int, list[int], str]:
    """Width of each resolution, blocks of each, resolutions that attend, and how the sides are halved.

    Encoder and decoder have as many parts, the same number for each resolution: blocks and what halves, blocks and one.
    """
    names, parts = list(reading.tensors), reading.count("input_blocks")
    if any(".attn2." in name for name in names):
        raise UserError(f"{reading.content.path} is a network that text steers, which cannot be read: choose another")
    filled = {int(name.split(".")[1]) for name in names if name.startswith("input_blocks.")}
    ways = {
        "conv": {int(name.split(".")[1]) for name in names if name.endswith(".0.op.weight")},
        "plain": {*range(parts)} - filled,
        "block": {1 + int(match[1]) for name in names if (match := _DOUBLING.match(name))},
    }
    resampling, places = next(((way, found) for way, found in ways.items() if found), ("block", {parts}))
    period = min(places)
    if parts % period or reading.count("output_blocks") != parts or period < 2:
        raise UserError(f"{reading.content.path} has other blocks than a U-Net of guided-diffusion: it cannot be read")
    starts = range(1, parts, period)
    widths = [reading.shape(f"input_blocks.{start}.0.out_layers.3.weight")[0] for start in starts]
    attention = [level for level, start in enumerate(starts) if f"input_blocks.{start}.1.qkv.weight" in names]
    return widths, period - 1, attention, resampling


def _heads(reading: Reading, published: _Published, why: str, widths: list[int]) -> tuple[int, int | None]:
    """Number of heads and channels of each: one of them is asked for."""
    told = reading.told("num_head_channels")
    if reading.given_for("heads"):
        return int(str(reading.given.heads)), None
    by_number = isinstance(told, int) and told < 1  # as guided-diffusion says that num_heads counts
    each = None if by_number else published.head_channels
    if not published.name and not by_number and reading.told("num_heads") is None:
        each = 64 if all(width % 64 == 0 for width in widths) else None
    if reading.given_for("head_channels") or each or (isinstance(told, int) and told > 0):
        return 1, reading.ask("head_channels", each or 64, why, ["num_head_channels"])
    return reading.ask("heads", published.heads, why, ["num_heads"]), None


# -- denoising-diffusion-pytorch ---------------------------------------------------------------------------------------


def _ddp(reading: Reading) -> Understood:
    if any(".fn." in name for name in reading.tensors):
        raise UserError(
            f"{reading.content.path} is of denoising-diffusion-pytorch before version 1.8, whose network differs: wrap "
            "its own module with sims.wrap"
        )
    levels = reading.count("downs")
    first, channels = reading.shape("init_conv.weight")[:2]
    outputs = reading.shape("final_conv.weight")[0]
    if channels == 2 * outputs:
        raise UserError(f"{reading.content.path} is conditioned on its own estimate, which cannot be read: use another")
    if "time_mlp.0.weights" in reading.tensors:
        raise UserError(
            f"{reading.content.path} is told learned frequencies of time, which cannot be read: use another"
        )
    memories = [reading.tensors.get(f"downs.{level}.2.mem_kv") for level in range(levels)]
    full = [f"downs.{level}.2.to_out.weight" in reading.tensors for level in range(levels)]
    inner = [reading.shape(f"downs.{level}.2.to_qkv.weight")[0] // 3 for level in range(levels)]
    heads = [4 if memory is None else memory.shape[1] for memory in memories]
    network: dict[str, JSON] = {
        "type": "ddp_unet", "out_channels": outputs, "model_channels": reading.shape("time_mlp.1.weight")[1],
        "first": first, "widths": [_output_width(reading, level) for level in range(levels)],
        "full_attention": list(full), "heads": list(heads),
        "head_channels": [width // count for width, count in zip(inner, heads)],
        "memory": 0 if memories[0] is None else memories[0].shape[2 if full[0] else 3],
        "groups": 0 if "downs.0.0.block1.norm.g" in reading.tensors else 8,
    }  # fmt: skip
    size = reading.ask("size", 8 << (levels - 1), "its lowest resolution taken for 8", ["image_size"])
    prediction, why = _objective(reading)
    schedule: str | Mapping[str, JSON] = "cosine"
    if (betas := reading.beside.get("betas")) is not None:
        schedule = of_betas(betas.double()).settings or ""
    return Understood(network, (channels, size, size), 0, prediction, why, schedule, _codec(reading, channels))


def _output_width(reading: Reading, level: int) -> int:
    last = f"downs.{level}.3.weight"
    return reading.shape(last if last in reading.tensors else f"downs.{level}.3.1.weight")[0]


def _objective(reading: Reading) -> tuple[str, str]:
    """What the network gives, by the weights of its loss: 1 for the noise, s = alpha^2 / (1 - alpha^2) for the data,
    s / (s + 1) for v, each of which may have s cut at a limit above (Hang et al. 2023)."""
    usual = "usual since version 1.8 of denoising-diffusion-pytorch"
    alphas, weights = (reading.beside.get(name) for name in ("alphas_cumprod", "loss_weight"))
    if alphas is None or weights is None or len(alphas) != len(weights):
        return "v", usual
    snr = alphas.double() / (1 - alphas.double())
    low = snr < 1  # what no limit cuts
    for prediction, expected in {"eps": snr**0, "x0": snr, "v": snr / (snr + 1)}.items():
        if torch.allclose(weights.double()[low], expected[low], rtol=1e-2, atol=1e-6):
            return prediction, "by the weights of its loss in the file"
    return "v", usual


# -- what several ask --------------------------------------------------------------------------------------------------


def _classes(reading: Reading, name: str, null: bool) -> tuple[int, bool]:
    """Number of classes, and whether a last row of their table stands for "no class"."""
    if name not in reading.tensors:
        return 0, False
    rows = reading.shape(name)[0]
    real = reading.ask(
        "num_classes", rows - int(null), "the last row taken for 'no class'" if null else "a row of the table for each"
    )
    if real not in (rows, rows - 1) or real < 1:
        raise UserError(f"option 'num_classes' is {real}, and the table has {rows} rows: give {rows - 1} or {rows}")
    return real, real < rows


def _last_row_is_zero(reading: Reading, name: str) -> bool:
    return name in reading.tensors and not bool(reading.tensors[name][-1].any())


def _size(reading: Reading, usual: int, why: str) -> int:
    match = re.search(r"(?<!\d)(?<!bs)(?<!batch)(?<!batch_)(32|64|128|256|512)(?!\d)", reading.file)
    if match:
        usual, why = int(match[1]), "by the file's name"
    return reading.ask("size", usual, why, ["image_size"])


def _codec(reading: Reading, channels: int) -> Codec:
    """8-bit pixels, or latents of four channels as those of Stable Diffusion's autoencoder are scaled."""
    if channels in (1, 3):
        return UINT8
    if channels != 4:
        return _PLAIN_LATENTS
    reading.assumed.append(
        "assumed latents scaled by 0.18215, as of Stable Diffusion's autoencoder (option 'vae' names one)"
    )
    return _STABLE_DIFFUSION


FAMILIES = (
    Family(
        "a network of denoising-diffusion-pytorch",
        ("init_conv.weight", "downs.0.0.block1.proj.weight", "mid_block1.block1.proj.weight", "final_conv.weight"),
        _ddp,
        inner="model.",
    ),
    Family(
        "a DiT or SiT",
        ("x_embedder.proj.weight", "t_embedder.mlp.0.weight", "blocks.0.adaLN_modulation.1.weight", "pos_embed"),
        _dit,
    ),
    Family(
        "a U-Net of guided-diffusion",
        ("input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight", "time_embed.0.weight", "out.2.weight"),
        _guided,
    ),
)
_WRAP = "which is not read: wrap its module with sims.wrap"
#: What is known and not read: a name of a tensor, whose it is, and what then to do.
OTHERS: tuple[tuple[str, str], ...] = (
    (r"lora_|\.lora\.", "a LoRA, which changes another network: fuse it with that first"),
    (r"(^|\.)(u_net\.d_blocks|patch_in\.proj|mid_level|timestep_embed)\b", f"a network of k-diffusion, {_WRAP}"),
    (r"(^|\.)all_modules\.\d", f"a network of score_sde, {_WRAP}"),
    (r"(^|\.)temb\.dense\.", f"DDPM in its authors' form, {_WRAP}"),
    (r"(^|\.)(enc|dec)\.\d+x\d+_", "a network of EDM or EDM2 without its arguments: give its own .pkl"),
    (r"(^|\.)(attn2|joint_blocks|double_blocks|context_embedder)\.", f"a network that text steers, {_WRAP}"),
    (r"(^|\.)down_blocks\.\d+\.resnets\.", "a network of diffusers: give its folder, which has its configuration"),
    (r"^network\.", "a model of sims without its model.json: give the folder that has both"),
)
