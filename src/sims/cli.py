"""The command line: every option is a field of a dataclass, which also validates it."""

from __future__ import annotations

import dataclasses
import errno
import io
import json
import os
import signal
import sys
import traceback
import typing
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from inspect import getdoc
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.conf import Positional
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

import sims
from sims import processes
from sims.commands.check_model import check_model
from sims.commands.evaluate import evaluate
from sims.commands.export import export
from sims.commands.flags import in_flags, speaking_of
from sims.commands.import_ import import_checkpoint
from sims.commands.inspect import inspect
from sims.commands.options import (
    CheckCommand,
    EvaluateCommand,
    ExportCommand,
    ImportCommand,
    InspectCommand,
    PushCommand,
    SampleCommand,
    SynthesizeCommand,
    TrainCommand,
    ViewCommand,
)
from sims.commands.push import push
from sims.commands.sample import sample_images, synthesize_store
from sims.commands.train import train
from sims.commands.view import view
from sims.config import load_recipe, nearest, override
from sims.data.check import check
from sims.data.pictures import SourceOptions, parse_size
from sims.errors import UserError
from sims.experiments.cost.memory import is_out_of_memory
from sims.experiments.cost.table import Estimate
from sims.experiments.improve.job import improve
from sims.experiments.loop.jobs import loop, pollution
from sims.experiments.loop.options import LoopOptions, PollutionOptions, defaults_for
from sims.experiments.options import ImproveOptions
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.shift_job import shift
from sims.files import FULL
from sims.screen import printable, say, show


@dataclass(frozen=True, kw_only=True)
class DataCommand(SourceOptions):
    """Look at a data set: what is there, and what is wrong with it (exit status 1 if anything is)."""

    action: Positional[typing.Literal["check"]]
    """check: count, sizes, channels, labels, duplicates, unreadable files, and what is not read."""
    path: Positional[str]
    """Folder, zip, parquet, npz, store, or a built-in name."""
    json: bool = False
    """Print JSON instead of text."""


def _experiment(work: Callable[[Any], object]) -> Callable[[Any], int]:
    """An experiment as a command: a run shows itself, and what it would cost is shown here."""

    def run(options: Any) -> int:
        result = work(options)
        if isinstance(result, Estimate) and processes.rank() == 0:
            show(in_flags(str(result), type(options)))
        return 0

    return run


def _data(options: DataCommand) -> int:
    report = check(options.path, options)
    lines = in_flags("\n".join(report.lines()), DataCommand)
    show(json.dumps(report.to_json(), indent=2) if options.json else lines)
    return 0 if report.ok else 1


@dataclass(frozen=True)
class Command:
    """A command: its options, what it does (the exit status), and what help says of it.

    recipe    what may set its options: a file of the user's, or a recipe that comes along too
    alone     one process does it; the others that a launcher started have nothing to do
    """

    options: type
    run: Callable[[Any], int]
    about: str
    recipe: Literal["none", "file", "named"] = "none"
    alone: bool = False


COMMANDS = {
    "improve": Command(
        ImproveOptions,
        _experiment(improve),
        "improve a model with its own samples, and measure by how much",
        recipe="named",
    ),
    "loop": Command(
        LoopOptions,
        _experiment(loop),
        "train generation after generation on models' samples, and stop the decay",
        recipe="file",
    ),
    "pollution": Command(
        PollutionOptions,
        _experiment(pollution),
        "train on real data polluted by an earlier model's samples",
        recipe="file",
    ),
    "shift": Command(
        ShiftOptions, _experiment(shift), "move the proportions that a model generates to a target", recipe="file"
    ),
    "train": Command(TrainCommand, train, "train a diffusion model", recipe="named"),
    "synthesize": Command(SynthesizeCommand, synthesize_store, "draw samples into a store"),
    "sample": Command(SampleCommand, sample_images, "sample images"),
    "evaluate": Command(EvaluateCommand, evaluate, "score samples or a model against real data"),
    "data": Command(DataCommand, _data, "look at a data set (sims data check PATH)", alone=True),
    "check": Command(CheckCommand, check_model, "tell whether a network is read rightly, on real pictures", alone=True),
    "view": Command(ViewCommand, view, "look at runs and models on a local page", alone=True),
    "inspect": Command(InspectCommand, inspect, "say what a model, store, run or checkpoint holds", alone=True),
    "import": Command(
        ImportCommand, import_checkpoint, "turn a checkpoint of EDM, EDM2 or diffusers into a model", alone=True
    ),
    "export": Command(ExportCommand, export, "write a model back to where it came from", alone=True),
    "push": Command(PushCommand, push, "publish a model of a run on the Hugging Face hub, with its card", alone=True),
}


def _registry() -> ConstructorRegistry:
    """Lists are written with commas: --methods base,sims; so are the height and width of a size."""
    registry = ConstructorRegistry()

    @registry.primitive_rule
    def comma_lists(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        arguments = typing.get_args(info.type)
        if typing.get_origin(info.type) is not tuple or len(arguments) != 2 or arguments[1] is not Ellipsis:
            return None
        kind = arguments[0]
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar=f"{getattr(kind, '__name__', 'value').upper()},...",
            instance_from_str=lambda args: tuple(kind(part.strip()) for part in args[0].split(",") if part.strip()),
            is_instance=lambda value: isinstance(value, tuple),
            str_from_instance=lambda value: [",".join(map(str, value))],
        )

    @registry.primitive_rule
    def sizes(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type != int | tuple[int, int] | None:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="SIDE|HEIGHT,WIDTH",
            instance_from_str=lambda args: parse_size(args[0]),
            is_instance=lambda value: value is None or isinstance(value, int | tuple),
            str_from_instance=lambda value: [",".join(map(str, value)) if isinstance(value, tuple) else str(value)],
        )

    @registry.primitive_rule
    def paths(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec | None:
        if info.type is not Path:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="PATH",
            instance_from_str=lambda args: _path(args[0]),
            is_instance=lambda value: isinstance(value, Path),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def _path(text: str) -> Path:
    """A path as typed: ~ is the home folder also where no shell has seen to it."""
    if not text.strip():
        raise ValueError("the path is empty")
    return Path(text).expanduser()


def _taken(flag: str, arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """The value of a flag (``FLAG VALUE`` or ``FLAG=VALUE``; the last counts), and the arguments without it."""
    rest, value = [], None
    words = iter(arguments)
    for word in words:
        if word == flag:
            value = next(words, "")
        elif word.startswith(f"{flag}="):
            value = word.removeprefix(f"{flag}=")
        else:
            rest.append(word)
    return value, rest


def parse(name: str, arguments: Sequence[str]) -> Any:
    """The options of a command: defaults, then the recipe, then flags."""
    kind, takes = COMMANDS[name].options, COMMANDS[name].recipe
    recipe, rest = _taken("--recipe", arguments)
    if recipe == "":
        raise UserError("--recipe needs a value: the name of a recipe or the path of a TOML file")
    about, default = getdoc(kind) or "", {}
    about += "\n\n" + kind.more_help() if hasattr(kind, "more_help") else ""
    if takes != "none":
        about += "\n\n--recipe NAME|FILE.toml sets any option; flags override it."
        default = {"default": _default(name, recipe, rest)}
    elif recipe is not None:
        *others, last = (other for other, command in COMMANDS.items() if command.recipe != "none")
        raise UserError(f"sims {name} takes no recipe: {', '.join(others)} and {last} do")
    with speaking_of(kind):
        return tyro.cli(kind, args=rest, prog=f"sims {name}", description=about, registry=_registry(), **default)


def _default(name: str, recipe: str | None, flags: list[str]) -> Any:
    """The options without flags: the command's own, or the recipe's."""
    kind, named = COMMANDS[name].options, COMMANDS[name].recipe == "named"
    path, model = (_taken(flag, flags)[0] for flag in ("--data.path", "--model"))
    if recipe is None and named and path is None and model is None:
        recipe = "digits"
    if recipe is not None and not named and not recipe.endswith(".toml"):
        raise UserError(f"recipe {recipe!r} is for improve and train: give sims {name} a file of yours (.toml)")
    values = {} if recipe is None else load_recipe(recipe)
    if name == "train":  # the part of the main job's recipes that concerns it
        foreign = {f.name for f in dataclasses.fields(ImproveOptions)} - {f.name for f in dataclasses.fields(kind)}
        values = {key: value for key, value in values.items() if key not in foreign}
    return override(defaults_for(path, values) if name == "loop" else kind(), values)


def _help() -> str:
    lines = ["usage: sims COMMAND [OPTIONS]", "", "Make a diffusion model better with nothing but its own samples.", ""]
    lines += [f"  {name:<12}{command.about}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "sims COMMAND --help shows the options of a command."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 (a check failed), 2 (bad input), 130 or 141.

    130 tells of an interruption, 141 that who reads the output (such as ``head``) has closed it.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed before the command began
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (for as long as the process lives)
        elif isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show is escaped, and ends no command
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return _run(sys.argv[1:] if arguments is None else list(arguments))
        finally:
            sys.stdout.flush()  # here, where a closed pipe is not yet a message of the interpreter
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be flushed goes nowhere
        return 128 + signal.SIGPIPE


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        show(_help())
        return 0
    name, *rest = arguments
    if name == "--version":
        show(sims.__version__)
        return 0
    if name in COMMANDS and COMMANDS[name].alone and processes.rank() > 0:
        return 0
    failed = True
    try:
        status = _command(name, rest)
        failed = status == 2 or status > 128
        return status
    except KeyboardInterrupt:  # in the middle of saying why, of a process that is to end anyway
        return 130
    finally:
        with suppress(KeyboardInterrupt):  # of a process that ends already
            processes.leave(failed=failed)


def _name_code(code: str) -> None:
    """What ``--code`` names may make networks in this process."""
    from sims.interop.wrapping import from_code  # here: most commands need neither it nor torch

    from_code(code)


def _command(name: str, rest: list[str]) -> int:
    try:
        if name not in COMMANDS:
            raise UserError(f"unknown command {name!r}{nearest(name, COMMANDS)}")
        command = COMMANDS[name]
        if not command.alone:
            _join()
        options = _parsed(name, rest)
        with speaking_of(command.options):
            if code := getattr(options, "code", None):
                _name_code(code)
            return command.run(options)
    except UserError as error:
        sentence = str(error).replace("\n", "\\n")  # of a foreign name: a sentence is one line
        return _say(f"sims: {sentence}", 2)
    except OSError as error:
        if error.errno == errno.ENOENT and error.filename and not Path(error.filename).exists():
            return _say(f"sims: {error.filename} cannot be made or is gone ({error.strerror}): give another path", 2)
        if error.errno == errno.ENAMETOOLONG:
            return _say(f"sims: {error.filename} is too long a name ({error.strerror}): give a shorter path", 2)
        if error.errno not in (*FULL, *_IN_THE_WAY, errno.EACCES, errno.EROFS):
            raise
        return _say(_refused(error), 2)
    except KeyboardInterrupt:
        return _say("\nsims: interrupted; run the same command again to continue", 130)
    except Exception as error:
        if is_out_of_memory(error):
            return _say("sims: memory did not suffice; what was finished is kept: run the same command again with a "
                        "lower --batch-size, or a higher --base.train.accumulate in training", 2)  # fmt: skip
        if not processes.joined():
            raise
        return _failed(error)


# Such as a folder where a file is to be.
_IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENOTEMPTY, errno.EEXIST)


def _refused(error: OSError) -> str:
    """What to say where a file may not be read, or there is no right or no room to write it."""
    name = error.filename or "a file"
    for path in (name, os.path.dirname(name)):
        if error.errno == errno.EACCES and os.path.exists(path) and not os.access(path, os.R_OK):
            return f"sims: {path} cannot be read ({error.strerror}): give the right to read it"
    remedy = "make room" if error.errno in FULL else "give the right to write"
    remedy = "move what is in the way" if error.errno in _IN_THE_WAY else remedy
    return (f"sims: {name} cannot be written ({error.strerror}); nothing is lost: "
            f"{remedy}, and run the same command again")  # fmt: skip


def _join() -> None:
    """Meet the other processes, where a launcher started several."""
    if processes.started() > 1:
        processes.join()
    elif warning := processes.lonely():
        say(f"sims: {warning}")


def _parsed(name: str, rest: list[str]) -> Any:
    """The options; what is wrong with them, and help, come from the main process alone."""
    if processes.rank() == 0:
        return parse(name, rest)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return parse(name, rest)


def _failed(error: Exception) -> int:
    """An error that is no user's, in one of several processes."""
    if processes.is_over():
        return 2
    if processes.is_loss(error):
        return _say("sims: another process has ended or cannot be reached; run the same command again to continue", 2)
    traceback.print_exc()
    return _say(f"sims: {type(error).__name__} in one of {processes.started()} processes, see its traceback", 2)


def _say(sentence: str, status: int) -> int:
    """Print a sentence, once for all processes; the exit status."""
    if processes.is_over():
        return 2
    processes.say(printable(sentence))
    return status


if __name__ == "__main__":
    sys.exit(main())
