"""What the site has beside the pages of this folder: the reference, and the files of the repository that pages link to.

The site's paths are the repository's without ``docs/``, and its first page stands for the README: links that work in
the repository are rewritten to work there.
"""

from __future__ import annotations

import html
import inspect
import os.path
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import griffe
import tyro
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "src"))

import sims  # noqa: E402
import sims.guidance  # noqa: E402
from sims.cli import COMMANDS, _default, _registry  # noqa: E402
from sims.results.improve import ImproveResult  # noqa: E402
from sims.results.scores import Difference, ScoreRow, Scores, ScoreTable  # noqa: E402

LINK = re.compile(r"(?<=\]\()(?!\w+:|#)[^)#\s]+")
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")  # outside this folder
#: The end of the first page, which lists what is there on the site alone.
GENERATED = (
    "\n- Every option of every [command](reference/commands.md), every public name of [Python](reference/python.md).\n"
)

# ---- files and links


def on_config(config: MkDocsConfig) -> None:
    """Give every command its place beside the others."""
    section = next(entry["Reference"] for entry in config.nav or [] if "Reference" in entry)
    place = next(place for place, entry in enumerate(section) if "Commands" in entry)
    section[place]["Commands"] += [{f"sims {name}": f"reference/{name}.md"} for name in COMMANDS]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the reference, the pages outside this folder, and all that pages link to."""
    waiting = [*PAGES, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    for name, text in reference().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    seen = {*waiting, "README.md"}
    while waiting:
        path = waiting.pop()
        if site_path(path) not in files.src_uris:
            files.append(File.generated(config, site_path(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            linked = {there for _, there in links(path, (ROOT / path).read_text(encoding="utf-8"))} - seen
            seen |= linked
            waiting += sorted(linked)


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links to what lies elsewhere on the site than in the repository."""
    uri = page.file.src_uri
    found = dict(links(uri if (ROOT / uri).is_file() else f"docs/{uri}", markdown))
    moved = {
        target: os.path.relpath(site_path(there), os.path.dirname(uri) or ".").replace(os.sep, "/")
        for target, there in found.items()
    }
    text = LINK.sub(lambda link: moved.get(link[0], link[0]), markdown)
    return text.rstrip() + GENERATED if uri == "index.md" else text


def site_path(path: str) -> str:
    """The site's path of a file of the repository."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def links(path: str, text: str) -> Iterator[tuple[str, str]]:
    """The links of a page of the repository to files of it: as written, and from the root."""
    for target in LINK.findall(text):
        there = os.path.normpath(os.path.join(os.path.dirname(path), target))
        if (ROOT / there).is_file():
            yield target, there


# ---- the reference of commands


def reference() -> dict[str, str]:
    """The pages of the reference: what they are called, and their text."""
    about = "\n".join(f"| [`sims {name}`]({name}.md) | {command.about} |" for name, command in COMMANDS.items())
    commands = (
        "# Commands\n\nEvery option of every command, as `sims COMMAND --help` has them. [Using it](../usage.md) shows "
        f"what to do with them.\n\n| command | what it does |\n|---|---|\n{about}\n"
    )
    return {"commands": commands, "python": python_page(), **{name: command_page(name) for name in COMMANDS}}


def command_page(name: str) -> str:
    """The options of a command, group by group; defaults are those of data of one's own."""
    kind = COMMANDS[name].options
    more = f"```text\n{kind.more_help()}\n```\n\n" if hasattr(kind, "more_help") else ""
    default = {"default": _default(name, None, ["--data.path", "PATH"])} if COMMANDS[name].recipe != "none" else {}
    if default:
        more += (
            "`--recipe NAME|FILE.toml` sets any option; flags override it ([recipes](../recipes.md)). Without data and "
            "model, the recipe of the bundled digits does.\n\n"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pinned in constraints.txt
        parser = tyro.extras.get_parser(kind, registry=_registry(), **default)
    places = [action.metavar for action in parser._actions if not action.option_strings]
    usage = " ".join(["sims", name, *places, "[OPTIONS]"])
    page = f"# sims {name}\n\n```text\n{usage}\n```\n\n{inspect.getdoc(kind)}\n\n{more}"
    for group in parser._action_groups:
        rows = [option(action) for action in group._group_actions if action.dest != "help"]
        if rows:
            title = str(group.title).removesuffix(" options")
            page += f"## {title}\n\n{group.description or ''}\n\n<dl>\n{''.join(rows)}</dl>\n\n"
    return page


def option(action: Any) -> str:
    """An option: its flags, the default, what it is for."""
    names = ", ".join(action.option_strings)
    flags = f"{names} {action.metavar or ''}".strip()
    text = str(action.help).replace("%%", "%")
    found = re.fullmatch(r"(.*) \(default: (.*)\)", text, re.DOTALL)
    text, default = found.groups() if found else (text, "")
    given = f" <small>default {html.escape(default)}</small>" if default not in ("", "''", "None") else ""
    words = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
    return f'<dt id="{html.escape(action.dest)}"><code>{html.escape(flags)}</code>{given}</dt>\n<dd>{words}</dd>\n'


# ---- the reference of Python

SECTIONS = {
    "Experiments": "improve shift loop pollution ImproveOptions",
    "Models": "load Model train fine_tune synthesize wrap reconstruct",
    "Sampling": "sample sample_seeds edm_sigmas nfe SOLVERS SamplerOptions SamplingStep as_denoiser Denoiser",
    "Data": "load_data Dataset",
    "Scores": "evaluate compare",
    "Guidance": "Extrapolate CacheRule",
    "Errors": "UserError",
}


def python_page() -> str:
    """Every public name, with its docstring."""
    page = (
        "# Python\n\nWhat `import sims` offers. [The parts](../parts.md) shows it at work; the options of experiments "
        "are those of the [commands](commands.md). In the examples `EXAMPLE` is the path of a model, "
        "`OTHER` and `GUIDED` are those of two more, `FOLDER` is one to write to.\n\n"
    )
    named = {title: names.split() for title, names in SECTIONS.items()}
    placed = {name for names in named.values() for name in names}
    named["Other names"] = [
        name
        for name in sims.__all__
        if name not in placed and name != "__version__" and not isinstance(getattr(sims, name), ModuleType)
    ]
    for title, names in named.items():
        if names:
            page += f"## {title}\n\n" + "".join(entry(f"sims.{name}", getattr(sims, name)) for name in names)
    for module in (sims.guidance, sims.metrics, sims.interpolants):
        page += f"## {module.__name__}\n\n{inspect.getdoc(module).splitlines()[0]}\n\n"  # type: ignore[union-attr]
        page += "".join(entry(f"{module.__name__}.{name}", thing) for name, thing in public(module))
    page += "## Results\n\nWhat the functions above return.\n\n"
    for kind in (ImproveResult, Scores, ScoreTable, ScoreRow, Difference):
        page += entry(f"{kind.__module__}.{kind.__name__}", kind)
    return page


def public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """What a module offers: by its list, else what is defined there; not what the package itself offers."""
    defined = [name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__]
    for name in getattr(module, "__all__", defined):
        thing = getattr(module, name)
        if not name.startswith("_") and name not in sims.__all__ and inspect.getdoc(thing):
            yield name, thing


def entry(name: str, thing: Any) -> str:
    """The docstring of a thing under its public name; of a table, its keys."""
    if not hasattr(thing, "__qualname__"):
        return f"### {name}\n\n{', '.join(f'`{key}`' for key in thing)}\n\n"
    return (
        f"::: {thing.__module__}.{thing.__qualname__}\n    options:\n"
        f'      heading: "{name}"\n      toc_label: "{name.rpartition(".")[2]}"\n      heading_level: 3\n\n'
    )


class Doctests(griffe.Extension):
    """Docstrings as Markdown: examples become blocks of code, and what is laid out by indentation stays so."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of whatever was found."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """A docstring of this package as Markdown."""
    parts = []
    for part in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        if part.lstrip().startswith((">>>", "Example")) and ">>>" in part:
            part = inspect.cleandoc(part[part.index(">>>") :])
            parts.append(f"```pycon\n{part}\n```")
        elif re.search(r"^(\w[\w, ]*  +|    )\S", part, re.MULTILINE):  # a list of names, or an example
            parts.append(f"```text\n{part}\n```")
        else:
            parts.append(re.sub(r"(?<![`\w])\*(?=\w)", r"\\*", part))
    return "\n\n".join(parts)
