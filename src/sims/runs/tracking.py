"""Trackers of others, through accelerate: what a run does, as it does it. Off unless asked for.

A run never depends on them: what was logged is remembered beside it, so that a run that is continued logs nothing
twice, and a tracker that fails is left out with one warning.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sims.config import JSON, nearest, read_as
from sims.errors import UserError
from sims.files import digest, write_json
from sims.runs.progress import Advance
from sims.training.trainer import read_trained

TRACKERS = {  # name, which is that of the package too -> how to get it
    "tensorboard": "pip install 'sims-diffusion[track]'",
    "wandb": "pip install wandb",
    "trackio": "pip install trackio",
}
NEVER = -math.inf  # the last x of a line that was not logged
Points = Sequence[tuple[float, float]]  # x, value
Losses = Sequence[tuple[int, float]]  # images seen, loss


def check_trackers(names: Iterable[str]) -> None:
    """UserError for a tracker that there is not, or whose package is not installed.

    >>> check_trackers([])
    """
    for name in names:
        if name not in TRACKERS:
            raise UserError(f"option 'track': unknown tracker {name!r}{nearest(name, TRACKERS)}")
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # a mere folder of that name is no package
            raise UserError(f"option 'track': {name} needs the package {name}, which is missing: {TRACKERS[name]}")


class Tracking:
    """The trackers of one run: ``track/`` in its directory has TensorBoard's files, and what was logged already.

    ``names`` have been checked. Lines are curves of a value over x; where x is not whole, which a tracker's steps must
    be, 1000 x is taken.
    """

    def __init__(self, names: Iterable[str], run: Path, log: Callable[[str], None]) -> None:
        self.run, self.folder, self.warn = run, run / "track", log
        self.file = self.folder / "logged.json"
        self.logged: dict[str, dict[str, float]] = {}  # tracker -> line -> the last x
        self.trackers: dict[str, Any] = {}
        for name in dict.fromkeys(names):
            self._safely(name, self._start)

    def _start(self, name: str) -> None:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS  # here: most runs track nothing

        self.folder.mkdir(exist_ok=True)
        if not self.logged and self.file.is_file():
            self.logged = read_as(self.file, dict[str, dict[str, float]])
        tracker = LOGGER_TYPE_TO_CLASS[name](**self._how(name))
        if hasattr(tracker, "start"):  # later versions of accelerate
            tracker.start()
        self.trackers[name] = tracker

    def _how(self, name: str) -> dict[str, Any]:
        """What a tracker is made with; a run that is continued is the same run there."""
        if name == "tensorboard":
            return {"run_name": name, "logging_dir": str(self.folder)}
        place = self.run.resolve()
        project, unique = place.parent.name or "runs", digest(str(place))[:16]
        if name == "trackio":
            return {"run_name": project, "name": f"{place.name}-{unique}", "resume": "allow"}
        how = {"run_name": project, "name": place.name, "id": unique, "resume": "allow"}
        return how | {"dir": str(self.folder), "mode": _mode_of_wandb()}

    def _safely(self, name: str, work: Callable[..., object], *given: Any) -> None:
        """``work(name, *given)``; whatever goes wrong in it ends the tracker, and not the run."""
        try:
            work(name, *given)
        except Exception as error:
            self.trackers.pop(name, None)
            reason = (str(error).splitlines() or [""])[0][:200]
            self.warn(f"WARNING: {name} is left out from here on ({type(error).__name__}: {reason})")

    def configuration(self, config: Mapping[str, JSON]) -> None:
        """The options of the run, once."""
        for name in list(self.trackers):
            if self._last(name, "configuration") == NEVER:
                self._safely(name, self._configuration, dict(_flat(config)))
                self._remember(name, "configuration", 0.0)

    def _configuration(self, name: str, values: dict[str, bool | int | float | str]) -> None:
        if name == "tensorboard":  # its own table would be one more run there
            lines = "\n".join(f"    {key} = {value}" for key, value in values.items())  # as code, in Markdown
            self.trackers[name].log({"configuration": lines}, step=0)
        else:
            self.trackers[name].store_init_configuration(values)

    def line(self, title: str, points: Points) -> None:
        """What a line has gained since it was logged last; x rises."""
        for name in list(self.trackers):
            new = [point for point in points if point[0] > self._last(name, title)]
            if new:
                self._safely(name, self._line, title, new, all(float(x).is_integer() for x, _ in points))
                self._remember(name, title, float(new[-1][0]))

    def _line(self, name: str, title: str, points: Points, whole: bool) -> None:
        tracker, title = self.trackers[name], title if whole else f"{title} (1000 x)"
        axis = f"x of {title}"  # elsewhere than in TensorBoard steps only rise, over all lines: each line has its own
        if name != "tensorboard" and hasattr(tracker.tracker, "define_metric"):
            tracker.tracker.define_metric(title, step_metric=axis)
        for x, value in points:
            step = round(x if whole else 1000 * x)
            if name == "tensorboard":
                tracker.log({title: float(value)}, step=step)
            else:
                tracker.log({title: float(value), axis: step})

    def images(self, title: str, sheet: np.ndarray) -> None:
        """One picture, uint8 (H, W, 3), once."""
        for name in list(self.trackers):
            if self._last(name, title) == NEVER:
                self._safely(name, self._images, title, sheet)
                self._remember(name, title, 0.0)

    def _images(self, name: str, title: str, sheet: np.ndarray) -> None:
        tracker = self.trackers[name]
        if name == "tensorboard":
            tracker.log_images({title: sheet[None]}, step=0, dataformats="NHWC")
        elif name == "wandb":
            tracker.log_images({title: [sheet]})
        else:
            import trackio

            tracker.log({title: trackio.Image(sheet)})

    def watch(self, advance: Advance) -> Watch:
        """A progress bar that also follows a training."""
        return Watch(self, advance)

    def losses(self, folder: Path, losses: Losses) -> None:
        """The losses of the training in a folder, by images seen; some may have been logged."""
        self.line(f"loss/{folder.name}", losses)

    def earlier(self) -> None:
        """The losses of the trainings that were finished before anything was tracked."""
        for done in sorted([*self.run.glob("*/done.json"), *self.run.glob("artefacts/*/done.json")]):
            with suppress(UserError):  # other work leaves a file of that name too
                if trained := read_trained(done.parent):
                    self.losses(trained.folder, trained.losses)

    def close(self) -> None:
        """End the trackers: what they have is written."""
        for name in list(self.trackers):
            self._safely(name, lambda name: self.trackers.pop(name).finish())

    def _last(self, name: str, title: str) -> float:
        return self.logged.get(name, {}).get(title, NEVER)

    def _remember(self, name: str, title: str, x: float) -> None:
        if name in self.trackers:
            self.logged.setdefault(name, {})[title] = x
            self._safely(name, lambda _: write_json(self.file, self.logged))


class Watch:
    """An observer of a training (`sims.training.trainer.Observer`) that tells the trackers, and moves the bar."""

    def __init__(self, tracking: Tracking, advance: Advance) -> None:
        self.tracking, self.advance = tracking, advance
        self.images, self.begin, self.moved = 0, time.monotonic(), False

    def __call__(self, count: int) -> None:
        if not self.moved:  # what an earlier process had done
            self.images, self.begin, self.moved = count, time.monotonic(), True
        self.advance(count)

    def trained(self, folder: Path, images: int, losses: Losses) -> None:
        """The losses so far, after so many images; those of earlier processes too."""
        now = time.monotonic()
        if images > self.images:
            speed = (images - self.images) / max(now - self.begin, 1e-9)
            self.tracking.line(f"images per second/{folder.name}", [(images, speed)])
        self.images, self.begin = images, now
        self.tracking.losses(folder, losses)


def _mode_of_wandb() -> str | None:
    """Offline where nobody has logged in; wandb's own choice where there is one."""
    import wandb

    return None if "WANDB_MODE" in os.environ or wandb.api.api_key else "offline"


def _flat(values: Mapping[str, JSON], prefix: str = "") -> Iterable[tuple[str, bool | int | float | str]]:
    """Dotted names and plain values."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, bool | int | float | str) else str(value)
