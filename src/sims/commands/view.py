"""sims view: a local page for looking at runs and models."""

from __future__ import annotations

from sims.app.local_server import serve
from sims.app.overview import find
from sims.commands.options import ViewCommand


def view(options: ViewCommand) -> int:
    """Serve the pages until interrupted."""
    serve(find(options.given), options.port, options.browser)
    return 0
