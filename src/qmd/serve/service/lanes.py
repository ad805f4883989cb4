"""Threads that work off a bounded queue: deadlines, cancellation, and a clear answer when there is no room."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, InvalidStateError
from contextlib import suppress
from typing import Any, Generic, TypeVar

from qmd.serve.service.limits import Abandoned, Busy, TooLate

T = TypeVar("T")
_here = threading.local()


class Job(Generic[T]):
    """One piece of work. `future` gives its result; `abandon` gives it up, wherever it stands."""

    def __init__(self, work: Callable[[], T], deadline_s: float) -> None:
        self.work = work
        self.deadline_s = deadline_s
        self.ends = time.monotonic() + deadline_s
        self.future: Future[T] = Future()
        self.abandoned = False
        self._waits: list[Future[Any]] = []

    @property
    def left_s(self) -> float:
        return self.ends - time.monotonic()

    def check(self) -> None:
        """Raises Abandoned or TooLate when there is no use in going on."""
        if self.abandoned:
            raise Abandoned
        if self.left_s <= 0:
            raise TooLate(self.deadline_s)

    def wait_for(self, future: Future[T]) -> T:
        """The result of something this job depends on, within the job's time."""
        self._waits.append(future)
        try:
            self.check()
            return future.result(timeout=max(0.0, self.left_s))
        except TimeoutError:
            future.cancel()
            raise TooLate(self.deadline_s) from None
        except CancelledError:
            raise Abandoned from None
        finally:
            self._waits.remove(future)

    def abandon(self) -> None:
        self.abandoned = True
        self.future.cancel()
        for future in list(self._waits):
            if future.cancel():
                continue
            with suppress(InvalidStateError):
                future.set_exception(Abandoned())

    def run(self) -> None:
        if not self.future.set_running_or_notify_cancel():
            return
        _here.job = self
        try:
            self.check()
            result = self.work()
        except BaseException as error:  # noqa: BLE001  whatever it is, it belongs to whoever waits
            self.future.set_exception(error)
        else:
            self.future.set_result(result)
        finally:
            _here.job = None


def current_job() -> Job[Any] | None:
    """The job that this thread is working on."""
    job: Job[Any] | None = getattr(_here, "job", None)
    return job


def check_job() -> None:
    """Raises Abandoned or TooLate if the job of this thread is of no use any more."""
    job = current_job()
    if job is not None:
        job.check()


class Lane:
    """`workers` threads, at most `waiting` jobs in line. Threads start when they are needed.

    The thread that was busy last is asked first: what it has in its caches (a database connection each) is warm.
    """

    def __init__(self, name: str, workers: int, waiting: int) -> None:
        self.name = name
        self.workers = workers
        self.waiting = waiting
        self.running = 0
        self._line: deque[Job[Any]] = deque()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._idle: list[threading.Condition] = []
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._mean_s = 0.05

    @property
    def depth(self) -> int:
        """Jobs that wait."""
        return len(self._line)

    def submit(self, work: Callable[[], T], deadline_s: float) -> Job[T]:
        """Raises Busy when the line is full or the lane is closing."""
        job = Job(work, deadline_s)
        with self._changed:
            if self._closed or len(self._line) >= self.waiting:
                ahead = (len(self._line) + 1) * self._mean_s / self.workers
                raise Busy(len(self._line), max(1, min(60, math.ceil(ahead))))
            self._line.append(job)
            if self._idle:
                self._idle.pop().notify()
            elif len(self._threads) < self.workers:
                thread = threading.Thread(target=self._work, name=f"qmd-{self.name}", daemon=True)
                self._threads.append(thread)
                thread.start()
        return job

    def _work(self) -> None:
        turn = threading.Condition(self._lock)
        while True:
            with self._lock:
                while not self._line:
                    if self._closed:
                        return
                    if turn not in self._idle:
                        self._idle.append(turn)
                    turn.wait()
                if turn in self._idle:
                    self._idle.remove(turn)
                job = self._line.popleft()
                self.running += 1
            begin = time.monotonic()
            job.run()
            spent = time.monotonic() - begin
            with self._changed:
                self.running -= 1
                self._mean_s += 0.1 * (spent - self._mean_s)
                self._changed.notify_all()
            del job  # an idle thread holds on to nothing

    def drain(self, within_s: float) -> bool:
        """Take no more jobs and finish those accepted. Returns False when time ran out."""
        deadline = time.monotonic() + within_s
        with self._changed:
            self._closed = True
            for turn in self._idle:
                turn.notify()
            while self._line or self.running:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            clean = not self._line and not self.running
            for job in self._line:
                job.abandon()
            self._line.clear()
        return clean
