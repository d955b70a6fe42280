# ruff: noqa: E501
"""Hostile and broken files at every entrance: nothing of theirs runs, nothing hangs, nothing fills the memory.

    python benchmarks/hostile.py [--only TEXT] [--jobs 2] [--out benchmarks/results/hostile.json]

Every input is read by a process of its own, forked from one that has imported the package. What is counted:

    read        exit status 0: the file can be read honestly, perhaps with a remark
    refused     one sentence that begins with "sims:", exit status 2, or 1 of a check
    executions  a file appeared that only code within the input makes
    programs    a process was started, or a connection tried
    tracebacks  a traceback, a signal, or another exit status
    time        more than 15 s of CPU time (other work on the machine stretches the clock), or 8 s without any
    memory      more address space than the honest input of the same entrance takes and 2 GB, or a message that it would
    raw         control characters, reversed text or HTML of the input reached the terminal or the page
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import torch  # noqa: E402

import hostile_inputs as inputs  # noqa: E402
from common import save  # noqa: E402
from hostile_models import model_and_other_trials  # noqa: E402

SECONDS, STILL, ROOM = 15.0, 8.0, 2 << 30
OUTCOMES = ("read", "refused", "executions", "programs", "tracebacks", "time", "memory", "raw")
NO_MEMORY = (
    "memory did not suffice",
    "MemoryError",
    "bad_alloc",
    "annot allocate",
    "n't allocate",
    "nable to allocate",
)
REVERSING = {*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x2028, 0x2029}
AUDITED = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "socket.connect")


def prepare(root: Path) -> None:
    """Honest files of every kind; in a process of its own, because it starts threads."""
    import diffusers
    import pytest
    from safetensors.torch import save_file

    import snapshots
    import tiny
    from sims.cli import main

    data = inputs.pictures(root / "pictures", 60)
    for words in (
        ["train", "--out", str(root / "run"), "--data.path", str(data), *inputs.TRAIN],
        ["synthesize", str(root / "run" / "model"), "--out", str(root / "store"), "--count", "60"],
        [*tiny.improve_arguments(root / "improved", *tiny.PCA)],
        ["evaluate", str(root / "store"), "--reference", str(data), "--extractor", "pca", "--out", str(root / "rows.jsonl"),
         "--cache", str(root / "cache")],
    ):  # fmt: skip
        assert main(words) == 0, words
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(root / "diffusers")
    patch = pytest.MonkeyPatch()
    denoiser = snapshots.network("EDMPrecond", {**snapshots.SONG, **snapshots.IMAGES})
    state = snapshots.theirs("EDMPrecond", denoiser)
    write = snapshots.writer(root, patch)
    write("EDMPrecond", state, name="snapshot.pkl", **snapshots.SONG, **snapshots.IMAGES)
    patch.undo()
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8))
    torch.jit.script(network).save(root / "extractor.pt")
    save_file({"x": torch.zeros(1)}, root / "done.safetensors")


# -- one input, in a process of its own --------------------------------------------------------------------------------


@dataclass
class Running:
    """A process that reads an input."""

    trial: inputs.Trial
    place: Path
    pid: int
    begin: float
    size: int  # bytes of address space at the start
    used: int = 0  # CPU time at ``moved``, the last time that some was used
    moved: float = 0.0

    def log(self) -> Path:
        return self.place / "log.txt"


def forked(place: Path, work: Callable[[], int]) -> int:
    """A process that does the work, in a session of its own, its output in ``log.txt``; the id."""
    pid = os.fork()
    if pid:
        return pid
    status = 99
    try:
        os.setsid()
        out = os.open(place / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in (1, 2):
            os.dup2(out, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
        status = work()
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 98
        if not isinstance(error, SystemExit):
            traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def made(trial: inputs.Trial, place: Path) -> list[str]:
    """Write the input, in a process of its own, so that what that takes is not counted; the words."""

    def work() -> int:
        (place / "words.json").write_text(json.dumps(trial.make(place / "in")))
        return 0

    (place / "in").mkdir()
    _, status = os.waitpid(forked(place, work), 0)
    assert status == 0, f"{trial}: {(place / 'log.txt').read_text()[-2000:]}"
    return json.loads((place / "words.json").read_text())


def started(trial: inputs.Trial, place: Path, words: list[str], growth: int | None) -> Running:
    """Begin to read an input, with ``growth`` bytes of address space beyond what there is at the start."""
    size = status_of(os.getpid())["VmSize"]

    def work() -> int:
        audit(place / "audit.txt")
        os.environ["PATH"] = str(HERE / "nowhere")
        os.chdir(place / "in")
        if growth is not None:
            resource.setrlimit(resource.RLIMIT_AS, (size + growth, size + growth))
        resource.setrlimit(resource.RLIMIT_FSIZE, (12 << 30, 12 << 30))
        status = command(words)
        (place / "peak.json").write_text(json.dumps(status_of(os.getpid())))
        return status

    return Running(trial, place, forked(place, work), time.monotonic(), size)


def command(words: list[str]) -> int:
    """What a command does; a report is a function, and distribution control ends where its files are read."""
    from sims import cli
    from sims.errors import UserError
    from sims.experiments.shift import shift_job
    from sims.report import write_report

    def read(*_: Any) -> None:
        raise SystemExit(0)

    if words[0] == "report":
        try:
            print(f"written: {write_report(Path(words[1]))}")
            return 0
        except UserError as error:
            print(f"sims: {error}", file=sys.stderr)
            return 2
    shift_job.open_meter = read  # type: ignore[assignment]
    return cli.main(words)


def audit(file: Path) -> None:
    """Keep a list of the programs that are started."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in AUDITED:
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "a") as out:
                out.write(f"{event} {str(arguments)[:300]}\n")

    sys.addaudithook(hook)


def status_of(pid: int) -> dict[str, int]:
    """Bytes of memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines)
            if name.startswith("Vm")}  # fmt: skip


def cpu(pid: int) -> int:
    """CPU time of a process, in the system's ticks."""
    try:
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:15]))
    except (OSError, IndexError):
        return 0


def ended(running: Running) -> tuple[int | None, float] | None:
    """The exit status (None: killed for its time) and seconds of CPU time; None while it runs."""
    now, used = time.monotonic(), cpu(running.pid)
    if used != running.used:
        running.used, running.moved = used, now
    seconds = running.used / os.sysconf("SC_CLK_TCK")
    late = seconds > SECONDS or now - max(running.moved, running.begin) > STILL or now - running.begin > 8 * SECONDS
    if late:
        os.killpg(running.pid, signal.SIGKILL)
    pid, status = os.waitpid(running.pid, 0 if late else os.WNOHANG)
    return None if pid == 0 else (None if late else os.waitstatus_to_exitcode(status), seconds)


# -- what came of it ---------------------------------------------------------------------------------------------------


def raw_characters(text: str) -> list[str]:
    """Characters that change what a terminal shows."""
    bad = (c for c in text if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 or ord(c) in REVERSING)
    return sorted({repr(c) for c in bad})


def judged(running: Running, status: int | None) -> tuple[list[str], str]:
    """The outcomes, and the end of what was said."""
    text = running.log().read_text(encoding="utf-8", errors="replace")
    found = []
    if list(running.place.rglob(inputs.CANARY)) or list(running.place.parent.glob("canary*")):
        found.append("executions")
    if (running.place / "audit.txt").exists():
        found.append("programs")
        text += (running.place / "audit.txt").read_text()
    if any(words in text for words in NO_MEMORY) or status == -signal.SIGKILL:
        found.append("memory")
    if status is None:
        found.append("time")
    elif "Traceback (most recent call last)" in text or status not in (0, 1, 2):
        found.append("tracebacks")
    pages = [page.read_text(errors="replace") for page in (running.place / "in").rglob("report.html") if page.is_file()]
    if raw_characters(text) or any("<script>alert" in page or raw_characters(page) for page in pages):
        found.append("raw")
    good = status == 0 or (status == 2 and any(line.startswith("sims:") for line in text.splitlines()))
    if status == 1 and running.trial.entrance.startswith("data check"):
        good = True
    if not good and not found:
        found.append("tracebacks")
    return found or ["read" if status == 0 else "refused"], text[-1500:]


def is_bad(result: dict[str, Any]) -> bool:
    return not {"read", "refused"} & {*result["outcomes"]} or (result["kind"] == 0 and result["status"] != 0)


def told(result: dict[str, Any]) -> str:
    where = " | ".join(str(result[key]) for key in ("entrance", "kind", "name"))
    return f"{', '.join(result['outcomes'])}: {where}: {result['text'][-300:]!r}"


def run_all(trials: list[inputs.Trial], jobs: int, root: Path, growth: dict[str, int] | None) -> list[dict[str, Any]]:
    """The outcomes of all trials; ``growth`` is the address space allowed to each entrance."""
    waiting, at_work, results = list(reversed(trials)), [], []
    begin = time.monotonic()
    while waiting or at_work:
        while waiting and len(at_work) < jobs:
            trial = waiting.pop()
            place = Path(tempfile.mkdtemp(dir=root))
            words = made(trial, place)
            allowed = None if growth is None else growth.get(trial.entrance, max(growth.values())) + ROOM
            at_work.append(started(trial, place, words, allowed))
        for running in list(at_work):
            if (end := ended(running)) is None:
                continue
            at_work.remove(running)
            found, text = judged(running, end[0])
            peak = running.place / "peak.json"
            grown = json.loads(peak.read_text())["VmPeak"] - running.size if peak.is_file() else None
            results.append({"entrance": running.trial.entrance, "kind": running.trial.kind, "name": running.trial.name,
                            "outcomes": found, "status": end[0], "seconds": round(end[1], 2), "grown": grown, "text": text})  # fmt: skip
            shutil.rmtree(running.place, ignore_errors=True)
            if is_bad(results[-1]):
                print(told(results[-1]), flush=True)
            if len(results) % 50 == 0:
                print(f"  {len(results)} of {len(trials)}, {time.monotonic() - begin:.0f} s", flush=True)
        time.sleep(0.005)
    return results


# -- the table ---------------------------------------------------------------------------------------------------------


def table(results: list[dict[str, Any]], by: str) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for result in results:
        key = result[by] if by == "entrance" else f"{result['kind']} {inputs.KINDS[result['kind']]}"
        counts.setdefault(key, Counter())["inputs"] += 1
        counts[key].update(result["outcomes"])
    return {key: {name: found[name] for name in ("inputs", *OUTCOMES)} for key, found in sorted(counts.items())}


def in_markdown(tables: dict[str, dict[str, dict[str, int]]], about: str) -> str:
    lines = ["# Hostile and broken files", "", about, ""]
    for title, rows in tables.items():
        lines += [f"| {title} | {' | '.join(('inputs', *OUTCOMES))} |", "|---|" + "---:|" * (1 + len(OUTCOMES))]
        total = {name: sum(row[name] for row in rows.values()) for name in ("inputs", *OUTCOMES)}
        for key, row in {**rows, "**all**": total}.items():
            lines.append(f"| {key} | {' | '.join(str(value) for value in row.values())} |")
        lines.append("")
    return "\n".join(lines)


def imported() -> None:
    """Import all that commands import when they need it, once for all processes."""
    import diffusers
    import jinja2  # noqa: F401
    import matplotlib.figure
    import matplotlib.pyplot  # noqa: F401
    import scipy.linalg  # noqa: F401
    import sklearn.datasets
    import sklearn.model_selection  # noqa: F401

    import sims.cli
    import sims.interop.diffusers_network
    import sims.report.page  # noqa: F401

    for name in ("UNet2DModel", "DiTTransformer2DModel", "AutoencoderKL", "DDPMScheduler", "DDIMScheduler"):
        getattr(diffusers, name)
    torch.set_num_threads(1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="inputs whose 'entrance | kind | name' match this expression")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--root", type=Path, help="folder for honest files, which are made where they are missing")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "hostile.json")
    parser.add_argument("--prepare", action="store_true", help="only make the honest files")
    options = parser.parse_args()
    root = options.root or Path(tempfile.mkdtemp(prefix="hostile-"))
    if options.prepare:
        prepare(root)
        return 0
    words = [sys.executable, __file__, "--prepare", "--root", str(root)]
    if not (root / "done.safetensors").is_file() and (status := os.spawnv(os.P_WAIT, sys.executable, words)):
        return status
    imported()
    inputs.files.zeros(9)
    trials = [*inputs.data_trials(), *model_and_other_trials(inputs.Base(root))]
    work = root / "work"
    work.mkdir(exist_ok=True)
    honest = run_all([trial for trial in trials if trial.kind == 0], options.jobs, work, None)
    growth: dict[str, int] = {}
    for result in honest:
        if result["grown"] is not None:
            growth[result["entrance"]] = max(growth.get(result["entrance"], 0), result["grown"])
    chosen = [t for t in trials if re.search(options.only, f"{t.entrance} | {t.kind} | {t.name}") and t.kind]
    results = run_all(chosen, options.jobs, work, growth)
    late = {(r["entrance"], r["name"]) for r in results if "time" in r["outcomes"]}  # perhaps of others: once more
    again = run_all([t for t in chosen if (t.entrance, t.name) in late], 1, work, growth)
    results = [*honest, *(r for r in results if (r["entrance"], r["name"]) not in late), *again]
    tables = {"entrance": table(results, "entrance"), "kind": table(results, "kind")}
    bad = [result for result in results if is_bad(result)]
    about = (f"{len(results)} inputs, each read by a process of its own: {SECONDS:.0f} s of CPU time, and {ROOM >> 30} GiB of address "
             "space beyond what the honest input of the same entrance takes.")  # fmt: skip
    text = in_markdown(tables, about + " Command: `python benchmarks/hostile.py`.")
    print(text)
    if not options.only:
        failures = [{key: r[key] for key in ("entrance", "kind", "name", "outcomes", "status", "seconds")} for r in bad]
        save(options.out, {"tables": tables, "failures": failures})
        options.out.with_suffix(".md").write_text(text)
    else:
        Path(tempfile.gettempdir(), "hostile-last.json").write_text(json.dumps(results, indent=1))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
