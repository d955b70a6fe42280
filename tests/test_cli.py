"""The command line: what words become which options, and what it says when they are wrong."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import re
import subprocess
import sys
import textwrap
import typing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import sims
from sims import cli
from sims.cli import COMMANDS, Command, main, parse
from sims.config import to_dict, to_toml
from sims.experiments.options import ImproveOptions
from sims.sampling import SamplerOptions


def status(*arguments: str) -> int:
    """The exit status, whether it is returned or raised."""
    try:
        return main(arguments)
    except SystemExit as error:
        return int(error.code or 0)


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    file = tmp_path / "mine.toml"
    file.write_text('run = "runs/mine"\nseed = 3\nrounds = 2\n[sampler]\nsteps = 7\nrho = 5\n')
    return str(file)


@pytest.mark.parametrize("form", ["--recipe {}", "--recipe={}"])
def test_flags_override_the_recipe_which_overrides_the_defaults(recipe: str, form: str) -> None:
    options = parse("improve", [*form.format(recipe).split(), "--seed", "5", "--sampler.steps", "9"])
    expected = dataclasses.replace(
        ImproveOptions(), run=Path("runs/mine"), seed=5, rounds=2, sampler=SamplerOptions(steps=9, rho=5.0)
    )
    assert options == expected


def test_train_takes_the_part_of_a_recipe_that_concerns_it(recipe: str) -> None:
    options = parse("train", ["--recipe", recipe])
    assert (options.seed, options.sampler.steps, options.out) == (3, 7, Path("runs/train"))


@pytest.mark.parametrize(
    "words",
    [
        "improve --seed 5 --methods base,sims",
        "loop --generations 4 --data.path mixture",
        "pollution --repeats 2 --data.path folder",
        "shift --target 0=0.3,*=0.7 --solver.rounds 5 --auxiliary.train.lr 1e-4",
    ],
)
def test_the_configuration_that_a_run_reports_is_a_recipe(words: str, tmp_path: Path) -> None:
    name, *rest = words.split()
    options = parse(name, rest)
    (tmp_path / "again.toml").write_text(to_toml(to_dict(options)))
    assert parse(name, ["--recipe", str(tmp_path / "again.toml")]) == options


def test_a_flag_decides_which_loop_a_recipe_is_for(tmp_path: Path) -> None:
    (tmp_path / "loop.toml").write_text('[data]\npath = "gaussian"\n')
    words = ["--recipe", str(tmp_path / "loop.toml"), "--data.path"]
    assert parse("loop", [*words, "folder"]) == parse("loop", ["--data.path", "folder"])
    assert parse("loop", words[:2]) == parse("loop", ["--data.path", "gaussian"])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], ["digits"]),
        (["--data.path", "folder"], []),
        (["--data.path=folder"], []),
        (["--model", "runs/m"], []),
        (["--recipe", "digits", "--data.path", "folder"], ["digits"]),
    ],
)
def test_the_default_recipe_is_digits_unless_other_data_or_a_model_is_given(
    words: list[str], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(cli, "load_recipe", lambda name: loaded.append(name) or {})
    parse("improve", words)
    assert loaded == expected


def test_lists_are_written_with_commas() -> None:
    words = ["--methods", "base, sims", "--auxiliary.budgets", "100,200", "--base.snapshots", "0.1,0.5"]
    options = parse("improve", words)
    assert options.methods == ("base", "sims")
    assert options.auxiliary.budgets == (100, 200)
    assert options.base.snapshots == (0.1, 0.5)


def test_no_value_means_none_and_dashes_are_underscores() -> None:
    options = parse("synthesize", ["m", "--first-seed", "4", "--label", "None", "--batch-size", "7"])
    assert (options.model, options.first_seed, options.label, options.batch_size) == (Path("m"), 4, None, 7)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["imporve"], ["unknown command 'imporve'", "did you mean 'improve'?"]),
        (["improve", "--sede", "3"], ["--sede", "--seed"]),
        (["improve", "--seed", "three"], ["--seed", "three"]),
        (["improve", "--search.rungs", "1,x"], ["--search.rungs"]),
        (["improve", "--methods", "base,smis"], ["smis", "sims"]),
        (["improve", "--rounds", "0"], ["rounds is 0"]),
        (["improve", "--recipe"], ["--recipe needs a value"]),
        (["improve", "--recipe", "digit"], ["no recipe 'digit'", "digits"]),
        (["sample", "m", "--recipe", "digits"], ["sample takes no recipe"]),
        (["sample", "m", "--solver", "ddim"], ["ddim"]),
        (["sample"], ["PATH"]),
        (["synthesize", "m", "--count", "1.5"], ["1.5"]),
        (["data", "chekc", "digits"], ["chekc"]),
    ],
)
def test_mistakes_exit_with_2_and_say_which(words: list[str], said: list[str], capsys: pytest.CaptureFixture) -> None:
    assert status(*words) == 2
    out, err = capsys.readouterr()
    assert all(word in err for word in said), err
    assert out == "" and "Traceback" not in err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("batchsize = 3", "did you mean 'batch_size'?"),
        ("[smapler]\nsteps = 3", "did you mean 'sampler'?"),
        ("[sampler]\nstpes = 3", "did you mean 'steps'?"),
        ("sampler = 3", "[sampler]"),
        ("seed = 'x'", "'seed'"),
    ],
)
@pytest.mark.parametrize("command", ["improve", "train"])
def test_a_misspelt_recipe_key_names_the_nearest(
    command: str, line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    if command == "train" and line.startswith("batchsize"):
        pytest.skip("train has no such option")
    (tmp_path / "bad.toml").write_text(line)
    assert status(command, "--recipe", str(tmp_path / "bad.toml")) == 2
    assert said in capsys.readouterr().err


def field_docs(kind: type) -> dict[str, str]:
    """The string under each field of a dataclass and of those that it extends."""
    docs: dict[str, str] = {}
    for base in kind.__bases__:
        docs |= field_docs(base) if dataclasses.is_dataclass(base) else {}
    body = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    for node, after in zip(body.body, body.body[1:]):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            assert isinstance(node.target, ast.Name)
            docs[node.target.id] = str(after.value.value)
    return docs


def expected_docs(kind: Any) -> list[str]:
    """What the help must say of every field, nested ones included."""
    hints, docs, expected = typing.get_type_hints(kind), field_docs(kind), []
    for entry in dataclasses.fields(kind):
        inner = hints[entry.name]
        if dataclasses.is_dataclass(inner):
            expected += [docs[entry.name]] if entry.name in docs else []
            expected += expected_docs(inner)
        else:
            assert entry.name in docs, f"{kind.__name__}.{entry.name} has no description"
            expected.append(docs[entry.name])
    return expected


def squeezed(text: str) -> str:
    """Text without the frames, breaks and blanks of the terminal."""
    return re.sub(r"[\s│|]+", "", text)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_every_command_describes_every_option(name: str, capsys: pytest.CaptureFixture) -> None:
    assert status(name, "--help") == 0
    out = capsys.readouterr().out
    kind = COMMANDS[name].options
    said = squeezed(out)
    assert [doc for doc in expected_docs(kind) if squeezed(doc) not in said] == []
    about = inspect.getdoc(kind)
    assert about is not None and squeezed(about) in said
    for paragraph in about.split("\n\n"):
        assert f"\n{paragraph[:30]}" in out, "the description is indented"


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture) -> None:
    assert main([]) == 0
    bare = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == bare
    for name, command in COMMANDS.items():
        assert f"  {name}" in bare and command.about in bare


def test_version(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == version("sims-diffusion") == sims.__version__


def test_arguments_come_from_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["sims", "nonsense"])
    assert main() == 2
    assert "nonsense" in capsys.readouterr().err


def raising(error: BaseException) -> Command:
    def run(options: ImproveOptions) -> int:
        raise error

    return dataclasses.replace(COMMANDS["improve"], run=run)


def test_an_interruption_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(COMMANDS, "improve", raising(KeyboardInterrupt()))
    assert main(["improve"]) == 130
    assert "run the same command again" in capsys.readouterr().err


def test_a_full_disk_is_a_sentence_and_a_bug_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(COMMANDS, "improve", raising(OSError(28, "No space left on device", "runs/x")))
    assert main(["improve"]) == 2
    assert "runs/x cannot be written" in capsys.readouterr().err
    monkeypatch.setitem(COMMANDS, "improve", raising(PermissionError(13, "Permission denied", "runs/x")))
    assert main(["improve"]) == 2
    assert "give the right to write" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["", "/header.json"])
def test_no_right_to_read_is_not_called_writing(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    name = f"{tmp_path}{file}"
    monkeypatch.setitem(COMMANDS, "improve", raising(PermissionError(13, "Permission denied", name)))
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != str(tmp_path))
    assert main(["improve"]) == 2
    assert f"{tmp_path} cannot be read (Permission denied): give the right to read it" in capsys.readouterr().err
    monkeypatch.setitem(COMMANDS, "improve", raising(OSError(5, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        main(["improve"])


@pytest.mark.parametrize("words", [["--help"], ["improve", "--help"]])
def test_a_reader_that_has_seen_enough_ends_the_command_quietly(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "sims", *words]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
