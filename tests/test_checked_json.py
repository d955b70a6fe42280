"""Files of settings, headers and rows: read where they are sound, and one sentence where they are not."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sims import files
from sims.commands.evaluate import read_rows
from sims.config import convert, read_as
from sims.errors import UserError
from sims.files import parse_json, read_json, read_json_lines, read_toml
from sims.metrics.extractors import ClassifierExtractor, PCAExtractor
from sims.metrics.frechet import Moments
from sims.metrics.saved import read_tensors, write_tensors
from sims.metrics.small_classifier import ConvClassifier
from sims.scoring.features import FeatureSet
from sims.scoring.statistics import read_statistics, save_statistics

BROKEN = {
    "deep lists": "[" * 100_000,
    "deep tables": '{"a":' * 101 + "0" + "}" * 101,
    "a huge number": "1" * 400,
    "a huger number": "1" * 100_000,
    "half a character": r'["\ud800"]',
    "the other half": r'{"\udead": 0}',
    "a key twice": '{"a": {"images": 1, "images": 2}}',
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "cut": '{"a": [1, 2',
    "nothing": "",
    "two values": "{} {}",
    "an html page": "<!doctype html><html></html>",
    "zeros": b"\0" * 64,
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_one_sentence_that_names_the_file(tmp_path: Path, what: str) -> None:
    text, file = BROKEN[what], tmp_path / "a.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    for read in (read_json, read_json_lines):
        if (what, read) in (("nothing", read_json_lines),):
            continue
        with pytest.raises(UserError) as caught:
            read(file)
        assert str(file) in str(caught.value) and "not valid JSON" in str(caught.value)
        assert len(str(caught.value)) < 400 and str(caught.value).isprintable()


def test_the_sentences_say_what_is_wrong() -> None:
    said = {"deep lists": "more than 100", "a key twice": "'images'", "a huge number": "hundreds of digits"}
    for what, words in said.items():
        with pytest.raises(UserError, match=words):
            parse_json(BROKEN[what], "a.json")


def test_what_is_sound_is_read() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": [1, 2.5, "\\ud83d\\ude00", null, true]}', "x") == {
        "a": [1, 2.5, "😀", None, True]
    }
    assert parse_json('{"a": 1}\n\n[2]\r\n', "x", lines=True) == [{"a": 1}, [2]]
    assert parse_json('"' + r"\\ud800" + '"', "x") == r"\ud800"  # a backslash, and no escape
    assert parse_json(r'"caf\udce9.png"', "x") == os.fsdecode(b"caf\xe9.png")  # a file's name that is not UTF-8
    assert parse_json("[" * 99 + "]" * 99, "x")
    assert parse_json("1e400", "x") == float("inf") and parse_json(str(2**64), "x") == 2**64


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(), st.lists))
@settings(max_examples=50, deadline=None)
def test_any_value_comes_back(value: object) -> None:
    assert parse_json(json.dumps(value), "x") == value


@given(st.binary(max_size=40) | st.text(alphabet='{}[]",:\\ud8019e-tfn ', max_size=40).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_a_value_or_a_sentence(data: bytes) -> None:
    try:
        value = parse_json(data, "x")
    except UserError:
        return
    json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogateescape")


def test_what_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    with open(file, "wb") as out:
        out.truncate(files.LARGEST + 1)
    with pytest.raises(UserError, match=r"134,217,729 bytes.*at most 134,217,728"):
        read_json(file)
    monkeypatch.setattr(files, "MOST", 3)
    with pytest.raises(UserError, match="about 5 values, and at most 3"):
        parse_json("[1, [2], {}]", "x")


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, what in (("pipe", "a pipe"), ("zero", "a device"), (".", "a folder"), ("none", "no file")):
        with pytest.raises(UserError, match=what):
            read_json(tmp_path / name)


TOML = {
    "deep lists": "a = " + "[" * 5000 + "]" * 5000,
    "deep tables": ".".join("a" * 200) + " = 1",
    "a date": "a = 2020-01-01",
    "a huge number": "a = 0x" + "f" * 5000,
    "a key twice": "a = 1\na = 2",
    "not UTF-8": b"a = '\xff'",
    "text": "\x7fELF",
}


@pytest.mark.parametrize("what", TOML)
def test_broken_toml_is_a_sentence(tmp_path: Path, what: str) -> None:
    text, file = TOML[what], tmp_path / "a.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=r"a\.toml is not valid TOML") as caught:
        read_toml(file)
    assert len(str(caught.value)) < 400


@dataclass(frozen=True)
class Position:
    """What a file becomes."""

    step: int
    losses: dict[str, float]
    note: str = ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "no table of entries"),
        ('{"step": 1}', "'losses' is missing"),
        ('{"step": 1, "losses": [], "note": ""}', "'losses'"),
        ('{"step": 1.5, "losses": {}}', "'step'.*1.5.*int"),
        ('{"step": 99999999999999999999, "losses": {}}', "'step'.*99999999999999999999"),
        ('{"step": true, "losses": {}}', "'step'"),
        ('{"step": 1, "losses": {"a": {"b": 1}}}', "'losses.a'"),
        ('{"step": 1, "losses": {}, "stpe": 1}', "unknown entry 'stpe'; did you mean 'step'"),
    ],
)
def test_what_does_not_fit_names_file_and_key(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=rf"a\.json: .*{words}"):
        read_as(tmp_path / "a.json", Position)


def test_what_fits_becomes_the_dataclass(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"step": 1, "losses": {"a": 2}, "more": []}')
    assert read_as(tmp_path / "a.json", Position, rest=True) == Position(1, {"a": 2.0})


def test_long_and_strange_names_stay_short() -> None:
    with pytest.raises(UserError) as caught:
        convert({"\x1b[2J" + "a" * 1_000_000: 1}, Position, "x", "entry")
    assert len(str(caught.value)) < 300 and str(caught.value).isprintable()


# ---- headers of safetensors


def with_header(file: Path, **changes: object) -> Path:
    """The same tensors with a header in which some entries are others; None leaves one out."""
    tensors, header = read_tensors(file)
    told = {key: value for key, value in {**header, **changes}.items() if value is not None}
    write_tensors(file, tensors, told)  # type: ignore[arg-type]
    return file


@pytest.fixture
def statistics(tmp_path: Path) -> Path:
    x = np.random.default_rng(0).standard_normal((20, 4))
    extractor = PCAExtractor.fit(np.random.default_rng(1).uniform(-1, 1, (20, 1, 4, 4)).astype(np.float32), 4)
    features = FeatureSet("real", "0" * 64, Moments.of(x), x, np.arange(20), np.zeros(20, np.int64))
    save_statistics(tmp_path / "a.safetensors", features, extractor)
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"count": "many"}, "'count'.*'many'"),
        ({"count": 10**30}, "'count'"),
        ({"count": None}, "'count' is missing"),
        ({"dataset_fingerprint": 3}, "'dataset_fingerprint'"),
        ({"extra": []}, "'extra'"),
        ({"extractor_name": {}}, "'extractor_name'"),
        ({"kind": ["reference"]}, r"holds \['reference'\]"),
        ({"format": None}, "format None"),
    ],
)
def test_headers_of_statistics_have_their_types(statistics: Path, changes: dict[str, object], words: str) -> None:
    assert read_statistics(statistics).features.moments.count == 20
    with pytest.raises(UserError, match=rf"a\.safetensors.*{words}"):
        read_statistics(with_header(statistics, **changes))


@pytest.mark.parametrize("name", ["mean", "covariance"])
def test_statistics_that_lack_a_tensor_or_do_not_fit(statistics: Path, name: str) -> None:
    tensors, header = read_tensors(statistics)
    write_tensors(statistics, {**tensors, name: np.zeros((3, 2))}, header)
    with pytest.raises(UserError, match=r"not \(D,\) and \(D, D\)"):
        read_statistics(statistics)
    write_tensors(statistics, {key: value for key, value in tensors.items() if key != name}, header)
    with pytest.raises(UserError, match=f"holds no '{name}'"):
        read_statistics(statistics)


@pytest.mark.parametrize(
    "changes", [{"width": 10**9}, {"num_classes": 10**12}, {"data_shape": "large"}, {"variant": None}, {"width": 1.5}]
)
def test_a_classifier_is_not_made_before_its_tensors_fit(tmp_path: Path, changes: dict[str, object]) -> None:
    file = tmp_path / "c.safetensors"
    made = ClassifierExtractor(ConvClassifier((1, 8, 8), 3, width=4))
    made.save(file)
    assert ClassifierExtractor.load(file).hash == made.hash
    with pytest.raises(UserError, match=r"c\.safetensors"):
        ClassifierExtractor.load(with_header(file, **changes))


@pytest.mark.parametrize("line", ["5", "[]", "null", '{"metric": "fd"}', '{"seeds": 1}', "{"])
def test_rows_of_scores_are_rows(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"a\.jsonl cannot be read as rows of scores"):
        read_rows(tmp_path / "a.jsonl")
