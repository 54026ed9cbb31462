"""Work on several parts at once whose results are wanted in order.

Each job is an iterator, which a thread runs a little ahead of the one that takes the results: what
waits to be taken is bounded. When nobody takes any more, the threads end at the next result.
"""

from __future__ import annotations

import os
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator, Sequence

T = TypeVar("T")

THREADS: Final = min(8, os.cpu_count() or 1)
_WAITING: Final = 8
"""Results of one job that may wait."""

_LOOK_S: Final = 0.02
_END: Final = object()


class _Job:
    def __init__(self, results: Callable[[], Iterator[Any]], ended: threading.Event) -> None:
        self._results = results
        self._ended = ended
        self._waiting: queue.Queue[Any] = queue.Queue(_WAITING)
        self._error: BaseException | None = None

    def run(self) -> None:
        """Produce all results; called on a thread of the pool."""
        try:
            if not self._ended.is_set():
                for result in self._results():
                    if not self._put(result):
                        return
        except BaseException as error:
            self._error = error
        self._put(_END)

    def _put(self, result: Any) -> bool:
        while not self._ended.is_set():
            try:
                self._waiting.put(result, timeout=_LOOK_S)
            except queue.Full:
                continue
            return True
        return False

    def taken(self) -> Iterator[Any]:
        """All results, as they come. Raises what producing them has raised."""
        while (result := self._waiting.get()) is not _END:
            yield result
        if self._error is not None:
            raise self._error


def in_order(jobs: Sequence[Callable[[], Iterator[T]]]) -> Generator[T, None, None]:
    """Results of all jobs, those of the first first. A single job gets no thread."""
    if len(jobs) < 2 or THREADS < 2:
        for results in jobs:
            yield from results()
        return
    ended = threading.Event()
    running = [_Job(results, ended) for results in jobs]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="history-read") as threads:
        for job in running:
            threads.submit(job.run)
        try:
            for job in running:
                yield from job.taken()
        finally:
            ended.set()
