"""The report: reads a finished run's ``summary.json`` (`sims.results`) and ``grids.npz``; writes one HTML file."""

from sims.report.page import write_report
from sims.report.terminal import closing_table

__all__ = ["closing_table", "write_report"]
