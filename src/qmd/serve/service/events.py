"""What happens in the service, told to whoever listens; a slow listener loses the oldest, and nobody waits for it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

KEPT = 256
Event = tuple[str, Mapping[str, Any]]


class Listener:
    """A bounded line of events. `wake` is called, from any thread, when there is something to take."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.wake = wake
        self._line: deque[Event] = deque(maxlen=KEPT)

    def put(self, event: Event) -> None:
        self._line.append(event)
        self.wake()

    def take(self) -> list[Event]:
        taken: list[Event] = []
        while self._line:
            taken.append(self._line.popleft())
        return taken


class Events:
    """Publishes to any number of listeners; remembers the last event of each name for those who come later."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._listeners: list[Listener] = []
        self.last: dict[str, Mapping[str, Any]] = {}

    def publish(self, name: str, **data: Any) -> None:
        with self._guard:
            self.last[name] = data
            listeners = list(self._listeners)
        for listener in listeners:
            listener.put((name, data))

    def listen(self, wake: Callable[[], None]) -> Listener:
        listener = Listener(wake)
        with self._guard:
            for name, data in self.last.items():
                listener.put((name, data))
            self._listeners.append(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        with self._guard:
            if listener in self._listeners:
                self._listeners.remove(listener)

    @property
    def listeners(self) -> int:
        return len(self._listeners)
