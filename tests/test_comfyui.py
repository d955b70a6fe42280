"""The node of ComfyUI, with a stand-in of ComfyUI's interface: ComfyUI itself is not run here.

What the stand-in takes from the real one: ``model.clone()`` shares the network (``model.model``, a BaseModel) and
copies the lists of patches, whose entries (strength, weights, strength of the model, offset, function) stay the same
objects; LoraLoaderModelOnly adds entries with ``.name == "lora"`` and ``.weights == (up, down, alpha, mid, dora,
reshape)``, or tuples ("lora", weights) in older versions; patches of the sampled model are in its weights when it
samples; ``calc_cond_batch(model, conds, x, timestep, options)`` gives one denoised estimate per list of conditions;
functions set by ``set_model_sampler_post_cfg_function`` get the dict of ``cfg_function`` and return the new estimate,
and ``uncond`` is None at scale 1. The real calc_cond_batch also handles areas, masks, hooks and memory.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

FILE = Path(__file__).parents[1] / "comfyui" / "sims_guidance.py"
CHANNELS = 6


class CONST:
    """The name that ComfyUI gives to the sampling of flows."""


class Sampling:
    pass


class Flow(CONST):
    pass


class BaseModel(nn.Module):
    """A network with a linear layer, a fused one and a convolution; conditions are added to x."""

    def __init__(self, sampling: Any = Sampling) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.diffusion_model = nn.ModuleDict(
            {
                "to_q": nn.Linear(CHANNELS, CHANNELS),
                "qkv": nn.Linear(CHANNELS, 3 * CHANNELS),
                "conv": nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            }
        )
        self.model_sampling = sampling()
        self.current_patcher: Any = None

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        rows = (x + cond).movedim(1, -1)
        hidden = self.diffusion_model["to_q"](rows).tanh()
        q, k, v = self.diffusion_model["qkv"](hidden).chunk(3, dim=-1)
        return self.diffusion_model["conv"]((q * k + v).movedim(-1, 1))  # type: ignore[no-any-return]


class Patcher:
    def __init__(self, model: BaseModel) -> None:
        self.model = model
        self.patches: dict[str, list[tuple[Any, ...]]] = {}
        self.additional: dict[str, list[Patcher]] = {}
        self.post: list[Any] = []

    def clone(self) -> Patcher:
        made = Patcher(self.model)
        made.patches = {key: patches[:] for key, patches in self.patches.items()}
        made.post = self.post[:]
        return made

    def set_model_sampler_post_cfg_function(self, function: Any, disable_cfg1_optimization: bool = False) -> None:
        self.post.append(function)

    def set_additional_models(self, key: str, models: list[Patcher]) -> None:
        self.additional[key] = models

    def pre_run(self) -> None:
        self.model.current_patcher = self


def calc_cond_batch(model: BaseModel, conds: list[Any], x: Tensor, timestep: Tensor, options: Any) -> list[Tensor]:
    return [torch.zeros_like(x) if cond is None else model(x, cond[0]["value"]) for cond in conds]


def cfg_denoised(patcher: Patcher, x: Tensor, sigma: float, cond: Any, uncond: Any, scale: float) -> Tensor:
    """As ComfyUI's sampling_function and cfg_function."""
    uncond = None if scale == 1 else uncond
    one, none = calc_cond_batch(patcher.model, [cond, uncond], x, torch.tensor([sigma] * len(x)), {})
    denoised = none + (one - none) * scale
    for function in patcher.post:
        denoised = function(
            {
                "denoised": denoised,
                "cond": cond,
                "uncond": uncond,
                "cond_scale": scale,
                "model": patcher.model,
                "uncond_denoised": none,
                "cond_denoised": one,
                "sigma": torch.tensor([sigma] * len(x)),
                "model_options": {"transformer_options": {}},
                "input": x,
            }
        )
    return denoised


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch) -> Any:
    comfy, samplers = ModuleType("comfy"), ModuleType("comfy.samplers")
    samplers.calc_cond_batch = calc_cond_batch  # type: ignore[attr-defined]
    comfy.samplers = samplers  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "comfy", comfy)
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)
    spec = importlib.util.spec_from_file_location("sims_guidance_node", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lora(model: Patcher, old: bool = False, strength: float = 0.8) -> tuple[Patcher, dict[str, Tensor]]:
    """The model with a LoRA, as the loader makes it, and what it adds to each weight."""
    random = torch.Generator().manual_seed(2)
    found, deltas = model.clone(), {}

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    rank, alpha = 2, 4.0
    conv = (normal(CHANNELS, rank, 1, 1), normal(rank, CHANNELS, 3, 3), None)
    middle = (normal(CHANNELS, rank), normal(rank, CHANNELS), alpha)
    for name, weights, offset in (
        ("to_q", (normal(CHANNELS, rank), normal(rank, CHANNELS), alpha), None),
        ("qkv", middle, (0, CHANNELS, CHANNELS)),
        ("conv", conv, None),
    ):
        key, scale = f"diffusion_model.{name}.weight", strength * (1 if weights[2] is None else weights[2] / rank)
        rest = (*weights, None, None, None)
        value = ("lora", rest) if old else SimpleNamespace(name="lora", weights=rest)
        found.patches[key] = [*found.patches.get(key, []), (strength, value, 1.0, offset, None)]
        weight = model.model.get_parameter(key)
        delta = torch.zeros_like(weight)
        change = scale * (weights[0].flatten(1) @ weights[1].flatten(1)).reshape(-1, *weight.shape[1:])
        delta[slice(None) if offset is None else slice(offset[1], offset[1] + offset[2])] = change
        deltas[key] = delta
    return found, deltas


def conditions() -> tuple[Tensor, Any, Any]:
    random = torch.Generator().manual_seed(4)
    x, one, none = (torch.randn(2, CHANNELS, 4, 4, generator=random) for _ in range(3))
    return x, [{"value": one}], [{"value": none}]


def with_weights(deltas: dict[str, Tensor]) -> Patcher:
    made = Patcher(BaseModel())
    with torch.no_grad():
        for key, delta in deltas.items():
            made.model.get_parameter(key).add_(delta)
    return made


@pytest.mark.parametrize("old", [False, True], ids=["adapters", "tuples"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
@torch.no_grad()
def test_denoised_is_extrapolated(node: Any, scale: float, old: bool) -> None:
    model = Patcher(BaseModel())
    negative, deltas = lora(model, old)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    x, cond, uncond = conditions()
    cfg, theirs = (cfg_denoised(one, x, 2.0, cond, uncond, scale) for one in (model, with_weights(deltas)))
    (guided,) = node.SimsGuidance().patch(model, negative, 1.5, 0.0, 100.0, False)
    found = cfg_denoised(guided, x, 2.0, cond, uncond, scale)
    wanted = cfg + 1.5 * (cfg - theirs)
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max() and (wanted - cfg).abs().max() > 0.1
    assert torch.equal(cfg_denoised(guided, x, 2.0, cond, uncond, scale), found)
    # The model that came in is as it was, and so are its weights: the LoRA acts beside them.
    assert torch.equal(cfg_denoised(model, x, 2.0, cond, uncond, scale), cfg) and not model.post
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())
    assert not any(module._forward_hooks for module in model.model.modules())


@torch.no_grad()
def test_the_condition_alone(node: Any) -> None:
    model = Patcher(BaseModel())
    negative, deltas = lora(model)
    x, cond, uncond = conditions()
    (guided,) = node.SimsGuidance().patch(model, negative, 1.5, 0.0, 100.0, True)
    found = cfg_denoised(guided, x, 2.0, cond, uncond, 3.0)
    one, none = calc_cond_batch(model.model, [cond, uncond], x, torch.tensor([2.0]), {})
    away = one + 1.5 * (one - with_weights(deltas).model(x, cond[0]["value"]))
    assert (found - (none + 3 * (away - none))).abs().max() < 1e-4 * found.abs().max()


@torch.no_grad()
def test_only_within_the_interval(node: Any) -> None:
    x, cond, uncond = conditions()
    for sampling, inside, outside in (
        (Sampling, (0.51, 5.0), (0.5, 5.01, 0.1)),
        (Flow, (0.35, 0.83), (0.33, 0.84, 1.0)),  # s = sigma / (1 + sigma)
    ):
        model = Patcher(BaseModel(sampling))
        (guided,) = node.SimsGuidance().patch(model, lora(model)[0], 1.5, 0.5, 5.0, False)
        for level in (*inside, *outside):
            plain = cfg_denoised(model, x, level, cond, uncond, 3.0)
            same = torch.equal(cfg_denoised(guided, x, level, cond, uncond, 3.0), plain)
            assert same == (level in outside), level
        (idle,) = node.SimsGuidance().patch(model, lora(model)[0], 0.0, 0.0, 100.0, False)
        assert torch.equal(cfg_denoised(idle, x, level, cond, uncond, 3.0), plain)


@torch.no_grad()
def test_a_negative_with_weights_of_its_own(node: Any) -> None:
    model = Patcher(BaseModel())
    negative = with_weights(lora(model)[1])
    x, cond, uncond = conditions()
    (guided,) = node.SimsGuidance().patch(model, negative, 0.5, 0.0, 100.0, False)
    assert guided.additional == {"sims_negative": [negative]}
    cfg, theirs = (cfg_denoised(one, x, 2.0, cond, uncond, 3.0) for one in (model, negative))
    found = cfg_denoised(guided, x, 2.0, cond, uncond, 3.0)
    assert torch.allclose(found, cfg + 0.5 * (cfg - theirs), atol=1e-4)
    assert negative.model.current_patcher is negative


@torch.no_grad()
def test_loras_that_both_have_are_in_both_predictions(node: Any) -> None:
    styled, deltas = lora(Patcher(BaseModel()), strength=0.3)
    negative, more = lora(styled)
    x, cond, uncond = conditions()
    (guided,) = node.SimsGuidance().patch(styled, negative, 1.5, 0.0, 100.0, False)
    with torch.no_grad():  # ComfyUI writes the patches of the sampled model into the weights
        for key, delta in deltas.items():
            styled.model.get_parameter(key).add_(delta)
    cfg = cfg_denoised(styled, x, 2.0, cond, uncond, 3.0)
    theirs = cfg_denoised(with_weights({k: deltas[k] + more[k] for k in more}), x, 2.0, cond, uncond, 3.0)
    found = cfg_denoised(guided, x, 2.0, cond, uncond, 3.0)
    assert (found - (cfg + 1.5 * (cfg - theirs))).abs().max() < 1e-4 * found.abs().max()


def test_wrong_connections_are_said(node: Any) -> None:
    model = Patcher(BaseModel())
    negative, _ = lora(model)
    patch = node.SimsGuidance().patch
    with pytest.raises(ValueError, match="has no LoRA that `model` lacks"):
        patch(model, model.clone(), 1.0, 0.0, 100.0, False)
    with pytest.raises(ValueError, match="that `negative` lacks"):
        patch(negative, model, 1.0, 0.0, 100.0, False)
    with pytest.raises(ValueError, match=r"patches of diffusion_model\.to_q\.weight differ"):
        patch(lora(model)[0], negative, 1.0, 0.0, 100.0, False)
    strange = model.clone()
    strange.patches["diffusion_model.to_q.weight"] = [(1.0, ("diff", (torch.zeros(1),)), 1.0, None, None)]
    with pytest.raises(ValueError, match="no plain LoRA"):
        patch(model, strange, 1.0, 0.0, 100.0, False)


def test_the_node_has_what_comfyui_asks_of_nodes(node: Any) -> None:
    cls = node.NODE_CLASS_MAPPINGS["SimsGuidance"]
    required = cls.INPUT_TYPES()["required"]
    assert list(required) == ["model", "negative", "w", "sigma_low", "sigma_high", "condition_only"]
    assert [kind for kind, *_ in required.values()] == ["MODEL", "MODEL", "FLOAT", "FLOAT", "FLOAT", "BOOLEAN"]
    assert cls.RETURN_TYPES == ("MODEL",) and callable(getattr(cls, cls.FUNCTION)) and cls.CATEGORY
    assert node.NODE_DISPLAY_NAME_MAPPINGS.keys() == node.NODE_CLASS_MAPPINGS.keys()
