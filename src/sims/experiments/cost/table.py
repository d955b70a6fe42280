"""The table that ``--dry-run`` prints."""

from __future__ import annotations

from typing import Any


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def lines(found: Any) -> list[str]:
    """What an ``Estimate`` says."""
    shape = "x".join(map(str, found.data.shape))
    classes = f"{found.data.classes} classes" if found.data.classes else "no classes"
    head = [
        "dry run: nothing was run or written",
        f"data      {shape}, {classes} ({found.data.source})",
        f"network   {found.network}, {found.parameters / 1e6:,.1f} M parameters",
        f"sampler   {found.sampler}: {found.nfe} evaluations a sample, {found.guided_nfe} guided",
        f"device    {found.processes} x {found.device}, {size(found.free)} of memory free",
        f"measured  {_measured(found)}",
        "",
        f"{'stage':<30}{'training images':>18}{'evaluations':>18}{'(at most)':>18}{'time':>14}",
    ]
    table = [*found.work, None]
    for work in table:
        parts = [work] if work else found.work
        images, evaluations = (sum(getattr(part, name) for part in parts) for name in ("images", "evaluations"))
        most = sum(part.evaluations if part.most is None else part.most for part in parts)
        cells = [f"{count:,}" if count else "-" for count in (images, evaluations)]
        bound = f"({most:,})" if most != evaluations else ""
        seconds = sum(found.seconds(part) for part in parts)
        stage = work.stage if work else "total"
        head.append(f"{stage:<30}{cells[0]:>18}{cells[1]:>18}{bound:>18}{duration(seconds):>14}")
    head += ["", f"{'disk':<52}{'at most':>14}"]
    head += [f"  {name:<50}{size(count):>14}" for name, count in found.disk]
    head.append(f"{'total':<52}{size(sum(count for _, count in found.disk)):>14}")
    head += ["", f"{'memory of one process':<52}{'peak':>14}"]
    head += [f"  {name:<50}{size(count):>14}{_fits(count, found.free)}" for name, count in found.memory]
    return [*head, "", *(f"note: {note}" for note in found.notes)]


def _measured(found: Any) -> str:
    evaluation, (name, rate) = found.cost.evaluation, next(iter(found.cost.train.items()), ("", None))
    text = f"{1e3 * evaluation.image:.3g} ms an evaluation ({evaluation.batch} at once)"
    if rate is None or rate.batch == 0:
        return text
    each = rate.image + rate.step / rate.batch
    return f"{1e3 * each:.3g} ms to train on an image ({name}, {rate.batch} at once), {text}"


def _fits(needed: int, free: int) -> str:
    return "" if needed < free else "  more than is free: use --fit-memory"
