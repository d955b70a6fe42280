"""Models of diffusers against exact posteriors, against diffusers' own samplers, and through folders and training."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sims.data.dataset import Dataset
from sims.denoiser import Denoiser
from sims.errors import UserError
from sims.gaussians import GaussianMixture
from sims.guidance import CacheRule, Extrapolate
from sims.methods.guided import extrapolate_weights
from sims.model import Model
from sims.sampling import sample
from sims.training.trainer import Trainer, TrainOptions

diffusers = pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

from sims.interop.diffusers import (  # noqa: E402
    DiffusersDenoiser,
    DiffusersNetwork,
    GuidedNetwork,
    is_diffusers,
    load_diffusers,
    load_guided,
    save_diffusers,
)
from sims.interop.parameterizations import read_schedule  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of the schedulers

DDIM = {"_class_name": "DDIMScheduler", "clip_sample": False}
ZERO_SNR = {**DDIM, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
EULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
EDM = {"_class_name": "EDMEulerScheduler"}

SCHEDULERS: dict[str, dict[str, Any]] = {
    "epsilon": DDIM,
    "epsilon, scaled linear": {**DDIM, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "v": {**DDIM, "prediction_type": "v_prediction"},
    "v, cosine": {**DDIM, "prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2"},
    "v, zero terminal SNR": ZERO_SNR,
    "x0": {**DDIM, "prediction_type": "sample"},
    "epsilon, own betas": {**DDIM, "trained_betas": np.linspace(1e-3, 0.05, 100).tolist(), "num_train_timesteps": 100},
    "flow": FLOW,
    "flow, shifted": {**FLOW, "shift": 3.0},
    "flow, UniPC": {
        "_class_name": "UniPCMultistepScheduler",
        "use_flow_sigmas": True,
        "prediction_type": "flow_prediction",
    },
    "EDM": EDM,
    "EDM, v": {**EDM, "prediction_type": "v_prediction", "sigma_data": 0.7},
    "EDM, Euler": {
        **EULER,
        "prediction_type": "v_prediction",
        "timestep_type": "continuous",
        "sigma_min": 0.002,
        "sigma_max": 700.0,
    },
}


def make_scheduler(config: dict[str, Any]) -> Any:
    return getattr(diffusers, config["_class_name"]).from_config(config)


def mixture(spread: float = 1.0, labels: list[int] | None = None) -> GaussianMixture:
    means = torch.tensor([[[[0.5, -0.5], [0.2, 0.0]]], [[[-0.6, 0.3], [0.0, 0.4]]]])
    covariances = spread * torch.stack([0.2 * torch.eye(4), 0.1 * torch.eye(4) + 0.05])
    return GaussianMixture([0.4, 0.6], means, covariances, labels)


class Exact(nn.Module):
    """What a perfectly trained UNet2DModel would answer, by the definitions of diffusers; not by those under test."""

    def __init__(self, truth: GaussianMixture, config: dict[str, Any]) -> None:
        super().__init__()
        self.truth, self.scheduler = truth, make_scheduler(config)
        self.unused = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(
        self, sample: Tensor, timestep: Any, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> Any:
        time = torch.as_tensor(timestep, dtype=torch.float64).reshape(-1).expand(len(sample))[:, None, None, None]
        scheduler = self.scheduler
        if type(scheduler).__name__.startswith("EDM") or scheduler.config.get("timestep_type") == "continuous":
            return (self.edm(sample, (4 * time).exp()),)
        if "Flow" in type(scheduler).__name__ or scheduler.config.get("use_flow_sigmas"):
            share = time / scheduler.config.num_train_timesteps  # sample = (1 - share) x0 + share noise
            clean = self.truth(sample / (1 - share), (share / (1 - share)).flatten())
            return ((sample - (1 - share) * clean) / share - clean,)
        alpha = scheduler.alphas_cumprod.double()[time.round().long()]
        clean = self.truth(sample / alpha.sqrt(), ((1 - alpha) / alpha).sqrt().flatten(), class_labels)
        noise = (sample - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        answers = {"epsilon": noise, "sample": clean, "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * clean}
        return (answers[scheduler.config.prediction_type],)

    def edm(self, scaled: Tensor, sigma: Tensor) -> Tensor:
        """The output that the EDM scheduler's own precondition_outputs turns into the clean data."""
        config = self.scheduler.config
        data = config.get("sigma_data", 1.0)
        edm = diffusers.EDMEulerScheduler(sigma_data=data, prediction_type=config.prediction_type)
        x = scaled * (sigma**2 + data**2).sqrt()
        skip = edm.precondition_outputs(x, torch.zeros_like(x), sigma)
        return (self.truth(x, sigma.flatten()) - skip) / edm.precondition_outputs(0 * x, torch.ones_like(x), sigma)


def exact(config: dict[str, Any], truth: GaussianMixture | None = None, **options: Any) -> DiffusersDenoiser:
    truth = truth or mixture()
    network = DiffusersNetwork(truth.data_shape, truth.num_classes, model=Exact(truth, config))
    return DiffusersDenoiser(network, truth.data_shape, truth.num_classes, config, **options)


# ---- the algebra


@pytest.mark.parametrize("config", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_a_perfect_network_is_the_exact_posterior_mean(config: dict[str, Any]) -> None:
    denoiser = exact(config)
    assert isinstance(denoiser, Denoiser)
    wanted = torch.logspace(-3, 5, 40, dtype=torch.float64)
    sigma = denoiser.schedule.round(wanted)  # levels known to both; every one a whole timestep where these are discrete
    assert float(sigma[0]) == pytest.approx(denoiser.sigma_min)
    assert float(sigma[-1]) == pytest.approx(denoiser.sigma_max)
    x = torch.randn(40, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x * (sigma**2 + 0.3).sqrt()[:, None, None, None]
    torch.testing.assert_close(denoiser(x, sigma), mixture()(x, sigma), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_estimate_is_what_the_scheduler_of_diffusers_derives(prediction: str) -> None:
    """pred_original_sample of DDIM, for any network."""
    config = {**DDIM, "prediction_type": prediction}
    scheduler, unet = make_scheduler(config), tiny_unet()
    denoiser = around(unet, config)
    scheduler.set_timesteps(10)
    noisy = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for time in (0, 300, 700):
        sigma = denoiser.schedule.sigma(torch.tensor(time)).float().expand(4)
        with torch.no_grad():
            theirs = scheduler.step(unet(noisy, time).sample, time, noisy).pred_original_sample
            ours = denoiser(noisy * (1 + sigma**2).sqrt()[:, None, None, None], sigma)
        torch.testing.assert_close(ours, theirs, atol=1e-4 * float(sigma[0]) + 1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", SCHEDULERS.values(), ids=SCHEDULERS.keys())
def test_timesteps_and_noise_levels_are_inverse(config: dict[str, Any]) -> None:
    schedule = exact(config).schedule
    sigma = torch.logspace(np.log10(schedule.sigma_min * 1.01), np.log10(schedule.sigma_max * 0.99), 50).double()
    torch.testing.assert_close(schedule.sigma(schedule.timestep(sigma)), sigma, rtol=1e-4, atol=0)
    assert (schedule.timestep(sigma).diff() > 0).all()


def test_levels_between_those_of_training_follow_k_diffusion() -> None:
    """Linear in ln sigma, as the Euler scheduler's own conversion; or the nearest level."""
    scheduler = make_scheduler(EULER)
    levels = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt().double()
    sigma = torch.tensor([0.013, 0.2, 1.234, 30.0, 150.0], dtype=torch.float64)
    theirs = scheduler._sigma_to_t(sigma.numpy(), levels.log().numpy())
    between = around(tiny_unet(), EULER)
    assert between.timesteps == "interpolated"
    np.testing.assert_allclose(between.coefficients(sigma)[3], theirs, atol=2e-3)
    assert torch.equal(between.round_sigma(sigma), sigma)
    assert float(between.round_sigma(torch.tensor(1e-4))) == pytest.approx(float(levels[0]))
    nearest = around(tiny_unet(), EULER, timesteps="nearest")
    rounded = nearest.round_sigma(sigma)
    assert torch.equal(nearest.coefficients(sigma)[3], nearest.coefficients(sigma)[3].round())
    assert all(float((levels - s).abs().min()) < 1e-6 * s for s in rounded.tolist())
    assert torch.equal(nearest.round_sigma(rounded), rounded)
    # every level is its own timestep, bit for bit, also when it comes as float32
    assert torch.equal(between.coefficients(levels.float())[3], torch.arange(1000).float())


@pytest.mark.parametrize("name", ["epsilon", "v", "x0", "flow", "EDM, v"])
def test_training_is_that_of_the_library(name: str) -> None:
    """The loss is the squared error of the network's own output; and timesteps are drawn uniformly."""
    denoiser = around(tiny_unet(), SCHEDULERS[name])
    normal = torch.randn(4000, generator=torch.Generator().manual_seed(3))
    sigma = denoiser.training_sigma(normal, -1.2, 1.2)
    other = denoiser.training_sigma(normal, -0.4, 1.0)
    torch.testing.assert_close(other, (normal - 0.4).exp())
    if denoiser.schedule.family == "edm":
        torch.testing.assert_close(sigma, (1.2 * normal - 1.2).exp())
    else:
        counts = denoiser.schedule.timestep(sigma).div(100).long().clamp(max=9).bincount(minlength=10)
        assert float((counts / 4000 - 0.1).abs().max()) < 0.02
    x, output = torch.randn(3, 1, 8, 8), torch.randn(2, 3, 1, 8, 8)
    c_skip, c_out = (c[:3, None, None, None] for c in denoiser.coefficients(sigma[:3])[:2])
    error = (c_skip * x + c_out * output[0]) - (c_skip * x + c_out * output[1])
    weighted = denoiser.loss_weight(sigma[:3])[:, None, None, None] * error**2
    torch.testing.assert_close(weighted, (output[0] - output[1]) ** 2, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_a_zero_terminal_snr_has_a_finite_highest_level(name: str) -> None:
    denoiser = around(tiny_unet(), {**ZERO_SNR, "_class_name": name})
    alpha = make_scheduler(ZERO_SNR).alphas_cumprod
    assert alpha[-1] == 0 and denoiser.sigma_max == pytest.approx(float(alpha[-2]) ** -0.5, rel=1e-3)


# ---- a tiny network in folders

TINY = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
}


def tiny_unet(seed: int = 0, **more: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return diffusers.UNet2DModel(**{**TINY, **more}).eval().requires_grad_(False)


def around(unet: Any, config: dict[str, Any], **options: Any) -> DiffusersDenoiser:
    return DiffusersDenoiser(DiffusersNetwork((1, 8, 8), model=unet), (1, 8, 8), 0, config, **options)


def write_pipeline(folder: Path, config: dict[str, Any] = DDIM, seed: int = 0, **more: Any) -> Path:
    diffusers.DDPMPipeline(tiny_unet(seed, **more), make_scheduler(config)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Base and auxiliary of every parameterization, as pipeline folders."""
    root = tmp_path_factory.mktemp("originals")
    return {
        name: (write_pipeline(root / name / "base", config), write_pipeline(root / name / "aux", config, seed=1))
        for name, config in SCHEDULERS.items()
        if name in ("epsilon", "v", "x0", "v, zero terminal SNR", "flow", "EDM")
    }


@pytest.fixture
def pipeline(tmp_path: Path, originals: dict[str, tuple[Path, Path]]) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(originals["epsilon"][0], tmp_path / "pipeline"))


def weights(folder: Path) -> dict[str, Tensor]:
    return diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet").state_dict()


def run_loop(unet: Any, scheduler: Any, noise: Tensor, steps: int) -> tuple[Tensor, list[float]]:
    """Sample as diffusers alone does; the result, and the timesteps."""
    if "Flow" in type(scheduler).__name__:  # at 1, where it starts by itself, sigma is infinite
        scheduler.set_timesteps(sigmas=np.linspace(0.99, 0.05, steps))
    else:
        scheduler.set_timesteps(steps)
    if isinstance(unet, GuidedNetwork) and unet.guided.cache is not None:
        unet = unet.trajectory(scheduler.timesteps)
    x = noise * scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else noise
    with torch.no_grad():
        for time in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, time) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(unet(scaled, time).sample, time, x).prev_sample
    return x, scheduler.timesteps.tolist()


def euler(denoiser: Denoiser, x: Tensor, levels: Tensor) -> Tensor:
    """Euler's method on dx / d sigma = (x - D) / sigma, which DDIM is (Song et al. 2021), down to 0."""
    levels = levels.double()
    evaluate = denoiser.trajectory(levels)
    x = x.double()
    with torch.no_grad():
        for sigma, after in zip(levels.tolist(), [*levels.tolist()[1:], 0.0]):
            denoised = evaluate(x.float(), torch.full((len(x),), sigma), None).double()
            x = x + (after - sigma) * (x - denoised) / sigma
    return x.float()


def close(ours: Tensor, theirs: Tensor, tolerance: float = 2e-4) -> None:
    """Equal up to float32 arithmetic, in units of the largest value."""
    assert float((ours - theirs).abs().max()) < tolerance * float(theirs.abs().max().clamp(min=1.0))


NOISE = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", ["epsilon", "v", "x0", "v, zero terminal SNR"])
def test_ddim_of_diffusers_is_euler_of_ours(tmp_path: Path, originals: dict[str, Any], name: str) -> None:
    model = load_diffusers(originals[name][0])
    out = save_diffusers(model, tmp_path / "out", like=originals[name][0])
    pipe = diffusers.DDIMPipeline.from_pretrained(out)
    assert not pipe.scheduler.config.clip_sample
    theirs, times = run_loop(pipe.unet, pipe.scheduler, NOISE, 12)
    denoiser: Any = model.denoiser
    levels = denoiser.schedule.sigma(torch.tensor(times))
    close(euler(denoiser, NOISE * float((1 + levels[0] ** 2).sqrt()), levels), theirs, 1e-3)


@pytest.mark.parametrize(
    ("name", "solver", "options"),
    [
        ("DPMSolverMultistepScheduler", "dpmpp2m", {"timestep_spacing": "linspace", "use_karras_sigmas": True}),
        ("UniPCMultistepScheduler", "unipc", {"timestep_spacing": "linspace", "use_karras_sigmas": True}),
        ("HeunDiscreteScheduler", "heun", {"beta_end": 0.02, "timestep_spacing": "linspace"}),
    ],
)
def test_solvers_of_diffusers_are_those_of_ours(name: str, solver: Any, options: dict[str, Any]) -> None:
    config = {"_class_name": name, **options}
    unet, scheduler = tiny_unet(), make_scheduler(config)
    denoiser = around(unet, config)
    theirs, _ = run_loop(unet, scheduler, NOISE, 10)
    sigmas = scheduler.sigmas.double()
    if solver == "heun":
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])  # there, every level but the first is twice
    start = NOISE * float((1 + sigmas[0] ** 2).sqrt() if solver != "heun" else scheduler.init_noise_sigma)
    close(sample(denoiser, start / float(sigmas[0]), sigmas, solver=solver), theirs, 1e-3)


@pytest.mark.parametrize("config", [FLOW, {**FLOW, "shift": 3.0}, EDM], ids=["flow", "flow, shifted", "EDM"])
def test_euler_of_diffusers_is_euler_of_ours(config: dict[str, Any]) -> None:
    unet, scheduler = tiny_unet(), make_scheduler(config)
    denoiser = around(unet, config)
    theirs, times = run_loop(unet, scheduler, NOISE, 8)
    levels = denoiser.schedule.sigma(torch.tensor(times))
    start = NOISE * (scheduler.init_noise_sigma if config is EDM else float(1 + levels[0]))
    close(euler(denoiser, start, levels), theirs, 1e-3)


# ---- in and out


def test_round_trip_keeps_every_bit(tmp_path: Path, pipeline: Path) -> None:
    model = load_diffusers(pipeline)
    assert is_diffusers(pipeline) and not is_diffusers(tmp_path)
    assert model.data_shape == (1, 8, 8) and model.num_classes == 0 and model.codec.kind == "pixels"
    assert model.provenance["ignored"]["clip_sample"] is False
    assert isinstance(model.denoiser.network.model, diffusers.UNet2DModel)  # type: ignore[attr-defined]
    out = save_diffusers(model, tmp_path / "out", like=pipeline)
    ours, theirs = weights(out), weights(pipeline)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("model_index.json", "scheduler/scheduler_config.json"):
        assert json.loads((out / name).read_text()) == json.loads((pipeline / name).read_text())
    assert type(diffusers.DDPMPipeline.from_pretrained(out).scheduler).__name__ == "DDIMScheduler"
    again = load_diffusers(out)
    assert again.hash == model.hash
    assert torch.equal(again.sample([1, 2]), model.sample([1, 2]))


def test_a_single_network_with_its_scheduler_and_without_an_original(tmp_path: Path, pipeline: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(pipeline / "unet", bare)
    shutil.copy(pipeline / "scheduler" / "scheduler_config.json", bare)
    model = load_diffusers(bare)
    assert model.hash == load_diffusers(pipeline).hash == load_diffusers(pipeline / "unet").hash
    assert sorted(p.name for p in save_diffusers(model, tmp_path / "a", like=bare).iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "scheduler_config.json",
        "sims.json",
    ]
    pipe = diffusers.DDIMPipeline.from_pretrained(save_diffusers(model, tmp_path / "b"))
    assert torch.equal(pipe.unet.state_dict()["conv_in.weight"], weights(pipeline)["conv_in.weight"])


def test_early_pipelines(tmp_path: Path, pipeline: Path) -> None:
    """All in one folder, and the attention's tensors by their first names, as in google/ddpm-cifar10-32."""
    from safetensors.torch import load_file, save_file

    early = tmp_path / "early"
    shutil.copytree(pipeline / "unet", early)
    for file in ("model_index.json", "scheduler/scheduler_config.json"):
        shutil.copy(pipeline / file, early)
    file = early / "diffusion_pytorch_model.safetensors"
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for new, old in names.items():
        tensors = {name.replace(f".{new}.", f".{old}."): value for name, value in tensors.items()}
    assert any(".query." in name for name in tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    theirs = weights(pipeline)
    model = load_diffusers(early)
    state = model.denoiser.network.model.state_dict()  # type: ignore[attr-defined]
    assert state.keys() == theirs.keys() and all(torch.equal(state[name], theirs[name]) for name in theirs)
    pipe = diffusers.DDIMPipeline.from_pretrained(save_diffusers(model, tmp_path / "out", like=early))
    assert torch.equal(pipe.unet.state_dict()["conv_in.weight"], theirs["conv_in.weight"])


def test_options_survive_the_folder(tmp_path: Path, pipeline: Path) -> None:
    model = load_diffusers(pipeline, timesteps="nearest")
    again: Any = load_diffusers(save_diffusers(model, tmp_path / "out", like=pipeline)).denoiser
    assert again.timesteps == "nearest"


def test_neon_is_written_as_one_network(tmp_path: Path, originals: dict[str, Any]) -> None:
    base, aux = map(load_diffusers, originals["epsilon"])
    neon = base.with_denoiser(extrapolate_weights(base, aux, 0.5))
    made = weights(save_diffusers(neon, tmp_path / "neon", like=originals["epsilon"][0]))
    theirs = weights(originals["epsilon"][1])
    for name, value in weights(originals["epsilon"][0]).items():
        torch.testing.assert_close(made[name], value + 0.5 * (value - theirs[name]))


# ---- a guided pair


def rule(sigma_max: float) -> CacheRule:
    """A correction that changes along the way, refreshed at 3 of the levels."""
    sigmas = np.geomspace(sigma_max, 0.01, 12)
    gram = np.exp(-((np.log(sigmas)[:, None] - np.log(sigmas)[None]) ** 2) / 8)
    return CacheRule(tuple(sigmas), tuple(map(tuple, gram.tolist())), 0.5, 3)


GUIDED = [
    ("epsilon", "everywhere"),
    ("epsilon", "cached"),
    ("v", "interval"),
    ("v", "cached"),
    ("x0", "cached"),
    ("flow", "interval"),
    ("flow", "cached"),
    ("EDM", "cached"),
]


@pytest.mark.parametrize(("name", "kind"), GUIDED)
def test_diffusers_alone_samples_the_guided_model(
    tmp_path: Path, originals: dict[str, Any], name: str, kind: str
) -> None:
    """The exported folder in a loop of diffusers, against Extrapolate in our state."""
    base, aux = map(load_diffusers, originals[name])
    interval = (0.3, 20.0) if kind == "interval" else (0.0, float("inf"))
    guided = base.guided(aux, 0.7, interval, rule(base.sigma_max) if kind == "cached" else None)
    out = save_diffusers(guided, tmp_path / "guided", like=originals[name][0])
    unet = load_guided(out)
    calls: list[Any] = []
    unet.aux.register_forward_hook(lambda *call: calls.append(call))
    scheduler = getattr(diffusers, SCHEDULERS[name]["_class_name"]).from_pretrained(out, subfolder="scheduler")
    theirs, times = run_loop(unet, scheduler, NOISE, 8)
    denoiser: Any = guided.denoiser
    levels = denoiser.base.schedule.sigma(torch.tensor(times))
    assert len(calls) == sum(step is not None and step.refresh for step in denoiser.steps(levels)) and (
        kind == "everywhere"
    ) == (len(calls) == 8)
    start = NOISE * float(1 + levels[0] if name == "flow" else (1 + levels[0] ** 2).sqrt())
    close(euler(denoiser, start, levels), theirs, 2e-3)
    unguided = run_loop(unet.base, scheduler, NOISE, 8)[0]
    assert float((theirs - unguided).abs().max()) > 0.01 * float(theirs.abs().max())
    again: Any = load_diffusers(out).denoiser
    assert (again.w, again.interval, again.cache) == (0.7, interval, denoiser.cache)


def test_the_guided_module_in_a_pipeline(tmp_path: Path, originals: dict[str, Any]) -> None:
    base, aux = map(load_diffusers, originals["epsilon"])
    out = save_diffusers(base.guided(aux, 0.5), tmp_path / "guided", like=originals["epsilon"][0])
    pipe = diffusers.DDIMPipeline.from_pretrained(out)  # sees the base
    pipe.set_progress_bar_config(disable=True)
    plain = pipe(batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np")
    pipe = diffusers.DDIMPipeline(unet=load_guided(out), scheduler=pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    guided = pipe(batch_size=2, generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="np")
    assert guided.images.shape == plain.images.shape == (2, 8, 8, 1)
    assert np.abs(guided.images - plain.images).max() > 1e-3


def test_no_strength_is_the_base_and_a_trajectory_ends(originals: dict[str, Any]) -> None:
    base, aux = map(load_diffusers, originals["epsilon"])
    unguided = GuidedNetwork(Extrapolate(base.denoiser, aux.denoiser, 0.0))
    assert torch.equal(unguided(NOISE, 500).sample, unguided.base(NOISE, 500).sample)
    assert unguided(NOISE, 500, return_dict=False)[0].shape == NOISE.shape
    run = unguided.trajectory([500.0, 100.0])
    run(NOISE, 500)
    run(NOISE, 100)
    with pytest.raises(UserError, match="call trajectory"):
        run(NOISE, 0)


# ---- classes


def test_class_labels_reach_the_network() -> None:
    truth = mixture(labels=[0, 1])
    denoiser = exact(DDIM, truth)
    sigma, labels = denoiser.schedule.round(torch.full((4,), 1.0, dtype=torch.float64)), torch.tensor([0, 1, 1, 0])
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(denoiser(x, sigma, labels), truth(x, sigma, labels), atol=1e-5, rtol=1e-5)
    for none in (None, torch.tensor([0, 1, -1, 0])):
        with pytest.raises(UserError, match="nothing for 'no class'"):
            denoiser(x, sigma, none)


def test_a_unet_with_a_null_class(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "classes", num_class_embeds=4)
    assert load_diffusers(folder).num_classes == 4
    model = load_diffusers(folder, null_class=True)
    assert model.num_classes == 3 and model.class_names == ("0", "1", "2")
    sigma = torch.full((3,), 1.0)
    with torch.no_grad():
        mixed = model(NOISE, sigma, torch.tensor([2, -1, 0]))
        assert torch.equal(model(NOISE, sigma), model(NOISE, sigma, torch.full((3,), -1)))
        torch.testing.assert_close(mixed[1], model(NOISE, sigma)[1])
        assert not torch.allclose(mixed[0], model(NOISE, sigma)[0])
    out = save_diffusers(model, tmp_path / "out", like=folder)
    assert load_diffusers(out).num_classes == 3  # remembered
    assert model.sample([1], labels=[2]).shape == (1, 1, 8, 8)


def dit(folder: Path) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.5,
            shift_factor=0.1,
            sample_size=16,
        )
        transformer = diffusers.DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,  # and a learned variance
            num_layers=2,
            sample_size=8,
            num_embeds_ada_norm=3,
        )
    names = {0: "ant", 1: "bee", 2: "cat"}
    pipe = diffusers.DiTPipeline(transformer, vae, make_scheduler(DDIM), id2label=names)
    pipe.save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "id2label": {str(k): v for k, v in names.items()}}))
    return folder


def test_a_latent_dit_with_classes(tmp_path: Path) -> None:
    folder = dit(tmp_path / "dit")
    model = load_diffusers(folder)
    assert model.data_shape == (4, 8, 8) and model.num_classes == 3 and model.class_names == ("ant", "bee", "cat")
    assert model.codec.kind == "latents" and model.denoiser.sigma_data == 1.0  # type: ignore[attr-defined]
    network: Any = model.denoiser.network  # type: ignore[attr-defined]
    x, sigma = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((2,), 1.0)
    with torch.no_grad():
        c_in, time = (1 + sigma**2).rsqrt()[:, None, None, None], model.denoiser.coefficients(sigma)[3]  # type: ignore[attr-defined]
        noise = network.model(c_in * x, timestep=time, class_labels=torch.tensor([1, 3])).sample[:, :4]
        torch.testing.assert_close(model(x, sigma, torch.tensor([1, -1])), x - noise)
        network.train()  # labels are kept in training
        assert torch.equal(
            network.model(x, time, torch.tensor([1, 2]))[0], network.model(x, time, torch.tensor([1, 2]))[0]
        )
        network.eval()
    out = save_diffusers(model.guided(model, 0.5), tmp_path / "out", like=folder)
    pipe = diffusers.DiTPipeline.from_pretrained(out)
    assert load_diffusers(out).class_names == ("ant", "bee", "cat")
    pipe = diffusers.DiTPipeline(load_guided(out), pipe.vae, pipe.scheduler)
    pipe.set_progress_bar_config(disable=True)
    images = pipe([0, 2], guidance_scale=1.0, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 16, 16, 3)


# ---- training and the model directory


@pytest.mark.parametrize("timesteps", ["interpolated", "nearest"])
def test_fine_tuning_and_out_again(tmp_path: Path, pipeline: Path, digits: Dataset, timesteps: Any) -> None:
    base = load_diffusers(pipeline, timesteps=timesteps)
    before = {name: value.clone() for name, value in weights(pipeline).items()}
    options = TrainOptions(batch=32, lr=3e-3, warmup=0, ema_halflife=100, precision="fp32")
    trained = Trainer(base, digits.without_labels(), options, tmp_path / "run", images=32 * 15, seed=0).run(log=print)
    losses = [loss for _, loss in trained.losses]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4]) and trained.nonfinite == 0
    tuned = load_model(trained.last)
    assert torch.equal(base.denoiser.network.model.state_dict()["conv_in.weight"], before["conv_in.weight"])  # type: ignore[attr-defined]
    out = save_diffusers(base.guided(tuned, 1.0), tmp_path / "out", like=pipeline)
    aux = diffusers.UNet2DModel.from_pretrained(out / "unet_aux").state_dict()
    assert not torch.equal(aux["conv_in.weight"], before["conv_in.weight"])
    alone = save_diffusers(tuned, tmp_path / "tuned", like=pipeline)
    assert torch.equal(weights(alone)["conv_in.weight"], aux["conv_in.weight"])
    assert load_diffusers(alone).hash == tuned.hash


def load_model(folder: Path) -> Model:
    from sims.model import load

    return load(folder)


def test_a_model_directory_of_a_guided_pair(tmp_path: Path) -> None:
    folder = dit(tmp_path / "dit")  # with tables that are in no file of weights
    base = load_diffusers(folder)
    guided = base.guided(base, 0.5)
    again = load_model(guided.save(tmp_path / "model"))
    assert again.hash == guided.hash
    assert torch.equal(again.sample([3], labels=[1]), guided.sample([3], labels=[1]))
    save_diffusers(again, tmp_path / "out", like=folder)


# ---- wrong folders


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def to_pickle(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")


def cut(folder: Path) -> None:
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def drop_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["conv_in.weight"]
    save_file(tensors, file, metadata={"format": "pt"})


def broken_notes(folder: Path) -> None:
    shutil.copytree(folder / "unet", folder / "unet_aux")
    (folder / "sims.json").write_text('{"kind": "extrapolation"}')


def in_scheduler(**values: Any) -> Any:
    return lambda folder: edit(folder / "scheduler" / "scheduler_config.json", **values)


def in_network(**values: Any) -> Any:
    return lambda folder: edit(folder / "unet" / "config.json", **values)


WRONG: dict[str, tuple[Any, str]] = {
    "nothing there": (lambda folder: shutil.rmtree(folder), "no model of diffusers"),
    "a pickle": (to_pickle, r"only as diffusion_pytorch_model\.bin.*can run code.*save_pretrained"),
    "no weights": (lambda f: (f / "unet" / "diffusion_pytorch_model.safetensors").unlink(), "has no weights"),
    "cut off": (cut, "cannot be read"),
    "a tensor less": (drop_a_tensor, r"lack 1 tensors \(conv_in\.weight"),
    "no scheduler": (lambda folder: shutil.rmtree(folder / "scheduler"), r"no scheduler_config\.json"),
    "with text": (in_network(_class_name="UNet2DConditionModel"), "UNet2DConditionModel.*without text"),
    "no network": (lambda folder: edit(folder / "model_index.json", unet=[None, None]), "without unet or transformer"),
    "another autoencoder": (
        lambda folder: edit(folder / "model_index.json", vqvae=["diffusers", "VQModel"]),
        "VQModel: only AutoencoderKL",
    ),
    "unknown scheduler": (in_scheduler(_class_name="MagicScheduler"), "no scheduler of diffusers"),
    "another parameterization": (
        in_scheduler(_class_name="ScoreSdeVeScheduler"),
        "parameterization that cannot be read",
    ),
    "unknown prediction": (in_scheduler(prediction_type="score"), "prediction_type 'score'"),
    "a list of lists": (in_scheduler(trained_betas=[[0.1, 0.2]]), "beta .* is .*between 0 and 1"),
    "a beta beyond one": (in_scheduler(beta_start=2.0), r"a beta of the .* is 2\.0"),
    "no spread": (in_scheduler(_class_name="EDMEulerScheduler", sigma_data=0.0), "sigma_data .* is 0.0"),
    "an endless spread": (in_scheduler(_class_name="EDMEulerScheduler", sigma_data=1e300), "sigma_data .* is 1e"),
    "an endless level": (in_scheduler(_class_name="EDMEulerScheduler", sigma_max=1e300), "sigma_max .* is 1e"),
    "a size that halves badly": (in_network(sample_size=7), r"takes no images of \(1, 7, 7\)"),
    "no number": (in_network(freq_shift="x"), "cannot be read|takes no images"),
    "an autoencoder that is not there": (
        lambda folder: edit(folder / "model_index.json", vqvae=["diffusers", "AutoencoderKL"]),
        "no such folder",
    ),
    "another, by another name": (
        lambda folder: edit(folder / "model_index.json", first=["diffusers", "AutoencoderDC"]),
        "AutoencoderDC: only AutoencoderKL",
    ),
    "broken betas": (in_scheduler(trained_betas=[0.0, 0.1]), "do not increase"),
    "one level": (in_scheduler(trained_betas=[0.1]), "1 levels"),
    "size unknown": (in_network(sample_size=None), "no sample_size"),
    "another task": (in_network(in_channels=3), "cannot be read|another task"),
    "embedded classes": (in_network(class_embed_type="identity"), "class_embed_type 'identity'"),
    "broken notes": (broken_notes, "does not describe a guided pair"),
    "notes of the future": (lambda f: (f / "sims.json").write_text('{"format": 99}'), "format 99"),
    "wrong JSON": (lambda folder: (folder / "unet" / "config.json").write_text("{"), "not valid JSON"),
}


@pytest.mark.parametrize(("damage", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_folders_give_one_sentence(pipeline: Path, damage: Any, message: str) -> None:
    damage(pipeline)
    with pytest.raises(UserError, match=message) as caught:
        load_diffusers(pipeline)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_written_says_why(tmp_path: Path, pipeline: Path, originals: dict[str, Any]) -> None:
    model = load_diffusers(pipeline)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    other = write_pipeline(tmp_path / "other", layers_per_block=2)
    flow = load_diffusers(originals["flow"][0])
    for wrong, folder, like, message in (
        (model, "full", None, "not empty"),
        (mixture(), "new", None, "GaussianMixture is no network of diffusers"),
        (model, "new", other, "layers_per_block: 2, not 1"),
        (model.guided(flow, 1.0), "new", None, "different schedulers"),
    ):
        with pytest.raises(UserError, match=message):
            save_diffusers(wrong, tmp_path / folder, like=like)
    assert not (tmp_path / "new").exists() and not list(tmp_path.glob(".*"))
    with pytest.raises(UserError, match="a single network"):
        load_guided(save_diffusers(model, tmp_path / "new", like=pipeline))
    with pytest.raises(UserError, match="interpolated or nearest"):
        load_diffusers(pipeline, timesteps="often")  # type: ignore[arg-type]


def test_an_autoencoder_is_known_under_other_names(tmp_path: Path) -> None:
    folder = dit(tmp_path / "dit")
    expected = load_diffusers(folder)
    (folder / "vae").rename(folder / "vqvae")
    index = json.loads((folder / "model_index.json").read_text())
    index["vqvae"] = index.pop("vae")
    (folder / "model_index.json").write_text(json.dumps(index))
    found = load_diffusers(folder)
    assert found.codec.kind == "latents" and found.codec.low == expected.codec.low
    assert found.denoiser.sigma_data == 1.0  # type: ignore[attr-defined]


def test_shards_go_before_a_single_file_that_an_earlier_model_left(tmp_path: Path, pipeline: Path) -> None:
    """As diffusers reads a folder that was written twice."""
    network, unet = pipeline / "unet", diffusers.UNet2DModel.from_pretrained(pipeline / "unet")
    before = load_diffusers(pipeline)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.add_(0.01)
    unet.save_pretrained(network, max_shard_size="10KB")
    assert (network / "diffusion_pytorch_model.safetensors").is_file()
    after = load_diffusers(pipeline)
    theirs = diffusers.UNet2DModel.from_pretrained(network).state_dict()
    ours = after.denoiser.network.model.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(ours[name], value) for name, value in theirs.items()) and after.hash != before.hash


def test_an_old_config_says_that_the_data_are_predicted() -> None:
    old = {"_class_name": "DDPMScheduler", "predict_epsilon": False}
    assert read_schedule(old).prediction == "sample"
    assert read_schedule({**old, "prediction_type": "epsilon"}).prediction == "epsilon"


def test_learned_timesteps_are_whole(tmp_path: Path) -> None:
    folder = write_pipeline(tmp_path / "learned", time_embedding_type="learned", num_train_timesteps=1000)
    model = load_diffusers(folder)
    assert model.denoiser.timesteps == "nearest"  # type: ignore[attr-defined]
    assert model.sample([0]).isfinite().all()
    with pytest.raises(UserError, match="timesteps='nearest'"):
        load_diffusers(folder, timesteps="interpolated")


def test_without_diffusers_the_remedy_is_named(pipeline: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UserError, match="pip install"):
        load_diffusers(pipeline)
