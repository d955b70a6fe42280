"""sims view: what the pages answer, what they refuse, and the pages themselves in a browser."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sims.app.desk import Asked, Desk, overview_html
from sims.app.overview import Shown, find, state_of
from sims.app.preview import SupersededError, Turns, training_data
from sims.app.search_curves import draw_curves, last_cells
from sims.app.shelf import of_method
from sims.cli import main
from sims.errors import UserError
from sims.files import write_json
from sims.model import load
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.runs.directory import Run
from sims.runs.prepared import Prepared, prepared
from sims.sampling import nfe

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="module")
def runs(finished: Path, finished_shift: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in one folder: finished, half-finished, broken, of proportions."""
    folder = tmp_path_factory.mktemp("viewed")
    for name, source in (("whole", finished), ("half", finished), ("broken", finished), ("shift", finished_shift)):
        shutil.copytree(source, folder / name)
    (folder / "half" / "summary.json").unlink()
    (folder / "broken" / "summary.json").write_bytes((finished / "summary.json").read_bytes()[:500])
    return folder


@pytest.fixture(scope="module")
def desk(runs: Path) -> Desk:
    return Desk(find([runs]))


def draw(desk: Desk, asked: Asked) -> np.ndarray:
    return desk.draw("here", desk.turns.take("here"), asked, lambda done, total: None).images


def of_whole(runs: Path, model: str, **more: Any) -> Asked:
    return Asked(str(runs / "whole"), model, **more)


# -- what there is -----------------------------------------------------------------------------------------------------


def test_runs_are_found_with_their_state(runs: Path) -> None:
    states = {path.name: state_of(path) for path in find([runs]).runs}
    assert {name: state.status for name, state in states.items()} == {
        "broken": "broken", "half": "interrupted", "shift": "finished", "whole": "finished",
    }  # fmt: skip
    assert states["whole"].sentence == read_result(runs / "whole").headline
    assert "summary.json" in states["broken"].sentence
    assert "the same command goes on" in states["half"].sentence
    assert find([runs / "whole"]).runs == (runs / "whole",)
    assert find([runs / "whole" / "improved"]) == Shown(models=(runs / "whole" / "improved",))


@pytest.mark.parametrize("name", ["nowhere", "file", "empty"])
def test_what_is_neither_run_nor_model_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    assert main(["view", str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert name in said and "give a run directory" in said and "Traceback" not in said


def test_progress_is_told_while_a_run_works_and_gone_afterwards(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("sims.runs.progress.BEAT", 0.0)
    run = Run(tmp_path / "run", {"command": "improve"}, quiet=True)
    run.log("training")
    with run.progress("train the <base>", 100) as advance:
        advance(10)
        advance(30)
        state = state_of(run.path)
        assert (state.status, state.sentence) == ("running", "training")
        assert state.reached is not None
        assert (state.reached.done, state.reached.total, state.reached.stage) == (40, 100, "train the <base>")
        page = overview_html(Desk(Shown((run.path,))))
        assert "value='40'" in page and "train the &lt;base&gt;: 40 of 100" in page
    assert not (run.path / "progress.json").exists()
    assert state_of(run.path).reached is None
    run.close()
    assert state_of(run.path).status == "interrupted"


def test_what_cannot_be_written_of_progress_interrupts_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("sims.runs.progress.BEAT", 0.0)
    run = Run(tmp_path / "run", {"command": "improve"}, quiet=True)
    (run.path / "progress.json").mkdir()
    with run.progress("train", 3) as advance:
        advance(1)
        advance(1)
    run.close()


def test_a_run_says_which_networks_its_methods_were_built_from(finished: Path) -> None:
    known = prepared(finished)
    result = read_result(finished, ImproveResult)
    assert result.search is not None
    assert known.methods["history"] == {}
    assert set(known.methods["sims"]) == {"2560", "5120"}
    assert known.methods["sims"] == known.methods["neon"]
    chosen = result.search.chosen["sims"].budget
    built = load(finished / known.methods["sims"][str(chosen)]).hash
    assert built == load(finished / "sims" / "aux").hash
    assert load(finished / known.base).hash == load(finished / "sims" / "base").hash


@pytest.mark.parametrize("path", ["../elsewhere", "/etc", "base/../../x"])
def test_an_index_that_leads_out_of_the_run_is_refused(path: str, runs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not in the run"):
        Prepared(methods={"sims": {"1": path}})
    shutil.copytree(runs / "whole", tmp_path / "run")
    write_json(tmp_path / "run" / "models.json", {"base": path, "sampler": {}, "methods": {}})
    with pytest.raises(UserError, match="not in the run"):
        Desk(find([tmp_path / "run"])).shelf(str(tmp_path / "run"))


# -- samples -----------------------------------------------------------------------------------------------------------


def test_every_model_of_a_run_can_be_looked_at(desk: Desk, runs: Path) -> None:
    shelf = desk.shelf(str(runs / "whole"))
    assert list(shelf.entries)[:3] == ["base", "improved", "distilled"]
    assert {of_method("history"), of_method("sims"), of_method("autoguidance"), "neon"} < set(shelf.entries)
    for name in shelf.entries:
        images = draw(desk, of_whole(runs, name, count=2))
        assert images.shape == (2, 8, 8, 1)


def test_w_0_is_the_base_and_other_strengths_are_not(desk: Desk, runs: Path) -> None:
    how = {"solver": "heun", "steps": 5}  # the folder sims has a sampler of its own
    base = draw(desk, of_whole(runs, "base", **how))
    for name in ("sims", of_method("sims"), of_method("history"), of_method("rescaled")):
        assert np.array_equal(draw(desk, of_whole(runs, name, w=0.0, **how)), base)
        assert not np.array_equal(draw(desk, of_whole(runs, name, w=1.5, **how)), base)


def test_a_method_is_what_the_run_measured(desk: Desk, runs: Path) -> None:
    """Samples of a searched strength at its budget and setting are those of the model that the run chose."""
    result = read_result(runs / "whole", ImproveResult)
    grids = np.load(runs / "whole" / "grids.npz")
    assert result.search is not None
    for name in ("sims", "history"):
        chosen = result.search.chosen[name]
        seeds = [int(seed) for seed in grids["seeds"]]
        kept = grids[f"{name}@{chosen.w:g}"]
        asked = of_whole(runs, of_method(name), first=seeds[0], count=min(16, len(kept)))
        assert np.abs(draw(desk, asked).astype(int) - kept[:16].astype(int)).max() <= 17  # a level of 16 is 17 of 255


def test_solver_steps_and_seeds_are_those_asked_for(desk: Desk, runs: Path) -> None:
    model = load(runs / "whole" / "distilled")
    asked = of_whole(runs, "distilled", first=5, count=3, solver="unipc", steps=4)
    drawn = desk.draw("here", desk.turns.take("here"), asked, lambda done, total: None)
    options = model.sampler.changed("unipc", 4)
    expected = model.codec.to_images(model.codec.encode(model.images(range(5, 8), sampler=options)))
    assert np.array_equal(drawn.images, expected)
    assert drawn.evaluations == nfe(model, options) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"w": float("nan")}, "finite"), ({"w": float("inf")}, "finite"), ({"count": 1000}, "1 to 64"),
        ({"first": -1}, "seeds lie"), ({"first": 2**32}, "seeds lie"), ({"steps": -3}, "between 1 and 1,000"),
        ({"steps": 10**9}, "between 1 and 1,000"), ({"solver": "x"}, "none of"), ({"model": "../base"}, "no model"),
        ({"run": "../../etc/passwd"}, "not among"), ({"run": "/"}, "not among"), ({"budget": 7}, "finished model"),
    ],
)  # fmt: skip
def test_what_no_page_asks_for_is_refused(change: dict[str, Any], said: str, desk: Desk, runs: Path) -> None:
    with pytest.raises(UserError, match=said):
        draw(desk, replace(of_whole(runs, "improved"), **change))


def test_a_later_request_supersedes_an_earlier_one(desk: Desk, runs: Path) -> None:
    turns, model = Turns(), load(runs / "whole" / "base" / "snapshots" / "000012800")
    steps: list[int] = []

    def told(done: int, total: int) -> None:
        steps.append(done)
        if done == 2:
            turns.take("here")

    with pytest.raises(SupersededError):
        turns.draw("here", turns.take("here"), lambda: model, lambda m: m.sampler, range(4), progress=told)
    assert max(steps) == 2, "it went on although nobody waited for it"
    turns.draw("elsewhere", turns.take("elsewhere"), lambda: model, lambda m: m.sampler, range(4))


def test_one_draws_at_a_time(runs: Path) -> None:
    turns, inside, most = Turns(), [0], [0]
    model = load(runs / "whole" / "distilled")

    def told(done: int, total: int) -> None:
        most[0] = max(most[0], inside[0])
        inside[0] -= done == total  # while its turn still lasts

    def build() -> Any:
        inside[0] += 1
        return model

    def work(place: int) -> None:
        turns.draw(place, turns.take(place), build, lambda m: m.sampler, range(2), progress=told)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most[0], inside[0]) == (1, 0)


def test_the_nearest_training_picture(desk: Desk, runs: Path) -> None:
    images = draw(desk, of_whole(runs, "improved"))
    _, found = desk.nearest(str(runs / "whole"), "here", 3)
    assert not isinstance(found, str)
    from sims.data.sources import load_pair

    real = load_pair("digits")[0]
    x = torch.tensor(images[3].astype(np.float64).transpose(2, 0, 1) / 127.5 - 1)
    away = (real.all()[0].double() - x).square().flatten(1).sum(1).sqrt()
    assert found.distance == pytest.approx(float(away.min()), abs=1e-5)
    with pytest.raises(UserError, match="no longer at hand"):
        desk.nearest(str(runs / "whole"), "elsewhere", 0)


def test_data_that_changed_are_not_shown_as_the_runs_own(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "whole", tmp_path / "run")
    write_json(tmp_path / "run" / "data.json", {"train": "x", "test": "y"})
    desk = Desk(find([tmp_path / "run"]))
    draw(desk, Asked(str(tmp_path / "run"), "base", count=1))
    _, found = desk.nearest(str(tmp_path / "run"), "here", 0)
    assert isinstance(found, str) and "have changed" in found


OTHER = b'{"format": 2, "experiment": "improve", "base": 3, "data": [], "children": {"base": "x"}}'


def test_a_run_without_a_model_says_so(runs: Path, tmp_path: Path) -> None:
    shutil.copy(runs / "whole" / "config.json", tmp_path)
    with pytest.raises(UserError, match="no model yet"):
        draw(Desk(Shown((tmp_path,))), Asked(str(tmp_path), "base"))


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "null": lambda data: b"null",
    "other": lambda data: OTHER,
}


def look_at_all(desk: Desk, run: str) -> None:
    """Whatever the pages ask for; UserErrors are what they show."""
    base = Asked(run, "base", count=1, steps=2)
    for model in ("base", "improved", "sims"):
        with suppress(UserError):
            draw(desk, replace(base, model=model))
    looks: list[Callable[..., Any]] = [desk.state, desk.shelf, desk.searched, desk.proportions]
    looks += [partial(desk.curves, method="sims"), partial(desk.nearest, place="here", index=0)]
    for look in looks:
        with suppress(UserError):
            look(run)


@pytest.mark.parametrize("damage", [*DAMAGES, "gone", "a folder"])
def test_damaged_runs_are_sentences_and_nothing_else(damage: str, runs: Path, tmp_path: Path) -> None:
    names = ["config.json", "summary.json", "times.json", "models.json", "data.json", "grids.npz", "lock", "log"]
    names += ["improved/model.json", "sims/base/model.safetensors", f"{prepared(runs / 'whole').base}/model.json"]
    for number, name in enumerate(names):
        run = tmp_path / str(number)
        shutil.copytree(runs / "whole", run, copy_function=os.link, ignore=shutil.ignore_patterns("draws", "search"))
        file = run / name
        data = file.read_bytes()
        file.unlink()
        if damage in DAMAGES:
            file.write_bytes(DAMAGES[damage](data))
        elif damage == "a folder":
            file.mkdir()
        training_data.cache_clear()
        desk = Desk(Shown((run,)))
        assert str(run) in overview_html(desk)
        look_at_all(desk, str(run))


# -- written models ----------------------------------------------------------------------------------------------------


def test_a_model_with_a_chosen_w_samples_the_same_by_the_command_line(desk: Desk, runs: Path, tmp_path: Path) -> None:
    asked = of_whole(runs, of_method("sims"), w=1.25, solver="dpmpp2m", steps=7)
    path = desk.write(asked, "stronger")
    assert path == runs / "whole" / "stronger"
    assert main(["sample", str(path), "--seeds", "0-15", "--out", str(tmp_path)]) == 0
    pictures = [np.array(Image.open(tmp_path / f"{seed:06d}.png")) for seed in range(16)]
    assert np.array_equal(np.stack(pictures)[..., None], draw(desk, asked))
    with pytest.raises(UserError, match="there already"):
        desk.write(asked, "stronger")
    assert load(path).provenance["method"] == "sims, w = 1.25, chosen by eye"
    words = [
        "push",
        str(path.parent),
        "a/b",
        "--model",
        "stronger",
        "--licence",
        "mit",
        "--out",
        str(tmp_path / "card"),
    ]
    assert main(words) == 2, "a card has the figures of what was measured"
    shutil.rmtree(path)


@pytest.mark.parametrize(
    "folder",
    ["", "..", ".", "../x", "/tmp/x", "a/b", "..\\x", ".hidden", "x" * 100, "a\x00b", "improved", "lock", "-x"],
)
def test_models_are_written_as_new_folders_of_their_run_alone(folder: str, desk: Desk, runs: Path) -> None:
    before = sorted(runs.rglob("*"))
    with pytest.raises(UserError):
        desk.write(of_whole(runs, "improved", w=1.0), folder)
    assert sorted(runs.rglob("*")) == before


def test_a_link_is_not_written_through(runs: Path, desk: Desk, tmp_path: Path) -> None:
    (runs / "whole" / "linked").symlink_to(tmp_path / "elsewhere")
    try:
        with pytest.raises(UserError, match="there already"):
            desk.write(of_whole(runs, "improved", w=1.0), "linked")
    finally:
        (runs / "whole" / "linked").unlink()


def test_a_model_that_stands_alone_is_looked_at_and_left_as_it_is(runs: Path) -> None:
    path = runs / "whole" / "sims"
    desk = Desk(find([path]))
    base = draw(desk, Asked(str(path), "base"))
    assert np.array_equal(draw(desk, Asked(str(path), "sims", w=0.0)), base)
    with pytest.raises(UserError, match="is no run"):
        desk.write(Asked(str(path), "sims", w=1.0), "mine")


# -- searches ----------------------------------------------------------------------------------------------------------


def test_a_click_finds_the_measurement_that_was_drawn_there(runs: Path) -> None:
    result = read_result(runs / "whole", ImproveResult)
    assert result.search is not None
    for method in ("sims", "history"):
        curves = draw_curves(result, method)
        assert list(curves.cells) == last_cells(result.search.cells, method)
        for place, (x, y) in enumerate(curves.places):
            assert 0 <= x <= curves.image.width and 0 <= y <= curves.image.height
            others = np.square(curves.places - curves.places[place]).sum(axis=1)
            assert others[curves.at(x + 0.2, y - 0.2) or 0] < 1
            red, green, blue = curves.image.getpixel((round(x), round(y)))  # type: ignore[misc]
            assert min(red, green, blue) < 250, "nothing is drawn there"


# -- the server --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def address(runs: Path) -> Iterator[str]:
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "sims", "view", str(runs), "--port", "0", "--no-browser"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=runs) as process:
        assert process.stderr is not None
        found = re.search(r"http://127\.0\.0\.1:\d+", process.stderr.readline())
        assert found is not None
        threading.Thread(target=process.stderr.read, daemon=True).start()
        assert get(found[0])[0] == 200  # whoever comes as soon as the address is said is answered
        yield found[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def get(url: str, **headers: str) -> tuple[int, bytes, Any]:
    """Status, content and headers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read(), error.headers


def test_no_file_can_be_fetched_but_reports_of_the_runs(address: str, runs: Path) -> None:
    whole = sorted(path.name for path in runs.iterdir()).index("whole")
    status, page, _ = get(f"{address}/report/{whole}")
    assert status == 200 and page == (runs / "whole" / "report.html").read_bytes()
    assert get(f"{address}/report/99")[0] == 404
    assert get(f"{address}/report/-1")[0] == 404
    assert get(f"{address}/report/..%2f..%2fetc%2fpasswd")[0] in (404, 422)
    for path in ("/etc/passwd", str(runs / "whole" / "config.json"), "whole/config.json", "../../etc/passwd"):
        for route in ("gradio_api/file=", "file=", "gradio_api/file/", "static/", "assets/"):
            status, page, _ = get(f"{address}/{route}{path}")
            assert status >= 400 or (b"root:" not in page and b'"command"' not in page), (route, path)


def test_no_other_name_and_no_other_place(address: str) -> None:
    assert get(f"{address}/", Host="rebound.example")[0] == 400
    headers = get(f"{address}/")[2]
    assert "default-src 'self'" in headers["Content-Security-Policy"]
    assert get(f"{address}/docs")[0] == 404 or b"swagger" not in get(f"{address}/docs")[1].lower()
    port = address.rpartition(":")[2]
    listening = subprocess.run(["cat", "/proc/net/tcp", "/proc/net/tcp6"], capture_output=True, text=True).stdout
    places = [line.split()[1] for line in listening.splitlines() if line.split()[3:4] == ["0A"]]
    assert [place for place in places if place.endswith(f":{int(port):04X}")] == [f"0100007F:{int(port):04X}"]


def test_a_port_that_is_taken_and_a_missing_extra_are_sentences(
    address: str, runs: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["view", str(runs), "--port", address.rpartition(":")[2]]) == 2
    assert "cannot be taken" in capsys.readouterr().err
    assert main(["view", str(runs), "--port", "99999"]) == 2
    assert "65,535" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["view", str(runs)]) == 2
    assert "sims-diffusion[app]" in capsys.readouterr().err


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Any]:
    """The page as it opens, and all that it asks for."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium here (Debian: chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)
        page.requested, page.failures = [], []
        page.on("request", lambda request: page.requested.append(request.url))
        page.on("pageerror", lambda error: page.failures.append(str(error)))
        page.goto(address)
        yield page
        browser.close()


def pictures(page: Any, where: str, count: int, not_these: list[bytes] | None = None) -> list[bytes]:
    """The pictures of a gallery once there are so many, and others than these."""
    page.wait_for_function(
        "([where, count]) => { const all = [...document.querySelectorAll(`#${where} img`)];"
        " return all.length == count && all.every(one => one.complete && one.naturalWidth > 0) }",
        arg=[where, count],
    )
    begin = time.monotonic()
    while True:
        links = page.eval_on_selector_all(f"#{where} img", "all => all.map(one => one.src)")
        found = [get(link)[1] for link in links]
        if found != not_these:
            return found
        assert time.monotonic() - begin < 60, "the pictures stayed as they were"
        time.sleep(0.05)


def choose(page: Any, what: str, value: str) -> None:
    """A value of a list, as it is typed."""
    field = page.locator(f"#{what} input")
    field.click()
    field.fill(value)
    page.locator("ul[role=listbox] li").filter(has_text=value).first.click()


def arrays(found: list[bytes]) -> np.ndarray:
    """Pictures of 8×8 as they were before they were enlarged."""
    large = np.stack([np.array(Image.open(io.BytesIO(one)).convert("L")) for one in found])
    factor = large.shape[1] // 8
    assert np.array_equal(large, large[:, ::factor, ::factor].repeat(factor, 1).repeat(factor, 2))
    return large[:, ::factor, ::factor]


def test_in_a_browser_models_stand_side_by_side_and_w_moves(page: Any, runs: Path, tmp_path: Path) -> None:
    choose(page, "run", "whole")
    page.wait_for_function("() => document.querySelector('#about').innerText.includes('finished')")
    base, improved, distilled = (pictures(page, f"pictures-{place}", 16) for place in range(3))
    assert base != improved != distilled != base
    assert "evaluations of the network" in page.inner_text("#cost-1")
    choose(page, "model-1", "sims, as searched")
    searched = pictures(page, "pictures-1", 16, improved)
    page.locator("#w-1 input[type=number]").fill("0")
    assert pictures(page, "pictures-1", 16, searched) == base
    page.locator("#w-1 input[type=number]").fill("1.75")
    moved = pictures(page, "pictures-1", 16, base)
    # and as a model of its own, by the command line
    page.locator("#folder-1").locator("input, textarea").fill("../../etc/passwd")
    page.click("#use-1")
    page.wait_for_selector("#written-1 .failed")
    assert "is no name" in page.inner_text("#written-1")
    page.locator("#folder-1").locator("input, textarea").fill("mine-1.75")
    page.click("#use-1")
    page.wait_for_function("() => document.querySelector('#written-1').innerText.includes('sims sample')")
    words = page.inner_text("#written-1 code").split()
    assert words[:2] == ["sims", "sample"]
    assert main([*words[1:-1], str(tmp_path)]) == 0
    drawn = np.stack([np.array(Image.open(tmp_path / f"{seed:06d}.png")) for seed in range(16)])
    assert np.array_equal(drawn, arrays(moved))
    shutil.rmtree(runs / "whole" / "mine-1.75")


def test_in_a_browser_a_picture_is_beside_its_nearest_training_picture(page: Any) -> None:
    page.locator("#pictures-2 button").nth(2).click()
    page.wait_for_selector("#nearest img")
    assert "is nearest: distance" in page.inner_text("#nearest-said")


def test_in_a_browser_a_point_of_a_search_shows_its_samples(page: Any) -> None:
    page.get_by_role("tab", name="Search").click()
    page.wait_for_function("() => document.querySelector('#curves img')?.naturalWidth > 0")
    image = page.locator("#curves img")
    box = image.bounding_box()
    image.click(position={"x": box["width"] / 2, "y": box["height"] / 2})
    page.wait_for_function("() => document.querySelector('#point input').value.startsWith('w ')")
    pictures(page, "point-pictures", 16)
    assert page.input_value("#point input").startswith("w ")


def test_in_a_browser_runs_that_are_half_or_broken_say_so(page: Any) -> None:
    page.get_by_role("tab", name="Compare").click()
    choose(page, "run", "broken")
    page.wait_for_selector("#about .failed")
    assert "summary.json" in page.inner_text("#about")
    page.wait_for_function("() => !document.querySelectorAll('.panel img').length")
    choose(page, "run", "half")
    page.wait_for_function("() => document.querySelector('#about').innerText.includes('interrupted')")
    pictures(page, "pictures-0", 16)


def test_in_a_browser_proportions_have_bars_and_groups(page: Any) -> None:
    choose(page, "run", "shift")
    page.get_by_role("tab", name="Proportions").click()
    page.wait_for_selector("#bars img")
    table = page.inner_text("#shares")
    assert "yes" in table and "10.0 %" in table and "[" in table
    page.get_by_role("tab", name="Runs").click()
    page.wait_for_selector("#runs table")
    assert page.locator("#runs a").count() >= 2


def test_in_a_browser_nothing_is_too_wide_and_nothing_comes_from_elsewhere(page: Any, address: str) -> None:
    page.get_by_role("tab", name="Compare").click()
    choose(page, "run", "whole")
    pictures(page, "pictures-2", 16)
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    places = {url.split("/")[2] for url in page.requested if url.startswith(("http", "ws"))}
    assert places == {address.removeprefix("http://")}
    assert not page.failures
    without = page.eval_on_selector_all(".panel img", "all => all.filter(one => !one.alt).length")
    assert without == 0


def test_a_launcher_starts_one_page(runs: Path) -> None:
    """Of several processes only the first serves."""
    result = subprocess.run(
        [sys.executable, "-m", "sims", "view", str(runs)],
        env={**os.environ, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}, capture_output=True, timeout=60,
    )  # fmt: skip
    assert result.returncode == 0, json.dumps(result.stderr.decode())
