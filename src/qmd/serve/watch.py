"""Watches the folders of an index and brings it up to date shortly after they have become quiet."""

from __future__ import annotations

from qmd.serve.service import Service


class Watcher:
    def __init__(self, service: Service) -> None:
        self.service = service

    def start(self) -> None: ...

    def stop(self) -> None: ...
