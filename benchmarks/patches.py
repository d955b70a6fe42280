"""Patches in front of a U-Net (space-to-depth), and a small transformer, against DDPM++ after equal seconds.

    python benchmarks/patches.py --data FASHION_MNIST --seconds 600 --out benchmarks/results/patches.json

Every network is trained for as many images as it takes in these seconds, by a short measurement beforehand, one after
another; then 2,000 samples of the same seeds (DPM-Solver++(2M), 20 steps) are compared with the held-out pictures by
EfficientNet-Lite0. Snapshots at a quarter and a half of the way show whether an order is about to change.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from common import save
from sims.data.dataset import Dataset
from sims.data.sources import load_pair
from sims.metrics import frechet_distance
from sims.model import load
from sims.networks.options import NetworkOptions
from sims.sampling import SamplerOptions
from sims.training.base import new_model, train_base
from sims.training.options import TrainOptions
from sims.training.trainer import Trainer

UNET: dict[str, Any] = {"type": "ddpmpp", "attention": (7,)}
NETWORKS = {
    "DDPM++ of width 32": NetworkOptions(**UNET, width=32, channel_mult=(1, 2, 2), blocks=1),
    "patches of 2, width 64": NetworkOptions(**UNET, width=64, channel_mult=(1, 2), blocks=1, patch=2),
    "patches of 2, width 96": NetworkOptions(**UNET, width=96, channel_mult=(1, 2), blocks=1, patch=2),
    "patches of 4, width 128": NetworkOptions(**UNET, width=128, channel_mult=(1,), blocks=2, patch=4),
    "DiT, patches of 2, width 128": NetworkOptions(type="dit", width=128, blocks=6, patch=2),
}
TRAIN = TrainOptions(batch=128, warmup=6_400)
SAMPLER = SamplerOptions(solver="dpmpp2m", steps=20)
SAMPLES = 2_000


def rate(data: Dataset, network: NetworkOptions) -> float:
    """Images per second of training."""
    trainer = Trainer(new_model(data, network, SAMPLER, 0, TRAIN), data, TRAIN, Path(), images=10**9, seed=0)
    trainer.build()
    taken = []
    for _ in range(8):
        begin = time.perf_counter()
        trainer.update()
        trainer.step += 1
        taken.append(time.perf_counter() - begin)
    trainer.feed.close()
    return TRAIN.batch / statistics.median(taken[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="pictures of 28x28 with a test part")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS], default=[*NETWORKS])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/patches.json"))
    settings = parser.parse_args()
    real, test = load_pair(settings.data)
    pictures = test.all()[0]
    result: dict[str, Any] = {"benchmark": "patches", "seconds": settings.seconds, "samples": SAMPLES, "rows": []}
    for name in settings.networks:
        network = NETWORKS[name]
        images = max(TRAIN.batch, round(settings.seconds * rate(real, network)))
        marks = (images // 4, images // 2)
        with tempfile.TemporaryDirectory() as folder:
            begin = time.perf_counter()
            trained = train_base(
                real, network, SAMPLER, TRAIN, Path(folder), images=images, seed=0, snapshots=marks, log=lambda _: None
            )
            seconds = time.perf_counter() - begin
            for seen, path in sorted(trained.snapshots.items()):
                x = load(path).sample(range(SAMPLES), batch_size=250)
                row = {"network": name, "images": seen, "seconds": seconds * seen / images, "said": network.said()}
                row |= {"fd": float(frechet_distance(x.clamp(-1, 1), pictures, extractor="efficientnet-lite0"))}
                result["rows"].append(row)
                print(f"{name}: {seen:,} images, {row['seconds']:.0f} s, FD to test {row['fd']:.1f}", flush=True)
                save(settings.out, result)


if __name__ == "__main__":
    main()
