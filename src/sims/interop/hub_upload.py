"""A folder with a model as a repository of the Hugging Face hub: made where there is none, else one commit more."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sims.errors import UserError
from sims.interop.hub_client import TIMEOUT, client, in_a_sentence, quiet, status_of
from sims.interop.hub_models import OUR_FILES, PREFIX, HubName
from sims.screen import say

_BESIDE = (".gitattributes", "README.md", "samples.png", "LICENSE")  # what any repository of a model may have
_MESSAGE = "A model of sims, and its card"
_LOG_IN = "take one with the right to write, and log in (`hf auth login`) or set HF_TOKEN"
_ANSWERS: Mapping[int, str] = {
    401: f"it does not know your token (401); {_LOG_IN}",
    403: f"your token may not write there (403); {_LOG_IN}, or give a name of your own",
    404: "it has no such place (404); check the name",
    409: "it has this name already (409); run the same command again",
    412: "somebody else has changed it just now (412); run the same command again",
    413: "it is larger than the hub takes (413)",
}


@dataclass(frozen=True)
class Uploaded:
    """Where a model is now: the address of its page, and the commit that holds it."""

    address: str
    commit: str


def checked_name(text: str) -> str:
    """``owner/name`` of what is given with or without ``hf:``; UserError where the hub has no such names.

    >>> checked_name("hf:someone/cats")
    'someone/cats'
    """
    name = text.removeprefix(PREFIX)
    asked = HubName.parse(name)
    odd = re.search(r"--|\.\.|[-.](?:/|$)|\.git$", name)
    if asked is None or asked.revision is not None or odd or len(name) > 96:
        raise UserError(
            f"{text!r:.120} is no name of a model on the hub: write owner/name, of letters, digits, '-', '_' and '.' "
            "(none of '-' and '.' doubled or last), at most 96 characters"
        )
    return name


def upload(folder: Path, name: str, private: bool = False) -> Uploaded:
    """All files of a folder, in one commit. Nothing is sent before it is known that it may be.

    Of a repository that is there, the files of an earlier model are replaced, and its history keeps them. UserError
    where it holds something else, is public and shall be ``private``, or the hub refuses; then nothing is changed.
    """
    library = client()
    with in_a_sentence(f"{name} cannot be written to the hub", _ANSWERS), quiet(library):
        if library.get_token() is None:
            raise UserError(f"there is no token of the hub: {_LOG_IN}")
        hub = library.HfApi()
        about = _there(hub, name)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        size = sum(path.stat().st_size for path in files)
        if about is None:
            say(f"{name} is new on the hub, and is made {'private' if private else 'public'}")
            hub.create_repo(name, private=private)
        else:
            _require_ours(name, about, private)
            say(f"{name} exists ({about.sha}): one commit more, which replaces its model and its README.md")
        say(f"uploading {len(files)} files ({size:,} bytes) to {name}")
        there = [entry.rfilename for entry in about.siblings or ()] if about else []
        operations = [library.CommitOperationAdd(path, str(file)) for path, file in zip(names, files)]
        operations += [library.CommitOperationDelete(path) for path in _stale(there, names)]
        try:
            done = hub.create_commit(
                name, operations, commit_message=_MESSAGE, parent_commit=about.sha if about else None
            )
        except ValueError as error:  # of what is sent, such as a licence that the hub does not know
            told = " ".join(str(error).split())[:400]
            raise UserError(f"the hub does not take the files for {name} ({told}): nothing is changed there") from error
        return Uploaded(f"{hub.endpoint}/{name}", str(done.oid))


def _there(hub: Any, name: str) -> Any:
    """What the hub tells of a repository; None where there is none."""
    try:
        return hub.model_info(name, timeout=TIMEOUT)
    except Exception as error:
        if status_of(error) == 404:
            return None
        raise


def _is_ours(path: str) -> bool:
    return path.rpartition("/")[2] in (*OUR_FILES, "samples.png")


def _stale(there: Collection[str], names: Collection[str]) -> list[str]:
    """The files of an earlier model that the new one has not."""
    return [path for path in there if _is_ours(path) and path not in names]


def _require_ours(name: str, about: Any, private: bool) -> None:
    """UserError where a repository has something else than a model of this package, or is public against the wish."""
    there = [entry.rfilename for entry in about.siblings or ()]
    others = [path for path in there if path not in _BESIDE]
    if others and OUR_FILES[0] not in there:
        raise UserError(
            f"{name} exists and holds something else ({', '.join(others[:3])}): give another name, and nothing is lost"
        )
    if private and not about.private:
        raise UserError(f"{name} exists and is public: make it private on its page, or leave out option 'private'")
