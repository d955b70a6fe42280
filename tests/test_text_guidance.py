"""Guided pipelines draw what loops written by hand draw, with the base and the LoRA merged into a second network."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.modular_pipelines.stable_diffusion_xl import StableDiffusionXLAutoBlocks
from peft import LoraConfig
from torch import Tensor

from sims.errors import UserError
from sims.files import read_json, write_json
from sims.guidance.cache import CacheRule
from sims.interop.modular_guider import SelfImprovingGuidance
from sims.interop.text_guidance import ADAPTER, base_hash, guide_pipeline, read_guidance, unguide, write_guidance
from text_pipelines import KINDS, SIZE, draw, embeddings, euler, inputs, merged, network_of, pipeline, trained

W, SCALE, FACTOR = 1.5, 3.0, 2.0 / 4
MIDDLE = {"sd": (0.5, 5.0), "sdxl": (0.5, 5.0), "sd3": (0.5, 5.0)}


def folder_of(kind: str, folder: Path, **more: Any) -> Path:
    pipe = pipeline(kind)
    how = {"alpha": 2.0, "w": W, "scale": SCALE, **more}
    write_guidance(folder, type(pipe).__name__, network_of(pipe), trained(kind), **how)
    return folder


def sigma_of(pipe: Any, kind: str, time: Tensor) -> float:
    if kind == "sd3":
        share = float(time) / 1000
        return math.inf if share == 1 else share / (1 - share)
    alpha = float(pipe.scheduler.alphas_cumprod[int(time)])
    return math.sqrt((1 - alpha) / alpha)


def by_hand(
    kind: str,
    condition_only: bool = False,
    interval: tuple[float, float] = (0, math.inf),
    reuse: tuple[int, ...] = (),
    steps: int = 4,
) -> Tensor:
    """Diffusers' loop for one prompt, one pass of a network at a time; at the steps in ``reuse`` no LoRA is asked."""
    pipe = pipeline(kind)
    base, lora = network_of(pipe), copy.deepcopy(network_of(pipe))
    merged(lora, trained(kind), FACTOR)
    prompt = embeddings(kind, 0)
    pipe.scheduler.set_timesteps(steps)
    x = torch.randn(1, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(100))
    x = x * getattr(pipe.scheduler, "init_noise_sigma", 1.0)
    held: dict[str, tuple[Tensor, float]] = {}

    def passed(network: Any, given: Tensor, time: Tensor, which: str) -> Tensor:
        words = {"encoder_hidden_states": prompt[f"{which}prompt_embeds"], "return_dict": False}
        if kind == "sd3":
            pooled = prompt[f"{which}pooled_prompt_embeds"]
            return network(hidden_states=given, timestep=time[None], pooled_projections=pooled, **words)[0]  # type: ignore[no-any-return]
        if kind == "sdxl":
            ids = torch.tensor([[8.0, 8.0, 0.0, 0.0, 8.0, 8.0]])
            words["added_cond_kwargs"] = {"text_embeds": prompt[f"{which}pooled_prompt_embeds"], "time_ids": ids}
        return network(given, time, **words)[0]  # type: ignore[no-any-return]

    with torch.no_grad():
        for place, time in enumerate(pipe.scheduler.timesteps):
            given = x if kind == "sd3" else pipe.scheduler.scale_model_input(x, time)
            sigma, outputs = sigma_of(pipe, kind, time), {}
            c_out = sigma / (1 + sigma) if kind == "sd3" else sigma  # up to the sign
            for which in ("", "negative_"):
                outputs[which] = passed(base, given, time, which)
                if (condition_only and which) or not interval[0] < sigma <= interval[1]:
                    continue
                if place not in reuse:
                    held[which] = (outputs[which] - passed(lora, given, time, which), c_out)
                correction, at = held[which]
                outputs[which] = outputs[which] + W * correction * (at / c_out if place in reuse else 1)
            guided = outputs["negative_"] + SCALE * (outputs[""] - outputs["negative_"])
            x = pipe.scheduler.step(guided, time, x, return_dict=False)[0]
    return x


def far(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "settings",
    [{}, {"condition_only": True}, {"interval": "middle"}, {"condition_only": True, "interval": "middle"}],
    ids=["both", "condition", "interval", "condition-interval"],
)
def test_images_are_those_of_a_loop_by_hand(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    settings = {**settings, **({"interval": MIDDLE[kind]} if "interval" in settings else {})}
    pipe, plain = pipeline(kind), draw(pipeline(kind), kind)
    assert guide_pipeline(pipe, folder_of(kind, tmp_path, **settings)).scale == SCALE
    wanted = by_hand(kind, **settings)
    found = draw(pipe, kind)
    assert far(found, wanted) < 1e-5 and far(wanted, plain) > 1e-3
    assert torch.equal(draw(pipe, kind), found)  # nothing is left of the first run


@pytest.mark.parametrize("kind", KINDS)
def test_without_strength_it_is_the_pipeline_bit_for_bit_and_also_afterwards(kind: str, tmp_path: Path) -> None:
    pipe, folder = pipeline(kind), folder_of(kind, tmp_path)
    network = network_of(pipe)
    network.requires_grad_(True)
    plain = draw(pipe, kind)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modules = [id(module) for module in network.modules()]
    attributes, places = dict(network.__dict__), {id(p): p.requires_grad for p in network.parameters()}
    calls = []
    handle = network.register_forward_pre_hook(lambda *_: calls.append(1))
    guide_pipeline(pipe, folder, w=0.0)
    assert torch.equal(draw(pipe, kind), plain)
    guide_pipeline(pipe, folder, w=3.0)
    guide_pipeline(pipe, folder)  # a second one takes the place of the first
    assert far(draw(pipe, kind), plain) > 1e-3
    assert ADAPTER in network.peft_config
    unguide(pipe)
    handle.remove()
    assert torch.equal(draw(pipe, kind), plain)
    after = network.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert [id(module) for module in network.modules()] == modules
    assert {name: value for name, value in network.__dict__.items() if value is not attributes.get(name)} == {}
    assert {id(p): p.requires_grad for p in network.parameters()} == places
    unguide(pipe)  # nothing to do


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("condition_only", [False, True])
def test_samples_of_a_batch_are_those_drawn_one_by_one(kind: str, condition_only: bool, tmp_path: Path) -> None:
    pipe = pipeline(kind)
    guide_pipeline(pipe, folder_of(kind, tmp_path, condition_only=condition_only, refresh=0.5))
    together = draw(pipe, kind, (0, 1, 2))
    for number in (2, 0, 1):
        assert far(draw(pipe, kind, (number,)), together[number : number + 1]) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("condition_only", [False, True])
def test_a_held_correction_is_that_of_the_last_refresh(kind: str, condition_only: bool, tmp_path: Path) -> None:
    pipe = pipeline(kind)
    # Not at the first level of SD3, where nothing of the data is left.
    settings: dict[str, Any] = {"condition_only": condition_only, "interval": (0.001, 50.0)}
    first = 1 if kind == "sd3" else 0
    guide_pipeline(pipe, folder_of(kind, tmp_path, refresh=0.5, **settings))
    steps = 4 + first
    found, wanted = draw(pipe, kind, steps=steps), by_hand(kind, reuse=(first + 1, first + 3), steps=steps, **settings)
    assert far(found, wanted) < 1e-5
    assert far(wanted, by_hand(kind, steps=steps, **settings)) > 1e-4
    assert torch.equal(draw(pipe, kind, steps=steps), found)


@pytest.mark.parametrize("name", ["PNDMScheduler", "HeunDiscreteScheduler"])
def test_solvers_that_ask_twice_at_a_level_hold_nothing_from_run_to_run(name: str, tmp_path: Path) -> None:
    pipe = pipeline("sd")
    more = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    pipe.scheduler = getattr(diffusers, name)(beta_schedule="scaled_linear", **more)
    plain = draw(pipe, "sd", steps=5)
    calls = []
    guide_pipeline(pipe, folder_of("sd", tmp_path, refresh=0.4))
    layer = next(m for m in pipe.unet.modules() if ADAPTER in getattr(m, "lora_A", ()))
    layer.lora_A[ADAPTER].register_forward_hook(lambda *_: calls.append(1))
    found = draw(pipe, "sd", steps=5)
    levels = len(set(pipe.scheduler.timesteps.tolist()))
    assert len(calls) == math.ceil(0.4 * levels)
    assert torch.equal(draw(pipe, "sd", steps=5), found) and far(found, plain) > 1e-3
    draw(pipe, "sd", steps=3)
    assert torch.equal(draw(pipe, "sd", steps=5), found)


def test_a_rule_of_a_pilot_is_followed(tmp_path: Path) -> None:
    """A correction that halves from each level of the pilot to the next, and one that is the same at all."""
    levels, pipe = (10.0, 3.0, 1.0, 0.3), pipeline("sdxl")
    same = CacheRule(levels, tuple((1.0,) * 4 for _ in levels), 1.0, 1)
    folder = folder_of("sdxl", tmp_path, refresh=same)
    assert read_guidance(folder).refresh == same
    guide_pipeline(pipe, folder)
    assert far(draw(pipe, "sdxl"), by_hand("sdxl", reuse=(1, 2, 3))) < 1e-5


def test_img2img_begins_in_the_middle_of_the_schedule(tmp_path: Path) -> None:
    pipe = pipeline("sdxl", "StableDiffusionXLImg2ImgPipeline")

    def drawn() -> Tensor:
        return pipe(  # type: ignore[no-any-return]
            **embeddings("sdxl", 0),
            image=torch.ones(1, 4, SIZE, SIZE),
            strength=0.6,
            num_inference_steps=5,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        ).images

    plain, folder = drawn(), folder_of("sdxl", tmp_path, refresh=0.2)
    guide_pipeline(pipe, folder, w=0.0)
    assert torch.equal(drawn(), plain)
    guide_pipeline(pipe, folder)
    found = drawn()
    assert far(found, plain) > 1e-3 and torch.equal(drawn(), found)


def test_other_adapters_stay_in_both_predictions(tmp_path: Path) -> None:
    """A style of the user's, active or not, and switched while the pipeline is guided."""
    folder, pipe = folder_of("sd", tmp_path), pipeline("sd")
    style = LoraConfig(r=2, target_modules=["to_q", "conv1"], init_lora_weights=False)
    torch.manual_seed(3)
    pipe.unet.add_adapter(style, adapter_name="style")
    plain, names = draw(pipe, "sd"), list(pipe.unet.state_dict())
    styled = pipeline("sd")
    parts = {name: t for name, t in pipe.unet.state_dict().items() if ".lora_" in name}
    merged(styled.unet, {name.replace(".style.", "."): t for name, t in parts.items()}, 8 / 2)
    assert far(draw(styled, "sd"), plain) < 1e-5
    guide_pipeline(styled, folder, check=False)
    guide_pipeline(pipe, folder)
    wanted = draw(styled, "sd")
    assert far(draw(pipe, "sd"), wanted) < 1e-5 and far(wanted, plain) > 1e-3
    pipe.unet.disable_adapters()
    assert far(draw(pipe, "sd"), by_hand("sd")) < 1e-5
    pipe.unet.enable_adapters()
    assert far(draw(pipe, "sd"), wanted) < 1e-5
    unguide(pipe)
    assert torch.equal(draw(pipe, "sd"), plain) and list(pipe.unet.state_dict()) == names
    assert list(pipe.unet.peft_config) == ["style"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_opposite_file_alone_is_the_merged_network(kind: str, tmp_path: Path) -> None:
    folder, by_weights = folder_of(kind, tmp_path), pipeline(kind)
    merged(network_of(by_weights), trained(kind), -W * FACTOR)
    files = ["neon.safetensors"] + (["neon-kohya.safetensors"] if kind != "sd3" else [])
    kohya = ["negative-kohya.safetensors", "neon-kohya.safetensors"] if kind != "sd3" else []
    names = sorted([*kohya, "guidance.json", "negative.safetensors", "neon.safetensors"])
    assert sorted(path.name for path in folder.iterdir()) == names
    for file in files:
        pipe = pipeline(kind)
        pipe.load_lora_weights(folder, weight_name=file)
        with torch.no_grad():
            found, wanted = (network_of(one)(**inputs(kind), return_dict=False)[0] for one in (pipe, by_weights))
        assert far(found, wanted) < 1e-5
        assert far(draw(pipe, kind), draw(by_weights, kind)) < 1e-5


def test_what_cannot_be_guided_is_said(tmp_path: Path) -> None:
    folder, pipe = folder_of("sd", tmp_path), pipeline("sd")
    with pytest.raises(UserError, match="a DDPMPipeline cannot be guided"):
        guide_pipeline(diffusers.DDPMPipeline(unet=None, scheduler=diffusers.DDPMScheduler()), folder)
    with pytest.raises(UserError, match="made for a StableDiffusionPipeline, and this is a StableDiffusion3Pipeline"):
        guide_pipeline(pipeline("sd3"), folder)
    with pytest.raises(UserError, match=r"no file .*guidance.json"):
        guide_pipeline(pipe, tmp_path / "none")
    other = pipeline("sd")
    with torch.no_grad():
        other.unet.conv_in.bias.add_(1.0)
    with pytest.raises(UserError, match="check=False"):
        guide_pipeline(other, folder)
    guide_pipeline(other, folder, check=False)
    fused = pipeline("sd")
    fused.load_lora_weights(folder, weight_name="neon.safetensors")
    fused.fuse_lora()
    with pytest.raises(UserError, match="unfuse_lora"):
        guide_pipeline(fused, folder, check=False)
    guide_pipeline(pipe, folder)
    pipe.unload_lora_weights()
    with pytest.raises(UserError, match="was unloaded from a guided pipeline"):
        draw(pipe, "sd")
    settings = read_json(folder / "guidance.json")
    for change, words in (
        ({"format": 2}, "format 2"),
        ({"refresh": 1.5}, "at most 1"),
        ({"interval": [2, 1]}, "low < high"),
        ({"w": "inf"}, "finite"),
        ({"strength": 1}, "unknown entry 'strength'"),
    ):
        write_json(folder / "guidance.json", {**settings, **change})
        with pytest.raises(UserError, match=words):
            read_guidance(folder)


def test_a_base_is_the_same_in_half_precision_and_with_adapters(tmp_path: Path) -> None:
    network = pipeline("sd").unet
    bare = base_hash(network)
    assert base_hash(network.half()).split(":")[1] == bare.split(":")[1]
    pipe = pipeline("sd")
    guide_pipeline(pipe, folder_of("sd", tmp_path))
    assert base_hash(pipe.unet) == bare
    assert read_json(tmp_path / "guidance.json")["base"] == bare


# -- the guider of modular pipelines -----------------------------------------------------------------------------------


def test_the_guider_asks_for_what_a_step_needs() -> None:
    guider = SelfImprovingGuidance(guidance_scale=3.0, w=0.5, timesteps=(100.0, 600.0))
    cond, uncond, cond_n, uncond_n = (torch.randn(1, 2) for _ in range(4))
    data = {"prompt_embeds": (cond, uncond)}
    four = ["pred_cond", "pred_uncond", "pred_cond_negative", "pred_uncond_negative"]
    for time, wanted in ((601, four[:2]), (600, four), (101, four), (100, four[:2])):
        guider.set_state(step=0, num_inference_steps=4, timestep=torch.tensor(time))
        batches = guider.prepare_inputs(data)
        assert [batch.__guidance_identifier__ for batch in batches] == wanted
        assert [torch.equal(b.prompt_embeds, cond) for b in batches] == ["uncond" not in name for name in wanted]
        state = guider.prepare_inputs_from_block_state(SimpleNamespace(a=cond, b=uncond), {"prompt_embeds": ("a", "b")})
        assert [torch.equal(b.prompt_embeds, cond) for b in state] == ["uncond" not in name for name in wanted]
        assert guider.num_conditions == len(wanted)
    cfg, negative = uncond + 3 * (cond - uncond), uncond_n + 3 * (cond_n - uncond_n)
    found = guider.forward(cond, uncond, cond_n, uncond_n).pred
    assert torch.allclose(found, cfg + 0.5 * (cfg - negative), atol=1e-6)
    assert torch.equal(guider.forward(cond, uncond).pred, cfg)
    alone = SelfImprovingGuidance(guidance_scale=3.0, w=0.5, condition_only=True)
    assert alone.needed() == four[:3]
    assert torch.allclose(alone.forward(cond, uncond, cond_n).pred, cfg + 3 * 0.5 * (cond - cond_n), atol=1e-6)
    plain = SelfImprovingGuidance(guidance_scale=1.0, w=0.5)
    assert plain.needed() == ["pred_cond", "pred_cond_negative"]
    assert torch.allclose(plain.forward(cond, None, cond_n).pred, cond + 0.5 * (cond - cond_n))
    assert SelfImprovingGuidance(w=0.0).needed() == four[:2]
    late = SelfImprovingGuidance(w=0.5, start=0.5)
    late.set_state(step=0, num_inference_steps=4, timestep=torch.tensor(900))
    assert late.needed() == four[:2]
    late.disable()
    assert late.needed() == ["pred_cond"]


def test_the_guider_switches_the_adapter(tmp_path: Path) -> None:
    folder, pipe = folder_of("sdxl", tmp_path), pipeline("sdxl")
    guider = SelfImprovingGuidance.from_folder(folder, pipe.scheduler)
    with pytest.raises(UserError, match="has no adapter 'sims_negative'"):
        guider.prepare_models(pipe.unet)
    pipe.unet.load_lora_adapter(folder / "negative.safetensors", prefix="unet", adapter_name=ADAPTER)
    base, lora = pipeline("sdxl").unet, pipeline("sdxl").unet
    merged(lora, trained("sdxl"), FACTOR)
    given = {**inputs("sdxl"), "return_dict": False}
    guider.set_state(step=0, num_inference_steps=4, timestep=torch.tensor(500))
    with torch.no_grad():
        for network, conditional in ((base, True), (base, False), (lora, True), (lora, False)):
            guider.prepare_models(pipe.unet)
            assert guider.is_conditional == conditional
            assert far(pipe.unet(**given)[0], network(**given)[0]) < 1e-5
            guider.cleanup_models(pipe.unet)
        assert far(pipe.unet(**given)[0], lora(**given)[0]) < 1e-5  # as it was loaded
    saved = guider.config
    again = SelfImprovingGuidance.from_config(saved)
    assert again.w == W and again.guidance_scale == SCALE and again.timesteps == (None, None)


@pytest.mark.parametrize("settings", [{}, {"condition_only": True, "interval": (0.5, 5.0)}])
def test_a_modular_pipeline_draws_what_the_guided_pipeline_draws(settings: dict[str, Any], tmp_path: Path) -> None:
    folder, pipe = folder_of("sdxl", tmp_path, **settings), pipeline("sdxl")
    guide_pipeline(pipe, folder)
    wanted = draw(pipe, "sdxl")
    unguide(pipe)
    pipe.unet.load_lora_adapter(folder / "negative.safetensors", prefix="unet", adapter_name=ADAPTER)
    blocks = StableDiffusionXLAutoBlocks()
    for name in ("text_encoder", "ip_adapter", "vae_encoder", "decode"):
        del blocks.sub_blocks[name]
    modular = blocks.init_pipeline()
    guider = SelfImprovingGuidance.from_folder(folder, pipe.scheduler)
    modular.update_components(unet=pipe.unet, vae=pipe.vae, scheduler=euler(), guider=guider)
    modular.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 4, SIZE, SIZE, generator=torch.Generator().manual_seed(100))
    for _ in range(2):
        found = modular(
            **embeddings("sdxl", 0),
            latents=noise.clone(),
            num_inference_steps=4,
            height=SIZE * modular.vae_scale_factor,
            width=SIZE * modular.vae_scale_factor,
            original_size=(SIZE, SIZE),
            target_size=(SIZE, SIZE),
            output="latents",
        )
        assert far(found, wanted) < 1e-5
