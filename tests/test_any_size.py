"""Pictures of any height and width: in every network, through training and the main job, and on load."""

from __future__ import annotations

import json
import shlex
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

import tiny
from sims import api, fitting
from sims.config import from_dict
from sims.data.check import check
from sims.data.pictures import SourceOptions, encode_png, parse_size, transform
from sims.data.sources import load
from sims.data.store import Store
from sims.data.stream import of_dataset
from sims.errors import UserError
from sims.experiments.cost import rates
from sims.experiments.improve.outputs import GRIDS
from sims.interop.nvidia import export_tensors
from sims.metrics.extractors import PCAExtractor
from sims.model import load as load_model
from sims.model import make_network
from sims.networks import MLP, NETWORKS
from sims.networks.layers import Place, plan
from sims.networks.options import NetworkOptions
from sims.networks.sizes import any_size, rounded_up
from sims.preconditioning import Preconditioned
from sims.report.strips import GAP, make_strip
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.sampling import sample_seeds
from sims.scoring.options import ScoreOptions
from sims.scoring.subjects import open_reference
from sims.training.augment import transform as augmented

LEVELS: dict[str, Any] = {"channel_mult": [1, 1, 1], "num_blocks": 1, "attn_resolutions": [16, 8]}
WIDTHS: dict[str, Any] = {"model_channels": 32, "widths": [32, 32, 32]}
TABLES: dict[str, dict[str, Any]] = {
    "ddpmpp": {"type": "song_unet", "model_channels": 8, **LEVELS},
    "ncsnpp": {
        "type": "song_unet", "model_channels": 8, **LEVELS, "embedding_type": "fourier", "encoder_type": "residual",
        "decoder_type": "skip", "resample_filter": [1, 3, 3, 1],
    },
    "adm": {"type": "adm_unet", "model_channels": 64, **LEVELS},
    "edm2": {"type": "edm2_unet", "model_channels": 8, "channels_per_head": 8, **LEVELS},
    "guided": {"type": "guided_unet", **WIDTHS, "num_blocks": 1, "attention": [1, 2], "num_heads": 2},
    "ddp": {
        "type": "ddp_unet", "model_channels": 8, "first": 8, "widths": [8, 8, 8], "heads": [2] * 3,
        "head_channels": [4] * 3, "full_attention": [False, False, True],
    },
    "dit": {"type": "dit", "hidden_size": 16, "depth": 2, "num_heads": 2, "patch_size": 4},
    "ddpmpp, patches": {"type": "song_unet", "model_channels": 8, "patch_size": 2, **LEVELS, "channel_mult": [1, 1]},
    "adm, patches": {"type": "adm_unet", "model_channels": 64, "patch_size": 2, **LEVELS, "channel_mult": [1, 1]},
    "edm2, patches": {
        "type": "edm2_unet", "model_channels": 8, "channels_per_head": 8, "patch_size": 2, **LEVELS,
        "channel_mult": [1, 1],
    },
    "mlp": {"type": "mlp", "width": 16, "blocks": 1, "embedding": 8},
}  # fmt: skip
UNETS = [name for name in TABLES if name not in ("dit", "mlp") and "patches" not in name]


def made(name: str, sides: tuple[int, int], **more: Any) -> Preconditioned:
    """A network with noise on all weights, so that layers that begin at zero count too."""
    torch.manual_seed(0)
    denoiser = make_network((3, *sides), 0, {**TABLES[name], **more}, {"type": "edm2" if name[:4] == "edm2" else "edm"})
    with torch.no_grad():
        for weight in denoiser.parameters():
            weight.add_(torch.randn(weight.shape), alpha=0.1)
    return denoiser.eval()


def noisy(count: int, sides: tuple[int, int]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    sigma = torch.tensor([0.05, 0.8, 20.0])[:count]
    return torch.randn(count, 3, *sides) * (1 + sigma)[:, None, None, None], sigma


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sides", [(48, 64), (30, 30), (21, 10)], ids=str)
@pytest.mark.parametrize("name", TABLES)
def test_every_network_takes_it(name: str, sides: tuple[int, int]) -> None:
    """The estimate has the pictures' shape, depends on every pixel of its own picture alone, and has gradients."""
    denoiser = made(name, sides)
    x, sigma = noisy(3, sides)
    x.requires_grad_()
    out = denoiser(x, sigma)
    assert out.shape == x.shape and out.isfinite().all()
    out[1].square().mean().backward()
    assert x.grad is not None and (x.grad[1] != 0).any(dim=0).all() and not x.grad[0].any() and not x.grad[2].any()
    assert sum(weight.grad is not None and bool(weight.grad.any()) for weight in denoiser.parameters()) > 5
    with torch.no_grad():
        alone = torch.cat([denoiser(x[i : i + 1], sigma[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(alone, out.detach(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [*UNETS, "dit"])
def test_sides_that_fit_are_passed_on_bit_for_bit(name: str) -> None:
    """And others are the same network on the picture that was continued by hand, cut to size."""
    network: Any = made(name, (16, 12)).network
    x, c_noise = noisy(2, (16, 12))
    plain = type(network).forward.__wrapped__
    with torch.no_grad():
        assert torch.equal(network(x, c_noise), plain(network, x, c_noise))
        other: Any = made(name, (13, 11)).network  # 1 and 2 rows above and below, and 1 column on the right
        assert [*other.state_dict()] == [*network.state_dict()] and network.multiple == 4
        cut = x[:, :, :13, :11]
        rows = [1, *range(13), 11, 10]
        columns = [*range(11), 9]
        by_hand = cut[:, :, rows][:, :, :, columns]
        torch.testing.assert_close(other(cut, c_noise), plain(other, by_hand, c_noise)[:, :, 1:14, :11], rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in TABLES if "patches" in name])
def test_patches_are_pixels_of_more_channels(name: str) -> None:
    """A U-Net with patches is the one without, of the picture whose patches of 2 x 2 pixels lie in channels."""
    network: Any = made(name, (16, 12)).network
    table = {key: value for key, value in TABLES[name].items() if key not in ("type", "patch_size")}
    plain = type(network)((12, 8, 6), **table)
    plain.load_state_dict(network.state_dict())
    x, c_noise = noisy(2, (16, 12))
    with torch.no_grad():
        by_hand = pixel_shuffle(plain.eval()(pixel_unshuffle(x, 2), c_noise), 2)
        torch.testing.assert_close(network(x, c_noise), by_hand, rtol=1e-4, atol=1e-5)
    assert network.config["patch_size"] == network.space_to_depth == 2
    with pytest.raises(UserError, match=r"3x16 pixels.*cut into patches of 2 pixels.*at least 4"):
        type(network)((1, 3, 16), **{**table, "patch_size": 2})
    with pytest.raises(UserError, match="patch_size 0"):
        type(network)((1, 16, 16), **{**table, "patch_size": 0})


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=40, deadline=None)
def test_padding_is_mirrored_even_and_taken_off_again(height: int, width: int, multiple: int) -> None:
    seen: list[Tensor] = []

    class Net:
        def __init__(self) -> None:
            self.multiple = multiple

        @any_size
        def forward(self, x: Tensor, more: int, *, named: int) -> Tensor:
            assert (more, named) == (1, 2)
            seen.append(x)
            return x

    if min(height, width) < multiple:
        return
    x = torch.arange(2.0 * height * width).reshape(1, 2, height, width)
    assert torch.equal(Net().forward(x, 1, named=2), x)
    shape = seen[0].shape[2:]
    assert tuple(shape) == rounded_up((height, width), multiple) and not shape[0] % multiple and not shape[1] % multiple
    assert 0 <= shape[0] - height < multiple and 0 <= shape[1] - width < multiple
    assert set(seen[0].flatten().tolist()) == set(x.flatten().tolist())


def test_the_noise_beyond_the_edges_is_as_strong_as_that_within() -> None:
    """What replicas of the edge, or zeros, would not give: neighbours that are independent, at the same level."""
    seen: list[Tensor] = []

    class Net:
        multiple = 8

        @any_size
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x

    Net().forward(torch.randn(400, 3, 9, 9, generator=torch.Generator().manual_seed(0)))
    edge = seen[0][:, :, :3, 3:12]
    assert abs(float(edge.std()) - 1) < 0.02 and abs(float((edge[:, :, 1:] * edge[:, :, :-1]).mean())) < 0.02


def test_attention_is_asked_for_by_the_longer_side_as_padded() -> None:
    encoder, decoder = plan((48, 64), 3, 8, [8, 8, 8], 1)
    assert [place.name for place in encoder] == [
        "48x64_conv", "48x64_block0", "24x32_down", "24x32_block0", "12x16_down", "12x16_block0",
    ]  # fmt: skip
    assert [place.name for place in (*encoder, *decoder) if place.is_at((16,))][1:4] == [
        "12x16_block0", "12x16_in0", "12x16_in1",
    ]  # fmt: skip
    assert Place("block", (30, 20), 0, 0, 1, 1).is_at([30]) and not Place("block", (30, 20), 0, 0, 1, 1).is_at([20])
    network: Any = made("ddpmpp", (30, 22)).network  # 32 x 24, 16 x 12 and 8 x 6
    heads = {name: block.heads for name, block in network.enc.items() if name.endswith("block0")}
    assert heads == {"32x24_block0": 0, "16x12_block0": 1, "8x6_block0": 1}


def test_positions_of_a_transformer_are_those_of_its_grid() -> None:
    """Rows and columns count from the same corner: a wide picture has the positions of a square's upper part."""
    square, wide = (made("dit", sides).state_dict()["network.pos_embed"][0] for sides in ((24, 24), (10, 24)))
    assert wide.shape == (3 * 6, 16) and torch.equal(wide, square[: 3 * 6])  # 10 pixels are three patches of four


@pytest.mark.parametrize("name", [*UNETS, "dit"])
def test_pictures_that_are_too_small_are_one_sentence(name: str) -> None:
    with pytest.raises(UserError, match=r"halved 2 times: give sides of at least 4|cannot be cut into patches of 4"):
        made(name, (3, 9))
    made(name, (5, 4))


@pytest.mark.parametrize("sides", [(13, 200), (200, 5), (1, 16), (16, 1), (3, 8), (12, 13), (4, 64), (16, 16)])
def test_the_usual_network_takes_any_sides(sides: tuple[int, int]) -> None:
    """As many levels as the shorter side allows; of those that are asked for, none is left out."""
    shape = (1, *sides)
    options = NetworkOptions().settled(shape)
    network = make_network(shape, 0, *options.tables(0.5))
    assert network(torch.randn(2, *shape), torch.ones(2)).shape == (2, *shape)
    assert NetworkOptions(type="ddpmpp", channel_mult=(1, 2, 2)).settled(shape).channel_mult == (1, 2, 2)


@pytest.mark.parametrize("kind", ["ddpmpp", "ncsnpp", "adm", "edm2"])
def test_too_many_levels_are_one_sentence_that_names_the_option(kind: str, say: tiny.Say, tmp_path: Path) -> None:
    status, _, err = say(
        "train", "--data.path", "digits", "--data.source.size", "2", "--network.type", kind, "--network.width", "16",
        "--network.channel-mult", "1,1,1,1", "--out", tmp_path / "run",
    )  # fmt: skip
    assert status == 2
    assert err.splitlines()[-1] == (
        "sims: images of 2x2 pixels (height, width) are too small to be halved 3 times: give sides of at least 8, or "
        "fewer levels (a shorter --network.channel-mult)"
    )


def test_augmentations_take_them_too() -> None:
    x, parameters = torch.rand(2, 3, 30, 20), torch.zeros(2, 8, dtype=torch.float64)
    parameters[:, 0], parameters[1, 3] = 1.0, 0.5
    out = augmented(x, parameters)
    assert out.shape == x.shape and torch.equal(out[0], x[0].flip(2)) and not torch.equal(out[1], x[1].flip(2))


# -- from pictures to a better model -----------------------------------------------------------------------------------


def coloured(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Discs of random colour and place (N, 3, H, W) uint8."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    place = rng.uniform(0.2, 0.8, (count, 2, 1, 1)) * np.array([height, width])[:, None, None]
    disc = np.hypot(y - place[:, :1], x - place[:, 1:]) < min(height, width) / 4  # (N, 1, H, W)
    colours = rng.integers(0, 256, (count, 2, 3, 1, 1))
    return np.where(disc, colours[:, 0], colours[:, 1]).astype(np.uint8)


def folder(path: Path, pictures: np.ndarray) -> Path:
    path.mkdir(parents=True)
    for i, pixels in enumerate(pictures):
        (path / f"{i:03d}.png").write_bytes(encode_png(pixels))
    return path


NETWORK = {"width": 8, "blocks": 1, "channel_mult": [1, 1, 1], "attention": [16], "patch": 8}
JOB = shlex.split(
    "--network.type ddpmpp --network.width 8 --network.blocks 1 --network.channel-mult 1,1,1 --network.attention 16 "
    "--methods base,sims --sampler.steps 3 --batch-size 40 --base.images 320 --base.train.batch 16 "
    "--auxiliary.samples 40 --auxiliary.budgets 160 --search.rungs 20 --guidance.pilot 8 --evaluation.samples 40 "
    "--evaluation.draws 2 --evaluation.manifold-samples 20"
)


@pytest.mark.parametrize("sides", [(48, 64), (30, 30)], ids=str)
@pytest.mark.parametrize("kind", ["ddpmpp", "dit"])
def test_train_sample_export(kind: str, sides: tuple[int, int], tmp_path: Path, say: tiny.Say) -> None:
    data = folder(tmp_path / "data", coloured(40, sides[0] + 2, sides[1] + 3))
    network = {**NETWORK, "type": kind, "patch": 8 if kind == "dit" else 1}
    how: dict[str, Any] = {"images": 32, "train": {"batch": 8}}
    table = {"path": str(data), "source": {"size": list(sides)}}
    model = fitting.train(tmp_path / "run", table, network=network, base=how, sampler={"steps": 3}, quiet=True)
    assert model.data_shape == (3, *sides)
    drawn, _ = sample_seeds(model.denoiser, [0, 1], model.sampler)
    again = load_model(tmp_path / "run" / "model")
    assert drawn.shape == (2, 3, *sides) and torch.equal(drawn, sample_seeds(again.denoiser, [0, 1], again.sampler)[0])

    status, _, err = say("sample", str(tmp_path / "run" / "model"), "--seeds", "0-2", "--out", str(tmp_path / "png"))
    assert status == 0, err
    assert Image.open(tmp_path / "png" / "000000.png").size == sides[::-1]
    assert of_pictures_shape(tmp_path / "png") == (3, *sides)

    out = tmp_path / "tensors.safetensors"
    status, _, err = say("export", str(tmp_path / "run" / "model"), str(out))
    if kind == "dit":
        assert status == 0, err
        fresh = make_network((3, *sides), 0, *reread(tmp_path / "run" / "model"))
        fresh.network.load_state_dict(load_file(out))
        assert torch.equal(drawn, sample_seeds(fresh.eval(), [0, 1], model.sampler)[0])
    else:
        assert status == 2 and not out.exists() and err.count("\n") == 1
        assert f"pictures of {sides[0]}x{sides[1]} pixels" in err and "squares alone" in err
        assert "multiples of 4" in err and "model.safetensors" in err


def of_pictures_shape(path: Path) -> tuple[int, ...]:
    return open_reference(path, ScoreOptions())[0].data_shape


def reread(model: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    about = json.loads((model / "model.json").read_text())
    return about["network"], about["preconditioning"]


@pytest.mark.parametrize("kind", ["ddpmpp", "edm2"])
def test_squares_of_a_multiple_are_exported_as_before(kind: str, tmp_path: Path) -> None:
    data = load(folder(tmp_path / "data", coloured(8, 12, 12)))
    model = tiny.model(data, type=kind, width=16, channel_mult=(1, 1))
    assert export_tensors(model, tmp_path / "x.safetensors").is_file()
    with pytest.raises(UserError, match=r"13x13 pixels.*multiples of 2"):
        odd = load(folder(tmp_path / "odd", coloured(8, 13, 13)))
        export_tensors(tiny.model(odd, type=kind, width=16, channel_mult=(1, 1)), tmp_path / "y.safetensors")
    with pytest.raises(UserError, match="patches of 2 pixels"):
        export_tensors(tiny.model(data, type=kind, width=16, channel_mult=(1, 1), patch=2), tmp_path / "y.safetensors")


def test_improve_pictures_of_another_shape(tmp_path: Path, say: tiny.Say, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main job on a folder of 30 x 20 pixels, with a U-Net that halves them twice."""
    monkeypatch.setattr(rates, "SECONDS", 0.3)
    data = folder(tmp_path / "data", coloured(120, 30, 20))
    job = ["improve", "--run", str(tmp_path / "run"), "--data.path", str(data), *tiny.PCA, *JOB]
    status, out, err = say(*job, "--dry-run")
    assert status == 0, err
    status, out, err = say(*job)
    assert status == 0, err
    result = read_result(tmp_path / "run", ImproveResult)
    assert result.data.shape == (3, 30, 20) and {row.label for row in result.rows} >= {"base", "sims"}
    grids = np.load(tmp_path / "run" / f"{GRIDS}.npz")
    assert {grids[name].shape[1:] for name in grids.files if grids[name].ndim == 4} == {(30, 20, 3)}
    assert "30×20" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

    held = folder(tmp_path / "held", coloured(120, 40, 30, seed=1))
    words = ["evaluate", data, held, "--source.size", "15,10", "--reference", held, "--extractor", "pca"]
    status, out, err = say(*words, "--cache", tmp_path / "cache", "--out", tmp_path / "rows.jsonl")
    assert status == 0, err
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row["images"] for row in rows} == {"the middle averaged down to 15x10 pixels (height, width)"}, out

    store = tmp_path / "store"
    status, _, err = say("synthesize", str(tmp_path / "run" / "improved"), "--out", str(store), "--count", "5")
    assert status == 0 and Store.read(store).data_shape == (3, 30, 20), err


def test_strips_show_them_in_their_shape() -> None:
    strip = make_strip(coloured(3, 30, 20).transpose(0, 2, 3, 1), "a", "b")
    assert (strip.width, strip.height) == (3 * 40 + 2 * GAP, 60)


@pytest.mark.parametrize("sides", [(48, 64), (7, 20)], ids=str)
def test_features_of_pixels(sides: tuple[int, int]) -> None:
    x = torch.rand(30, 3, *sides) * 2 - 1
    extractor = PCAExtractor.fit(x)
    assert extractor(x).shape == (30, extractor.num_features) and bool(extractor(x).isfinite().all())


def test_the_mlp_never_minded() -> None:
    assert not hasattr(MLP, "multiple") and set(NETWORKS) > {str(table["type"]) for table in TABLES.values()}


# -- on load -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_the_largest_middle_part_of_the_shape_is_averaged(height: int, width: int, h: int, w: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8)
    options = SourceOptions(size=(h, w))
    if h > height or w > width:
        with pytest.raises(UserError, match=f"size {h if h == w else f'{h},{w}'} is larger than a picture"):
            transform(pixels, options)
        return
    out = transform(pixels, options)
    assert out.shape == (3, h, w)
    factor = min(height / h, width / w)
    down, right = round(h * factor + 1e-9), round(w * factor + 1e-9)
    top, left = (height - down) // 2, (width - right) // 2
    box = (left, top, left + right, top + down)
    boxed = Image.fromarray(pixels.transpose(1, 2, 0)).resize((w, h), Image.Resampling.BOX, box)
    assert np.abs(out.astype(int) - np.asarray(boxed).transpose(2, 0, 1)).max() <= 1


def test_one_number_is_a_square_as_ever(tmp_path: Path) -> None:
    pixels = coloured(1, 11, 7)[0]
    assert SourceOptions(size=(4, 4)) == SourceOptions(size=4) and SourceOptions(size=(4, 4)).size == 4
    middle = Image.fromarray(pixels[:, 2:9].transpose(1, 2, 0)).resize((4, 4), Image.Resampling.BOX)
    assert np.array_equal(transform(pixels, SourceOptions(size=4)), np.asarray(middle).transpose(2, 0, 1))


def test_every_entrance_takes_a_height_and_a_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, options = coloured(12, 20, 30), SourceOptions(size=(9, 10), cache=tmp_path / "cache")
    expected = np.stack([transform(one, options) for one in pictures])
    assert expected.shape == (12, 3, 9, 10)
    plain = folder(tmp_path / "folder", pictures)
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        for file in sorted(plain.iterdir()):
            archive.write(file, file.name)
    cells = [{"bytes": encode_png(one), "path": None} for one in pictures]
    pq.write_table(pa.table({"image": cells}), tmp_path / "table.parquet")
    np.savez(tmp_path / "arrays.npz", images=pictures)
    sources = [plain, *(tmp_path / name for name in ("packed.zip", "table.parquet", "arrays.npz"))]
    for source in sources:
        assert np.array_equal(load(source, options=options).raw, expected), source
        report = check(source, options)
        assert report.ok and any(
            "12 of 12 pictures are cropped to their largest middle part of the shape 9:10" in remark
            for remark in report.remarks
        ), report.lines()
        stream = open_reference(source, ScoreOptions(source=options))[0]
        assert stream.data_shape == (3, 9, 10)
        assert stream.images == "the middle averaged down to 9x10 pixels (height, width)"
        x = stream.read(range(12)).x
        assert torch.equal(
            torch.as_tensor(x), torch.as_tensor(of_dataset(load(source, options=options)).read(range(12)).x)
        )
    assert np.array_equal(api.load_data(pictures, size=(9, 10)).raw, expected)
    assert np.array_equal(api.load_data(pictures, size=[9, 10]).raw, expected)  # type: ignore[arg-type]
    monkeypatch.setattr("sims.data.mapped.IN_MEMORY", 100)
    assert np.array_equal(np.asarray(load(plain, options=options).raw[:]), expected)
    other = SourceOptions(size=(10, 9), cache=tmp_path / "cache")
    assert load(plain, options=other).data_shape == (3, 10, 9)


def test_what_is_cropped_is_counted_and_said(tmp_path: Path, say: tiny.Say, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder(tmp_path / "data", coloured(5, 20, 30))
    for i in range(3):
        (path / f"wide{i}.png").write_bytes(encode_png(coloured(1, 24, 48, seed=i)[0]))
    options = SourceOptions(size=(10, 15))
    capsys.readouterr()
    load(path, options=options)
    said = "3 of 8 pictures are cropped to their largest middle part of the shape 10:15 (height:width)"
    assert said in capsys.readouterr().err and any(said in remark for remark in check(path, options).remarks)
    load(path, options=SourceOptions(size=4))
    assert "8 of 8 pictures are cropped to their largest middle square" in capsys.readouterr().err
    status, out, _ = say("data", "check", str(path), "--size", "10,15")
    assert status == 0 and said in out
    load(folder(tmp_path / "other", coloured(5, 20, 30)), options=options)
    assert "cropped" not in capsys.readouterr().err


@pytest.mark.parametrize("text", ["48x64x3", "0,64", "48,", ",64", "1,2,3", "-4", "3.5", "x", "", "4 8", "1,-2"])
def test_a_size_that_is_none_is_one_sentence(text: str, say: tiny.Say) -> None:
    for words in (
        ("data", "check", "digits"),
        ("train", "--data.path", "digits"),
        ("evaluate", "x", "--reference", "y"),
    ):
        prefix = {"data": "", "train": "data.source.", "evaluate": "source."}[words[0]]
        status, out, err = say(*words, f"--{prefix}size={text}")
        assert status == 2 and not out and err.count("\n") == 1 and err.startswith("sims: "), (words, out, err)
        assert "such as 48,64" in err and "size" in err


def test_sizes_as_texts_and_in_recipes() -> None:
    assert parse_size(" 48 , 64") == (48, 64) and parse_size("32") == 32 and parse_size("none") is None
    assert from_dict(SourceOptions, {"size": [48, 64]}).size == (48, 64)
    assert from_dict(SourceOptions, {"size": 8}).sides == (8, 8) and SourceOptions().sides is None
    for wrong in ([48], [1, 2, 3], "48,64", 1.5, [0, 3]):
        with pytest.raises(UserError, match="size"):
            from_dict(SourceOptions, {"size": wrong})
