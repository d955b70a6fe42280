"""The server of the pages: this machine alone, no link to the outside, no file but what the pages show."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
import webbrowser
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

from sims.app.desk import Desk
from sims.app.overview import RunState, Shown, state_of
from sims.errors import UserError
from sims.screen import say

HOST = "127.0.0.1"
FIRST, TRIED = 7860, 40  # ports
# A page may load from this server alone; gradio's own scripts are compiled by the browser.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; frame-ancestors 'none'; form-action 'self'"
)


def serve(shown: Shown, port: int | None = None, browser: bool = True) -> None:
    """Serve the pages until interrupted. UserError where the port is taken, or the extra ``app`` is not installed."""
    try:
        import gradio  # noqa: F401  # here: an extra
        import uvicorn
    except ImportError as error:
        raise UserError(
            f"sims view needs {error.name}, which is not installed: pip install 'sims-diffusion[app]'"
        ) from None
    with _free_socket(port) as taken, _temporary() as folder:
        address = f"http://{HOST}:{taken.getsockname()[1]}"
        app = application(shown, folder)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        say(f"sims view: {address} (this machine alone; end it with Ctrl-C)")
        if browser and _has_screen():
            opening = Timer(1.0, webbrowser.open, (address,))
            opening.daemon = True
            opening.start()
        try:
            server.run(sockets=[taken])
        except KeyboardInterrupt:
            return


def application(shown: Shown, folder: Path) -> Any:
    """The pages and the reports as an ASGI application; pictures on their way to the browser lie in a folder."""
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import gradio as gr
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import FileResponse, PlainTextResponse
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from sims.app.view_pages import CSS, pages

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        yield
        shutil.rmtree(folder, ignore_errors=True)  # here, since a signal ends the process at once afterwards

    app = FastAPI(lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)

    @app.api_route("/report/{place}", methods=["GET", "HEAD"])
    def report(place: int) -> Response:
        state = _run_at(shown, place)
        if state is None or state.report is None:
            return PlainTextResponse("no report there", 404)
        return FileResponse(state.report, media_type="text/html")

    @app.middleware("http")
    async def guarded(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await answer(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])  # no other name leads here
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return gr.mount_gradio_app(
        app, pages(Desk(shown)), "", server_name=HOST, footer_links=[], show_error=False, theme=theme, css_paths=CSS,
        ssr_mode=False, enable_monitoring=False, pwa=False, mcp_server=False, run_history=False, max_file_size=0,
    )  # fmt: skip


def _run_at(shown: Shown, place: int) -> RunState | None:
    return state_of(shown.runs[place]) if 0 <= place < len(shown.runs) else None


@contextmanager
def _temporary() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sims-view-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _free_socket(port: int | None) -> Iterator[socket.socket]:
    """The port asked for, else the first that is free."""
    ports = [port] if port is not None else [*range(FIRST, FIRST + TRIED)]
    for number in ports:
        found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind((HOST, number))
            found.listen(128)  # from here on a browser waits, and is not refused; and the port is nobody else's
        except (OSError, OverflowError) as error:
            found.close()
            if port is not None:
                reason = getattr(error, "strerror", None) or "it must lie between 0 and 65,535"
                raise UserError(
                    f"port {port} of {HOST} cannot be taken ({reason}): leave it out, or give another one"
                ) from None
            continue
        with closing(found):
            yield found
        return
    raise UserError(f"ports {FIRST} to {FIRST + TRIED - 1} of {HOST} are taken: give another one with option 'port'")


def _has_screen() -> bool:
    """Whether a browser of this machine would be seen."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
