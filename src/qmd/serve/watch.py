"""Watches the folders of an index and brings it up to date shortly after they have become quiet."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from qmd.errors import QmdError, StoreBusy
from qmd.serve.service import Service

if TYPE_CHECKING:
    from qmd.types import Progress

log = logging.getLogger("qmd.serve")
QUIET_MS = 300
"""No change for so long, and what came before is indexed."""
AT_LEAST_EVERY_MS = 1500
LOOK_MS = 1000
"""How often it is looked whether there are other folders to watch."""
PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""While another process writes the index: it is tried again after the first, then twice as long each time."""
TELL_EVERY_S = 0.2
BEHIND = 10
"""Niceness of the thread that indexes."""


class _Ended(KeyboardInterrupt):
    """Raised where a run may end: what is done is kept, the rest comes with the next start."""


class Watcher:
    """One thread. It updates everything once when it starts: nobody watched before."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._stop = threading.Event()
        self._unread: set[str] = set()
        self._pause_s = self._not_before = 0.0
        self._thread = threading.Thread(target=self._run, name="qmd-watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends at the next batch; what was indexed is kept."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _run(self) -> None:
        _step_back()
        try:
            self.update(self._roots())
            while not self._stop.is_set():
                roots = self._roots()
                try:
                    self._watch(roots, polling=False)
                except OSError as error:  # too many folders for the system to watch: look at them instead
                    log.warning(
                        "folders are looked at every second: %s", error.strerror or type(error).__name__
                    )
                    self._watch(roots, polling=True)
        except _Ended:
            return

    def _roots(self) -> Mapping[str, str]:
        """name -> folder of the collections whose folders are there."""
        try:
            found = {c.name: c.root for c in self.service.index.store.collections()}
        except QmdError:
            return {}
        return {name: root for name, root in found.items() if os.path.isdir(root)}

    def _watch(self, roots: Mapping[str, str], *, polling: bool) -> None:
        """Returns when the folders to watch are other ones."""
        from watchfiles import watch

        self.service.events.publish("watch", folders=len(roots), polling=polling)
        if not roots:
            self._stop.wait(LOOK_MS / 1000)
            return
        for changes in watch(
            *dict.fromkeys(roots.values()),
            watch_filter=lambda _, path: _counts(path, roots.values()),
            debounce=AT_LEAST_EVERY_MS,
            step=QUIET_MS,
            rust_timeout=LOOK_MS,
            yield_on_timeout=True,
            stop_event=self._stop,
            raise_interrupt=False,
            force_polling=polling or None,
            ignore_permission_denied=True,
        ):
            paths = [path for _, path in changes]
            changed = {name for name, root in roots.items() if any(_below(p, root) for p in paths)}
            self.update([name for name in roots if name in changed or name in self._unread])
            if self._roots() != roots:
                return

    def update(self, names: Iterable[str]) -> None:
        """Index what changed in these collections, then make the vectors that are missing."""
        changed, names = False, list(names)
        if time.monotonic() < self._not_before:
            self._unread.update(names)
            return
        for at, name in enumerate(names):
            try:
                report = self.service.index.update([name], progress=self._progress(name))[name]
            except StoreBusy as error:
                self._unread.update(names[at:])  # no file will tell of this change again
                log.warning("another process writes the index: what changed is read after it has ended")
                self._failed(error, collection=name)
                self._wait_longer()
                return
            except Exception as error:  # noqa: BLE001  what fails in one folder must not end the watch over all
                self._failed(error, collection=name)
                continue
            self._unread.discard(name)
            counts = {k: getattr(report, k) for k in ("added", "changed", "moved", "removed")}
            changed = changed or any(counts.values())
            if any(counts.values()):
                log.info("indexed: %s", ", ".join(f"{n} {k}" for k, n in counts.items() if n))
            self.service.events.publish("index", collection=name, stage="indexed", **counts)
        if changed or not self.service.ready or self._pending():
            self._embed()
        else:
            self._pause_s = 0.0

    def _wait_longer(self) -> None:
        self._pause_s = min(2 * self._pause_s or PAUSE_S, LONGEST_PAUSE_S)
        self._not_before = time.monotonic() + self._pause_s

    def _pending(self) -> bool:
        try:
            store = self.service.index.store
            return bool(store.vectors.pending(self.service.embedder.fingerprint, 1))
        except QmdError:
            return False

    def _embed(self) -> None:
        try:
            with self.service.embedder.in_background():
                report = self.service.index.embed(progress=self._progress(""))
        except Exception as error:  # noqa: BLE001  the next change may mend it, and texts are found without
            self._failed(error)
            if isinstance(error, StoreBusy):
                self._wait_longer()
            return
        self._pause_s = 0.0
        if self._stop.is_set():
            raise _Ended
        self.service.events.publish(
            "index", stage="ready", embedded=report.embedded, remaining=report.remaining
        )

    def _failed(self, error: Exception, **where: str) -> None:
        if not isinstance(error, QmdError):
            log.error("indexing failed", exc_info=error)
        self.service.events.publish("index", **where, stage="failed", message=str(error))

    def _progress(self, collection: str) -> Progress:
        told = 0.0

        def tell(stage: str, done: int, total: int | None) -> None:
            nonlocal told
            if self._stop.is_set():
                raise _Ended
            now = time.monotonic()
            if now - told >= TELL_EVERY_S or done == total:
                told = now
                self.service.events.publish(
                    "index", collection=collection, stage=stage, done=done, total=total
                )

        return tell


def _step_back() -> None:
    """Searches go before indexing, where the system lets a thread say so."""
    try:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BEHIND)
    except (OSError, AttributeError):
        return


def _below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip(os.sep) + os.sep)


def _counts(path: str, roots: Iterable[str]) -> bool:
    """Whether a change may matter: what lies in a hidden folder (and the index in `.qmd/`) is not indexed."""
    for root in roots:
        if _below(path, root):
            parts = PurePath(path).relative_to(Path(root)).parts
            if not any(part in (".git", ".qmd") for part in parts):
                return True
    return False
