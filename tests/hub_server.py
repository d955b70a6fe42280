"""A stand-in for the Hugging Face hub: one repository, over HTTP, on this machine."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

ID, COMMIT = "someone/toy", "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_someone"
LICENCES = ("apache-2.0", "mit", "other")


def git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".png"))


@dataclass
class Hub:
    """A hub of one model: its files, what it sends instead of them, what it answers, and what it was asked for.

    ``commits`` has the files of earlier commits; ``stored`` the large files that were uploaded, by hash; ``delay`` are
    the seconds before an answer.
    """

    files: dict[str, bytes]
    sent: dict[str, bytes] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    address: str = ""
    head: str = COMMIT
    exists: bool = True
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    delay: float = 0.0

    def fetched(self) -> list[str]:
        """The files that were asked for."""
        start = f"GET /{ID}/resolve/"
        return [line.removeprefix(start).partition("/")[2] for line in self.asked if line.startswith(start)]

    def writes(self) -> list[str]:
        """What was asked for that changes something."""
        return [line for line in self.asked if not line.startswith(("GET", "HEAD"))]

    def at(self, revision: str) -> dict[str, bytes] | None:
        return self.files if revision in (self.head, "main") else self.commits.get(revision)

    def listing(self, revision: str = "main") -> bytes:
        """What the hub tells of the model."""
        entries: list[dict[str, Any]] = []
        for name, content in (self.at(revision) or {}).items():
            entry = {"rfilename": name, "size": len(content), "blobId": git(content)}
            if is_large(name):
                entry["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 1}
            entries.append(entry)
        sha = self.head if revision == "main" else revision
        return json.dumps({"id": ID, "modelId": ID, "sha": sha, "private": self.private, "siblings": entries}).encode()

    def read(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request for what is there."""
        path = request.path.partition("?")[0]
        self.asked.append(f"{request.command} {path}")
        time.sleep(self.delay)
        about = path.removeprefix(f"/api/models/{ID}")
        if about != path:
            revision = about.removeprefix("/revision/") or "main"
            status = self.answers.get("", 200 if self.exists and self.at(revision) is not None else 404)
            self.send(request, status, self.listing(revision))
            return
        revision, _, name = path.removeprefix(f"/{ID}/resolve/").partition("/")
        files = self.at(revision) or {}
        status = self.answers.get(name, self.answers.get("", 200 if name in files else 404))
        content, headers = self.sent.get(name, files.get(name, b"")), {"X-Repo-Commit": revision}
        if name in files:
            tag = hashlib.sha256(files[name]).hexdigest() if is_large(name) else git(files[name])
            headers |= {"ETag": tag, "X-Linked-Etag": tag, "X-Linked-Size": str(len(content))}
        self.send(request, status, content, headers)

    def send(
        self, request: BaseHTTPRequestHandler, status: int, content: bytes, headers: dict[str, str] | None = None
    ) -> None:
        request.send_response(status)
        for header, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            request.send_header(header, value)
        request.end_headers()
        if request.command != "HEAD":
            with suppress(ConnectionError):  # who asked has not waited
                request.wfile.write(content)

    def write(self, request: BaseHTTPRequestHandler) -> None:
        """Answer a request that changes something: only with the token, but for files whose address was given."""
        path = request.path.partition("?")[0]
        self.asked.append(f"{request.command} {path}")
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        time.sleep(self.delay)
        kind = path.strip("/").split("/")[0 if path.startswith("/lfs/") else -1 if "/repos/" in path else -2]
        allowed = kind == "lfs" or request.headers.get("Authorization") == f"Bearer {TOKEN}"
        status = self.answers.get(kind, 200 if allowed else 401)
        status, told = (status, {}) if status != 200 else self.changed(path, body)
        self.send(request, status, json.dumps(told).encode())

    def changed(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        if path.startswith("/lfs/"):
            name = path.removeprefix("/lfs/")
            assert hashlib.sha256(body).hexdigest() == name
            self.stored[name] = body
            return 200, {}
        if path == f"/api/models/{ID}/commit/main":
            return 200, self.committed([json.loads(line) for line in body.splitlines()])
        given = json.loads(body)
        if path == "/api/repos/create":
            assert not self.exists and f"{given['organization']}/{given['name']}" == ID
            self.exists, self.private = True, given.get("visibility") == "private"
            self.files = {".gitattributes": b"*.safetensors filter=lfs"}
            return 200, {"url": f"{self.address}/{ID}", "name": ID}
        if path == "/api/validate-yaml":
            front = yaml.safe_load(given["content"].split("---\n")[1])
            wrong = [] if front["license"] in LICENCES else [{"message": '"license" must be one of ...'}]
            return (400 if wrong else 200), {"errors": wrong, "warnings": []}
        if path == f"/api/models/{ID}/preupload/main":
            modes = [("lfs" if is_large(file["path"]) else "regular", file["path"]) for file in given["files"]]
            return 200, {"files": [{"path": name, "uploadMode": m, "shouldIgnore": False} for m, name in modes]}
        assert path == f"/{ID}.git/info/lfs/objects/batch", path
        objects = [
            {**one, "actions": {"upload": {"href": f"{self.address}/lfs/{one['oid']}"}}}
            for one in given["objects"]
        ]  # fmt: skip
        return 200, {"transfer": "basic", "objects": objects}

    def committed(self, lines: list[dict[str, Any]]) -> dict[str, Any]:
        self.commits[self.head] = dict(self.files)
        for line in lines:
            kind, value = line["key"], line["value"]
            if kind == "header":
                assert value.get("parentCommit", self.head) == self.head
            elif kind == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                self.files[value["path"]] = self.stored[value["oid"]]
            else:
                assert kind == "deletedFile"
                del self.files[value["path"]]
        self.head = hashlib.sha1(self.head.encode() + json.dumps(lines).encode()).hexdigest()
        return {"commitUrl": f"{self.address}/{ID}/commit/{self.head}", "commitOid": self.head}


@contextmanager
def serving(here: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, which all that runs in this test, and in processes of its own, takes for the real one."""
    from huggingface_hub import constants

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            here.read(self)

        def do_POST(self) -> None:
            here.write(self)

        do_HEAD, do_PUT = do_GET, do_POST

        def log_message(self, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        here.address = f"http://127.0.0.1:{listening.server_port}"
        for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"HF_HOME": home, "HF_ENDPOINT": here.address, "NO_PROXY": "*"}.items():
            monkeypatch.setenv(name, str(value))
        template = here.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", here.address)  # these are read when the library is imported
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "no token"))
        yield here
        listening.shutdown()
