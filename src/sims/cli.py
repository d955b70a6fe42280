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
from typing import Any

import tyro
from tyro.conf import Positional
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

import sims
from sims import processes
from sims.commands.evaluate import evaluate
from sims.commands.export import export
from sims.commands.import_ import import_checkpoint
from sims.commands.inspect import inspect
from sims.commands.options import (
    EvaluateCommand,
    ExportCommand,
    ImportCommand,
    InspectCommand,
    SampleCommand,
    SynthesizeCommand,
    TrainCommand,
)
from sims.commands.sample import sample_images
from sims.commands.synthesize import synthesize_store
from sims.commands.train import train
from sims.config import load_recipe, nearest, override
from sims.data.check import check
from sims.data.pictures import SourceOptions
from sims.errors import UserError
from sims.experiments.cost.memory import is_out_of_memory
from sims.experiments.cost.table import Estimate
from sims.experiments.improve.job import improve
from sims.experiments.loop.jobs import loop, pollution
from sims.experiments.loop.options import LoopOptions, PollutionOptions, defaults_for
from sims.experiments.options import ImproveOptions
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.shift_job import shift


@dataclass(frozen=True)
class DataCommand:
    """Look at a data set: what is there, and what is wrong with it (exit status 1 if anything is)."""

    action: Positional[typing.Literal["check"]]
    """check: count, sizes, channels, labels, duplicates, unreadable files."""
    path: Positional[str]
    """Folder, zip, parquet, npz, store, or a built-in name."""
    grayscale: bool = False
    """Convert to grayscale."""
    size: int | None = None
    """Downsample to this many pixels a side."""
    json: bool = False
    """Print JSON instead of text."""


def _improve(options: ImproveOptions) -> int:
    return _shown(improve(options))


def _loop(options: LoopOptions) -> int:
    loop(options)
    return 0


def _pollution(options: PollutionOptions) -> int:
    pollution(options)
    return 0


def _shift(options: ShiftOptions) -> int:
    return _shown(shift(options))


def _shown(result: object) -> int:
    """A run shows itself; what it would cost is shown here."""
    if isinstance(result, Estimate) and processes.rank() == 0:
        print(result)
    return 0


def _data(options: DataCommand) -> int:
    report = check(options.path, SourceOptions(options.grayscale, options.size))
    print(json.dumps(report.to_json(), indent=2) if options.json else "\n".join(report.lines()))
    return 0 if report.ok else 1


COMMANDS: dict[str, tuple[type, Callable[[Any], int], str]] = {
    "improve": (ImproveOptions, _improve, "improve a model with its own samples, and measure by how much"),
    "loop": (LoopOptions, _loop, "train generation after generation on models' samples, and stop the decay"),
    "pollution": (PollutionOptions, _pollution, "train on real data polluted by an earlier model's samples"),
    "shift": (ShiftOptions, _shift, "move the proportions that a model generates to a target"),
    "train": (TrainCommand, train, "train a diffusion model"),
    "synthesize": (SynthesizeCommand, synthesize_store, "draw samples into a store"),
    "sample": (SampleCommand, sample_images, "sample images"),
    "evaluate": (EvaluateCommand, evaluate, "score samples or a model against real data"),
    "data": (DataCommand, _data, "look at a data set (sims data check PATH)"),
    "inspect": (InspectCommand, inspect, "say what a model, store, run or checkpoint holds"),
    "import": (ImportCommand, import_checkpoint, "turn a checkpoint of EDM, EDM2 or diffusers into a model"),
    "export": (ExportCommand, export, "write a model back to where it came from"),
}

#: Commands whose options can be in a file.
RECIPES = ("improve", "train", "loop", "pollution", "shift")

#: What one process does; the others that a launcher started have nothing to do.
ALONE = ("data", "inspect", "import", "export")


def _registry() -> ConstructorRegistry:
    """Lists are written with commas: --methods base,sims."""
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

    return registry


def _recipe_of(arguments: list[str]) -> tuple[str | None, list[str]]:
    """Take --recipe NAME (or --recipe=NAME) out of the arguments."""
    rest, recipe, index = [], None, 0
    while index < len(arguments):
        word = arguments[index]
        if word == "--recipe":
            if index + 1 == len(arguments):
                raise UserError("--recipe needs a value: the name of a recipe or the path of a TOML file")
            recipe, index = arguments[index + 1], index + 1
        elif word.startswith("--recipe="):
            recipe = word.removeprefix("--recipe=")
        else:
            rest.append(word)
        index += 1
    return recipe, rest


def parse(name: str, arguments: Sequence[str]) -> Any:
    """The options of a command: defaults, then the recipe, then flags."""
    kind, _, _ = COMMANDS[name]
    recipe, rest = _recipe_of(list(arguments))
    settings: dict[str, Any] = {}
    takes_recipe = name in RECIPES
    if recipe is not None and not takes_recipe:
        raise UserError(f"sims {name} takes no recipe: {', '.join(RECIPES[:-1])} and {RECIPES[-1]} do")
    if takes_recipe:
        others = any(word.split("=")[0] in ("--data.path", "--model") for word in rest)
        main_job = name in ("improve", "train")
        if recipe is None and not others and main_job:
            recipe = "digits"
        if recipe is not None and not main_job and not recipe.endswith(".toml"):
            raise UserError(f"recipe {recipe!r} is for improve and train: give sims {name} a file of yours (.toml)")
        values = {} if recipe is None else load_recipe(recipe)
        if name == "train":  # the part of the main job's recipes that concerns it
            foreign = {f.name for f in dataclasses.fields(ImproveOptions)} - {f.name for f in dataclasses.fields(kind)}
            values = {key: value for key, value in values.items() if key not in foreign}
        settings["default"] = override(defaults_for(rest, values) if name == "loop" else kind(), values)
    about = (getdoc(kind) or "") + (
        "\n\n--recipe NAME|FILE.toml sets any option; flags override it." if takes_recipe else ""
    )
    return tyro.cli(kind, args=rest, prog=f"sims {name}", description=about, registry=_registry(), **settings)


def _help() -> str:
    lines = ["usage: sims COMMAND [OPTIONS]", "", "Make a diffusion model better with nothing but its own samples.", ""]
    lines += [f"  {name:<12}{about}" for name, (_, _, about) in COMMANDS.items()]
    return "\n".join([*lines, "", "sims COMMAND --help shows the options of a command."])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 0, 1 (a check failed), 2 (bad input), 130 or 141.

    130 tells of an interruption, 141 that who reads the output (such as ``head``) has closed it.
    """
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
        print(_help())
        return 0
    name, *rest = arguments
    if name == "--version":
        print(sims.__version__)
        return 0
    if name in ALONE and processes.rank() > 0:
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


def _command(name: str, rest: list[str]) -> int:
    try:
        if name not in COMMANDS:
            raise UserError(f"unknown command {name!r}{nearest(name, COMMANDS)}")
        if name not in ALONE:
            _join()
        return COMMANDS[name][1](_parsed(name, rest))
    except UserError as error:
        return _say(f"sims: {error}", 2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise
        remedy = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "give the right to write"
        return _say(f"sims: {error.filename or 'a file'} cannot be written ({error.strerror}); nothing is lost: "
                    f"{remedy}, and run the same command again", 2)  # fmt: skip
    except KeyboardInterrupt:
        return _say("\nsims: interrupted; run the same command again to continue", 130)
    except Exception as error:
        if is_out_of_memory(error):
            return _say("sims: memory did not suffice; what was finished is kept: run the same command again with a "
                        "lower --batch-size, or a higher --base.train.accumulate in training", 2)  # fmt: skip
        if not processes.joined():
            raise
        return _failed(error)


def _join() -> None:
    """Meet the other processes, where a launcher started several."""
    if processes.started() > 1:
        processes.join()
    elif warning := processes.lonely():
        print(f"sims: {warning}", file=sys.stderr)


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
    processes.say(sentence)
    return status


if __name__ == "__main__":
    sys.exit(main())
