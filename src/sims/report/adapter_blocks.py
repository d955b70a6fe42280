"""How well a given network denoises the real data, beside simple denoisers: whether it is read rightly."""

from __future__ import annotations

from sims.report import numbers as say
from sims.report.blocks import Block, Column, Drawn, details, present, prose, table
from sims.report.palette import INK, MUTED, Palette
from sims.report.svg import Drawing, log_ticks, plain_log
from sims.results.adapter import AdapterCheck


def adapter_blocks(palette: Palette, found: AdapterCheck | None) -> list[Block]:
    """The errors by noise level as a figure and a table, and what they tell; nothing where no network was given."""
    if found is None:
        return []
    levels = found.levels
    columns = [
        Column("sigma", [f"{level.sigma:.3g}" for level in levels]),
        Column("network", [f"{level.network:.3g}" for level in levels]),
        Column("best linear denoiser", [f"{level.linear:.3g}" for level in levels]),
        Column("nearest pictures", [f"{level.nearest:.3g}" for level in levels]),
    ]
    text = "; ".join(found.problems) or "In the middle of its noise levels it is better than the best linear denoiser."
    return present(
        _figure(palette, found),
        prose(say.sentence(text)),
        details("Errors by noise level", table(columns, f"On {say.count(found.num_images)} real pictures.")),
    )


def _figure(palette: Palette, found: AdapterCheck) -> Drawn:
    drawing, sigmas = Drawing(palette, "adapter", 2.9), [level.sigma for level in found.levels]
    (axes,) = drawing.panels(1)
    curves = {
        "network": ([level.network for level in found.levels], INK, "-", "o"),
        "best linear denoiser": ([level.linear for level in found.levels], MUTED, "--", ""),
        "nearest pictures": ([level.nearest for level in found.levels], MUTED, ":", ""),
    }
    for name, (values, colour, line, marker) in curves.items():
        axes.plot(sigmas, values, color=colour, linestyle=line, marker=marker, label=name)
        at = [f"sigma {sigma:.3g}" for sigma in sigmas]
        drawing.tell(say.told(f"error of the {name}", at, [f"{value:.3g}" for value in values]))
    errors = [value for values, *_ in curves.values() for value in values if value > 0]
    plain_log(axes, "x", log_ticks(min(sigmas), max(sigmas)))
    plain_log(axes, "y", log_ticks(min(errors), max(errors)))
    axes.set(xlabel="noise level sigma", ylabel="error / variance of the data")
    drawing.figure.legend(loc="outside right upper")
    return drawing.block(
        "Mean squared error of the network’s estimate of real pictures, by noise level, beside the best linear "
        "denoiser of the data and the posterior mean over other pictures. One that is read wrongly lies far above."
    )
