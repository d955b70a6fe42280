"""Training of the small classifiers whose features the scores use."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sims.errors import UserError
from sims.metrics.extractors import ClassifierExtractor, extract
from sims.metrics.small_classifier import ConvClassifier

Array = np.ndarray
FEATURE_VARIANCE = 100.0  # mean over features, on training images: puts the distances of all seeds on one scale
MAX_MEASURED = 10_000
MIN_STEPS, MAX_STEPS = 300, 2400


def train_classifier(
    x: Tensor | Array,
    labels: Tensor | Array,
    test_x: Tensor | Array,
    test_labels: Tensor | Array,
    *,
    num_classes: int | None = None,
    seed: int = 0,
    epochs: float = 50.0,
    steps: int | None = None,
    batch_size: int = 128,
    lr: float = 3e-3,
    width: int = 32,
    variant: str = "a",
    shift: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[ClassifierExtractor, float]:
    """Train a classifier on images x (N, C, H, W) float32 in [-1, 1] with labels (N,); return it and its test accuracy.

    The same seed gives the same network on the same machine; the global random state is left alone. Budget: `steps`,
    or else `epochs` clipped to 300 ... 2400 steps of Adam with a linear warm-up and cosine decay. Augmentation: random
    shifts of up to `shift` pixels (None: 1 below 10,000 images or from 16 pixels a side, else 0). Variant "b" is
    another architecture with its own seeds. Features are scaled by one number, to a mean variance of 100 over the
    training images; nothing else is normalized.
    UserError where shapes, labels or settings do not fit.
    """
    images, classes = _checked(x, labels, "training")
    held_out, held_out_classes = _checked(test_x, test_labels, "test")
    count = num_classes or int(classes.max()) + 1
    highest = max(int(classes.max()), int(held_out_classes.max()))
    if highest >= count:
        raise UserError(f"Label {highest} with {count} classes; labels must lie between 0 and {count - 1}.")
    if steps is None:
        steps = default_steps(len(images), epochs, batch_size)
    if shift is None:
        shift = int(len(images) < 10_000 or min(images.shape[2:]) >= 16)  # on many tiny images it costs accuracy
    if steps < 1 or batch_size < 2:
        raise UserError(f"{steps} steps of {batch_size} images; both need to be positive, the batch at least 2.")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed * 2 + (variant == "b"))  # initial weights and dropout draw from the global generator
        network = ConvClassifier(tuple(images.shape[1:]), count, width=width, variant=variant).to(device)
        _fit(network, images, classes, steps, batch_size, lr, shift)
    network.eval()
    features = extract(ClassifierExtractor(network), images[:: -(-len(images) // MAX_MEASURED)].to(device))
    network.rescale(math.sqrt(FEATURE_VARIANCE / max(float(features.var(axis=0).mean()), 1e-12)))
    extractor = ClassifierExtractor(network)
    predicted = extractor.predict(held_out.to(device))
    return extractor, float((predicted == held_out_classes.numpy()).mean())


def default_steps(images: int, epochs: float = 50.0, batch_size: int = 128) -> int:
    """How many steps a classifier of so many images is trained for."""
    return min(MAX_STEPS, max(MIN_STEPS, math.ceil(epochs * images / batch_size)))


def require_classes(labels: Tensor | Array, name: str) -> None:
    """UserError where a label (N,) is no class, so that no classifier can learn from it."""
    if int(labels.min()) < 0:
        raise UserError(f"A {name} label is {int(labels.min())}; a classifier needs a class from 0 for every image.")


def _checked(x: Tensor | Array, labels: Tensor | Array, name: str) -> tuple[Tensor, Tensor]:
    images, classes = torch.as_tensor(x).float().cpu(), torch.as_tensor(labels).long().cpu()
    if images.ndim != 4 or len(images) < 1:
        raise UserError(f"The {name} images have shape {tuple(images.shape)}; expected (N, C, H, W) with N >= 1.")
    if classes.shape != (len(images),):
        raise UserError(f"The {name} labels have shape {tuple(classes.shape)}; expected ({len(images)},).")
    require_classes(classes, name)
    if not bool(images.isfinite().all()):
        raise UserError(f"The {name} images hold NaN or infinity; remove them.")
    return images, classes


def _shifted(batch: Tensor, shift: int) -> Tensor:
    """Move each image (B, C, H, W) by up to `shift` pixels in both directions, edges repeated."""
    count, _, height, width = batch.shape
    offsets = torch.randint(0, 2 * shift + 1, (count, 2))
    rows = offsets[:, :1] + torch.arange(height)  # (B, H)
    columns = offsets[:, 1:] + torch.arange(width)  # (B, W)
    padded = functional.pad(batch, (shift, shift, shift, shift), mode="replicate").permute(0, 2, 3, 1)
    index = torch.arange(count)[:, None, None]
    return padded[index, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # (B, C, H, W)


def _fit(
    network: ConvClassifier, images: Tensor, classes: Tensor, steps: int, batch_size: int, lr: float, shift: int
) -> None:
    device = next(network.parameters()).device
    batch_size = min(batch_size, max(2, len(images)))
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=1e-2)
    warm_up = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps)),
    )
    network.train()
    order = torch.empty(0, dtype=torch.int64)
    for _ in range(steps):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(images))])
        index, order = order[:batch_size], order[batch_size:]
        batch = images[index]
        if shift > 0:
            batch = _shifted(batch, shift)
        loss = functional.cross_entropy(network(batch.to(device)), classes[index].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
