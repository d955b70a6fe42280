"""Ready-made extractors and their weights: values against other implementations, and files that are wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torch.nn import functional

from sims.errors import UserError
from sims.metrics import efficientnet, pretrained, weights
from sims.metrics.custom import to_8_bit
from sims.metrics.extractors import ClassifierExtractor, Extractor, PCAExtractor, extract
from sims.metrics.pretrained import get_extractor, scaled_positions
from sims.metrics.small_classifier import ConvClassifier

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs transformers (the extra `features`)"
)
needs_lite0 = pytest.mark.skipif(
    importlib.util.find_spec(pretrained.LITE0_PACKAGE) is None, reason="needs the extra `efficientnet`"
)


class ToyInception(nn.Module):
    """The call signature, the layout of names and the behaviour of the real file; eight features."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.layers[1].running_mean.normal_()
        self.layers[1].running_var.uniform_(0.5, 2)
        self.output = nn.Linear(8, 5)

    def forward(
        self, img: Tensor, return_features: bool = False, use_fp16: bool = False, no_output_bias: bool = False
    ) -> Tensor:
        assert img.dtype == torch.uint8
        x = functional.interpolate(img.float(), size=[29, 29], mode="bilinear")
        features = self.layers((x - 127.5) / 127.5).mean(dim=[2, 3])
        if return_features:
            return features
        logits = functional.linear(features, self.output.weight) if no_output_bias else self.output(features)
        return logits.softmax(dim=1)


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.jit.script(ToyInception().eval()).save(str(tmp_path / "toy.pt"))
    return tmp_path / "toy.pt"


@pytest.fixture
def published(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> weights.WeightFile:
    """The toy, published as the weights of inception by a file URL; the cache is empty."""
    data = toy.read_bytes()
    file = weights.WeightFile("inception.pt", toy.as_uri(), hashlib.sha256(data).hexdigest(), len(data))
    monkeypatch.setitem(weights.WEIGHTS, "inception", (file,))
    monkeypatch.setenv("SIMS_CACHE", str(tmp_path / "cache"))
    return file


def images(count: int = 6, height: int = 32, width: int = 32) -> tuple[Tensor, Tensor]:
    """Random 8-bit images, and the same in [-1, 1]."""
    pixels = torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(1))
    return pixels.to(torch.uint8), pixels.float() / 127.5 - 1


@pytest.fixture(scope="module")
def photos() -> list[np.ndarray]:
    return load_sample_images().images  # a Chinese temple, a flower with a bee


def as_input(photo: np.ndarray) -> Tensor:
    return torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def error_of(function: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as raised:
        function(*arguments, **options)
    return str(raised.value)


def test_pixels_come_back_exactly() -> None:
    every = torch.arange(256)
    assert torch.equal(to_8_bit(every.float() / 127.5 - 1).long(), every)
    assert to_8_bit(torch.tensor([-1.2, 1.2, 0.0])).tolist() == [0, 255, 128]
    assert "NaN" in error_of(to_8_bit, torch.tensor([0.0, float("nan")]))


def test_inception_is_what_the_file_says(toy: Path) -> None:
    pixels, x = images(11)
    extractor, script = get_extractor(f"inception:{toy}"), torch.jit.load(str(toy))
    assert isinstance(extractor, Extractor) and isinstance(extractor, pretrained.InceptionExtractor)
    assert (extractor.num_features, extractor.channels) == (8, 3)
    torch.testing.assert_close(extractor(x), script(pixels, return_features=True).detach(), rtol=1e-5, atol=1e-5)
    truth = script(pixels, no_output_bias=True).detach()
    torch.testing.assert_close(extractor.probabilities(x), truth, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(extractor.probabilities_of(extractor(x)), truth, rtol=1e-5, atol=1e-6)
    assert extractor.name.startswith("inception-") and len(extractor.hash) == 16  # not the published weights


def test_inception_refuses_what_it_cannot_see(toy: Path, tmp_path: Path) -> None:
    extractor = get_extractor(f"inception:{toy}")
    assert "(B, 3, H, W)" in error_of(extractor, torch.zeros(2, 1, 8, 8))
    assert "NaN" in error_of(extractor, torch.full((2, 3, 8, 8), float("nan")))
    torch.jit.trace(nn.Flatten(), torch.zeros(1, 3, 4, 4)).save(str(tmp_path / "other.pt"))
    assert "not the Inception network" in error_of(get_extractor, f"inception:{tmp_path / 'other.pt'}")
    toy.write_bytes(toy.read_bytes()[:-200])
    assert "damaged or no TorchScript" in error_of(get_extractor, f"inception:{toy}")


def test_missing_weights_say_what_to_put_where(published: weights.WeightFile) -> None:
    message = error_of(get_extractor, "inception")
    for part in (
        "inception.pt",
        str(weights.cache_folder()),
        published.url,
        published.sha256,
        "option 'evaluation.download'",
    ):
        assert part in message
    assert not weights.cache_folder().exists()
    message = error_of(weights.locate, "dinov2")
    assert "config.json" in message and "model.safetensors (1,218 MB)" in message
    assert "'inception'" in error_of(weights.locate, "incepton")


def test_download_then_use_then_damage(published: weights.WeightFile, toy: Path) -> None:
    extractor = get_extractor("inception", download=True)
    path = weights.cache_folder() / "inception.pt"
    assert extractor.name == "inception" and path.read_bytes() == toy.read_bytes()
    assert get_extractor("inception").hash == extractor.hash == get_extractor(f"inception:{toy}").hash
    path.write_bytes(toy.read_bytes()[:1000])
    message = error_of(get_extractor, "inception")
    assert f"only 1,000 of {published.size:,} bytes" in message and published.sha256 in message
    path.write_bytes(toy.read_bytes()[:-1] + b"x")
    assert "damaged, or another file" in error_of(get_extractor, "inception")


def test_failed_downloads_leave_nothing(published: weights.WeightFile, monkeypatch: pytest.MonkeyPatch) -> None:
    def publish(**changes: Any) -> None:
        monkeypatch.setitem(weights.WEIGHTS, "inception", (dataclasses.replace(published, **changes),))

    publish(url="http://127.0.0.1:9/inception.pt")  # nobody listens there
    message = error_of(weights.locate, "inception", download=True)
    assert message.startswith("cannot download http://127.0.0.1:9/") and "by hand" in message
    publish(sha256="0" * 64)
    assert published.sha256 in error_of(weights.locate, "inception", download=True)
    assert not list(weights.cache_folder().rglob("*"))


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SIMS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.cache_folder() == tmp_path / ".cache" / "sims"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert weights.cache_folder() == tmp_path / "xdg" / "sims"
    monkeypatch.setenv("SIMS_CACHE", str(tmp_path / "own"))
    assert weights.cache_folder() == tmp_path / "own"


def test_a_stated_hash_must_hold(toy: Path) -> None:
    right = hashlib.sha256(toy.read_bytes()).hexdigest()
    assert get_extractor(f"inception:{toy}", expected_hash=right.upper()).num_features == 8
    message = error_of(get_extractor, f"inception:{toy}", expected_hash="1" * 64)
    assert right in message and "1" * 64 in message


def make_dino(folder: Path, image_size: int = 224, seed: int = 0) -> Any:
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    model = Dinov2Model(Dinov2Config(**sizes, patch_size=14, image_size=image_size)).eval()
    model.save_pretrained(folder)
    return model


@needs_transformers
def test_dinov2_follows_dgm_eval(tmp_path: Path, photos: list[np.ndarray]) -> None:
    model, extractor = make_dino(tmp_path), get_extractor(f"dinov2:{tmp_path}")
    assert (extractor.num_features, extractor.channels) == (32, 3) and extractor.name.startswith("dinov2-")
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    for photo in photos:
        small = np.asarray(Image.fromarray(photo).resize((224, 224), Image.Resampling.BICUBIC)).copy()
        x = ((torch.from_numpy(small) / 255 - mean) / deviation).permute(2, 0, 1)[None]
        with torch.no_grad():
            truth = model(pixel_values=x).last_hidden_state[:, 0]
        found = extractor(as_input(photo))
        assert (found - truth).norm() < 5e-3 * truth.norm()  # PIL rounds to 8 bits, EDM2 and we do not


def cubic(before: int, side: int, scale: float) -> Tensor:
    """The matrix (side, before) of cubic interpolation (a = -0.75) at (i + 0.5) / scale - 0.5, the border repeated."""
    matrix = torch.zeros(side, before, dtype=torch.float64)
    for row in range(side):
        where = (row + 0.5) / scale - 0.5
        for tap in range(int(where // 1) - 1, int(where // 1) + 3):
            t = abs(where - tap)
            near, far = 1.25 * t**3 - 2.25 * t**2 + 1, -0.75 * (t**3 - 5 * t**2 + 8 * t - 4)
            matrix[row, min(max(tap, 0), before - 1)] += near if t <= 1 else far
    return matrix


@needs_transformers
def test_dinov2_positions_keep_the_original_offset(tmp_path: Path) -> None:
    before, side = 37, 16  # 518 and 224 pixels of 14
    table = torch.randn(1, 1 + before**2, 2, generator=torch.Generator().manual_seed(0))
    scaled = scaled_positions(table, side)
    assert scaled.shape == (1, 1 + side**2, 2) and torch.equal(scaled[:, 0], table[:, 0])
    matrix = cubic(before, side, (side + 0.1) / before)
    truth = torch.einsum("ij,jkd,lk->ild", matrix, table[0, 1:].reshape(before, before, 2).double(), matrix)
    torch.testing.assert_close(scaled[0, 1:], truth.reshape(-1, 2).float(), rtol=1e-4, atol=1e-5)
    make_dino(tmp_path, image_size=56)
    assert get_extractor(f"dinov2:{tmp_path}")(images(2)[1]).isfinite().all()


@needs_transformers
def test_precision_and_weights_are_part_of_the_identity(tmp_path: Path) -> None:
    make_dino(tmp_path / "a"), make_dino(tmp_path / "b", seed=1)
    x = images(3)[1]
    full, half = (get_extractor(f"dinov2:{tmp_path / 'a'}", precision=precision) for precision in ("fp32", "bf16"))
    other = get_extractor(f"dinov2:{tmp_path / 'b'}")
    assert len({full.hash, half.hash, other.hash}) == len({full.name, half.name, other.name}) == 3
    assert half.name == f"{full.name}-bf16" and half(x).dtype == torch.float32
    assert 0 < (half(x) - full(x)).norm() < 0.05 * full(x).norm()


@needs_transformers
def test_damaged_model_folders(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    spec, file = f"dinov2:{tmp_path}", tmp_path / "model.safetensors"
    assert "config.json and model.safetensors" in error_of(get_extractor, spec)
    make_dino(tmp_path)
    tensors = load_file(file)
    save_file({name: tensors[name] for name in tensors if "layernorm" not in name}, file, metadata={"format": "pt"})
    assert "lack 2 tensors, 'layernorm.bias'" in error_of(get_extractor, spec)
    file.write_bytes(file.read_bytes()[:5000])
    assert "damaged" in error_of(get_extractor, spec)
    assert "'dinov2'; clip needs 'clip'" in error_of(get_extractor, f"clip:{tmp_path}")
    (tmp_path / "config.json").write_text("[")
    assert "not valid JSON" in error_of(get_extractor, spec)


@needs_transformers
@pytest.mark.parametrize("whole", [True, False])
def test_clip_follows_cmmd(tmp_path: Path, photos: list[np.ndarray], whole: bool) -> None:
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    sizes["num_attention_heads"] = 2
    vision = {**sizes, "image_size": 42, "patch_size": 14, "projection_dim": 16}
    tokens = {"vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    text = {**sizes, "projection_dim": 16, **tokens}
    if whole:  # both halves, as published; the weights as a pickle, as published
        both = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
        both.config.save_pretrained(tmp_path)
        torch.save(both.state_dict(), tmp_path / "pytorch_model.bin")
    model = CLIPVisionModelWithProjection(CLIPVisionConfig(**vision)).eval()
    if whole:
        model.load_state_dict({k: v for k, v in both.state_dict().items() if k in model.state_dict()})
    else:
        model.save_pretrained(tmp_path)
    extractor = get_extractor(f"clip:{tmp_path}")
    assert extractor.num_features == 16 and "42" in extractor.resize
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    for photo in photos:  # 427 x 640
        square = Image.fromarray(photo).crop((106, 0, 106 + 427, 427)).resize((42, 42), Image.Resampling.BICUBIC)
        x = ((torch.from_numpy(np.asarray(square).copy()) / 255 - mean) / deviation).permute(2, 0, 1)[None]
        with torch.no_grad():
            truth = functional.normalize(model(pixel_values=x).image_embeds)
        found = extractor(as_input(photo))
        assert found.norm() == pytest.approx(1, abs=1e-6) and (found - truth).norm() < 2e-3


def plain_lite0(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Features of EfficientNet-Lite0 step by step: batch norms on their own, TensorFlow's padding."""

    def step(x: Tensor, convolution: str, norm: str, stride: int = 1, groups: int = 1, activate: bool = True) -> Tensor:
        weight = state[f"{convolution}.weight"]
        total = max((-(-x.shape[2] // stride) - 1) * stride + weight.shape[2] - x.shape[2], 0)
        x = functional.pad(x, (total // 2, total - total // 2) * 2)
        x = functional.conv2d(x, weight, stride=stride, groups=groups)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        x = functional.batch_norm(x, mean, variance, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-3)
        return x.clamp(0, 6) if activate else x

    x = step(x, "_conv_stem", "_bn0", stride=2)
    strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1]
    for index, stride in enumerate(strides):
        name, y = f"_blocks.{index}", x
        if f"{name}._expand_conv.weight" in state:
            y = step(y, f"{name}._expand_conv", f"{name}._bn0")
        y = step(y, f"{name}._depthwise_conv", f"{name}._bn1", stride, groups=y.shape[1])
        y = step(y, f"{name}._project_conv", f"{name}._bn2", activate=False)
        x = x + y if x.shape == y.shape else y
    return step(x, "_conv_head", "_bn1").mean(dim=(2, 3))


@needs_lite0
@pytest.mark.parametrize("fused", [True, False])
def test_efficientnet_against_the_plain_network(fused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fused:
        monkeypatch.setattr(efficientnet, "_fused_works", lambda: False)
    elif not efficientnet._fused_works():
        pytest.skip("this build of torch has no oneDNN convolution with ReLU6")
    pixels, x = images(5)  # more than one piece
    extractor = get_extractor("efficientnet-lite0")
    state = torch.load(pretrained._lite0_file(), weights_only=True)
    large = functional.interpolate(pixels.float(), size=(224, 224), mode="bicubic", antialias=True)
    with torch.no_grad():
        truth = plain_lite0(state, (large - 127) / 128)
    found = extractor(x)
    assert found.shape == (5, 1280) and (found - truth).abs().max() < 1e-5 * truth.abs().max()
    assert not found.is_inference()  # a tensor like any other


@needs_lite0
def test_efficientnet_against_its_package() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="no other implementation here")
    file = str(pretrained._lite0_file())
    reference = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    x = torch.randn(2, 3, 224, 224)
    network = efficientnet.EfficientNetLite0(torch.load(file, weights_only=True))
    with torch.no_grad():
        features, logits = network(x), network.head(network(x))
        torch.testing.assert_close(features, reference.extract_features(x).mean(dim=(2, 3)), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits, reference(x), rtol=1e-4, atol=1e-4)


@needs_lite0
def test_efficientnet_knows_what_it_sees(photos: list[np.ndarray]) -> None:
    extractor = get_extractor("efficientnet-lite0")
    assert isinstance(extractor, pretrained.EfficientNetExtractor) and extractor.name == "efficientnet-lite0"
    buildings, flowers = {442, 449, 483, 663, 698}, {985, 309}  # bell cote to palace; daisy, bee
    for photo, classes, count in zip(photos, (buildings, flowers), (4, 2)):
        probabilities = extractor.probabilities(as_input(photo))
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
        assert len(classes & set(probabilities[0].topk(5).indices.tolist())) >= count


@needs_lite0
def test_other_weights_are_no_efficientnet(tmp_path: Path) -> None:
    torch.save({"_fc.bias": torch.zeros(3)}, tmp_path / "other.pth")
    assert "not the weights" in error_of(get_extractor, f"efficientnet-lite0:{tmp_path / 'other.pth'}")
    (tmp_path / "short.pth").write_bytes(pretrained._lite0_file().read_bytes()[:100_000])
    assert "damaged" in error_of(get_extractor, f"efficientnet-lite0:{tmp_path / 'short.pth'}")


@pytest.mark.parametrize(("name", "extra"), [("efficientnet-lite0", "efficientnet"), ("dinov2", "features")])
def test_missing_extras_are_named(name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    (tmp_path / "model.safetensors").touch()
    spec = name if extra == "efficientnet" else f"{name}:{tmp_path}"
    assert f"pip install 'sims-diffusion[{extra}]'" in error_of(get_extractor, spec)


class Mean(nn.Module):
    """Two features per image; integers are refused unless it is made for them."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.0, 2.0]))
        self.pixels = dtype == torch.uint8

    def forward(self, x: Tensor) -> Tensor:
        assert (x.dtype == torch.uint8) == self.pixels
        return x.float().mean(dim=[1, 2, 3])[:, None] * self.scale


def test_torchscript_files(tmp_path: Path) -> None:
    pixels, x = images()
    for dtype, suffix, truth in ((torch.float32, "", x), (torch.uint8, ":uint8", pixels.float())):
        file = tmp_path / f"mean-{dtype}.pt"
        torch.jit.script(Mean(dtype)).save(str(file))
        extractor = get_extractor(f"torchscript:{file}{suffix}", data_shape=(3, 32, 32))
        mean = truth.mean(dim=(1, 2, 3))
        torch.testing.assert_close(extractor(x), torch.stack([mean, 2 * mean], dim=1))
        assert (extractor.num_features, extractor.channels, extractor.resize) == (2, None, "none")
        assert extractor.name == f"torchscript-{file.stem}"
        other = suffix.replace(":uint8", "") or ":uint8" if not suffix else ""
        assert ":uint8" in error_of(get_extractor, f"torchscript:{file}{other}", data_shape=(3, 32, 32))
    assert "data_shape" in error_of(get_extractor, f"torchscript:{file}:uint8")
    file.write_bytes(b"nothing")
    assert "no TorchScript" in error_of(get_extractor, f"torchscript:{file}", data_shape=(3, 32, 32))
    assert "cannot read" in error_of(get_extractor, f"torchscript:{tmp_path / 'none.pt'}")


def test_callables_identify_themselves() -> None:
    x, shape = images()[1], (3, 32, 32)

    def corners(x: Tensor) -> Tensor:
        return x[:, :, 0, 0]

    assert "name and a version" in error_of(get_extractor, corners, data_shape=shape)
    first, second = (get_extractor(corners, data_shape=shape, name="corners", version=v) for v in ("1", "2"))
    assert (first.name, first.num_features) == ("corners", 3) and first.hash != second.hash
    assert torch.equal(first(x), x[:, :, 0, 0])
    network = Mean(torch.float32)
    before = get_extractor(network, data_shape=shape)
    network.scale.data += 1
    assert before.name == "Mean" and before.hash != get_extractor(network, data_shape=shape).hash
    assert get_extractor(before) is before
    assert "(1, features)" in error_of(get_extractor, lambda x: x, data_shape=shape, name="all", version="1")
    assert "num_features" in error_of(get_extractor, network)


def test_nan_is_not_hidden() -> None:
    extractor = get_extractor(lambda x: x.mean(dim=(2, 3)), data_shape=(3, 4, 4), name="mean", version="1")
    x = torch.zeros(3, 3, 4, 4)
    x[1, 2] = float("nan")
    assert np.isnan(extract(extractor, x)).tolist() == [[False] * 3, [False, False, True], [False] * 3]


def test_names_that_are_refused() -> None:
    assert "fitted to reference images" in error_of(get_extractor, "pca")
    assert "did you mean 'inception'" in error_of(get_extractor, "inseption")
    assert "fp32, bf16" in error_of(get_extractor, "dinov2", precision="fp16")
    for spec in ("inception", "torchscript:x.pt", torch.mean):
        assert "its own precision" in error_of(get_extractor, spec, precision="bf16")


def test_fitted_extractors_keep_their_hashes() -> None:
    pca = PCAExtractor((1, 2, 2), torch.zeros(4), torch.eye(4))
    assert pca.channels is None and "area-averaged to 16" in pca.resize
    assert pca.hash == "67de9edd13d2c0fa"
    classifier = ClassifierExtractor(ConvClassifier((1, 8, 8), 2, variant="b"))
    assert classifier.channels is None and "area-averaged to 16" in classifier.resize
