"""Text-to-image pipelines: read, sampled, improved by LoRAs and handed back, held against diffusers itself."""

from __future__ import annotations

import itertools
import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

import sims
from sims.cli import main
from sims.data.captions import captions_of, held_out, read_prompts
from sims.data.pictures import SourceOptions
from sims.data.store import Store
from sims.denoiser import weights_of
from sims.errors import UserError
from sims.experiments.cost import rates
from sims.experiments.improve.search import Arm, Search, SearchOptions
from sims.experiments.improve.selection import Selection, accept
from sims.experiments.job_sizes import sized_for_text
from sims.experiments.options import DataOptions, ImproveOptions
from sims.experiments.text_model import open_prompted
from sims.guidance import ConditionalExtrapolate
from sims.guidance.guide import innermost
from sims.interop.text_export import export_adapters
from sims.interop.text_guidance import guide_pipeline
from sims.interop.text_to_image import TextOptions, open_text_to_image
from sims.methods import Continuous
from sims.metrics.extractors import extract
from sims.metrics.pretrained import ClipExtractor, get_extractor
from sims.model import Model
from sims.networks.lora import LoraOptions
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.sampling.noise import SeededNoise
from sims.scoring.fidelity import Asked, is_lost
from sims.training.classifier import train_classifier
from sims.training.trainer import Trainer
from text_folders import KINDS, PROMPTS, opened, write_pictures, write_pipeline

SCALE = 2.0
SMALL = shlex.split(
    "--text.steps 5 --text.scale 2.0 --auxiliary.samples 24 --auxiliary.budgets 32,64 --auxiliary.train.batch 8 "
    "--auxiliary.train.lr 0.01 --auxiliary.train.warmup 16 --auxiliary.lora.rank 2 --auxiliary.lora.alpha 3 "
    "--search.rungs 16,24 --search.limit 60 --evaluation.samples 24 --evaluation.draws 2 "
    "--evaluation.manifold-samples 20 --batch-size 8 --guidance.pilot 8 --methods base,sims,neon "
    "--search.max-w 2"
)


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Classifiers of pictures are trained for less long than usual."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sims.scoring.extractor_fitting.train_classifier", partial(train_classifier, steps=20))
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pipelines of all kinds and pictures."""
    folder = tmp_path_factory.mktemp("text")
    for kind in KINDS:
        write_pipeline(kind, folder / kind)
    write_pictures(folder / "pictures")
    return folder


def arguments(place: Path, kind: str, run: Path, *more: str) -> list[str]:
    given = ["--model", str(place / kind), "--data.path", str(place / "pictures")]
    return ["improve", "--run", str(run), *given, "--data.source.cache", str(place / "cache"), *SMALL, *more]


@pytest.fixture(scope="module", params=KINDS)
def finished(request: pytest.FixtureRequest, place: Path) -> tuple[str, Path]:
    """The kind and the run of an improvement: of the first with pictures to judge by, of the others without."""
    run, prompts = place / f"run-{request.param}", place / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS))
    unjudged = [] if request.param == KINDS[0] else ["--data.path", "none", "--prompts", str(prompts)]
    assert main(arguments(place, request.param, run, *unjudged)) == 0
    return request.param, run


def base(place: Path, kind: str, **options: Any) -> Model:
    return open_text_to_image(
        place / kind, PROMPTS, TextOptions(**{"steps": 5, "scale": SCALE, **options}), place / "cache"
    )


def noise_for(pipe: Any, model: Model, seeds: range) -> Tensor:
    """The library's latents for our noise at the first level."""
    high = float(model.sampler.sigmas(model.denoiser)[0])
    noise = SeededNoise(seeds, model.data_shape, model.num_classes).initial()
    if hasattr(pipe, "transformer"):
        return noise * high / (1 + high)
    pipe.scheduler.set_timesteps(5)
    return noise * high / float(pipe.scheduler.init_noise_sigma)


def drawn(pipe: Any, model: Model, seeds: range, labels: Tensor) -> Tensor:
    """Latents as the library draws them with these seeds' noise."""
    prompts = [innermost(model.denoiser).prompts[label] for label in labels.tolist()]
    latents = noise_for(pipe, model, seeds)
    how: dict[str, Any] = {"guidance_scale": SCALE, "latents": latents, "output_type": "latent"}
    if hasattr(
        pipe, "transformer"
    ):  # from our first level, s = 0.999; by itself it begins at s = 1, where no data is left
        how["sigmas"] = [level / (1 + level) for level in model.sampler.sigmas(model.denoiser)[:-1].tolist()]
    else:
        how["num_inference_steps"] = 5
    return pipe(prompt=prompts, **how).images  # type: ignore[no-any-return]


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_is_sampled_as_the_library_does(place: Path, kind: str) -> None:
    model = base(place, kind)
    ours, labels = model.sample_labelled(range(4))
    assert labels is not None
    assert_close(ours, drawn(opened(kind, place / kind), model, range(4), labels))


def test_negative_prompt_scale_and_size_are_the_library_s(place: Path) -> None:
    model = base(place, "sd", scale=3.0, negative="ab", size=(16, 24))
    ours, _ = model.sample_labelled(range(2), labels=[1])
    pipe = opened("sd", place / "sd")
    how = {"negative_prompt": "ab", "guidance_scale": 3.0, "output_type": "latent", "num_inference_steps": 5}
    theirs = pipe(PROMPTS[1], latents=noise_for(pipe, model, range(2)), num_images_per_prompt=2, **how).images
    assert ours.shape == (2, 4, 8, 12)
    assert_close(ours, theirs)


def test_a_sample_depends_on_its_seed_and_prompt_alone(place: Path) -> None:
    model = base(place, "sdxl")
    together = model.sample(range(5), batch_size=5)
    alone = torch.cat([model.sample([seed]) for seed in range(5)])
    assert (together - alone).abs().max() < 1e-5 * together.abs().max()


def test_prompts_that_are_added_leave_the_others_as_they_were(place: Path) -> None:
    few = base(place, "sd").sample(range(2), labels=[2])
    more = open_text_to_image(place / "sd", (*PROMPTS, "pink"), TextOptions(SCALE, steps=5), place / "cache")
    assert torch.equal(more.sample(range(2), labels=[2]), few)


def test_every_method_runs_and_leaves_what_it_should(finished: tuple[str, Path], place: Path) -> None:
    kind, run = finished
    rows = {row.label: row for row in read_result(run, ImproveResult).rows}
    assert {"base", "sims", "neon"} <= set(rows)
    assert (rows["base"].nfe, rows["sims"].nfe, rows["neon"].nfe) == (10, 20, 10)  # two passes of guidance
    agreement = {name for name in rows["sims"].figures if "agreement" in name}
    assert agreement == ({"prompt_agreement", "check_prompt_agreement"} if kind == KINDS[0] else set())
    left = {path.name for path in (run / "text-to-image").iterdir()}
    kohya = set() if kind == "sd3" else {"negative-kohya.safetensors", "neon-kohya.safetensors"}
    assert left == {"negative.safetensors", "neon.safetensors", "guidance.json"} | kohya
    size = sum(file.stat().st_size for file in (run / "sims").rglob("*.safetensors"))
    assert size < (place / kind).joinpath(*_weights(kind)).stat().st_size  # no copy of the pipeline's network


def _weights(kind: str) -> tuple[str, str]:
    return "transformer" if kind == "sd3" else "unet", "diffusion_pytorch_model.safetensors"


def test_the_opposite_lora_alone_draws_the_same_in_the_library(finished: tuple[str, Path], place: Path) -> None:
    kind, run = finished
    model = sims.load(run / "neon")
    ours, labels = model.sample_labelled(range(3))
    assert labels is not None
    pipe = opened(kind, place / kind)
    plain = drawn(pipe, model, range(3), labels)
    for name in ("neon.safetensors", "neon-kohya.safetensors"):
        if (run / "text-to-image" / name).is_file():
            pipe.load_lora_weights(run / "text-to-image", weight_name=name)
            theirs = drawn(pipe, model, range(3), labels)
            pipe.unload_lora_weights()
            assert_close(ours, theirs)
            assert (theirs - plain).abs().max() > 0


@pytest.mark.parametrize("condition_only", [False, True])
def test_the_guided_pair_draws_the_same_in_the_library(
    finished: tuple[str, Path], place: Path, tmp_path: Path, condition_only: bool
) -> None:
    kind, run = finished
    settings = json.loads((run / "text-to-image" / "guidance.json").read_text())
    model, aux = base(place, kind), sims.load(run / "sims" / "aux").denoiser
    rule = ConditionalExtrapolate(model.denoiser, innermost(aux), settings["w"])
    guided = model.with_denoiser(rule) if condition_only else model.guided(aux, settings["w"])
    ours, labels = guided.sample_labelled(range(3))
    assert labels is not None
    shutil.copytree(run / "text-to-image", tmp_path / "guidance")
    changed = settings | {"refresh": None, "condition_only": condition_only}
    (tmp_path / "guidance" / "guidance.json").write_text(json.dumps(changed))
    pipe = opened(kind, place / kind)
    guide_pipeline(pipe, tmp_path / "guidance")
    assert_close(ours, drawn(pipe, guided, range(3), labels))


def test_there_is_one_copy_of_the_pipeline_s_weights(finished: tuple[str, Path]) -> None:
    _, run = finished
    pair = sims.load(run / "sims")
    base_network, lora_network = innermost(pair.denoiser).network, innermost(pair.denoiser.aux).network
    own = {weight.data_ptr() for weight in lora_network.lora.values()}
    held = {weight.data_ptr() for weight in lora_network._twin[0].parameters()} - own
    assert held == {weight.data_ptr() for weight in base_network.frozen.parameters()}
    assert sum(weight.numel() for weight in weights_of(pair)) == sum(
        weight.numel() for weight in [*base_network.frozen.parameters(), *lora_network.lora.values()]
    )


def test_prompts_are_no_classes_of_a_reference(finished: tuple[str, Path], place: Path) -> None:
    options = {"extractor": "pca", "metrics": ["fd"], "samples": 24, "draws": 1}
    scores = sims.evaluate(finished[1] / "neon", str(place / "pictures"), options=options, quiet=True)
    assert "fd" in scores.figures and not any("class shares" in note for note in scores.notes)


def test_export_writes_the_loras(
    finished: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, run = finished
    assert main(["export", str(run / "neon"), str(tmp_path / "one")]) == 0
    assert main(["export", str(run / "sims"), str(tmp_path / "pair")]) == 0
    theirs = load_file(run / "text-to-image" / "neon.safetensors")
    ours = load_file(tmp_path / "one" / "lora.safetensors")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    negative = (run / "text-to-image" / "negative.safetensors").read_bytes()
    assert (tmp_path / "pair" / "negative.safetensors").read_bytes() == negative
    pair = sims.load(run / "sims")
    rule = ConditionalExtrapolate(pair.denoiser.base, innermost(pair.denoiser.aux), 0.5)
    export_adapters(pair.with_denoiser(rule), tmp_path / "conditional")
    assert json.loads((tmp_path / "conditional" / "guidance.json").read_text())["condition_only"] is True
    assert "nothing to export" in refused(["export", str(run / "sims" / "base"), str(tmp_path / "none")], capsys)
    assert not (tmp_path / "none").exists()


def test_what_is_saved_is_read_again(finished: tuple[str, Path], tmp_path: Path) -> None:
    _, run = finished
    model = sims.load(run / "sims")
    again = sims.load(model.save(tmp_path / "again"))
    assert again.hash == model.hash
    assert torch.equal(again.sample(range(2)), model.sample(range(2)))


def test_a_run_without_data_continues_where_it_was_cut(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in synthesis and in training, it leaves the bytes that a run at once leaves."""
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    more = [
        "--data.path",
        "none",
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "--auxiliary.train.checkpoint-seconds",
        "0",
    ]
    assert main(arguments(place, "sd", tmp_path / "whole", *more)) == 0
    for owner, name, at in ((Store, "write", 1), (Trainer, "update", 5)):
        calls, function = itertools.count(1), getattr(owner, name)

        def cut(*given: Any, calls: Any = calls, function: Any = function, at: int = at, **named: Any) -> Any:
            if next(calls) == at:
                raise KeyboardInterrupt
            return function(*given, **named)

        monkeypatch.setattr(owner, name, cut)
        main(arguments(place, "sd", tmp_path / "cut", *more))
        monkeypatch.undo()
    assert not (tmp_path / "cut" / "summary.json").exists()
    assert main(arguments(place, "sd", tmp_path / "cut", *more)) == 0
    for file in (tmp_path / "whole" / "text-to-image").iterdir():
        assert file.read_bytes() == (tmp_path / "cut" / "text-to-image" / file.name).read_bytes()


def test_two_processes_train_the_lora_that_one_does(place: Path, tmp_path: Path) -> None:
    """Synthesis and batches are shared out; what is left differs by the order of sums alone."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this PyTorch has no gloo, which processes on CPUs talk through")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    given = ["--data.path", "none", "--prompts", str(tmp_path / "prompts.txt"), "--methods", "sims,neon"]
    given += ["--auxiliary.train.precision", "fp32", "--auxiliary.budgets", "32", "--guidance.cache-cost", "0"]
    one, two = (arguments(place, "sdxl", tmp_path / name, *given) for name in ("one", "two"))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "--", "sims"]
    done = subprocess.run([*start, *two], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert main(one) == 0
    for name in ("negative.safetensors", "neon.safetensors"):
        ours, theirs = (load_file(tmp_path / run / "text-to-image" / name) for run in ("one", "two"))
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            torch.testing.assert_close(theirs[key], value, atol=1e-4, rtol=1e-3)


def test_the_table_is_of_prompts_that_were_held_out(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No sample of them is synthesized, trained on or searched with; batches are fitted to the memory there is."""
    monkeypatch.setattr(rates, "SECONDS", 0.5)
    run = tmp_path / "run"
    given = ["--text.held-out", "0.34", "--methods", "base,sims", "--search.w", "1", "--search.budget", "32"]
    assert main(arguments(place, "sd", run, *given, "--fit-memory")) == 0
    prompts = captions_of(str(place / "pictures"), SourceOptions()).distinct
    (back,) = held_out(prompts, 0.34).nonzero()[0].tolist()
    (store,) = {file.parent for file in run.rglob("part-*.parquet")}
    synthesized = Store.read(store).labels
    assert synthesized is not None and len(synthesized) == 24 and {*synthesized.tolist()} == {0, 1, 2} - {back}
    result = read_result(run, ImproveResult)
    asked = PROMPTS.index(prompts[back])  # the class of the pictures that bear it
    assert result.data.drawn_shares == tuple(float(index == asked) for index in range(3))
    assert result.headline.endswith("Every figure is of the 1 of 3 prompts that only the table is of.")
    kept = json.loads((run / "batches.json").read_text())
    assert kept["batch_size"] <= 8 and kept["parts"]["auxiliary"] >= 1


def test_prompts_are_held_out_by_their_texts_alone() -> None:
    prompts = tuple(f"prompt {index}" for index in range(50))
    found = held_out(prompts, 0.2)
    assert found.sum() == 10 and not held_out(prompts, 0.0).any()
    assert held_out(prompts[::-1], 0.2)[::-1].tolist() == found.tolist()
    for share in (0.001, 0.999):
        with pytest.raises(UserError, match=r"of 50 prompts: at least one must be kept back and one left"):
            held_out(prompts, share)


def test_a_lora_is_drawn_by_its_seed_and_changes_nothing_at_first(place: Path) -> None:
    model = innermost(base(place, "sd").denoiser)
    first, same, other = (model.adapted(LoraOptions(rank=3), seed) for seed in (1, 1, 2))
    states = [list(one.state_dict().values()) for one in (first, same, other)]
    assert all(map(torch.equal, states[0], states[1]))
    assert not all(map(torch.equal, states[0], states[2]))
    x, sigma, labels = torch.randn(2, 4, 8, 8), torch.tensor([1.0, 3.0]), torch.tensor([0, 2])
    assert torch.equal(first(x, sigma, labels), model(x, sigma, labels))


def test_recomputing_activations_changes_no_gradient(place: Path) -> None:
    model = innermost(base(place, "sd").denoiser)
    found = []
    for checkpointing in (False, True):
        lora = model.adapted(LoraOptions(rank=2, dropped=0.0, checkpointing=checkpointing), 0).train()
        lora.requires_grad_(True)
        torch.manual_seed(0)
        lora(torch.randn(2, 4, 8, 8), torch.tensor([1.0, 3.0]), torch.tensor([0, 2])).square().sum().backward()
        found.append([weight.grad for weight in lora.parameters()])
    assert any(grad.abs().max() > 0 for grad in found[0])
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-7) for a, b in zip(*found))


def test_a_rehearsal_says_what_it_takes_and_writes_nothing(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "SECONDS", 0.5)
    run = tmp_path / "run"
    given = arguments(place, "sd", run, "--dry-run", "--data.source.cache", str(tmp_path / "cache"))
    assert main(given) == 0
    told = capsys.readouterr().out
    assert "UNet2DConditionModel" in told and "10 evaluations a sample, 20 guided" in told
    assert not run.exists() and not (tmp_path / "cache").exists()


def test_sizes_suit_such_a_model_unless_they_are_given(place: Path) -> None:
    plain = sized_for_text(ImproveOptions(model=place / "sd"))
    assert (plain.batch_size, plain.auxiliary.samples, plain.auxiliary.train.batch) == (8, 2_000, 16)
    assert plain.methods == ("base", "rescaled", "history", "sims", "neon")
    given = sized_for_text(ImproveOptions(model=place / "sd", batch_size=3, methods=("base", "sims")))
    assert (given.batch_size, given.methods) == (3, ("base", "sims"))
    other = ImproveOptions()
    assert sized_for_text(other) is other


# -- prompts and captions ----------------------------------------------------------------------------------------------


def test_captions_of_folders_and_tables(place: Path, tmp_path: Path) -> None:
    found = captions_of(str(place / "pictures"), SourceOptions())
    rows = [json.loads(line) for line in (place / "pictures/train/metadata.jsonl").read_text().splitlines()]
    assert found.texts == tuple(row["text"] for row in rows)
    assert found.classes(("red", "blue", "pink")).tolist() == [0, 2, -1]
    cells = [{"bytes": (place / "pictures/train" / row["file_name"]).read_bytes(), "path": None} for row in rows]
    table = pa.table({"image": cells, "caption": [[row["text"], "another"] for row in rows]})
    pq.write_table(table, tmp_path / "train.parquet")
    assert captions_of(str(tmp_path / "train.parquet"), SourceOptions()).texts == found.texts


def test_prompts_are_read_once_each(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("\ufeffa cat\n\n  a dog \na cat\n", encoding="utf-8")
    assert read_prompts(file) == ("a cat", "a dog")


def test_fidelity_is_by_class_or_by_embedding() -> None:
    asked = Asked(classes=np.array([1, -1, 0]))
    found = asked.fidelity(np.array([0, 1, 2, 2]), np.zeros((4, 2)), np.array([1, 0, 0, 1]))
    assert found is not None
    np.testing.assert_array_equal(found, [1, np.nan, 1, 0])
    by_text = Asked(embedded=np.array([[1.0, 0.0], [3.0, 4.0]]))
    scores = by_text.fidelity(np.array([0, 1]), np.array([[2.0, 0.0], [4.0, -3.0]]), None)
    assert scores is not None
    np.testing.assert_allclose(scores, [100, 0], atol=1e-5)


def test_clip_score_is_the_cosine_that_clip_gives(place: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 53, "eos_token_id": 54, "pad_token_id": 54}
    vision = {**sizes, "image_size": 28, "patch_size": 14, "projection_dim": 16}
    text = {**sizes, **special, "projection_dim": 16, "vocab_size": 55, "max_position_embeddings": 12}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).eval()
    clip.save_pretrained(tmp_path)
    extractor = get_extractor(f"clip:{tmp_path}")
    assert isinstance(extractor, ClipExtractor)
    cache = SourceOptions(cache=place / "cache")
    options = ImproveOptions(model=place / "sd", data=DataOptions(path=str(place / "pictures"), source=cache))
    prompted = open_prompted(options, torch.device("cpu"), print)
    found = prompted.asked(None, extractor)
    assert found is not None and found.figure == "clip_score"
    features = extract(extractor, torch.rand(3, 3, 28, 28) * 2 - 1)
    words = CLIPTokenizer.from_pretrained(place / "sd" / "tokenizer")(["green"], return_tensors="pt")
    with torch.no_grad():
        truth = torch.nn.functional.cosine_similarity(
            torch.from_numpy(features), clip.get_text_features(**words).pooler_output
        )
    scores = found.fidelity(np.full(3, prompted.prompts.index("green")), features, None)
    assert scores is not None
    np.testing.assert_allclose(scores, 100 * truth.numpy(), rtol=1e-4)


def test_a_loss_beyond_the_noise_is_one() -> None:
    assert is_lost(np.where(np.arange(100) < 10, -1.0, 0.0))
    assert not is_lost(np.where(np.arange(100) < 2, -1.0, 0.0))
    assert not is_lost(np.zeros(100))


def test_what_loses_prompts_is_no_choice() -> None:
    """Beyond w = 0.2 prompts are lost: the search ends below it; where all are lost, no round is accepted."""

    def distance(found: np.ndarray) -> float:
        w = float(found[0, 0])
        return 10 - w if w <= 0.2 else math.inf

    def features(arm: Arm, w: float, first: int, last: int) -> np.ndarray:
        return np.full((last - first, 1), w)

    found = Search(features, distance, [Arm(1)], Continuous(), SearchOptions(rungs=(20, 60))).run()
    assert found.w == 0.15
    assert all(cell.half_width is None for cell in found.cells if cell.fd is None)
    before, after = (Selection(np.zeros((2, 1)), fd, None, None, 0.0) for fd in (5.0, math.inf))
    accepted, reason = accept(before, after, 0.0, first=True)
    assert not accepted and "less of their prompts" in reason


# -- what is refused ---------------------------------------------------------------------------------------------------


def refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that a command ends with."""
    assert main(given) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told


def test_bad_input_is_one_sentence(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n")
    run = tmp_path / "run"
    told = refused(arguments(place, "sd", run, "--prompts", str(empty)), capsys)
    assert "holds no prompts" in told
    told = refused(arguments(place, "sd", run, "--data.path", "none"), capsys)
    assert "give a file of prompts" in told
    assert "leave out" in refused(arguments(place, "sd", run, "--vae", str(place / "sd")), capsys)
    assert "text.scale is 0.5" in refused(arguments(place, "sd", run, "--text.scale", "0.5"), capsys)
    assert "multiples of 2" in refused(arguments(place, "sd", run, "--text.size", "15,16"), capsys)
    told = refused(arguments(place, "sd", run, "--auxiliary.lora.targets", "to_nothing"), capsys)
    assert "no such layers" in told
    digits = ["improve", "--run", str(run), "--prompts", str(place / "prompts.txt")]
    assert "for a text-to-image model" in refused(digits, capsys)
    assert not run.exists() or not (run / "summary.json").exists()


def test_a_distilled_model_takes_no_scale(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turbo = tmp_path / "sd-turbo"
    shutil.copytree(place / "sd", turbo)
    model = open_text_to_image(turbo, PROMPTS, TextOptions(), place / "cache")
    assert model.denoiser is innermost(model.denoiser)  # no guidance
    with pytest.raises(UserError, match="distilled into it"):
        open_text_to_image(turbo, PROMPTS, TextOptions(scale=7.5), place / "cache")
    told = write_pipeline("sd", tmp_path / "lcm", time_cond_proj_dim=8)
    with pytest.raises(UserError, match="time_cond_proj_dim"):
        open_text_to_image(told, PROMPTS, TextOptions(scale=7.5), place / "cache")


def test_pipelines_that_cannot_be_read(place: Path, tmp_path: Path) -> None:
    def altered(change: dict[str, Any]) -> Path:
        folder = tmp_path / f"changed-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(place / "sd", folder)
        index = json.loads((folder / "model_index.json").read_text()) | change
        (folder / "model_index.json").write_text(json.dumps(index))
        return folder

    def sentence(folder: Path) -> str:
        with pytest.raises(UserError) as caught:
            open_text_to_image(folder, PROMPTS, TextOptions(steps=5), place / "cache")
        return str(caught.value)

    assert "only StableDiffusionPipeline" in sentence(altered({"_class_name": "KandinskyPipeline"}))
    assert "code from a folder is not run" in sentence(altered({"text_encoder": ["my_module", "Encoder"]}))
    for component in ("unet", "text_encoder"):
        folder = altered({})
        (weights,) = (folder / component).glob("*.safetensors")
        torch.save({}, weights.with_suffix(".bin"))
        weights.unlink()
        assert "safetensors" in sentence(folder)
    folder = altered({})
    shutil.rmtree(folder / "vae")
    assert "no autoencoder" in sentence(folder)
    assert "another task" in sentence(write_pipeline("sd", tmp_path / "inpainting", in_channels=9))


def test_a_model_whose_pipeline_has_changed_is_not_opened(finished: tuple[str, Path], tmp_path: Path) -> None:
    _, run = finished
    copied = tmp_path / "neon"
    shutil.copytree(run / "neon", copied)
    (file,) = copied.rglob("pipeline.json")
    told = json.loads(file.read_text())
    told["prompts"][0] = "pink"
    file.write_text(json.dumps(told))
    with pytest.raises(UserError, match="others than they were"):
        sims.load(copied)
