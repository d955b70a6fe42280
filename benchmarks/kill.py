"""Kill a job at random moments with SIGKILL, run it again, and compare its files with an uninterrupted run's.

    python benchmarks/kill.py --moments 20 --config small --out kill.json

Exit status 0 if every killed job left the same files, byte for byte but for those that hold times; 1 otherwise.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sims.results.summaries import read_result

OFTEN = shlex.split(
    "--base.train.checkpoint-seconds 0.2 --auxiliary.train.checkpoint-seconds 0.2 "
    "--distilled.train.checkpoint-seconds 0.2"
)
TIMES = ("lock", "log", "seconds.json", "times.json", "report.html")  # files that hold times, as those in times/ do
CONFIGS = {
    "small": shlex.split(
        "--network.width 64 --network.blocks 1 --sampler.steps 6 --batch-size 100 --base.images 25600 "
        "--auxiliary.samples 400 --auxiliary.budgets 6400,12800 --search.rungs 50,100 --guidance.pilot 32 "
        "--distilled.samples 400 --distilled.images 12800 --evaluation.samples 100 --evaluation.draws 2 "
        "--evaluation.manifold-samples 50 --evaluation.extractor pca"
    ),
    "full": [],  # the default job
}


def command(config: str, extra: Sequence[str] = ()) -> list[str]:
    """The job, in the folder ``run``; the small one saves its state so often that training resumes in the middle."""
    often = OFTEN if config == "small" else []
    return ["improve", "--run", "run", *CONFIGS[config], *often, *extra]


def start(job: Sequence[str], place: Path) -> subprocess.Popen[bytes]:
    """Start a job in a place as a process group of its own, one thread, its output in ``out``."""
    place.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "sims", *job]
    with (place / "out").open("ab") as output:
        return subprocess.Popen(words, stdout=output, stderr=output, env=environment, cwd=place, start_new_session=True)


def finish(job: Sequence[str], place: Path) -> float:
    """Run a job to its end; returns the seconds it took. RuntimeError with its last words if it fails."""
    begin = time.monotonic()
    if status := start(job, place).wait():
        raise RuntimeError(f"exit status {status}: {(place / 'out').read_text(errors='replace')[-2000:]}")
    return time.monotonic() - begin


def kill(job: Sequence[str], place: Path, seconds: float) -> bool:
    """Start a job and kill its process group after some seconds; False if it had ended by itself before."""
    process = start(job, place)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run but those that hold times."""
    files = [file for file in sorted(run.rglob("*")) if file.is_file() and file.name not in TIMES]
    return {str(file.relative_to(run)): file.read_bytes() for file in files if file.parent.name != "times"}


def stage(run: Path) -> str:
    """Where a killed run had got to: the newest of its files."""
    files = [file for file in run.rglob("*") if file.is_file() and file.name not in ("lock", "log")]
    newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
    return "nothing written" if newest is None else str(newest.relative_to(run))


def survive(job: Sequence[str], place: Path, moments: Sequence[float], expected: dict[str, bytes]) -> dict[str, Any]:
    """Kill a job at each of these moments after its start, one after the other, then run it to its end."""
    stages, killed = [], []
    for seconds in moments:
        killed.append(kill(job, place, seconds))
        stages.append(stage(place / "run"))
    entry: dict[str, Any] = {"seconds": [round(s, 2) for s in moments], "killed": killed, "newest_file": stages}
    try:
        entry["seconds_to_finish"] = round(finish(job, place), 2)
        found = contents(place / "run")
        entry["equal"] = found == expected
        entry["differs"] = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
        entry["leftovers"] = len(list(place.rglob(".*.tmp-*")))
    except RuntimeError as error:
        entry |= {"equal": False, "error": str(error)}
    return entry


def spaced(count: int, duration: float, seed: int) -> list[float]:
    """Random moments, one in each of ``count`` equal parts of the duration."""
    generator = random.Random(seed)
    return [duration * (index + generator.random()) / count for index in range(count)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=20, help="how many killed jobs, one moment each")
    parser.add_argument(
        "--config", choices=sorted(CONFIGS), default="small", help="small: seconds; full: the default job"
    )
    parser.add_argument("--moments-seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    parser.add_argument("--reference", type=Path, help="where an uninterrupted job was run: the folder of its `run`")
    options, extra = parser.parse_known_args()  # further options go to the job
    with tempfile.TemporaryDirectory() as place:
        whole, job = Path(place) / "whole", command(options.config, extra)
        if options.reference is None:
            duration = finish(job, whole)
        else:
            whole = options.reference
            duration = read_result(whole / "run").reproduction.seconds
        expected = contents(whole / "run")
        print(f"uninterrupted: {duration:.1f} s", flush=True)
        entries = []
        for index, moment in enumerate(spaced(options.moments, duration, options.moments_seed)):
            entry = survive(job, Path(place) / f"killed-{index}", [moment], expected)
            entries.append(entry)
            entry["moment"] = "during the job" if entry["killed"][0] else "after its end: not killed"
            verdict = "same files" if entry["equal"] else f"DIFFERENT: {entry.get('error') or entry['differs']}"
            print(f"killed at {moment:5.1f} s ({entry['newest_file'][0]}): {verdict}", flush=True)
    equal = sum(entry["equal"] for entry in entries)
    print(f"{equal} of {len(entries)} killed jobs ended with the uninterrupted job's files, byte for byte")
    if options.out:
        result = {
            "date": datetime.date.today().isoformat(),
            "command": " ".join(["python", *sys.argv]),
            "config": options.config,
            "options": extra,
            "moments_seed": options.moments_seed,
            "seconds": round(duration, 2),
            "equal": equal,
        }
        result |= {"moments": entries, "machine": platform.platform(), "python": platform.python_version()}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if equal == len(entries) else 1


if __name__ == "__main__":
    sys.exit(main())
