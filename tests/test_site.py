"""The site of the documentation: built without a warning, no page far from the first, nothing dead or foreign."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from posixpath import dirname, join, normpath
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest

import pages
import sims
from sims.cli import COMMANDS
from sims.commands.flags import flags

for package in ("mkdocs", "material", "mkdocstrings_handlers"):
    pytest.importorskip(package, reason="needs the packages of the site: pip install '.[docs]'")

LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}
NOT_LOADED = {"canonical", "prev", "next", "alternate", "me"}  # kinds of <link> that only point


@dataclass
class Built(HTMLParser):
    """A built page: its links, those of its text alone, what it loads, and what links may point to."""

    links: set[str] = field(default_factory=set)
    said: set[str] = field(default_factory=set)
    loads: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    inside: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.inside = self.inside or tag == "article"
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
            if self.inside and "md-nav__link" not in given.get("class", ""):
                self.said.add(given["href"])
        if tag in LOADED and LOADED[tag] in given and not {*given.get("rel", "").split()} & NOT_LOADED:
            self.loads.add(given[LOADED[tag]])

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "article"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=pages.ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def built(site: Path) -> dict[str, Built]:
    """Every page by its path in the site; not the one that a server shows for what is not there."""
    found = {}
    for file in sorted(site.rglob("*.html")):
        page = Built()
        page.feed(file.read_text(encoding="utf-8"))
        found[file.relative_to(site).as_posix()] = page
    del found["404.html"]
    return found


def target(page: str, link: str) -> tuple[str, str] | None:
    """The file and the anchor that a link of a page means; None where it leads to another host."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None
    path = normpath(join(dirname(page), unquote(parts.path))) if parts.path else page
    return path, unquote(parts.fragment)


def test_every_page_is_two_clicks_from_the_first(built: dict[str, Built]) -> None:
    """By the links of the pages' own text: those of the navigation come on top."""
    reached = {"index.html"}
    for _ in range(2):
        found = [target(page, link) for page in reached for link in built[page].said]
        reached |= {one[0] for one in found if one is not None and one[0] in built}
    assert not set(built) - reached
    everywhere = {one[0] for link in built["index.html"].links if (one := target("index.html", link))}
    assert {f"reference/{name}.html" for name in COMMANDS} <= everywhere, "the navigation lists every command"


def test_no_link_is_dead(built: dict[str, Built], site: Path) -> None:
    dead = []
    for page, content in built.items():
        for link in content.links | content.loads:
            found = target(page, link)
            if found is None:
                continue
            path, anchor = found
            there = (site / path).is_file() or (site / path / "index.html").is_file()
            if not there or (anchor and path in built and anchor not in built[path].ids and anchor != "__top"):
                dead.append(f"{page}: {link}")
    assert not dead


def test_nothing_is_loaded_from_elsewhere(built: dict[str, Built], site: Path) -> None:
    for page, content in built.items():
        assert all(target(page, link) for link in content.loads if not link.startswith("data:")), page
        assert "mermaid" not in content.ids
    for file in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", file.read_text(encoding="utf-8")), file


def test_every_picture_says_what_it_shows(site: Path) -> None:
    for file in site.rglob("*.html"):
        for picture in re.findall(r"<img [^>]*>", file.read_text(encoding="utf-8")):
            assert re.search(r'alt="[^"]+"', picture), f"{file.name}: {picture}"
    for file in (pages.ROOT / "docs/pictures").glob("*.png"):
        assert file.stat().st_size < 150_000, file


def test_every_command_and_option_is_in_the_reference(site: Path) -> None:
    assert set(re.findall(r"^  (\w+) ", said_by_help(), flags=re.MULTILINE)) == set(COMMANDS)
    for name, command in COMMANDS.items():
        text = html.unescape((site / f"reference/{name}.html").read_text(encoding="utf-8"))
        for option, flag in flags(command.options).items():
            assert f'id="{option.replace("_", "-")}"' in text or f'id="{option}"' in text, f"{name}: {option}"
            assert not flag.startswith("--") or re.search(rf"<code>[^<]*{flag}\b", text), f"{name}: {flag}"


def said_by_help() -> str:
    return pages.typed("sims --help", [])[1]


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    text = html.unescape((site / "reference/python.html").read_text(encoding="utf-8"))
    for module in (sims, sims.metrics):
        for name in module.__all__:
            if name == "__version__" or isinstance(getattr(module, name), ModuleType):
                continue
            assert re.search(rf">\s*{module.__name__}\.{name}\s*<", text), name
    assert "&gt;&gt;&gt;" not in text and "<blockquote>" not in text, "examples are blocks of code"
