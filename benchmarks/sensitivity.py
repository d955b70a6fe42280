"""Sensitivity of SIMS and Neon to the number of own samples n_s and to the auxiliary's learning rate: one figure.

    python benchmarks/sensitivity.py --run runs/digits --out benchmarks/results/sensitivity

Every point is a whole improvement of the base of a finished run: new samples, a new auxiliary, its own search of budget
and w. Each is judged on draws of fresh samples; the bars are 95 % intervals over the draws (one auxiliary a point).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from common import flat, improved, save
from sims.experiments.options import ImproveOptions
from sims.methods.auxiliary import AuxiliarySettings
from sims.scoring.options import EvaluationOptions
from sims.training.trainer import TrainOptions

SAMPLES = (500, 2_000, 10_000, 40_000)
RATES = (1e-4, 3e-4, 1e-3, 3e-3)


def point(run: Path, folder: Path, samples: int, rate: float) -> dict[str, Any]:
    """Improve the base of ``run`` with these settings; the rows of base, sims and neon."""
    base = sorted((run / "base" / "snapshots").iterdir())[-1]
    auxiliary = replace(AuxiliarySettings(), samples=samples, train=TrainOptions(lr=rate, ema_rampup=0.5))
    evaluation = EvaluationOptions(draws=3, check=False)
    options = ImproveOptions(
        run=folder / f"{samples}-{rate:g}",
        model=base,
        reference=run / "references",
        methods=("base", "sims", "neon"),
        auxiliary=auxiliary,
        evaluation=evaluation,
    )
    rows = {row.label: flat(row) for row in improved(options, quiet=True).rows}
    return {"samples": samples, "lr": rate, "rows": {name: rows[name] for name in options.methods}}


def figure(points: list[dict[str, Any]], file: Path) -> None:
    """Two panels: FD against n_s at the default learning rate, and against the learning rate at the default n_s."""
    fig = Figure(figsize=(9, 3.6), layout="constrained")
    axes = fig.subplots(1, 2, sharey=True)
    panels = [("samples", "own samples n_s", "lr", 1e-3), ("lr", "learning rate of the auxiliary", "samples", 10_000)]
    for axis, (key, title, other, fixed) in zip(axes, panels):
        chosen = sorted((p for p in points if p[other] == fixed), key=lambda p: p[key])
        for name, colour in (("sims", "#0072b2"), ("neon", "#d55e00")):
            figures = [p["rows"][name]["fd"] for p in chosen]
            mean = [f["mean"] for f in figures]
            half = [(f["high"] - f["low"]) / 2 for f in figures]
            axis.errorbar([p[key] for p in chosen], mean, half, color=colour, marker="o", capsize=3, label=name)
        axis.axhline(chosen[0]["rows"]["base"]["fd"]["mean"], color="grey", linestyle="--", label="base")
        axis.set(xscale="log", xlabel=f"{title} ({other} = {fixed:g})", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("FD to the training data")
    axes[1].legend()
    fig.savefig(file.with_suffix(".svg"), metadata={"Date": None})
    fig.savefig(file.with_suffix(".png"), dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/digits"))
    parser.add_argument("--folder", type=Path, default=Path("runs/sensitivity"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sensitivity"))
    options = parser.parse_args()
    settings = [(samples, 1e-3) for samples in SAMPLES] + [(10_000, rate) for rate in RATES if rate != 1e-3]
    points = []
    for samples, rate in settings:
        points.append(point(options.run, options.folder, samples, rate))
        rows = points[-1]["rows"]
        text = ", ".join(f"{name} {row['fd']['mean']:.2f} (w {row['w']:g})" for name, row in rows.items())
        print(f"n_s {samples:>6,} lr {rate:g}: {text}", flush=True)
    save(options.out.with_suffix(".json"), {"benchmark": "sensitivity", "points": points})
    figure(points, options.out)


if __name__ == "__main__":
    main()
