"""Sets of samples read part by part: the same values as read at once, broken pictures named, features kept."""

from __future__ import annotations

import io
import itertools
import threading
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from scoring import Toy, evaluate
from sims.data.codec import UINT8, Codec
from sims.data.dataset import Dataset
from sims.data.pictures import SourceOptions, encode_png
from sims.data.readers import Pictures, open_source
from sims.data.sources import load
from sims.data.stream import UNCHANGED, Stream, of_dataset, of_pictures, of_samples
from sims.errors import UserError
from sims.metrics.copies import nearest
from sims.metrics.extractors import extract
from sims.scoring import features as features_module
from sims.scoring.features import FeatureSet, extract_features
from sims.scoring.figures import nearest_of

RAW = np.random.default_rng(0).integers(0, 256, (9, 1, 4, 6), dtype=np.uint8)
DATA = Dataset(RAW, np.arange(9) % 3, UINT8, name="nine")


def pictures(raw: np.ndarray = RAW, **changes: object) -> Pictures:
    """Encoded pictures in memory."""
    encoded = [encode_png(pixels) for pixels in raw]
    found = Pictures("folder", "nine", [f"{i:06d}.png" for i in range(len(raw))], lambda i: encoded[i])
    return replace(found, **changes)  # type: ignore[arg-type]


def broken(*places: int) -> Pictures:
    """Pictures some of which are cut short."""
    whole = pictures()
    return replace(whole, read=lambda i: whole.read(i)[: 20 if i in places else None])


def all_of(stream: Stream) -> Tensor:
    return stream.read(range(stream.count)).x


@given(st.lists(st.integers(0, 9), max_size=4))
@settings(max_examples=20)
def test_parts_make_up_the_whole(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), 9]
    parts = [range(first, last) for first, last in itertools.pairwise(edges) if first < last]
    for stream in (of_dataset(DATA), of_pictures(pictures())):
        read = [stream.read(part) for part in parts]
        assert torch.equal(torch.cat([part.x for part in read]), DATA.all()[0])
        assert np.concatenate([part.positions for part in read]).tolist() == list(range(9))
        assert stream.data_shape == (1, 4, 6) and len(stream) == 9 and stream.dtype == "uint8"


def test_a_digest_tells_contents_apart() -> None:
    other = RAW.copy()
    other[8, 0, 0, 0] ^= 1
    first, second = range(5), range(5, 9)
    streams = [
        (of_dataset(DATA), of_dataset(replace(DATA, raw=other))),
        (of_pictures(pictures()), of_pictures(pictures(other))),
    ]
    for a, b in streams:
        assert a.digest(first) == b.digest(first) and a.digest(second) != b.digest(second)
        assert a.digest(first) != a.digest(second)
    a, b = (of_dataset(replace(DATA, codec=Codec("pixels", 0.0, high, "uint8"))) for high in (255.0, 16.0))
    assert a.digest(first) != b.digest(first)
    grey, smaller = (of_pictures(pictures(), options) for options in (SourceOptions(True), SourceOptions(size=2)))
    assert len({of_pictures(pictures()).digest(first), grey.digest(first), smaller.digest(first)}) == 3
    # A part of pictures means something else behind a first picture of another size or depth.
    assert of_pictures(pictures(RAW[:, :, :3])).digest(range(0)) != of_pictures(pictures()).digest(range(0))


def test_broken_pictures_are_named_and_the_others_read() -> None:
    stream = of_pictures(broken(0, 4))
    part = stream.read(range(3, 6))
    assert part.positions.tolist() == [3, 5] and torch.equal(part.x, DATA.all()[0][[3, 5]])
    ((position, reason),) = part.unreadable
    assert position == 4 and stream.names[position] == "000004.png" and reason
    assert stream.read(range(4, 5)).x.shape == (0, 1, 4, 6)
    with pytest.raises(UserError, match=r"none of the 9 pictures in nine can be read \(000008\.png: .+\): check"):
        of_pictures(broken(*range(9)))


def test_a_file_that_vanishes_is_unreadable(tmp_path: Path) -> None:
    for index, pixels in enumerate(RAW):
        (tmp_path / f"{index}.png").write_bytes(encode_png(pixels))
    found = open_source(tmp_path).train
    assert isinstance(found, Pictures)
    stream = of_pictures(found)
    (tmp_path / "3.png").unlink()
    assert [place for place, _ in stream.read(range(9)).unreadable] == [3]
    stream.digest(range(9))


def test_a_member_of_a_zip_with_a_wrong_checksum(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for index, pixels in enumerate(RAW):
            archive.writestr(f"{index}.png", encode_png(pixels))
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[content.index(b"IDAT") + 6] ^= 255
    (tmp_path / "a.zip").write_bytes(content)
    found = open_source(tmp_path / "a.zip").train
    assert isinstance(found, Pictures)
    ((place, reason),) = of_pictures(found).read(range(9)).unreadable
    assert place == 0 and "CRC" in reason


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (Image.new("L", (5, 4)), r"size \(000000\.png is 6x4, 000007\.png is 5x4\): .* option 'source\.size'"),
        (Image.new("RGB", (6, 4)), r"channels \(000000\.png has 1, 000007\.png has 3\): .* option 'source\.grayscale'"),
        (Image.fromarray(np.zeros((4, 6), np.uint16)), r"depth .*000007\.png is uint16"),
    ],
)
def test_pictures_that_differ_are_refused(odd: Image.Image, said: str) -> None:
    whole = pictures()
    stream = of_pictures(replace(whole, read=lambda i: encoded(odd) if i == 7 else whole.read(i)))
    stream.read(range(7))
    with pytest.raises(UserError, match="differ in " + said):
        stream.read(range(5, 9))


def test_pictures_of_floating_point_values_are_refused() -> None:
    tiff = encoded(Image.fromarray(np.ones((4, 6), np.float32)), "TIFF")
    with pytest.raises(UserError, match=r"floating-point values, .* give the samples as npz"):
        of_pictures(Pictures("folder", "nine", ["a.tif"], lambda i: tiff))


def test_sixteen_bits_and_options() -> None:
    deep = of_pictures(pictures(RAW.astype(np.uint16) * 257))
    assert deep.dtype == "uint16" and torch.allclose(all_of(deep), DATA.all()[0], atol=1e-6)
    small = of_pictures(pictures(), SourceOptions(size=2))
    assert small.data_shape == (1, 2, 2)
    with pytest.raises(UserError, match=r"000000\.png in nine: size 9 is larger"):
        all_of(of_pictures(pictures(), SourceOptions(size=9)))


@pytest.mark.parametrize(
    ("names", "seeds"),
    [
        (["000007.png", "000003.png"], [7, 3]),
        (["a/000007.PNG", "b/1000003.png"], [7, 1000003]),
        (["a/000007.jpg", "b/000007.jpg"], None),
        (["7.png", "3.png"], None),
        (["x.parquet row 0", "x.parquet row 1"], None),
    ],
)
def test_names_tell_seeds(names: list[str], seeds: list[int] | None) -> None:
    stream = of_pictures(pictures(RAW[:2], names=names))
    assert seeds == (None if stream.seeds is None else stream.seeds.tolist())


@pytest.mark.parametrize(
    ("kinds", "format_"),
    [("png png", "png"), ("jpeg jpeg", "jpeg"), ("jpeg png", "jpeg and png"), ("webp webp", "webp"), ("avif", "avif")],
)
def test_first_bytes_tell_the_format_whatever_a_file_is_called(kinds: str, format_: str) -> None:
    files = [encoded(Image.fromarray(RAW[i, 0]).convert("RGB"), kind) for i, kind in enumerate(kinds.split())]
    named = pictures(RAW[: len(files)], names=[f"{i}.png" for i in range(len(files))])
    assert of_pictures(replace(named, read=lambda i: files[i])).format == format_


def test_labels_and_their_names() -> None:
    stream = of_pictures(pictures(labels=np.arange(9) % 3))
    assert stream.num_classes == 3 and stream.class_names == ("0", "1", "2")
    assert of_pictures(pictures(labels=np.arange(9) % 3, class_names=("a", "b", "c"))).class_names == ("a", "b", "c")
    with pytest.raises(UserError, match="outside the classes"):
        of_pictures(pictures(labels=np.full(9, 3), class_names=("a", "b", "c")))
    assert of_dataset(DATA).num_classes == 3 and of_dataset(DATA.without_labels()).num_classes == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.linspace(0, 1, 24), UNCHANGED),
        (np.linspace(-1, 1, 24), UNCHANGED),
        (np.linspace(-1.25, 1, 24), "values from -1.25 (black) to 1 (white)"),
        (np.linspace(0, 254.5, 24), "values from 0 (black) to 254.5 (white)"),
    ],
)
def test_a_range_that_was_guessed_is_said(values: np.ndarray, said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=values.reshape(1, 1, 4, 6).astype(np.float32))
    assert of_dataset(load(tmp_path / "a.npz")).images == said


def test_what_was_done_on_load_is_said() -> None:
    options = SourceOptions(grayscale=True, size=2)
    for stream in (of_dataset(DATA, options), of_pictures(pictures(), options)):
        assert stream.images == "averaged down to 2 pixels a side, made grey"
    assert of_pictures(pictures()).images == of_dataset(DATA).images == UNCHANGED


def test_samples_are_rounded_to_the_format_of_the_data() -> None:
    asked: list[list[int]] = []

    def sample(seeds: range) -> tuple[Tensor, Tensor]:
        asked.append(list(seeds))
        return torch.tensor(list(seeds)).reshape(-1, 1, 1, 1) / 100 - 1.5, torch.tensor(list(seeds)) % 2

    codec = Codec("pixels", 0.0, 4.0, "uint8")
    stream = of_samples("model", sample, codec, range(100, 300), (1, 1, 1), "key", ("a", "b"), at_once=50)  # type: ignore[arg-type]
    part = stream.read(range(10, 12))
    assert asked == [[110, 111]] and part.labels is not None and part.labels.tolist() == [0, 1]
    assert part.positions.tolist() == [10, 11] and stream.at_once == 50 and stream.count == 200
    assert stream.seeds is not None and stream.seeds[:2].tolist() == [100, 101]
    assert set(all_of(stream).flatten().tolist()) == {-0.5, 0.0, 0.5, 1.0}
    other = of_samples("model", sample, codec, range(101, 300), (1, 1, 1), "key")  # type: ignore[arg-type]
    assert stream.digest(range(1, 5)) == other.digest(range(4)) != other.digest(range(5))


def test_samples_that_diverge_are_counted_as_bad_ones() -> None:
    def sample(seeds: range) -> tuple[Tensor, None]:
        return torch.tensor([0.0, float("nan"), float("inf")]).reshape(3, 1, 1, 1), None

    part = of_samples("model", sample, UINT8, range(3), (1, 1, 1), "key").read(range(3))  # type: ignore[arg-type]
    assert part.diverged == 2 and part.x.isfinite().all() and float(part.x[2]) == 1.0, "as far away as pixels can be"


# -- extraction: parts, batches, processes, interruptions --------------------------------------------------------------


class Accelerators:
    """As many processes as wanted, each a thread: they wait for each other as processes do."""

    def __init__(self, count: int = 1) -> None:
        barrier = threading.Barrier(count)
        self.all = [_Process(rank, count, barrier) for rank in range(count)]


class _Process:
    device = torch.device("cpu")

    def __init__(self, rank: int, count: int, barrier: threading.Barrier) -> None:
        self.process_index, self.num_processes, self.is_main_process = rank, count, rank == 0
        self.wait_for_everyone = barrier.wait


ONE: Any = Accelerators().all[0]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features in files of 32 samples, so that little data makes many of them."""
    monkeypatch.setattr(features_module, "PART", 32)


def same(a: FeatureSet, b: FeatureSet) -> bool:
    """Whether two sets of features are equal bit for bit."""
    pairs = [(a.moments.mean, b.moments.mean), (a.moments.covariance, b.moments.covariance), (a.kept, b.kept)]
    return a.hash == b.hash and all(np.array_equal(x, y) for x, y in pairs)  # type: ignore[arg-type]


def extracted(data: Dataset, cache: Path, toy: Toy | None = None, process: Any = ONE, **options: Any) -> FeatureSet:
    return extract_features(of_dataset(data), toy or Toy(), cache, process, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [1, 7, 32, 1000])
def test_the_batch_size_changes_nothing(
    batch_size: int, real: tuple[Dataset, Dataset], tmp_path: Path, small_parts: None
) -> None:
    samples = real[1].subset(range(100))
    a, b = (extracted(samples, tmp_path / str(size), batch_size=size) for size in (100, batch_size))
    assert same(a, b)


def test_the_number_of_processes_changes_nothing(
    real: tuple[Dataset, Dataset], tmp_path: Path, small_parts: None
) -> None:
    samples, toys, found = real[1].subset(range(200)), [Toy() for _ in range(3)], {}

    def work(process: Any) -> None:
        toy = toys[process.process_index]
        found[process.process_index] = extracted(samples, tmp_path / "three", toy, process, batch_size=10)

    threads = [threading.Thread(target=work, args=(process,)) for process in Accelerators(3).all]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    alone = extracted(samples, tmp_path / "one")
    assert [same(found[rank], alone) for rank in range(3)] == [True] * 3
    assert [toy.seen for toy in toys] == [72, 64, 64], "each computed its share"
    assert len(list((tmp_path / "three").rglob("*.safetensors"))) == 7 and not list(tmp_path.rglob("*.tmp-*"))


def test_an_interrupted_extraction_goes_on(real: tuple[Dataset, Dataset], tmp_path: Path, small_parts: None) -> None:
    class Interrupted(Toy):
        def __call__(self, x: Tensor) -> Tensor:
            if self.seen >= 100:
                raise KeyboardInterrupt
            return super().__call__(x)

    samples, advanced = real[1].subset(range(200)), []
    with pytest.raises(KeyboardInterrupt):
        extracted(samples, tmp_path / "a", Interrupted(), batch_size=10)
    assert len(list((tmp_path / "a").rglob("*"))) == 2 + 3, "three whole parts and nothing else"
    toy = Toy()
    found = extracted(samples, tmp_path / "a", toy, advance=advanced.append)
    assert toy.seen == 200 - 3 * 32 and sum(advanced) == 200
    assert same(found, extracted(samples, tmp_path / "b"))
    assert same(found, extracted(samples, tmp_path / "a", toy)) and toy.seen == 104, "all of it was there"


def test_a_damaged_part_is_made_again(real: tuple[Dataset, Dataset], tmp_path: Path, small_parts: None) -> None:
    samples = real[1].subset(range(100))
    whole = extracted(samples, tmp_path)
    files = sorted(tmp_path.rglob("*.safetensors"))
    for file, keep in zip(files, (0, 5, -7)):
        file.write_bytes(file.read_bytes()[:keep])
    toy = Toy()
    assert same(extracted(samples, tmp_path, toy), whole) and 36 <= toy.seen <= 96


def test_memory_is_bounded(real: tuple[Dataset, Dataset], tmp_path: Path, small_parts: None) -> None:
    train = real[0]
    found = extracted(train, tmp_path, keep=50)
    assert found.kept is not None and found.positions is not None
    assert found.kept.shape == (50, 6) and found.count == 1437
    every = extract(Toy(), train.all()[0])
    assert np.array_equal(found.kept, every[found.positions])
    assert np.array_equal(np.concatenate(list(found.parts())), every), "the files hold all of them"
    queries = extract(Toy(), real[1].all()[0])
    near, expected = nearest_of(queries, found, "cpu"), nearest(queries, every)
    assert np.allclose(near.distances, expected.distances) and np.array_equal(near.indices, expected.indices)
    assert found.moments.mean == pytest.approx(every.mean(axis=0, dtype=np.float64), rel=1e-5, abs=1e-7)
    scored = evaluate(real[1], train, tmp_path, extractor=Toy(), neighbours=20)
    per = {row["metric"]: row for row in scored["rows"]}
    assert per["fd"]["num_samples"] == 360 and per["recall"]["num_samples"] == per["kid"]["num_samples"] == 20
    assert per["recall"]["settings"]["reference_used"] == 20


def test_a_set_is_not_read_at_once(real: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    stream, asked = of_dataset(real[1]), []
    counting = replace(stream, read=lambda part: asked.append(len(part)) or stream.read(part))
    extract_features(counting, Toy(), tmp_path / "a", ONE, batch_size=30)  # type: ignore[arg-type]
    assert set(asked) == {30}
    asked.clear()
    extract_features(replace(counting, at_once=50), Toy(), tmp_path / "b", ONE, batch_size=30)  # type: ignore[arg-type]
    assert set(asked) == {50, 10}, "samples of a model are made in batches of their own"
