"""Train a small text-to-image pipeline of diffusers on captioned pictures: a Stable Diffusion for minutes on two cores.

    OMP_NUM_THREADS=2 python benchmarks/text_toy.py --fashion FASHION --out toy

FASHION is a folder with the IDX files of Fashion-MNIST; without it there are digits alone. The parts are those of
Stable Diffusion 1.5, small: an autoencoder (32x32 pixels to 4x8x8), a CLIP text encoder with a tokenizer of its own, a
U-Net with cross-attention, an Euler sampler. The autoencoder comes first, in a fifth of the time (``--minutes``); text
encoder and U-Net then learn together from cached latents, without caption one time in ten, and what is kept are their
averages.

The folder then has data/train and data/test (PNG files and metadata.jsonl), data/classes.json, pipeline/ (as
StableDiffusionPipeline.from_pretrained reads it), prompts.txt, samples.png and toy.json. A killed training goes on when
the same command is given again, and with more minutes text encoder and U-Net learn for longer.
benchmarks/text_toy_check.py says how often pictures show what their caption says.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from common import save
from sims.files import atomic_path, write_atomic
from text_toy_data import Captioned, make_data, prompts_of, read_folder

FASHION = Path("/usr/share/datasets/fashion-mnist")
BATCH = 64
TOKENS, WIDTH = 16, 96  # of a caption
DROPPED = 0.1  # share of captions that are left out in training
SAVED_EVERY, SAID_EVERY = 30.0, 10.0  # seconds
START, END = "<|startoftext|>", "<|endoftext|>"
Loss = Callable[[torch.Generator], Tensor]


@dataclass(frozen=True)
class Options:
    """Where, what of, how long."""

    out: Path
    fashion: Path | None
    minutes: float
    pictures: int = 20_000
    steps: int | None = None  # at most, of each training
    seed: int = 0


# -- training ----------------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """How far a training is, and what it cost."""

    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    curve: list[dict[str, float]] = field(default_factory=list)


class Training:
    """Some networks, trained together for a time; the rate falls to zero at its end, and the average is what counts.

    The average's half-life is a twentieth of the steps so far, which suits every length.
    """

    def __init__(self, name: str, networks: nn.ModuleDict, rate: float, seconds: float, options: Options) -> None:
        self.name, self.networks, self.rate, self.budget, self.most = name, networks, rate, seconds, options.steps
        self.file = options.out / "state" / f"{name}.pt"
        self.average = [p.detach().clone() for p in networks.parameters()]
        self.optimizer = torch.optim.AdamW(networks.parameters(), lr=rate, weight_decay=0.01)
        self.generator = torch.Generator().manual_seed(options.seed)
        self.done = Progress()
        if self.file.is_file():
            self._load()

    def share(self) -> float:
        """What part of the training is over."""
        by_steps = self.done.step / self.most if self.most else 0.0
        return min(1.0, max(self.done.seconds / self.budget, by_steps))

    def run(self, loss_of: Loss, held_out: Callable[[], float]) -> None:
        """Train to the end; ``held_out`` is measured with the average ten times on the way."""
        saved = said = time.monotonic()
        losses: list[float] = []
        while (share := self.share()) < 1:
            begin, begin_cpu = time.monotonic(), time.process_time()
            losses.append(self._step(loss_of, share))
            now = time.monotonic()
            self.done.seconds += now - begin
            self.done.cpu_seconds += time.process_time() - begin_cpu
            if int(10 * self.share()) > int(10 * share):
                self._note(losses, held_out)
                losses = []
            if now - said > SAID_EVERY:
                said = now
                self._say(losses)
            if now - saved > SAVED_EVERY or self.share() >= 1:
                saved = now
                self._save()

    def _step(self, loss_of: Loss, share: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1.0, (self.done.step + 1) / 100, (1 - share) / 0.4)
        loss = loss_of(self.generator)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.networks.parameters(), 1.0)
        self.optimizer.step()
        self.done.step += 1
        new = 1 - 0.5 ** (20 / self.done.step)
        with torch.no_grad():
            torch._foreach_lerp_(self.average, list(self.networks.parameters()), new)
        return float(loss.detach())

    def _note(self, losses: list[float], held_out: Callable[[], float]) -> None:
        with self:
            found = held_out()
        loss = sum(losses) / max(1, len(losses))
        self.done.curve.append(
            {"seconds": round(self.done.seconds, 1), "images": BATCH * self.done.step, "loss": loss, "held_out": found}
        )
        print(f"{self.name}: held-out loss {found:.4f} after {BATCH * self.done.step:,} images", flush=True)

    def _say(self, losses: list[float]) -> None:
        share, recent = self.share(), losses[-50:]
        left = self.done.seconds * (1 / max(share, 1e-6) - 1)
        rate = BATCH * self.done.step / self.done.seconds
        print(
            f"{self.name}: {share:4.0%}, {BATCH * self.done.step:,} images, {rate:.0f} a second, "
            f"loss {sum(recent) / max(1, len(recent)):.4f}, {int(left // 60)}:{int(left % 60):02d} left",
            flush=True,
        )

    def __enter__(self) -> None:
        """The networks have the average's weights meanwhile."""
        self._swap()

    def __exit__(self, *error: object) -> None:
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for p, average in zip(self.networks.parameters(), self.average):
            kept = p.clone()
            p.copy_(average)
            average.copy_(kept)

    def _save(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "networks": self.networks.state_dict(), "average": self.average, "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(), "done": vars(self.done),
        }  # fmt: skip
        with atomic_path(self.file) as path:
            torch.save(state, path)

    def _load(self) -> None:
        state = torch.load(self.file, weights_only=True)
        self.networks.load_state_dict(state["networks"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.generator.set_state(state["generator"])
        self.done = Progress(**state["done"])
        print(f"{self.name}: goes on after {BATCH * self.done.step:,} images", flush=True)

    def report(self) -> dict[str, Any]:
        """What was done, for toy.json."""
        parameters = {name: sum(p.numel() for p in net.parameters()) for name, net in self.networks.items()}
        return {"parameters": parameters, "images": BATCH * self.done.step, "batch": BATCH, **vars(self.done)}


# -- the parts ---------------------------------------------------------------------------------------------------------


def new_autoencoder() -> AutoencoderKL:
    """From 32x32 pixels to 4x8x8."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64), layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=32,
        force_upcast=False,
    ).to(memory_format=torch.channels_last)  # fmt: skip


def new_unet() -> UNet2DConditionModel:
    """Cross-attention at 8x8, and at 4x4 in the middle."""
    return UNet2DConditionModel(
        sample_size=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), block_out_channels=(64, 128), layers_per_block=1,
        cross_attention_dim=WIDTH, attention_head_dim=4, norm_num_groups=16,
    )  # fmt: skip


def new_tokenizer(captions: Sequence[str]) -> CLIPTokenizer:
    """CLIP's tokenizer, with merges that make one token of every word of the captions."""
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learned.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=5_000, end_of_word_suffix="</w>", show_progress=False)
    learned.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in _merges(learned)]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges), START, END]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return tokenizer_of(vocabulary, merges)


def tokenizer_of(vocabulary: dict[str, int], merges: list[tuple[str, ...]]) -> CLIPTokenizer:
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, unk_token=END, bos_token=START, eos_token=END, pad_token=END,
        model_max_length=TOKENS,
    )  # fmt: skip


def _merges(tokenizer: Tokenizer) -> list[Sequence[str]]:
    found = json.loads(tokenizer.to_str())["model"]["merges"]
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in found]


def kept_tokenizer(options: Options, captions: Sequence[str]) -> CLIPTokenizer:
    """Made once: numbers of tokens may differ between two makings, and the text encoder's weights go with them."""
    file = options.out / "state" / "tokenizer.json"
    if not file.is_file():
        write_atomic(file, new_tokenizer(captions).backend_tokenizer.to_str().encode())
    found = json.loads(file.read_text())["model"]
    return tokenizer_of(found["vocab"], [tuple(pair) for pair in found["merges"]])


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=TOKENS, projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return CLIPTextModel(config)


def new_scheduler() -> EulerDiscreteScheduler:
    """That of Stable Diffusion 1.5."""
    return EulerDiscreteScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
        prediction_type="epsilon", timestep_spacing="leading", steps_offset=1,
    )  # fmt: skip


def tokens_of(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    told = tokenizer(list(texts), padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    return told.input_ids


# -- the two trainings -------------------------------------------------------------------------------------------------


def train_autoencoder(options: Options, train: Captioned, test: Captioned) -> tuple[AutoencoderKL, dict[str, Any]]:
    """Pixels by their distance, with a weak pull of the latents to a standard normal distribution."""
    vae = new_autoencoder()
    training = Training("autoencoder", nn.ModuleDict({"vae": vae}), 1e-3, 60 * options.minutes / 5, options)

    def loss_of(generator: torch.Generator) -> Tensor:
        pictures = train.batch(torch.randint(len(train.texts), (BATCH,), generator=generator))
        latents = vae.encode(pictures).latent_dist
        difference = vae.decode(latents.sample(generator)).sample - pictures
        return difference.abs().mean() + 0.5 * difference.square().mean() + 5e-4 * latents.kl().mean() / 256

    @torch.no_grad()
    def squared_error() -> float:
        pictures = test.batch(torch.arange(min(512, len(test.texts))))
        return float((vae.decode(vae.encode(pictures).latent_dist.mode()).sample - pictures).square().mean())

    if not latents_file(options).is_file():  # otherwise they are of this very autoencoder
        training.run(loss_of, squared_error)
    training._swap()
    vae.requires_grad_(False).eval()
    return vae, {**training.report(), "held_out_squared_error": squared_error()}


def latents_file(options: Options) -> Path:
    return options.out / "state" / "latents.safetensors"


@torch.no_grad()
def latents_of(vae: AutoencoderKL, data: Captioned) -> Tensor:
    """The mean latents of all pictures, not scaled."""
    return torch.cat(
        [vae.encode(data.batch(rows)).latent_dist.mode() for rows in torch.arange(len(data.texts)).split(256)]
    )


def cached_latents(options: Options, vae: AutoencoderKL, train: Captioned, test: Captioned) -> tuple[Tensor, Tensor]:
    """Scaled latents of both parts, made once; the autoencoder is told the scale."""
    file = latents_file(options)
    if not file.is_file():
        found = {"train": latents_of(vae, train).contiguous(), "test": latents_of(vae, test).contiguous()}
        with atomic_path(file) as path:
            save_file(found, path)
    found = load_file(file)
    scale = 1 / float(found["train"].std())
    vae.register_to_config(scaling_factor=scale)
    return scale * found["train"], scale * found["test"]


def noisy(latents: Tensor, levels: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """What diffusion makes of latents in t steps; ``levels`` are the products of alphas."""
    kept = levels[t].reshape(-1, 1, 1, 1)
    return kept.sqrt() * latents + (1 - kept).sqrt() * noise


def frequencies(data: Captioned) -> Tensor:
    """How often a picture is drawn: with digits a twelfth as many as clothes, classes by the root of their share."""
    return data.labels.bincount()[data.labels].float().rsqrt()


def train_unet(
    options: Options, tokenizer: CLIPTokenizer, often: Tensor, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> tuple[CLIPTextModel, UNet2DConditionModel, dict[str, Any]]:
    """From latents and tokens of both parts, and how often each picture is drawn; noise is what is predicted."""
    text_encoder, unet, levels = new_text_encoder(tokenizer), new_unet(), new_scheduler().alphas_cumprod
    networks = nn.ModuleDict({"text_encoder": text_encoder, "unet": unet})
    training = Training("unet", networks, 6e-4, 60 * options.minutes * 4 / 5, options)
    nothing, steps = tokens_of(tokenizer, [""]), len(levels)

    def error(latents: Tensor, tokens: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        told = unet(noisy(latents, levels, t, noise), t, text_encoder(tokens)[0]).sample
        return (told - noise).square().mean()

    def loss_of(generator: torch.Generator) -> Tensor:
        rows = torch.multinomial(often, BATCH, replacement=True, generator=generator)
        without = torch.rand(BATCH, 1, generator=generator) < DROPPED
        noise = torch.randn(BATCH, *train[0].shape[1:], generator=generator)
        t = torch.randint(steps, (BATCH,), generator=generator)
        return error(train[0][rows], torch.where(without, nothing, train[1][rows]), t, noise)

    @torch.no_grad()
    def held_out() -> float:
        latents, tokens = test[0][-1024:], test[1][-1024:]
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1))
        return float(error(latents, tokens, torch.arange(len(latents)) * 997 % steps, noise))

    training.run(loss_of, held_out)
    training._swap()
    return text_encoder.eval(), unet.eval(), training.report()


# -- what is kept ------------------------------------------------------------------------------------------------------


def draw(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], scale: float, steps: int = 20, seed: int = 0
) -> list[Image.Image]:
    """A picture a prompt, in diffusers' own way."""
    generator, drawn = torch.Generator().manual_seed(seed), []
    for start in range(0, len(prompts), 100):
        some = list(prompts[start : start + 100])
        drawn += pipeline(some, guidance_scale=scale, num_inference_steps=steps, generator=generator).images
    return drawn


def grid(file: Path, prompts: Sequence[str], rows: dict[str, list[Image.Image]]) -> None:
    """Two bands of eight prompts; in each, a row of pictures by scale."""
    figure = Figure(figsize=(14, 2 * 2 * len(rows)), layout="constrained")
    axes = figure.subplots(2 * len(rows), 8, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for i, prompt in enumerate(prompts):
        for k, (name, pictures) in enumerate(rows.items()):
            axis = axes[(i // 8) * len(rows) + k, i % 8]
            axis.imshow(pictures[i], interpolation="nearest")
            axis.set_title(f"{prompt}\n{name}" if k == 0 else name, fontsize=7)
    figure.savefig(file, dpi=110, metadata={"Software": None})


def keep(options: Options, pipeline: StableDiffusionPipeline, prompts: list[str], found: dict[str, Any]) -> None:
    """The folder's other files."""
    out = options.out
    pipeline.save_pretrained(out / "pipeline", safe_serialization=True)
    # Besides tokenizer.json, the two files that older versions of transformers read.
    pipeline.tokenizer.backend_tokenizer.model.save(str(out / "pipeline" / "tokenizer"))
    write_atomic(out / "prompts.txt", "".join(f"{prompt}\n" for prompt in prompts).encode())
    shown = [prompts[i * len(prompts) // 16] for i in range(16)]
    steps = 20 if options.steps is None else 2
    grid(out / "samples.png", shown, {f"CFG {scale}": draw(pipeline, shown, scale, steps) for scale in (1, 3)})
    save(out / "toy.json", {"diffusers": diffusers.__version__, "transformers": transformers.__version__, **found})


def make(options: Options) -> None:
    """All of it, from where it was left."""
    torch.manual_seed(options.seed)
    data = options.out / "data"
    make_data(data, options.fashion, options.pictures)
    train, test = read_folder(data / "train"), read_folder(data / "test")
    prompts = prompts_of(train)
    print(f"{len(train.texts):,} pictures to train on, {len(test.texts):,} to test on, {len(prompts)} captions")
    vae, first = train_autoencoder(options, train, test)
    latents, held_out = cached_latents(options, vae, train, test)
    tokenizer = kept_tokenizer(options, prompts)
    both = [(z, tokens_of(tokenizer, part.texts)) for z, part in ((latents, train), (held_out, test))]
    text_encoder, unet, second = train_unet(options, tokenizer, frequencies(train), *both)
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=new_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    found = {
        "train": len(train.texts), "test": len(test.texts), "captions": len(prompts), "tokens": len(tokenizer),
        "scaling_factor": vae.config.scaling_factor, "autoencoder": first, "unet": second,
    }  # fmt: skip
    keep(options, pipeline, prompts, found)


def parsed(arguments: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--fashion", type=Path, help=f"IDX files of Fashion-MNIST (default: {FASHION} if there)")
    parser.add_argument("--minutes", type=float, default=25.0, help="of both trainings together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="some hundred pictures and a few steps, for tests")
    told = parser.parse_args(arguments)
    fashion = told.fashion or (FASHION if FASHION.is_dir() else None)
    sizes = {"pictures": 200, "steps": 4} if told.tiny else {}
    return Options(told.out, fashion, told.minutes, seed=told.seed, **sizes)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    make(options)


if __name__ == "__main__":
    main()
