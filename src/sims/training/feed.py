"""Batches and their noise; where a GPU trains, the next ones are made while it works on the present ones."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Batch = TypeVar("Batch")
Position = tuple[int, int]  # first sample, number of samples


class Feed(Generic[Batch]):
    """``make(first, count)``, a function of the position alone; with ``ahead`` a thread makes what comes next."""

    def __init__(self, make: Callable[[int, int], Batch], ahead: bool) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, "batches") if ahead else None  # one: data need not be safe for several
        self._coming: dict[Position, Future[Batch]] = {}

    def take(self, position: Position, following: Position | None = None) -> Batch:
        """The batch at this position; meanwhile the ``following`` one is begun. Errors: those of ``make``."""
        if self._thread is None:
            return self._make(*position)
        present = self._coming.pop(position, None) or self._thread.submit(self._make, *position)
        self._coming = {} if following is None else {following: self._thread.submit(self._make, *following)}
        return present.result()

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
