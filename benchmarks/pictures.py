"""The pictures of the documentation: parts of the report of a finished run, and of `sims view`, as chromium shows them.

    python benchmarks/pictures.py runs/digits [--out docs/pictures]

Makes docs/pictures/{report,view}-*.png anew, from a run of `sims improve`. Needs the extra app, playwright, and a
chromium that is installed (Debian: package chromium). Prints what was made.
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

WIDTH, HEIGHT = 1120, 900
MARGIN = 16  # pixels
LARGEST = 150_000  # bytes of a picture

#: Pictures of the report, and the part of its page that each shows.
REPORT = {
    "report-top": "header",
    "report-samples": "#samples",
    "report-results": "#results figure",
    "report-memorization": "#memorization figure",
}


#: Pictures of ``sims view``, and how much of its page each shows, in pixels.
VIEW = {"view-compare": 1190, "view-search": 1330}


def report(page: Page, run: Path, out: Path) -> list[Path]:
    """The parts of a run's report."""
    page.goto((run / "report.html").resolve().as_uri())
    return [taken(page, part, out / f"{name}.png") for name, part in REPORT.items()]


def view(page: Page, run: Path, out: Path) -> list[Path]:
    """The pages of ``sims view``: models side by side, and a search with a point chosen."""
    command = [sys.executable, "-m", "sims", "view", run.name, "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=run.parent) as server:
        try:
            assert server.stderr is not None
            found = re.search(r"http://\S+", server.stderr.readline())
            assert found is not None, "sims view did not say where it is"
            page.goto(found[0])
            page.wait_for_selector("#pictures-2 img", timeout=60_000)
            page.wait_for_timeout(500)
            made = [taken(page, ".gradio-container", out / "view-compare.png", VIEW["view-compare"])]
            page.get_by_role("tab", name="Search").click()
            page.locator("#curves img").click(position={"x": 600, "y": 200})
            page.wait_for_selector("#point-pictures img")
            page.wait_for_timeout(500)
            return [*made, taken(page, ".gradio-container", out / "view-search.png", VIEW["view-search"])]
        finally:
            server.send_signal(signal.SIGINT)


#: What makes pictures: a function of (page, run, folder to write to) that returns the files made.
MAKERS: tuple[Callable[[Page, Path, Path], list[Path]], ...] = (report, view)


def taken(page: Page, part: str, file: Path, height: int | None = None) -> Path:
    """The picture of one part of a page, or of so much of it from above, with a margin around it."""
    box = page.locator(part).first.bounding_box()
    if box is None:
        raise SystemExit(f"{page.url} does not show {part}")
    box["height"] = min(box["height"], height or box["height"])
    x, y = max(0, box["x"] - MARGIN), max(0, box["y"] - MARGIN)
    clip = {"x": x, "y": y, "width": box["width"] + 2 * MARGIN, "height": box["height"] + box["y"] - y + MARGIN}
    picture = Image.open(io.BytesIO(page.screenshot(full_page=True, clip=clip)))
    picture.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(file, optimize=True)
    if file.stat().st_size > LARGEST:
        raise SystemExit(f"{file} has {file.stat().st_size:,} bytes, above {LARGEST:,}: show a smaller part")
    return file


def main(arguments: list[str] | None = None) -> int:
    """Make the pictures; 2 where the run has no report, or there is no browser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of sims improve")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"))
    options = parser.parse_args(arguments)
    browser = shutil.which("chromium")
    if not (options.run / "report.html").is_file() or browser is None:
        missing = "no chromium is installed" if browser is None else f"{options.run} has no report.html: finish the run"
        print(missing, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.set_default_timeout(10_000)
        for make in MAKERS:
            for file in make(page, options.run, options.out):
                print(f"{file}: {file.stat().st_size:,} bytes")
        chromium.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
