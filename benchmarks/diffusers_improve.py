"""A UNet2DModel trained with diffusers alone, improved here, sampled with diffusers alone: is it better there?

    python benchmarks/diffusers_improve.py --folder runs/diffusers --out benchmarks/results/diffusers-improve.json

Trains on the bundled digits with diffusers' own loss and average, writes a DDPMPipeline, runs `sims improve --model` on
it, exports Neon, the distilled network and the guided pair, and samples each with DDIM of diffusers: one generator per
image, the same for all. ``ddim`` has the figures of diffusers' samples, ``sims`` those of the run, drawn by its own
sampler. About six minutes on one core; finished parts are not repeated.
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.training_utils import EMAModel

from common import flat, save
from sims.cli import main as sims
from sims.data.sources import load_pair
from sims.interop.diffusers import load_guided
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.scoring.judge import Judge, load_judge
from sims.scoring.options import EvaluationOptions

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (32, 64),
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
# Less of everything, to take minutes on one core.
IMPROVE = shlex.split(
    "--methods base,sims,neon,distilled --sampler.solver dpmpp2m --sampler.steps 12 --auxiliary.samples 2000 "
    "--auxiliary.budgets 16000,32000 --auxiliary.train.lr 2e-4 --auxiliary.train.warmup 8000 "
    "--search.rungs 250,500 --search.limit 4000 --guidance.pilot 64 --distilled.samples 2000 "
    "--distilled.images 32000 --distilled.train.lr 2e-4 --distilled.train.warmup 8000 "
    "--evaluation.draws 1 --evaluation.samples 2000 --guidance.cache-cost 0"
)


def train(folder: Path, images: int, batch: int = 128, lr: float = 1e-3) -> None:
    """The loop of diffusers' example for unconditional images: epsilon loss, AdamW, cosine rate, EMAModel."""
    torch.manual_seed(0)
    data = load_pair("digits")[0].all()[0]  # (N, 1, 8, 8) in [-1, 1]
    unet, scheduler = diffusers.UNet2DModel(**UNET), diffusers.DDPMScheduler()
    average = EMAModel(unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=lr, betas=(0.95, 0.999), weight_decay=1e-6)
    steps = images // batch
    rate = diffusers.optimization.get_cosine_schedule_with_warmup(optimizer, min(steps // 10, 500), steps)
    for _ in range(steps):
        clean = data[torch.randint(len(data), (batch,))]
        noise, times = torch.randn_like(clean), torch.randint(scheduler.config.num_train_timesteps, (batch,))
        predicted = unet(scheduler.add_noise(clean, noise, times), times).sample
        torch.nn.functional.mse_loss(predicted, noise).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        average.step(unet.parameters())
    average.copy_to(unet.parameters())
    diffusers.DDPMPipeline(unet, scheduler).save_pretrained(folder)


def command(*words: Any) -> None:
    if status := sims([str(word) for word in words]):
        raise SystemExit(status)


def export(run: Path, original: Path, folder: Path) -> dict[str, Path]:
    """The run's results as folders of diffusers, by name; what is there already is left."""
    models = {"neon": "neon", "distilled": "distilled", "sims (guided pair)": "sims"}
    made = {name: folder / place for name, place in models.items() if (run / place / "model.json").is_file()}
    for out in made.values():
        if not out.exists():
            command("export", run / out.name, out, "--like", original)
    return {"original": original, **made}


@torch.no_grad()
def sample(folder: Path, count: int, steps: int, clip: bool, batch: int = 500) -> np.ndarray:
    """Images (n, 1, 8, 8) in [0, 1] of DDIMPipeline, image i from generator i; nothing of this package but the pair.

    ``clip`` is clip_sample, which DDPMScheduler saves as True: estimates beyond [-1, 1] are cut at every step.
    """
    pipe = diffusers.DDIMPipeline.from_pretrained(folder)
    pipe.scheduler.register_to_config(clip_sample=clip)
    pair = load_guided(folder) if (folder / "unet_aux").is_dir() else None
    parts = []
    for first in range(0, count, batch):
        if pair is not None:
            pipe.scheduler.set_timesteps(steps)
            unet = pair.trajectory(pipe.scheduler.timesteps)  # a fresh one for every batch
            pipe = diffusers.DDIMPipeline(unet, pipe.scheduler)
        pipe.set_progress_bar_config(disable=True)
        seeds = range(first, min(first + batch, count))
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        made = pipe(len(seeds), generators, num_inference_steps=steps, output_type="np").images  # (B, 8, 8, 1)
        parts.append(made.transpose(0, 3, 1, 2))
    return np.concatenate(parts)


def score(images: np.ndarray, judge: Judge) -> dict[str, float]:
    """Figures of images in [0, 1], rounded to the 17 values that digits have."""
    x = torch.from_numpy(np.round(images * 16) / 8 - 1).float()
    return judge.scored(judge.measure(x)).scores


def compare(
    folder: Path, *, images: int, count: int, steps: int, improve: list[str], clip: bool = False
) -> dict[str, Any]:
    """The whole of it, in ``folder``: the figures of every model by name, and what the run says of them."""
    original, run = folder / "original", folder / "run"
    if not original.exists():
        train(original, images)
    command("improve", "--model", original, "--data.path", "digits", "--run", run, *improve)
    judge = load_judge(run / "references", *load_pair("digits"), EvaluationOptions())
    rows = {}
    for name, place in export(run, original, folder).items():
        rows[name] = score(sample(place, count, steps, clip), judge)
        shown = "  ".join(f"{metric} {value:8.3f}" for metric, value in rows[name].items() if "fd" in metric)
        print(f"{name:<20}{shown}", flush=True)
    kept = ("label", "w", "budget", "nfe", "fd", "fd_held_out")
    own = [{key: flat(row)[key] for key in kept} for row in read_result(run, ImproveResult).rows]
    return {"ddim": rows, "sims": own, "floor": judge.floor, "extractor": asdict(judge.about())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/diffusers"))
    parser.add_argument("--images", type=int, default=100_000, help="training images of the original")
    parser.add_argument("--count", type=int, default=2000, help="images sampled of each model")
    parser.add_argument("--steps", type=int, default=50, help="steps of DDIM")
    parser.add_argument("--clip", action="store_true", help="leave clip_sample on, as DDPMScheduler saves it")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/diffusers-improve.json"))
    options, extra = parser.parse_known_args()
    found = compare(options.folder, images=options.images, count=options.count, steps=options.steps,
                    clip=options.clip, improve=[*IMPROVE, *extra])  # fmt: skip
    asked = {"images": options.images, "count": options.count, "steps": options.steps, "clip_sample": options.clip}
    save(options.out, {"benchmark": "diffusers_improve", "diffusers": diffusers.__version__, **asked, **found})


if __name__ == "__main__":
    main()
