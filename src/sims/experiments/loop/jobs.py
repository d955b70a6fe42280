"""The experiments of self-consuming loops, as the runner carries them out."""

from __future__ import annotations

from sims.experiments.loop.generations import run_images
from sims.experiments.loop.options import LoopOptions, PollutionOptions
from sims.experiments.loop.point_loop import run_points
from sims.experiments.loop.pollution import run_pollution
from sims.experiments.loop.repeats import UNBOUND
from sims.experiments.runner import Experiment, carry_out
from sims.results.loop import LoopResult, PollutionResult
from sims.runs.directory import Run


def _loop(run: Run, options: LoopOptions) -> LoopResult:
    return (run_points if options.is_toy else run_images)(run, options)


def _whole(options: LoopOptions | PollutionOptions, result: LoopResult | PollutionResult) -> bool:
    return result.repeats == options.repeats


LOOP = Experiment("loop", LoopResult, _loop, UNBOUND, _whole)
POLLUTION = Experiment("pollution", PollutionResult, run_pollution, UNBOUND, _whole)


def loop(options: LoopOptions, *, quiet: bool = False) -> LoopResult:
    """Run or continue a loop of generations in ``options.run``. Errors: as ``carry_out``."""
    return carry_out(LOOP, options, quiet=quiet)


def pollution(options: PollutionOptions, *, quiet: bool = False) -> PollutionResult:
    """Run or continue the pollution experiment in ``options.run``. Errors: as ``carry_out``."""
    return carry_out(POLLUTION, options, quiet=quiet)
