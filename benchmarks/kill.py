"""Kill a job at random moments with SIGKILL, run it again, and compare its figures with an uninterrupted run's.

    python benchmarks/kill.py --moments 20 --config small --out kill.json

Exit status 0 if every killed job ended with the same figures, bit for bit; 1 otherwise.
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
CONFIGS = {
    "small": shlex.split(
        "--network.width 64 --network.blocks 1 --sampler.steps 6 --batch-size 100 --base.images 64000 "
        "--auxiliary.samples 400 --auxiliary.budgets 12800,25600 --search.rungs 50,100 --guidance.pilot 32 "
        "--distilled.samples 400 --distilled.images 25600 --evaluation.samples 100 --evaluation.draws 2 "
        "--evaluation.manifold-samples 50 --evaluation.extractor pca"
    ),
    "full": [],  # the default job
}


def command(run: Path, config: str, extra: Sequence[str] = ()) -> list[str]:
    """The job; the small one saves its state often enough that training resumes in the middle."""
    often = OFTEN if config == "small" else []
    return [sys.executable, "-m", "sims", "improve", "--run", str(run), *CONFIGS[config], *often, *extra]


def start(job: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a job as a process group of its own, one thread, its output in ``log``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as output:
        return subprocess.Popen(job, stdout=output, stderr=output, env=environment, start_new_session=True)


def finish(job: Sequence[str], log: Path) -> float:
    """Run a job to its end; returns the seconds it took. RuntimeError with its last words if it fails."""
    begin = time.monotonic()
    if status := start(job, log).wait():
        raise RuntimeError(f"exit status {status}: {log.read_text(errors='replace')[-2000:]}")
    return time.monotonic() - begin


def kill(job: Sequence[str], log: Path, seconds: float) -> bool:
    """Start a job and kill its process group after some seconds; False if it had ended by itself before."""
    process = start(job, log)
    try:
        process.wait(seconds)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def figures(run: Path) -> dict[str, Any]:
    """What a run measured: ``metrics.jsonl`` byte for byte, and the rows of the table without their times."""
    summary = json.loads((run / "summary.json").read_text())
    summary.pop("reproduction")
    return {"metrics": (run / "metrics.jsonl").read_text(), "summary": without_times(summary)}


def without_times(value: Any) -> Any:
    """The same nested value without the entries that are times."""
    if isinstance(value, dict):
        return {key: without_times(entry) for key, entry in value.items() if "seconds" not in key}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def stage(run: Path) -> str:
    """Where a killed run had got to: the newest of its files."""
    files = [file for file in run.rglob("*") if file.is_file() and file.name not in ("lock", "log")]
    newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
    return "nothing written" if newest is None else str(newest.relative_to(run))


def survive(job: Sequence[str], run: Path, moments: Sequence[float], expected: dict[str, Any]) -> dict[str, Any]:
    """Kill a job at each of these moments after its start, one after the other, then run it to its end."""
    log, stages, killed = run.with_suffix(".out"), [], []
    for seconds in moments:
        killed.append(kill(job, log, seconds))
        stages.append(stage(run))
    entry: dict[str, Any] = {"seconds": [round(s, 2) for s in moments], "killed": killed, "newest_file": stages}
    try:
        entry["seconds_to_finish"] = round(finish(job, log), 2)
        found = figures(run)
        entry["equal"] = found == expected
        entry["differs"] = [key for key in expected["summary"] if found["summary"].get(key) != expected["summary"][key]]
        entry["leftovers"] = len(list(run.rglob(".*.tmp-*")))
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
    parser.add_argument("--reference", type=Path, help="a finished, uninterrupted run of the same options")
    options, extra = parser.parse_known_args()  # further options go to the job
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        if options.reference is None:
            duration = finish(command(whole, options.config, extra), whole.with_suffix(".out"))
        else:
            whole = options.reference
            duration = read_result(whole).reproduction.seconds
        expected = figures(whole)
        print(f"uninterrupted: {duration:.1f} s", flush=True)
        entries = []
        for index, moment in enumerate(spaced(options.moments, duration, options.moments_seed)):
            run = Path(place) / f"killed-{index}"
            entry = survive(command(run, options.config, extra), run, [moment], expected)
            entries.append(entry)
            entry["moment"] = "during the job" if entry["killed"][0] else "after its end: not killed"
            verdict = "same figures" if entry["equal"] else f"DIFFERENT: {entry.get('error') or entry['differs']}"
            print(f"killed at {moment:5.1f} s ({entry['newest_file'][0]}): {verdict}", flush=True)
    equal = sum(entry["equal"] for entry in entries)
    print(f"{equal} of {len(entries)} killed jobs ended with the uninterrupted job's figures, bit for bit")
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
