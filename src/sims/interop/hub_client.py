"""What models of the Hugging Face hub are fetched and published with: the cache, the client, refusals as sentences."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sims.errors import UserError
from sims.files import FULL

TIMEOUT = 30.0  # seconds without an answer
_MISSING = "pip install 'sims-diffusion[hub]'"
REFUSED: Mapping[int, str] = {
    401: "it has no such model, or one that is private or gated (401); check the name, or log in (`hf auth login`)",
    403: "you may not have it (403); accept its conditions on its page, and log in (`hf auth login`)",
    404: "it has no such model or file (404); check the name",
}
_BUSY = "it has had too many requests (429); try again later"


def cache() -> Path:
    """The folder that the programs of the hub keep its models in."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    home = Path(os.environ.get("HF_HOME") or usual)
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def client() -> Any:
    """The package of the hub; UserError where it is not installed."""
    try:
        importlib.import_module("huggingface_hub.utils")
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UserError(f"models of the hub need the package huggingface_hub ({error}): {_MISSING}") from error


@contextmanager
def quiet(library: Any) -> Iterator[None]:
    """Without the hub's own bars and warnings; what is done is said here, and what is wrong is an error."""
    utils = library.utils
    level, shown = utils.logging.get_verbosity(), not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity(utils.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            utils.disable_progress_bars()
            yield
    finally:
        utils.logging.set_verbosity(level)
        if shown:
            utils.enable_progress_bars()


@contextmanager
def in_a_sentence(cannot: str, answers: Mapping[int, str] = REFUSED) -> Iterator[None]:
    """Whatever the hub's client raises, in errors of many libraries, as a UserError: what ``cannot`` be done, and why.

    ``answers`` are status of the hub's answer -> what it means here, and what to do.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 20:
            chain.append(cause)
        raise UserError(f"{cannot}: {_reason(chain, answers)}") from error


def _reason(chain: list[BaseException], answers: Mapping[int, str]) -> str:
    """What went wrong and what to do, of an error and those behind it."""
    status = next((code for one in chain if (code := status_of(one)) is not None), None)
    if any(type(one).__name__ == "OfflineModeIsEnabled" for one in chain):
        return "HF_HUB_OFFLINE forbids it; unset that, or give a path"
    if any(isinstance(one, OSError) and one.errno in FULL for one in chain):
        return f"no space is left in {cache()}; free some, and run the same command again"
    if (refused := next((one for one in chain if isinstance(one, OSError) and one.filename), None)) is not None:
        return f"{refused.filename} cannot be written ({refused.strerror}); set HF_HUB_CACHE to another folder"
    if (answer := {429: _BUSY, **answers}.get(status or 0)) is not None:
        return answer
    what = next((text for one in reversed(chain) if (text := str(one).strip())), type(chain[0]).__name__)
    return f"{what.splitlines()[0][:200]}; check the connection, and run the same command again"


def status_of(error: BaseException) -> int | None:
    """The status of a server's answer that an error is about."""
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) else None
