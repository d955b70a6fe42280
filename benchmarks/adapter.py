"""Does ``sims check`` name what is wrong with an adapter, and pass what is right?

    OMP_NUM_THREADS=1 python benchmarks/adapter.py --shared ../shared --out benchmarks/results/adapter.json

Networks with a right adapter each, and adapters that are wrong in one respect or in two: prediction, direction, range,
time, schedule, sign, labels. One network is published, a transformer for MNIST (``--shared`` has its weights and the
pictures; without them it is left out); the others are trained here, on the bundled digits. What the check says first is
written into the wrong adapter, word for word; it is right if the denoiser is then that of the right adapter:

    mean |D_named - D_right|^2 / mean |D_right - x0|^2 <= 0.02, and <= 0.1 of the wrong adapter's

mean over noise levels. The second part is for adapters that are hardly wrong, such as times off by one. Of labels, the
whole mapping must be right. Nothing is compared with another program.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sims
from adapter_cases import CLASSES, NETWORKS, Case, Subject, levels, subjects
from common import save
from sims.errors import UserError
from sims.experiments.adapter_check import check_adapter
from sims.interpolants import Interpolant
from sims.model import Model
from sims.results.adapter import AdapterCheck

SAME, NEARER = 0.02, 0.1
TURNED, SIGN = "the time told in the other direction (in call)", "the sign of the output turned (in call)"


def written(words: str, schedule: Interpolant) -> dict[str, Any]:
    """What the words of the check say, as options of the adapter."""
    changes: dict[str, Any] = {}
    known = dict(schedule.settings or {}).get("alphas_cumprod")
    for part in words.split(" and "):
        name, _, value = part.partition("=")
        if part == SIGN:
            changes["sign"] = -1.0
        elif part == TURNED:
            changes["schedule"] = turned(changes.get("schedule", schedule))
        else:
            changes[name] = eval(value.replace("(...", "(known"), {"sims": sims, "known": known})
    return changes


def turned(given: Interpolant) -> Interpolant:
    ends = given.clean + given.noisy
    return replace(given, told=lambda t: given.tell(ends - t), settings=None)


@torch.no_grad()
def apart(model: Model, right: Model, pictures: Tensor, labels: Tensor) -> float:
    """Mean squared difference of two denoisers, in units of the right one's error."""
    noise, ratios = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1)), []
    for sigma in right.round_sigma(levels()):
        noisy, told = pictures + sigma * noise, sigma.expand(len(pictures))
        truth = right(noisy, told, labels)
        other = model(noisy, model.round_sigma(told), labels)
        ratios.append(float((other - truth).square().mean() / (truth - pictures).square().mean()))
    return sum(ratios) / len(ratios)


def judged(subject: Subject, case: Case, found: AdapterCheck) -> dict[str, Any]:
    """Whether what was said first is right, and how far the denoiser is from the right one before and after it.

    Where nothing was said, and the adapter's denoiser is as good as the right one, the adapter is harmless.
    """
    truth = subject.truth(case)
    pictures, labels = subject.data.batch(range(len(subject.data) - 64, len(subject.data)))
    assert labels is not None
    expected = {str(k): str(case.labels[k]) for k in range(CLASSES) if case.labels[k] != k}
    classes, wrong = (found.swapped or {}) == expected, subject.model(case)
    before = apart(wrong, truth, pictures, labels)
    if not found.better:
        harmless = classes and not expected and 0 < before <= SAME / 10
        verdict = "harmless" if harmless else "yes" if classes and before <= 1e-6 else "no"
        return {"right": verdict, "apart_before": before, "apart": None}
    try:
        changes = written(found.better[0].words, wrong.denoiser.schedule)  # type: ignore[attr-defined]
        after = apart(subject.model(case, changes), truth, pictures, labels)
    except (UserError, SyntaxError) as error:
        print("   ", error)
        return {"right": "no", "apart_before": before, "apart": None}
    good = classes and after <= min(SAME, NEARER * before)
    return {"right": "yes" if good else "no", "apart_before": before, "apart": after}


def tried(subject: Subject, case: Case, wrong: bool) -> dict[str, Any]:
    """One adapter, checked."""
    begin = time.perf_counter()
    found = check_adapter(subject.model(case), subject.data, case.name)
    seconds = time.perf_counter() - begin
    verdict = judged(subject, case, found) if wrong else {"right": "no" if found.problems else "yes"}
    first = found.better[0] if found.better else None
    row = {
        "network": subject.name, "adapter": case.name, "wrong": wrong, "should": case.should,
        "said": first.words if first else None, "times": round(first.times, 3) if first else None,
        "swapped": found.swapped, "problems": list(found.problems), **verdict, "seconds": round(seconds, 1),
    }  # fmt: skip
    print(f"{verdict['right']:8s} {seconds:5.1f} s  {subject.name}: {case.name}", flush=True)
    if verdict["right"] != "yes":
        others = "; ".join(f"{other.words} ({other.times:.3g})" for other in found.better[1:])
        print(f"      {found.problems}  {verdict}  others: {others}", flush=True)
    return row


COUNTED = ("wrong", "named rightly", "named wrongly", "harmless", "right", "passed")


def counts(rows: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    """By network: adapters, and what was said of them."""
    table: dict[str, dict[str, int]] = {}
    for row in rows:
        counted = table.setdefault(row["network"], dict.fromkeys(COUNTED, 0))
        said = {"yes": "named rightly", "no": "named wrongly", "harmless": "harmless"}[row["right"]]
        counted["wrong" if row["wrong"] else "right"] += 1
        if row["wrong"]:
            counted[said] += 1
        else:
            counted["passed"] += row["right"] == "yes"
    return table


def page(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [
        "# Adapters, checked", "",
        "A wrong adapter is named rightly where what `sims check` said first, written into the adapter, makes it the "
        "right one; it is harmless where nothing was said and its denoiser is the right one but for less than "
        f"{SAME / 10:g} of that one's error. A right one is passed where nothing was said. Command, machine and date: "
        "`adapter.json`.", "",
        "| network | wrong adapters | named rightly | not named rightly | harmless | right adapters | passed |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, counted in counts(rows).items():
        lines.append(f"| {name} | " + " | ".join(str(counted[key]) for key in COUNTED) + " |")
    lines += ["", "| network | adapter | should be named | said first | times better | right | seconds |",
              "|---|---|---|---|---:|---|---:|"]  # fmt: skip
    for row in rows:
        said = [row["said"].replace("sims.interpolants.", "")] if row["said"] else []
        if row["swapped"]:
            said.append("labels: " + ", ".join(f"{a} is {b}" for a, b in row["swapped"].items()))
        times = f"{row['times']:.3g}" if row["times"] else ""
        said = said or row["problems"] or ["nothing"]
        cells = [row["network"], row["adapter"], row["should"] or "nothing", "; ".join(said), times, row["right"]]
        lines.append("| " + " | ".join(map(str, [*cells, row["seconds"]])) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="has models/ and data/mnist")
    parser.add_argument("--steps", type=int, default=4000, help="of training the networks of digits")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--only", default="", help="adapters with this text in 'network: adapter'")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/adapter.json"))
    settings = parser.parse_args()
    rows = []
    for subject in subjects(settings.shared, settings.steps, settings.networks):
        for case, wrong in [(c, False) for c in subject.right] + [(c, True) for c in subject.wrong]:
            if settings.only in f"{subject.name}: {case.name}":
                rows.append(tried(subject, case, wrong))
    for name, counted in counts(rows).items():
        print(name, *(f"{key} {value}" for key, value in counted.items()), sep="  ")
    if not settings.only:
        save(settings.out, {"counts": counts(rows), "rows": rows})
        settings.out.with_suffix(".md").write_text(page(rows))


if __name__ == "__main__":
    main()
