"""The library names options, the command line writes them as flags, and no message advises an option there is not."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import sims
from sims.cli import COMMANDS, main
from sims.commands.flags import flags, in_flags

ROOT = Path(sims.__file__).parent
ALL = {name: flags(command.options) for name, command in COMMANDS.items()}
OTHERS = ("--nproc_per_node", "--num_processes", "--num-processes")  # of torchrun and accelerate


@pytest.mark.parametrize(("name", "option"), [(name, option) for name in ALL for option in ALL[name]])
def test_every_option_of_every_command_becomes_its_flag(name: str, option: str) -> None:
    kind, flag = COMMANDS[name].options, ALL[name][option]
    assert in_flags(f"option '{option}': 3 is too low", kind) == f"{flag}: 3 is too low"
    free = in_flags(f"{option} is 3, ({option}), {option}.", kind)
    said = flag if "." in option else option  # a word alone may be a word of the sentence
    assert free == f"{said} is 3, ({said}), {said}."


def test_a_flag_is_what_the_parser_takes() -> None:
    assert ALL["improve"]["data.source.size"] == "--data.source.size"
    assert ALL["improve"]["guidance.sigma_low"] == "--guidance.sigma-low"
    assert ALL["sample"]["model"] == "MODEL"


PATHS = "runs/x/data.path, 'data.path', my-data.path, data.path.png, data.pathology"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("improve", "give option 'source.size'", "give --data.source.size"),
        ("evaluate", "give option 'source.size'", "give --source.size"),
        ("data", "give option 'source.size'", "give --size"),
        ("improve", "with option 'fit_memory', which", "with --fit-memory, which"),
        ("improve", "option 'base.train.betas[1]'", "option 'base.train.betas[1]'"),
        ("improve", "option 'search.w[1]': nan", "--search.w[1]: nan"),
        ("improve", "unknown option 'base.w'; did you mean", "unknown option 'base.w'; did you mean"),
        ("evaluate", "give option 'download'", "give --download"),
        ("evaluate", "give option 'evaluation.download'", "give --download"),
        ("improve", "give option 'evaluation.download'", "give --evaluation.download"),
        ("improve", "give option 'download'", "give --download"),  # of the model
        ("loop", "give option 'download'", "give option 'download'"),  # of two
        ("improve", PATHS, PATHS),
    ],
)
def test_what_is_meant(name: str, text: str, expected: str) -> None:
    assert in_flags(text, COMMANDS[name].options) == expected


@given(st.text(alphabet=st.sampled_from("abdmeolti _,:()'-"), max_size=60), st.sampled_from(sorted(COMMANDS)))
def test_ordinary_words_stay(text: str, name: str) -> None:
    for sentence in (text, f"model {text} data", f"the model and its data, {text}"):
        if "option '" not in sentence:
            assert in_flags(sentence, COMMANDS[name].options) == sentence


def test_errors_speak_of_flags_and_recipes_of_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ["improve", "--run", str(tmp_path / "run")]
    assert main([*run, "--search.w", "nan"]) == 2
    assert "--search.w is nan" in capsys.readouterr().err
    (tmp_path / "mine.toml").write_text('[search]\nw = "many"\n')
    assert main([*run, "--recipe", str(tmp_path / "mine.toml")]) == 2
    assert "option 'search.w'" in capsys.readouterr().err


def messages() -> Iterator[tuple[str, int, str]]:
    """File, line and text of every string of the library that is no docstring, without what is put into it."""
    for path in sorted(ROOT.rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if name.startswith(("cli.py", "commands/", "report/")):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                texts = [str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values]
                yield name, node.lineno, "".join(texts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts | docs:
                yield name, node.lineno, node.value


def test_the_library_writes_no_flags() -> None:
    found = [
        f"{name}:{line} {text!r}"
        for name, line, text in messages()
        if re.search(r"(?<![\w-])--[a-z]", text)
        and not text.startswith("sims ")  # a command to type
        and not any(other in text for other in OTHERS)
    ]
    assert not found, found


def _named(text: str) -> Iterator[str]:
    """The options that a message names."""
    tables = {option.partition(".")[0] for names in ALL.values() for option in names if "." in option}
    yield from re.findall(r"(?<!unknown )\boption '([a-z_][\w.]*)'", text)
    for word in re.findall(r"(?<![\w./'-])[a-z_]\w*(?:\.[a-z_]\w*)+(?![\w/(]|\.\w)", text):
        if word.partition(".")[0] in tables:
            yield word


def test_every_option_that_is_advised_exists() -> None:
    found = []
    for name, line, text in messages():
        for option in _named(text) if " " in text else ():
            there = [names for names in ALL.values() if option in names]
            ends = [names for names in ALL.values() if any(other.endswith(f".{option}") for other in names)]
            if not there and not ends:
                found.append(f"{name}:{line} {option}")
    assert not found, found


def test_options_have_one_meaning_where_only_their_end_is_named() -> None:
    """An end that two options of a command share would stay untranslated there.

    What scores and extractors advise is the options of `sims evaluate`, where an end is one option; models of others
    are for commands that take one.
    """
    found = []
    for name, line, text in messages():
        if name.startswith(("metrics/", "scoring/")):
            continue
        for option in re.findall(r"\boption '([a-z_][\w.]*)'", text):
            for command, names in ALL.items():
                if name.startswith("interop/") and command in ("loop", "pollution"):
                    continue
                ends = [other for other in names if other.endswith(f".{option}")]
                if option not in names and len(ends) > 1:
                    found.append(f"{name}:{line} {option} in {command}: {ends}")
    assert not found, found
