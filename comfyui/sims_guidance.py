# Copyright 2026 the sims authors. Licensed under the Apache License, Version 2.0: apache.org/licenses/LICENSE-2.0
"""A node of ComfyUI: guide a model away from a LoRA that was trained on the model's own samples (SIMS).

Put this file into ComfyUI/custom_nodes. Load negative-kohya.safetensors of a run (SD3: negative.safetensors) with
LoraLoaderModelOnly at strength 1, connect the model without it to `model` and the model with it to `negative`, and
sample from what comes out:

    denoised = cfg + w (cfg - cfg of the negative)

Models of ComfyUI that come from one checkpoint share their weights, and LoRAs are written into these when a model is
loaded, so two of them cannot be evaluated in turn. Here the LoRA acts beside the weights instead: while the negative is
evaluated, each layer adds its own scale * up(down(x)). Nothing is loaded twice and no weight changes. A negative with
weights of its own (another checkpoint) is evaluated as it is, and loaded with the model.
"""

from __future__ import annotations

import contextlib

import comfy.samplers
import torch

KEY = "sims_negative"


class SimsGuidance:
    @classmethod
    def INPUT_TYPES(cls):
        strength = {"default": 1.0, "min": -10.0, "max": 10.0, "step": 0.05, "round": 0.001}
        level = {"min": 0.0, "max": 10000.0, "step": 0.01, "round": False}
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model to guide, without the negative LoRA."}),
                "negative": ("MODEL", {"tooltip": "The same model with the negative LoRA, at strength 1."}),
                "w": ("FLOAT", {**strength, "tooltip": "How far to go away from the negative; 0 = not at all."}),
                "sigma_low": ("FLOAT", {**level, "default": 0.0, "tooltip": "Guide above this noise level."}),
                "sigma_high": ("FLOAT", {**level, "default": 10000.0, "tooltip": "Guide up to this noise level."}),
                "condition_only": ("BOOLEAN", {"default": False, "tooltip": "Guide the positive prediction alone."}),
            }
        }

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "sampling/guidance"
    DESCRIPTION = "Guides away from a LoRA trained on the model's own samples. Values: guidance.json of the run."

    def patch(self, model, negative, w, sigma_low, sigma_high, condition_only):
        guided = model.clone()
        if negative.model is model.model:
            layers, other = lora_layers(model, negative), None
        else:
            layers, other = [], negative
            guided.set_additional_models(KEY, [other])  # loaded with the model, by ComfyUI

        def evaluated(args, conds):
            inputs = (conds, args["input"], args["sigma"], args["model_options"])
            if other is None:
                with lora_beside(args["model"], layers):
                    return comfy.samplers.calc_cond_batch(args["model"], *inputs)
            if getattr(other.model, "current_patcher", None) is None:
                other.pre_run()
            return comfy.samplers.calc_cond_batch(other.model, *inputs)

        def post_cfg(args):
            denoised = args["denoised"]
            if w == 0 or not sigma_low < noise_level(args["model"], args["sigma"]) <= sigma_high:
                return denoised
            scale, cond, uncond = args["cond_scale"], args["cond"], args["uncond"]
            if uncond is None or scale == 1:
                return denoised + w * (args["cond_denoised"] - evaluated(args, [cond])[0])
            if condition_only:
                return denoised + w * scale * (args["cond_denoised"] - evaluated(args, [cond])[0])
            ours = args["cond_denoised"], args["uncond_denoised"]
            away_cond, away_uncond = (one - theirs for one, theirs in zip(ours, evaluated(args, [cond, uncond])))
            return denoised + w * (away_uncond + scale * (away_cond - away_uncond))

        guided.set_model_sampler_post_cfg_function(post_cfg)
        return (guided,)


def noise_level(model, sigma):
    """Sigma of x = x0 + sigma n, as in guidance.json; ComfyUI counts flows (SD3) by s = sigma / (1 + sigma)."""
    level = float(sigma.max())
    flow = any(cls.__name__ == "CONST" for cls in type(model.model_sampling).__mro__)
    return level / max(1 - level, 1e-12) if flow else level


def lora_layers(model, negative):
    """(name of the layer, strength, up, down, rows of the output or None): what negative has and model has not."""
    layers = []
    for key in set(model.patches) - set(negative.patches):
        raise ValueError(f"SIMS guidance: `model` has a patch of {key} that `negative` lacks; load other LoRAs first.")
    for key, patches in negative.patches.items():
        shared = model.patches.get(key, [])
        if len(shared) > len(patches) or any(one is not other for one, other in zip(shared, patches)):
            raise ValueError(f"SIMS guidance: patches of {key} differ; connect `model` to the loader of the LoRA too.")
        for patch in patches[len(shared) :]:
            layers.append(lora_layer(key, *patch[:5]))
    if not layers:
        raise ValueError("SIMS guidance: `negative` has no LoRA that `model` lacks; load negative.safetensors for it.")
    return layers


def lora_layer(key, strength, value, strength_model=1.0, offset=None, function=None):
    if isinstance(value, tuple):  # ("lora", (up, down, alpha, ...)) before there were adapters
        kind, weights = value if len(value) == 2 else ("", ())
    else:
        kind, weights = getattr(value, "name", ""), getattr(value, "weights", ())
    rows = None if offset is None else tuple(offset[1:3])
    plain = kind == "lora" and all(part is None for part in weights[3:]) and key.endswith(".weight")
    if not plain or strength_model != 1.0 or function is not None or (offset is not None and offset[0] != 0):
        raise ValueError(f"SIMS guidance: the patch of {key} is no plain LoRA; load the negative LoRA of a run.")
    up, down, alpha = weights[:3]
    scale = strength * (1.0 if alpha is None else float(alpha) / down.shape[0])
    return key[: -len(".weight")], scale, up, down, rows


@contextlib.contextmanager
def lora_beside(model, layers):
    """While it lasts, every layer of the model adds its LoRA's part to its output; no weight is touched."""
    modules, handles = dict(model.named_modules()), []
    try:
        for name, scale, up, down, rows in layers:
            handles.append(modules[name].register_forward_hook(adding(scale, up, down, rows)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def adding(scale, up, down, rows):
    def hook(module, inputs, output):
        x = inputs[0]
        a, b = (part.to(device=x.device, dtype=x.dtype) for part in (down, up))
        if hasattr(module, "kernel_size"):
            a = a.reshape(a.shape[0], -1, *module.kernel_size)
            hidden = torch.nn.functional.conv2d(x, a, None, module.stride, module.padding, module.dilation)
            part = torch.nn.functional.conv2d(hidden, b.reshape(*b.shape[:2], 1, 1))
        else:
            part = torch.nn.functional.linear(torch.nn.functional.linear(x, a.flatten(1)), b.flatten(1))
        if rows is None:
            return output + scale * part
        output = output.clone()  # one layer for several of the LoRA's, such as q, k and v
        output[..., rows[0] : rows[0] + rows[1]] += scale * part
        return output

    return hook


NODE_CLASS_MAPPINGS = {"SimsGuidance": SimsGuidance}
NODE_DISPLAY_NAME_MAPPINGS = {"SimsGuidance": "SIMS guidance (away from own samples)"}
