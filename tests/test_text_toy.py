"""The text-to-image toy at its smallest: pictures with captions, a pipeline that diffusers loads and draws with."""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

diffusers = pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")
pytest.importorskip("transformers", reason="needs the package transformers: pip install '.[features]'")

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def write_idx(file: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape)
    file.write_bytes(gzip.compress(head + array.tobytes()))


def write_fashion(folder: Path) -> None:
    """Bright squares of several sizes, in the files that Fashion-MNIST has."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 20)):
        pictures = np.zeros((count, 28, 28), np.uint8)
        for picture in pictures:
            side = rng.integers(4, 24)
            picture[2 : 2 + side, 2 : 2 + side] = rng.integers(60, 256)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", pictures)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", (np.arange(count) % 10).astype(np.uint8))


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, fashion = tmp_path_factory.mktemp("toy"), tmp_path_factory.mktemp("fashion")
    write_fashion(fashion)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import text_toy

        text_toy.main(["--tiny", "--fashion", str(fashion), "--out", str(folder)])
    return folder


def test_captions_say_what_is_in_the_pictures(toy: Path) -> None:
    classes = json.loads((toy / "data" / "classes.json").read_text())
    assert len(classes) == 20 and classes[4] == "coat" and classes[13] == "digit three"
    rows = [json.loads(line) for line in (toy / "data" / "train" / "metadata.jsonl").read_text().splitlines()]
    areas: dict[str, list[float]] = {"small": [], "large": []}
    for row in rows:
        assert row["text"].endswith(f" {classes[row['label']]}")
        with Image.open(toy / "data" / "train" / row["file_name"]) as picture:
            assert picture.size == (32, 32) and picture.mode == "RGB"
            if row["label"] == 4:
                areas[row["text"].split()[1]].append(float((np.asarray(picture) > 25).mean()))
    assert max(areas["small"]) <= min(areas["large"])
    assert {row["label"] for row in rows} == set(range(20))
    assert set((toy / "prompts.txt").read_text().splitlines()) == {row["text"] for row in rows}


def test_the_pipeline_loads_and_draws(toy: Path) -> None:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(toy / "pipeline", safety_checker=None)
    prompts = ["a small bright coat", "a large dark pair of trousers"]
    tokens = pipeline.tokenizer(prompts)["input_ids"]
    assert [len(ids) for ids in tokens] == [6, 8], "a token for every word, and two for the ends"
    pictures = pipeline(prompts, num_inference_steps=2, guidance_scale=3.0).images
    assert [picture.size for picture in pictures] == [(32, 32)] * 2
    assert 0.01 < pipeline.vae.config.scaling_factor < 100
    assert Image.open(toy / "samples.png").width > 500


def test_what_was_done_is_told_and_the_same_command_trains_no_further(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import text_toy
    import text_toy_check

    before = json.loads((toy / "toy.json").read_text())
    assert before["unet"]["images"] == 4 * text_toy.BATCH and before["unet"]["curve"]
    weights = (toy / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    text_toy.main(["--tiny", "--out", str(toy)])
    assert (toy / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes() == weights
    text_toy_check.main(["--toy", str(toy), "--count", "20", "--scales", "1", "--steps", "1"])
    found = json.loads((toy / "agreement.json").read_text())
    assert found["scales"][0]["scale"] == 1 and 0 <= found["scales"][0]["class"] <= 1


def test_a_killed_training_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import text_toy

    monkeypatch.setattr(text_toy, "SAVED_EVERY", 0.0)

    def trained(folder: str, killed_at: int | None = None) -> text_toy.Training:
        torch.manual_seed(0)
        networks = nn.ModuleDict({"net": nn.Linear(3, 1)})
        training = text_toy.Training(
            "some", networks, 0.1, 1e9, text_toy.Options(tmp_path / folder, None, 1.0, steps=8)
        )

        def loss_of(generator: torch.Generator) -> torch.Tensor:
            if training.done.step == killed_at:
                raise KeyboardInterrupt
            return networks["net"](torch.randn(4, 3, generator=generator)).square().mean()

        training.run(loss_of, lambda: 0.0)
        return training

    with pytest.raises(KeyboardInterrupt):
        trained("killed", 5)
    whole, resumed = trained("whole"), trained("killed")
    assert resumed.done.step == 8 and [row["images"] for row in resumed.done.curve] == [
        row["images"] for row in whole.done.curve
    ]
    assert all(torch.equal(a, b) for a, b in zip(whole.average, resumed.average))
    assert all(torch.equal(a, b) for a, b in zip(whole.networks.parameters(), resumed.networks.parameters()))
