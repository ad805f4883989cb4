"""Every error of the project. A message says the state, what was expected, and the remedy."""

from __future__ import annotations

import re


def hide_password(text: str) -> str:
    """A text without the users and passwords of the addresses in it: `http://host/` of `http://user:secret@host/`."""
    return re.sub(r"(https?://)[^\s/?#]*@", r"\1", text, flags=re.IGNORECASE)


class QmdError(Exception):
    """Base of all errors that QMD raises on purpose; the command line prints these without a traceback."""

    exit_code = 1

    def __str__(self) -> str:
        return hide_password(super().__str__())


class UsageError(QmdError):
    """The request itself is wrong: a malformed reference, options that exclude each other."""

    exit_code = 2


class ConfigError(QmdError):
    """The configuration cannot be read or has an unknown or ill-typed key."""

    exit_code = 2


class NotFound(QmdError):
    """The named document, collection or model does not exist."""

    exit_code = 3


class MissingExtra(QmdError, ImportError):
    """A feature needs a package that the base install does not bring."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs packages that are not installed. Run `pip install 'qmd-python[{extra}]'`."
        )
        self.extra = extra


class StoreError(QmdError):
    """The index database cannot be used."""


class StoreBusy(StoreError):
    """Another process held the write lock for longer than the wait allowed."""


class StoreDamaged(StoreError):
    """The database or a derived file fails its integrity check."""


class StoreTooNew(StoreError):
    """The database was written by a newer version of QMD."""


class StoreFull(StoreError):
    """The disk is full; what was committed before still answers."""


class ModelError(QmdError):
    """A model file is missing, damaged, of the wrong shape, or cannot be downloaded."""


class ModelMismatch(ModelError):
    """The index was built with another model than the one the configuration asks for."""


class BadPicture(QmdError):
    """A picture cannot be opened: damaged, cut short, of an unknown format, or with too many pixels."""


class IndexNotTrained(QmdError, RuntimeError):
    """A vector index was asked to add or search before `train`."""
