"""The report: reads a finished run directory and nothing else; writes one self-contained HTML page.

What a run directory must hold is described in `sims.report.record`.
"""

from sims.report.page import write_report
from sims.report.terminal import closing_table

__all__ = ["closing_table", "write_report"]
