"""Models of runs as repositories of the hub: the card says what was measured, and what is read back is the same."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import sims
import tiny
from hub_server import COMMIT, ID, TOKEN, Hub, serving
from sims.commands.push import measured_row
from sims.interop import hub_models, hub_upload
from sims.interop.hub_models import HubName, origin
from sims.interop.hub_upload import checked_name
from sims.model import load
from sims.report.card import CardFacts, model_card, plain
from sims.results.common import Data, Figure, FigureFacts, Row
from sims.results.improve import ImproveResult, Round
from sims.results.summaries import read_result

hub = pytest.importorskip("huggingface_hub", reason="needs the package huggingface_hub: pip install '.[hub]'")
NAME = f"hf:{ID}"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that has no model yet, and a token for it."""
    with serving(Hub({}, exists=False), tmp_path / "hf", monkeypatch) as here:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield here


@pytest.fixture
def published(server: Hub, finished: Path, say: tiny.Say) -> Hub:
    """The hub with the improved model of the tiny job."""
    assert say("push", finished, ID, "--licence", "mit")[0] == 0
    server.asked.clear()
    return server


def front(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_what_is_pushed_is_what_is_read(server: Hub, finished: Path, tmp_path: Path, say: tiny.Say) -> None:
    status, out, err = say("push", finished, ID, "--licence", "Apache-2.0", "--private")
    assert status == 0, err
    assert f"{ID} is new on the hub, and is made private" in err and server.private
    assert out == f"{server.address}/{ID} holds it: sims sample {NAME}@{server.head} --download\n"
    assert set(server.files) >= {"README.md", "model.json", "samples.png", ".gitattributes"}
    assert server.files["samples.png"].startswith(b"\x89PNG")
    expected = sims.load(finished / "improved")
    model = sims.load(NAME, download=True)
    assert model.hash == expected.hash and model.provenance["hub"] == f"{ID}@{server.head}"
    assert torch.equal(model.sample(range(4)), expected.sample(range(4)))
    assert not {"README.md", "samples.png", ".gitattributes"} & set(server.fetched())
    server.asked.clear()
    for words in (["sample", NAME, "--seeds", "0-2", "--out", tmp_path / "a"], ["inspect", f"{NAME}@{server.head}"]):
        status, out, err = say(*words)
        assert status == 0, err
    assert f"{ID}@{server.head}" in out and expected.hash in out
    assert not server.asked
    assert say("sample", finished / "improved", "--seeds", "0-2", "--out", tmp_path / "b")[0] == 0
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_a_process_of_its_own_pushes(server: Hub, finished: Path) -> None:
    """With nothing set but the environment."""
    command = [sys.executable, "-m", "sims", "push", finished, ID, "--license", "mit", "--model", "distilled"]
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert sims.load(NAME, download=True).hash == sims.load(finished / "distilled").hash


def test_the_card_says_what_the_run_found(finished: Path, tmp_path: Path, say: tiny.Say) -> None:
    result = read_result(finished, ImproveResult)
    for which, label in (("improved", result.improved), ("distilled", "distilled"), ("base", "base")):
        status, out, err = say("push", finished, ID, "--license", "mit", "--model", which, "--out", tmp_path / which)
        assert status == 0 and not err and "nothing is uploaded" in out
        card, row = (tmp_path / which / "README.md").read_text(), result.row(label)
        assert row is not None
        assert front(card)["license"] == "mit" and front(card)["pipeline_tag"] == "unconditional-image-generation"
        figure = row.figures["fd"]
        assert f"{figure.mean:.1f}"[:3] in card and f"± {figure.half:.1f}"[:4] in card
        bold = re.findall(r"^\| \*\*(.*?)\*\*", card, flags=re.MULTILINE)
        assert bold == [result.looks[row.method].title]
        assert load(tmp_path / which).hash in card and f"hf:{ID}" in card and "digits" in card
        for words in ("## Measured with", "nearer to a training sample than 99 %", "**It is not an FID**", "seeds"):
            assert words in card
        assert str(finished) not in card and str(finished) not in (tmp_path / which / "model.json").read_text()
    measured = {json.loads(line)["extractor_hash"] for line in (finished / "metrics.jsonl").open()}
    assert all(one[:16] in card for one in measured)


def test_a_shift_and_a_loop(finished_shift: Path, finished_loop: Path, tmp_path: Path, say: tiny.Say) -> None:
    status, _, err = say("push", finished_shift, ID, "--license", "mit", "--out", tmp_path / "shift")
    assert status == 0, err
    card = (tmp_path / "shift" / "README.md").read_text()
    assert "## Proportions" in card and "| target | the base | this model |" in card
    status, _, err = say("push", finished_loop, ID, "--license", "mit", "--out", tmp_path / "loop")
    assert status == 2 and "is a run of loop, which leaves no model" in err


def test_figures_of_later_rounds_are_theirs(model: Path) -> None:
    """Of the last round that was kept; a method that ran in the first only has those of the first."""

    def rows(*labels: str, w: float) -> tuple[Row, ...]:
        return tuple(Row(label=label, method=label, w=w * (label != "b")) for label in labels)

    first, second, third = rows("b", "x", "y", w=1.0), rows("b", "x", w=2.0), rows("b", "x", w=3.0)
    rounds = [Round(round=k + 1, accepted=k < 2, reason="", rows=them) for k, them in enumerate((first, second, third))]
    result = ImproveResult(
        title="", headline="", data=Data("d"), leader="x", rows=first, rounds=tuple(rounds), improved="x"
    )
    made = load(model)
    for label, row, of_first in (("x", second[1], False), ("y", first[2], True)):
        told = replace(made, provenance={"method": label})
        assert measured_row(result, Path("run/improved"), told) == (row, of_first)
    assert measured_row(result, Path("run/base/snapshots/1"), made) == (first[0], True)
    with pytest.raises(sims.UserError, match="has not measured"):
        measured_row(result, Path("run/improved"), replace(made, provenance={"method": "z"}))


HOSTILE = "a|b\n---\nlicense: gpl\n# c [d](http://e.f) <script> **g** `h`"


def test_names_of_data_are_no_marks() -> None:
    """Neither of YAML nor of Markdown."""
    fd = {"fd": Figure(2.0, 1.0, 3.0)}
    rows = tuple(Row(label=label, method=label, w=w, figures=fd, draws=2) for label, w in ((HOSTILE, 0.0), ("x", 1.0)))
    result = ImproveResult(
        title=HOSTILE, headline=HOSTILE, warnings=(HOSTILE,), data=Data(HOSTILE, 10, 2), leader="x", verified=False,
        rows=rows, figures={"fd": FigureFacts(HOSTILE, "lower", "distance")},
    )  # fmt: skip
    facts = CardFacts(
        name=ID, licence="mit", row=rows[1], rows=rows, what=HOSTILE, hash="0", shape=(2,), classes=(HOSTILE, "b"),
        fingerprint=HOSTILE, trained_on=HOSTILE, needs=HOSTILE, given=True,
    )  # fmt: skip
    card = model_card(result, facts, [], False)
    assert front(card) == {
        "license": "mit", "library_name": "sims", "pipeline_tag": "unconditional-image-generation",
        "tags": ["sims", "diffusion", "self-improvement"],
    }  # fmt: skip
    assert card.count("\n---\n") == 1 and "Not verified" in card
    assert not re.search(r"(?<!\\)(\[d\]|<script|\*\*g|`h`)|^# c", card, flags=re.MULTILINE)
    for line in card.splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) in (3, 4)
    assert plain("- x") == r"\- x" and plain("1. x") == r"1\. x" and plain("\x1b[2J") == r"\\x1b\[2J"


def test_one_commit_more_and_the_earlier_one(published: Hub, finished: Path, say: tiny.Say) -> None:
    """Of two models in one repository none has files of the other, and each is read at its commit."""
    first = published.head
    assert sims.load(NAME, download=True).hash == sims.load(finished / "improved").hash
    status, _, err = say("push", finished, ID, "--licence", "mit", "--model", "distilled")
    assert status == 0 and f"{ID} exists ({first}): one commit more" in err
    ours = {name for name in published.files if name.endswith(("model.json", ".safetensors"))}
    assert ours == {"model.json", "model.safetensors"}
    second = published.head
    models = {first: "improved", second: "distilled", "main": "distilled"}
    for revision, which in models.items():
        model = sims.load(f"{NAME}@{revision}", download=True)
        assert model.hash == sims.load(finished / which).hash
        assert model.provenance["hub"] == f"{ID}@{first if revision == first else second}"
    published.asked.clear()
    assert sims.load(NAME).provenance["hub"] == f"{ID}@{second}"
    assert not published.asked
    status, _, err = say("inspect", f"{NAME}@v2")
    assert status == 2 and "nothing is fetched by itself: give --download" in err
    status, _, err = say("inspect", f"{NAME}@v2", "--download")
    assert status == 2 and "no such model or file (404)" in err


def test_wherever_a_model_is_named(published: Hub, tmp_path: Path, say: tiny.Say) -> None:
    few = ["--draws", "2", "--samples", "20", "--extractor", "pca", "--metrics", "fd", "--cache", tmp_path / "cache"]
    for words in (
        ["sample", NAME, "--seeds", "0", "--out", tmp_path / "s"],
        ["synthesize", NAME, "--count", "2", "--out", tmp_path / "store"],
        ["evaluate", NAME, *few],
        ["export", NAME, tmp_path / "exported"],
        ["check", NAME],
        ["inspect", NAME],
        ["import", NAME, tmp_path / "imported"],
        ["improve", "--model", NAME, "--run", tmp_path / "run"],
    ):
        status, out, err = say(*words)
        assert status == 2 and not out and "give --download to fetch" in err and "Traceback" not in err, err
    with pytest.raises(sims.UserError, match="option 'download'"):
        sims.load(NAME)
    assert not published.asked
    for words in (
        ["evaluate", NAME, *few, "--json"],
        ["synthesize", NAME, "--count", "2", "--out", tmp_path / "store"],
    ):
        status, out, err = say(*words, "--download")
        assert status == 0, err
    status, _, err = say("improve", "--model", NAME, "--run", tmp_path / "run", "--dry-run")
    assert (status == 2 and "is a guided model" in err) or status == 0
    status, _, err = say("sample", "hf:toy")
    assert status == 2 and "names no model of the hub: write hf:owner/name" in err


def test_a_data_set_of_the_same_name_stays_one(tmp_path: Path, server: Hub, say: tiny.Say) -> None:
    status, _, err = say("evaluate", NAME, "--source.cache", tmp_path)
    assert status == 2 and "--source.download to fetch a data set" in err
    (tmp_path / "hub" / "someone--toy" / "train").mkdir(parents=True)
    status, _, err = say("evaluate", NAME, "--source.cache", tmp_path, "--download")
    assert status == 2 and "give --source.download to fetch it into" in err and not server.asked


@pytest.mark.parametrize("name", ["weights", "settings", "both"])
def test_what_was_altered_is_refused(published: Hub, tmp_path: Path, say: tiny.Say, name: str) -> None:
    """Weights by their hash in model.json, which is altered too where somebody is thorough: by the hash of all."""
    weights = next(file for file in sorted(published.files) if file.endswith("model.safetensors"))
    described = weights.replace(".safetensors", ".json")
    about = json.loads(published.files[described])
    if name != "settings":
        content = bytearray(published.files[weights])
        content[-1] ^= 1
        published.files[weights] = bytes(content)
    if name == "both":
        about["weights_sha256"] = hub_models.hashlib.sha256(published.files[weights]).hexdigest()
    if name == "settings":
        about["preconditioning"]["sigma_data"] = 0.25
    published.files[described] = json.dumps(about).encode()
    status, _, err = say("sample", NAME, "--out", tmp_path / "s", "--download")
    last = err.splitlines()[-1]
    assert status == 2 and "altered" in last and "Traceback" not in err
    assert not (tmp_path / "s").exists()


def test_only_what_belongs_to_a_model_comes(published: Hub, say: tiny.Say, monkeypatch: pytest.MonkeyPatch) -> None:
    published.files |= {
        "huge.safetensors": b"",
        "optimizer/state.safetensors": b"",
        "make.py": b"",
        "config.json": b"{}",
    }
    sims.load(NAME, download=True)
    assert {name.rpartition("/")[2] for name in published.fetched()} == {"model.json", "model.safetensors"}
    monkeypatch.setattr(hub_models, "_LARGEST", 10)
    status, _, err = say("inspect", f"{NAME}@main", "--download")
    assert status == 2 and "and settings at most 10: it is not fetched" in err
    monkeypatch.setattr(hub_models, "_MOST", 0)
    monkeypatch.setattr(hub_models, "_LARGEST", 1 << 20)
    assert "files of a model, and at most 0" in say("inspect", f"{NAME}@main", "--download")[2]


def test_what_cannot_be_pushed(server: Hub, finished: Path, model: Path, tmp_path: Path, say: tiny.Say) -> None:
    licence = ["--licence", "mit"]
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.json").write_text('{"format": 2, "command": "improve"}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"format": 2, "command": "improve"}')
    (tmp_path / "broken" / "summary.json").write_text('{"format": 2,')
    for words, said in (
        ([finished, ID], "give --licence, such as"),
        ([finished, ID, "--licence", "a: b"], "licence 'a: b' is no name of one"),
        ([finished, ID, *licence, "--model", "improve"], "has no model 'improve': give --model one of base, "),
        ([finished, ID, *licence, "--model", "../other"], "has no model '../other'"),
        ([finished / "improved", ID, *licence], "is no run: give the directory of a finished run"),
        ([tmp_path / "nowhere", ID, *licence], "is no run"),
        ([tmp_path / "unfinished", ID, *licence], "holds no summary.json"),
        ([tmp_path / "broken", ID, *licence], "summary.json"),
        ([model.parent, ID, *licence], "holds no summary.json"),
        ([finished, ID, *licence, "--out", finished], "is in use"),
        ([finished, ID, *licence, "--out", tmp_path / "x", "--private"], "--private is for what is uploaded"),
    ):
        status, out, err = say("push", *words)
        assert status == 2 and not out and said in err and err.count("\n") == 1, err
    assert not server.asked and not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "name", ["toy", "a/b/c", "a/", "/b", "a b/c", "a/b@c", "../x", "a/b--c", "a/b.git", "a/" + 96 * "b"]
)
def test_names_that_the_hub_has_not(name: str) -> None:
    with pytest.raises(sims.UserError, match="is no name of a model on the hub: write owner/name"):
        checked_name(name)


def test_what_the_hub_refuses(server: Hub, finished: Path, say: tiny.Say, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(words: str, licence: str = "mit", *more: str) -> None:
        status, out, err = say("push", finished, ID, "--licence", licence, *more)
        assert status == 2 and not out and words in err.splitlines()[-1] and "Traceback" not in err, err

    for answers, words in (
        ({"": 401}, "does not know your token (401)"),
        ({"create": 403}, "may not write there (403)"),
        ({"create": 418}, "check the connection"),
        ({"preupload": 403}, "may not write there (403)"),
        ({"commit": 412}, "somebody else has changed it just now"),
    ):
        server.answers = answers
        fails(words)
    server.answers = {}
    assert server.exists and "model.json" not in server.files, "made, and still empty"
    fails('Invalid metadata in README.md. - "license" must be one of', "gpl-9")
    fails("exists and is public", "mit", "--private")
    with monkeypatch.context() as patch:
        patch.setattr(hub_upload, "TIMEOUT", 0.05)
        server.delay = 0.3
        fails("check the connection")
        server.delay = 0.0
        patch.setattr(hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        fails("check the connection")
    with monkeypatch.context() as patch:
        patch.delenv("HF_TOKEN")
        server.asked.clear()
        fails("there is no token of the hub")
        assert not server.asked
        patch.setitem(sys.modules, "huggingface_hub", None)
        fails("pip install 'sims-diffusion[hub]'")
    server.files = {"unet/config.json": b"{}", "unet/model.safetensors": b"precious"}
    server.asked.clear()
    fails("exists and holds something else (unet/config.json")
    assert not server.writes() and server.files["unet/model.safetensors"] == b"precious"


def test_names_of_the_hub() -> None:
    assert HubName.parse("hf:a/b@refs/pr/1") == HubName("a/b", "refs/pr/1")
    assert HubName.parse("a/b") == HubName("a/b") and HubName("a/b", COMMIT).pinned
    for text in ("hf:a", "a", "hf:a/b@", "hf:a/b@../x", "hf:a/b:test", "/a/b", "a/b/c"):
        assert HubName.parse(text) is None
    place = replace(HubName("a/b"), revision=COMMIT).place
    assert origin(place / "snapshots" / COMMIT / "model.json") == f"a/b@{COMMIT}"
    assert origin(Path("runs/digits/improved")) is None
