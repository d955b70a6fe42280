"""Extractors of one's own: any callable from images to features, and TorchScript files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from sims.errors import UserError
from sims.files import digest, regular
from sims.metrics.extractors import hash_tensors
from sims.metrics.weights import check, file_hash


def to_8_bit(x: Tensor) -> Tensor:
    """Images in [-1, 1] -> uint8 pixels; exact for images that were 8-bit, else rounded and clipped.

    UserError for NaN and infinity, which 8 bits would hide.
    """
    if not bool(x.isfinite().all()):
        raise UserError("The images hold NaN or infinity; remove them.")
    return ((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


class CallableExtractor:
    """Features of any callable: images (B, C, H, W) float32 in [-1, 1] -> (B, num_features) on the same device.

    Its hash covers the weights of an nn.Module, name and version; the code is the caller's word. A function without
    weights needs a name and a version. NaN in the features is passed on.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        data_shape: tuple[int, ...] | None = None,
        name: str | None = None,
        version: str | None = None,
    ) -> None:
        state = function.state_dict() if isinstance(function, nn.Module) else {}
        stated = getattr(function, "hash", None)
        self.name = name or str(getattr(function, "name", "")) or (type(function).__name__ if state else "")
        if not self.name or not (state or stated or version):
            raise UserError(
                "a function without weights does not identify itself: give its name and a version, which is to change "
                "whenever its features do"
            )
        if isinstance(function, nn.Module):
            function.eval()
        self.function = function
        self.channels: int | None = getattr(function, "channels", None)
        self.resize: str = getattr(function, "resize", "none")
        numpy_knows = {key: value.float() if value.dtype == torch.bfloat16 else value for key, value in state.items()}
        identity: dict[str, object] = {"kind": "callable", "name": self.name, "version": version, "stated": stated}
        self.hash = hash_tensors(numpy_knows, identity)
        known = getattr(function, "num_features", None)
        self.num_features: int = known if isinstance(known, int) else self._try(data_shape)

    def _try(self, data_shape: tuple[int, ...] | None) -> int:
        """The number of features of a black image."""
        if data_shape is None:
            raise UserError(f"the extractor {self.name} does not say its num_features: give the images' data_shape")
        features = self._run(torch.full((1, *data_shape), -1.0))
        if not isinstance(features, Tensor) or features.ndim != 2:
            what = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UserError(f"the extractor {self.name} makes {what} of one image; it must make (1, features)")
        return features.shape[1]

    def _input(self, x: Tensor) -> Tensor:
        return x.float()

    def _run(self, x: Tensor) -> Tensor:
        if isinstance(self.function, nn.Module):
            first = next(self.function.parameters(), None)
            if first is not None and first.device != x.device:
                self.function.to(x.device)
        with torch.no_grad():
            return self.function(self._input(x))

    def __call__(self, x: Tensor) -> Tensor:
        features = self._run(x)
        if tuple(features.shape) != (len(x), self.num_features):
            raise UserError(
                f"the extractor {self.name} makes {tuple(features.shape)} of {len(x)} images; "
                f"it must make ({len(x)}, {self.num_features})"
            )
        return features.float()


def load_script(path: Path | str, device: torch.device | None = None) -> torch.jit.ScriptModule:
    """A TorchScript file, ready to run; UserError where it is none. Running it runs what it holds: trust its source."""
    regular(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a file that is TorchScript can be loaded no other way
        try:
            return torch.jit.load(str(path), map_location=device or "cpu").eval()
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{path} is damaged or no TorchScript file: give the right file") from error


class TorchScriptExtractor(CallableExtractor):
    """A TorchScript file from images to features: float32 in [-1, 1], or pixels uint8 where the path ends in :uint8."""

    def __init__(self, path: str, data_shape: tuple[int, ...] | None = None, expected_hash: str | None = None) -> None:
        self.input = "uint8" if path.endswith(":uint8") else "float32"
        file = Path(path.removesuffix(":uint8"))
        weights = check(file, expected_hash, "its publisher") if expected_hash else file_hash(file)
        super().__init__(load_script(file), data_shape, f"torchscript-{file.stem}", weights)
        self.hash = digest({"kind": "torchscript", "weights": weights, "input": self.input})[:16]

    def _input(self, x: Tensor) -> Tensor:
        return to_8_bit(x) if self.input == "uint8" else x.float()

    def _try(self, data_shape: tuple[int, ...] | None) -> int:
        try:
            return super()._try(data_shape)
        except (RuntimeError, torch.jit.Error) as error:
            last = str(error).strip().rsplit("\n", 1)[-1]
            raise UserError(
                f"{self.name} does not take an image of shape {data_shape} as {self.input} ({last}): "
                "give the images that it was made for, or add or remove :uint8"
            ) from error
