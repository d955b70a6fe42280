"""Several processes that work as one: how they find each other, wait for each other, and end together.

Waiting has no limit as long as everyone lives: one process may train a classifier or draw the last batch for hours.
That everyone lives is the business of a thread in each process. It shows a sign of life, looks for those of the others,
and ends its process when one has failed or fallen silent, whatever collective operation the process is stuck in.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import json
import os
import platform
import select
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object

from sims.allocator import keep_memory
from sims.errors import UserError
from sims.threads import limit

T = TypeVar("T")

SILENCE = 300.0  # seconds without a sign of life after which a process counts as dead
FAREWELL = 5.0  # seconds that a process has to end by itself once another has failed
MEETING = timedelta(minutes=10)  # for all processes to come together at the beginning
LIMIT = timedelta(days=2)  # for one collective operation afterwards; the dead are found by the watch, not by this
_TICK = 1.0  # seconds between signs of life
_LOST = ("connection closed by peer", "connection reset by peer", "gloo", "nccl", "broken pipe", "socket")

_watch: _Watch | None = None
_joined = 0  # how many groups this process has been part of


def started() -> int:
    """How many processes a launcher has started to work together; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number among them; 0 is the main one."""
    return int(os.environ.get("RANK", "0"))


def join() -> Accelerator:
    """Take this process's place among those that a launcher started; the first call meets the others.

    Errors: UserError if the others do not come, or there are more processes on this machine than GPUs.
    """
    global _watch, _joined
    keep_memory()
    limit()
    if started() > 1 and _watch is None and not PartialState._shared_state:
        _joined += 1
        _meet()
        _watch = _Watch(f"sims/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{_joined}")
        _watch.start()
        atexit.register(leave)
    return Accelerator()


def _meet() -> None:
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true") or not torch.cuda.is_available()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if not on_cpu and here > torch.cuda.device_count():
        raise UserError(
            f"{here} processes were started on a machine with {torch.cuda.device_count()} GPU(s), and each needs one: "
            "start as many as there are GPUs (--nproc_per_node gpu)"
        )
    try:
        store, number, size = next(torch.distributed.rendezvous("env://", timeout=MEETING))
        store = torch.distributed.PrefixStore(f"group{_joined}", store)
        PartialState(cpu=on_cpu, timeout=LIMIT, store=store, rank=number, world_size=size)
        store.set_timeout(LIMIT)
    except (RuntimeError, ValueError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise UserError(
            f"process {rank()} of {started()} cannot meet the others at {address} ({_first_line(error)}): "
            "start all of them, with the same address and port"
        ) from None


def lonely() -> str | None:
    """A warning where a launcher was asked for several processes and started this one to work alone."""
    if "WORLD_SIZE" in os.environ:
        return None
    tasks = max(int(os.environ.get(name, "1")) for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    if tasks > 1:
        return f"{tasks} tasks were started, but each works alone: start torchrun in each of them (docs/scaling.md)"
    if "ACCELERATE_USE_CPU" in os.environ and (asked := _asked_of_accelerate()) > 1:
        return (
            f"accelerate was asked for {asked} processes and started one, as it does on CPUs: "
            f"use torchrun --nproc_per_node {asked} -m -- sims ..."
        )
    return None


def _asked_of_accelerate() -> int:
    """--num_processes on the command line of the process that started this one; 1 where that cannot be seen."""
    import psutil  # comes with accelerate

    with contextlib.suppress(psutil.Error, ValueError, IndexError, AttributeError):
        words = [part for word in psutil.Process().parent().cmdline() for part in word.split("=", 1)]  # type: ignore[union-attr]
        for name in ("--num_processes", "--num-processes"):
            if name in words:
                return int(words[words.index(name) + 1])
    return 1


def agree(value: T) -> T:
    """The main process's value, in all of them: what each would see by itself may differ (files, clocks, last bits)."""
    if not PartialState._shared_state or PartialState().num_processes == 1:
        return value
    shared: list[T] = broadcast_object_list([value])
    return shared[0]


def collect(items: Sequence[T]) -> list[T]:
    """The items of all processes, in the order of the processes."""
    if not PartialState._shared_state or PartialState().num_processes == 1:
        return list(items)
    found: list[T] = gather_object(list(items))
    return found


def say(sentence: str) -> None:
    """Tell the user why all processes end: once, on the terminal of the main one. The others end within seconds."""
    if _watch is not None:
        _watch.fail(sentence)
    elif rank() == 0:
        with contextlib.suppress(OSError):  # nobody reads it: the status says it too
            print(sentence, file=sys.stderr, flush=True)


def joined() -> bool:
    """Whether this process works together with others."""
    return _watch is not None


def is_over() -> bool:
    """Whether another process has said why all of them end, so that nothing is left to be said here."""
    return _watch is not None and _watch.is_over()


def is_loss(error: BaseException) -> bool:
    """Whether an error says that another process cannot be reached."""
    kinds = (RuntimeError, torch.distributed.DistError)
    return _watch is not None and isinstance(error, kinds) and any(word in str(error).lower() for word in _LOST)


def leave(*, failed: bool | None = None) -> None:
    """Part from the other processes: together with them, or at once after a failure."""
    global _watch
    watch, _watch = _watch, None
    if watch is None:
        return
    atexit.unregister(leave)
    if failed is None:  # at the end of a script, where an error that nobody caught was printed
        failed = getattr(sys, "last_value", None) is not None
        if failed:
            watch.fail(f"process {rank()} of {started()} has failed")
    state = PartialState()
    if failed or watch.is_over():
        watch.hurry()
    else:
        state.wait_for_everyone()
    watch.parting = True
    state.destroy_process_group()
    watch.stop()
    _forget()


def _forget() -> None:
    """Let a later ``join`` of this process begin anew."""
    from accelerate.state import AcceleratorState, GradientState

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _Watch(threading.Thread):
    """Shows that this process lives, and ends it when another has failed or fallen silent.

    The main process looks after all others, and they after the main one.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name="sims-watch", daemon=True)
        self.rank, self.size = rank(), started()
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = torch.distributed.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=30))
        self.store = torch.distributed.PrefixStore(name, store)
        self.hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # the store, by the launcher
        self.parting = False
        self._deadline: float | None = None
        self._said = threading.Lock()
        self._done = threading.Event()
        self._signals: tuple[int, int] | None = None
        if threading.current_thread() is threading.main_thread():  # else it may not be set
            self._signals = os.pipe()
            os.set_blocking(self._signals[1], False)
            self._woken_before = signal.set_wakeup_fd(self._signals[1], warn_on_full_buffer=False)

    def run(self) -> None:
        others = range(1, self.size) if self.rank == 0 else range(1)
        heard = {other: (b"", time.monotonic()) for other in others}
        beat = 0
        while not self._done.is_set():
            try:
                beat += 1
                self.store.set(f"life/{self.rank}", str(beat))
                if self._deadline is None and self.store.check(["failed"]):
                    self._pass_on()
                    self._end()
                elif self._deadline is None and (silent := self._silent(heard)) is not None:
                    self.fail(f"sims: process {silent} of {self.size} has not answered for {SILENCE:.0f} s; "
                              "run the same command again to continue")  # fmt: skip
                    self._end()
            except RuntimeError:  # whoever kept the store is gone
                if not (self.parting or self._done.is_set()) and self._deadline is None:
                    if self.rank == (0 if self.hosted else 1):
                        self._print("sims: the launcher or the main process is gone; "
                                    "run the same command again to continue")  # fmt: skip
                    self._end()
            if self._deadline is not None and time.monotonic() > self._deadline:
                os._exit(2)
            self._sleep()

    def _silent(self, heard: dict[int, tuple[bytes, float]]) -> int | None:
        """The first process that has shown no sign of life for too long."""
        now = time.monotonic()
        for other, (last, when) in heard.items():
            beat = self.store.get(f"life/{other}") if self.store.check([f"life/{other}"]) else b""
            if beat != last:
                heard[other] = (beat, now)
            elif now - when > SILENCE and not self.parting:
                return other
        return None

    def _sleep(self) -> None:
        """Wait a moment; an interruption that the main thread is too busy to see starts the clock."""
        if self._signals is None:
            self._done.wait(_TICK)
            return
        ready, _, _ = select.select([self._signals[0]], [], [], _TICK)
        if ready and signal.SIGINT in os.read(self._signals[0], 4096):
            self.hurry()

    def hurry(self) -> None:
        """From now on the process has a few seconds to end by itself."""
        if self._deadline is None:
            self._deadline = time.monotonic() + FAREWELL

    def _end(self) -> None:
        self.hurry()
        _thread.interrupt_main()

    def is_over(self) -> bool:
        """Whether a process has failed; also where that can no longer be asked."""
        try:
            over = self.store.check(["failed"])
            if over:
                self._pass_on()
        except RuntimeError:
            return True
        return over

    def fail(self, sentence: str) -> None:
        """Leave the sentence for the main process to print; print it here if that one does not."""
        self.hurry()
        try:
            if self.rank != 0:
                time.sleep(0.5)  # what fails everywhere is said by the main process, without a place
                sentence += f" (process {self.rank} of {self.size}, on {platform.node()})"
            self.store.compare_set("failed", "", sentence)
            self._pass_on()
            limit = time.monotonic() + FAREWELL / 2
            while not self.store.check(["said"]):
                if time.monotonic() > limit:
                    return self._print(sentence)
                time.sleep(0.05)
        except RuntimeError:
            self._print(sentence)

    def _pass_on(self) -> None:
        """Print what a process has left to be said: the main one does, for all."""
        with self._said:
            if self.rank == 0 and not self.store.check(["said"]):
                self._print(self.store.get("failed").decode())
                self.store.set("said", "")

    def _print(self, sentence: str) -> None:
        shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # the cursor, which a progress bar hides
        print(f"{shown}{sentence}", file=sys.stderr, flush=True)
        if file := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # for the last words of torchrun
            with contextlib.suppress(OSError), open(file, "w") as opened:
                about = {"py_callstack": sentence.strip(), "timestamp": str(int(time.time()))}
                json.dump({"message": {"message": sentence.strip(), "extraInfo": about}}, opened)

    def stop(self) -> None:
        self._done.set()
        if self._signals is not None:
            signal.set_wakeup_fd(self._woken_before)
            os.write(self._signals[1], b"\0")
        self.join(timeout=FAREWELL)
        for end in self._signals or ():
            os.close(end)
