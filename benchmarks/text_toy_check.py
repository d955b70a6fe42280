"""How often do pictures of the text-to-image toy show what their caption says?

    OMP_NUM_THREADS=2 python benchmarks/text_toy_check.py --toy toy

The toy is a folder of benchmarks/text_toy.py. A small classifier learns the classes from its training pictures; then
the pipeline draws the same captions, equally many of every class, at several scales of classifier-free guidance. What
counts are the pictures whose class, as the classifier has it, is that of the caption, and those whose measured size and
brightness are those of the caption, by the limits of its class. The same counts on the held-out pictures are what real
ones reach. Written to agreement.json in the folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from common import save
from sims.metrics.intervals import t_interval
from text_toy import draw
from text_toy_data import CLASSES, CLOTHES, Captioned, Pictures, captions, read_folder

BATCH = 128


def new_classifier() -> nn.Sequential:
    """Three convolutions with steps of two, and a linear layer."""
    layers: list[nn.Module] = []
    for before, after in ((1, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(64 * 16, len(CLASSES)))


def seen(grey: Tensor) -> Tensor:
    """Grey pictures of bytes (n, 32, 32), as the classifier takes them."""
    return grey[:, None].float() / 127.5 - 1


def trained(data: Captioned, epochs: int) -> nn.Sequential:
    """A classifier that has learnt the pictures of a folder."""
    torch.manual_seed(0)
    network, grey = new_classifier(), data.pixels[:, 0]
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    total = epochs * -(-len(grey) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=total)
    for _ in range(epochs):
        for rows in torch.randperm(len(grey)).split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(seen(grey[rows])), data.labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def agreement(network: nn.Module, grey: Tensor, labels: Tensor, texts: Sequence[str], limits: dict) -> dict[str, float]:
    """Shares of pictures that have what the caption says; size and brightness by the limits of its class."""
    right = network(seen(grey)).argmax(1) == labels
    had = [text.split()[1:3] for text in captions(Pictures(grey.numpy(), labels.numpy()), limits)]
    told = [text.split()[1:3] for text in texts]
    worn = labels < len(CLOTHES)
    shares = {"class": right, "class_of_clothes": right[worn], "class_of_digits": right[~worn]}
    counted = {name: float(found.float().mean()) for name, found in shares.items() if len(found)}
    counted["size"] = float(np.mean([a[0] == b[0] for a, b in zip(had, told)]))
    counted["brightness"] = float(np.mean([shade(a) == shade(b) for a, b in zip(had, told)]))
    return counted


def shade(words: list[str]) -> str:
    return words[1] if words[1] in ("dark", "bright") else ""


def grey_of(pictures: Sequence[Image.Image]) -> Tensor:
    return torch.from_numpy(np.stack([np.asarray(picture.convert("L")) for picture in pictures]))


def balanced(data: Captioned, count: int) -> tuple[list[str], Tensor]:
    """Captions of the data, equally many of every class that it has, and their classes."""
    kinds = data.labels.unique().tolist()
    generator, rows = torch.Generator().manual_seed(0), []
    for k in kinds:
        of_class = (data.labels == k).nonzero()[:, 0]
        rows.append(of_class[torch.randint(len(of_class), (-(-count // len(kinds)),), generator=generator)])
    chosen = torch.cat(rows)
    return [data.texts[i] for i in chosen.tolist()], data.labels[chosen]


def check(toy: Path, count: int, scales: Sequence[float], seeds: int, steps: int) -> None:
    """All counts, to the terminal and to agreement.json."""
    data, test = read_folder(toy / "data" / "train"), read_folder(toy / "data" / "test")
    limits = json.loads((toy / "data" / "limits.json").read_text())
    network = trained(data, 6)
    best = agreement(network, test.pixels[:, 0], test.labels, test.texts, limits)
    print(f"held-out pictures: {words(best)}", flush=True)
    pipeline = StableDiffusionPipeline.from_pretrained(toy / "pipeline", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    texts, labels = balanced(data, count)
    rows: list[dict[str, Any]] = []
    for scale in scales:
        begin, found = time.perf_counter(), []
        for seed in range(seeds):
            pictures = grey_of(draw(pipeline, texts, scale, steps, seed))
            found.append(agreement(network, pictures, labels, texts, limits))
        mean = {name: float(np.mean([one[name] for one in found])) for name in found[0]}
        seconds = time.perf_counter() - begin
        rows.append({"scale": scale, **mean, "seconds": round(seconds, 1)})
        if seeds > 1:
            rows[-1]["class_interval"] = asdict(t_interval([one["class"] for one in found]))
        print(f"CFG {scale:g}: {words(mean)}  ({seconds:.0f} s)", flush=True)
    told = {"pictures": len(texts), "seeds": seeds, "steps": steps, "held_out": best, "scales": rows}
    save(toy / "agreement.json", told)


def words(counted: dict[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value:.1%}" for name, value in counted.items())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--toy", type=Path, required=True, help="a folder of text_toy.py")
    parser.add_argument("--count", type=int, default=200, help="pictures of every seed and scale")
    parser.add_argument("--scales", type=float, nargs="+", default=[1, 2, 3, 5])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    told = parser.parse_args(arguments)
    check(told.toy, told.count, told.scales, told.seeds, told.steps)


if __name__ == "__main__":
    main()
