"""An estimate, and the table that shows it."""

from __future__ import annotations

from dataclasses import dataclass

from sims.experiments.cost.described import DataSize
from sims.experiments.cost.judge_rates import JudgeRates
from sims.experiments.cost.rates import Rates
from sims.runs.work import Work


@dataclass(frozen=True)
class Estimate:
    """What a job would cost, stage by stage; ``print`` shows it as a table.

    disk, memory  bytes, by kind of what is left and by stage (of one process); ``free`` bytes there are
    nfe           network evaluations of a sample, ``guided_nfe`` of one of a guided pair
    device        its name; ``processes`` are at work, each on one of its own
    given         the model was given, and is not trained
    sizes         those of the job, in words
    """

    data: DataSize
    network: str
    parameters: int
    sampler: str
    nfe: int
    guided_nfe: int
    work: list[Work]
    disk: dict[str, int]
    memory: dict[str, int]
    rates: Rates
    judge: JudgeRates
    device: str
    free: int
    processes: int
    notes: list[str]
    given: bool = False
    sizes: str = ""

    def seconds(self, work: Work) -> float:
        """Time of a stage on this device."""
        spent = work.evaluations * self.rates.evaluation.image + work.samples * self.rates.sample
        if work.training is not None:
            rate = self.rates.training[work.training]
            spent += work.images * rate.image + work.steps * rate.step * self.processes
        judge = self.judge
        spent += work.searched * judge.features + work.measured * judge.measured + work.draws * judge.scores
        return spent / self.processes + work.cells * judge.cell + work.seconds

    @property
    def total(self) -> float:
        """Seconds of the whole job."""
        return sum(map(self.seconds, self.work))

    def __str__(self) -> str:
        shape = "x".join(map(str, self.data.shape))
        classes = f"{self.data.num_classes} classes" if self.data.num_classes else "no classes"
        head = [
            "dry run: nothing was run or written",
            f"data      {shape}, {classes} ({self.data.source})",
            f"network   {self.network}, {self.parameters / 1e6:,.1f} M parameters",
            f"sampler   {self.sampler}: {self.nfe} evaluations a sample, {self.guided_nfe} guided",
            *([f"sizes     {self.sizes}"] if self.sizes else []),
            f"device    {self.processes} x {self.device}, {size(self.free)} of memory free",
            f"measured  {self._measured()}",
            "",
            f"{'stage':<30}{'training images':>18}{'evaluations':>18}{'(at most)':>18}{'time':>14}",
        ]
        stages = [self._row(work.stage, [work]) for work in self.work] + [self._row("total", self.work)]
        disk = [f"  {name:<50}{size(count):>14}" for name, count in self.disk.items()]
        memory = [f"  {name:<50}{size(count):>14}{self._fits(count)}" for name, count in self.memory.items()]
        disk = ["", f"{'disk':<52}{'at most':>14}", *disk, f"{'total':<52}{size(sum(self.disk.values())):>14}"]
        memory = ["", f"{'memory of one process':<52}{'peak':>14}", *memory, ""]
        return "\n".join(
            [*head, *stages, *disk, *memory, *(f"note: {note}" for note in [*self.notes, *self._too_long()])]
        )

    def _too_long(self) -> list[str]:
        """What would take less where this device takes more than a day."""
        if self.total <= DAY:
            return []
        dearest = max(self.work, key=self.seconds)
        less = (
            "a smaller option 'base.images', pictures of half the side (option 'data.source.size'; about a quarter), "
        )
        if self.given:
            less = "a smaller option 'evaluation.samples' or 'search.limit', "
        return [
            f"more than a day on this device, {duration(self.seconds(dearest))} of it for {dearest.stage!r}: {less}"
            "or a GPU take less"
        ]

    def _row(self, stage: str, work: list[Work]) -> str:
        images, evaluations = sum(part.images for part in work), sum(part.evaluations for part in work)
        most = sum(part.evaluations if part.most is None else part.most for part in work)
        cells = [f"{count:,}" if count else "-" for count in (images, evaluations)]
        bound = f"({most:,})" if most != evaluations else ""
        time = duration(sum(map(self.seconds, work)))
        return f"{stage:<30}{cells[0]:>18}{cells[1]:>18}{bound:>18}{time:>14}"

    def _measured(self) -> str:
        evaluation = self.rates.evaluation
        text = f"{1e3 * evaluation.image:.3g} ms an evaluation ({evaluation.batch} at once)"
        for training, rate in self.rates.training.items():
            if rate.batch:
                each = 1e3 * (rate.image + rate.step / rate.batch)
                return f"{each:.3g} ms to train on an image ({training.name}, {rate.batch} at once), {text}"
        return text

    def _fits(self, needed: int) -> str:
        return "" if needed < self.free else "  more than is free: use option 'fit_memory'"


DAY = 86400.0  # seconds


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, scale in (("days", DAY), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * scale:
            return f"{seconds / scale:,.1f} {unit}"
    return f"{seconds:.1f} s"


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"
