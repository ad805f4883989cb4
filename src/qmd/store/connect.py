"""Open, create and lock the database file. Knows nothing about what is stored."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from qmd.errors import StoreBusy, StoreDamaged, StoreError, StoreFull, StoreTooNew
from qmd.store.cjk import fold_letters
from qmd.store.schema import APPLICATION_ID, FORMAT_VERSION, PAGE_SIZE, migrate

BUSY_TIMEOUT_S = 30.0
Row = tuple[Any, ...]
_WRITES = ("_WRITE", "_SHMSIZE")  # what a file system without room answers in place of "full"

_NO_TEXT = "Could not decode to UTF-8"  # what Python says of a text that is none; it has no error code


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into ours: what happened, to which file, and the remedy."""
    try:
        yield
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
        raise _explain(error, path) from error


def _explain(error: sqlite3.DatabaseError | UnicodeDecodeError, path: Path) -> Exception:
    if isinstance(error, UnicodeDecodeError) or str(error).startswith(_NO_TEXT):
        return _damaged(error, path)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreBusy(
            f"{path} is being written by another process and stayed locked for {BUSY_TIMEOUT_S:.0f} s. "
            "Wait for that `qmd update` or `qmd embed` to finish, then run this again."
        )
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _name(error).endswith(_WRITES)):
        return StoreFull(
            f"no space left to write {path} ({error}). What was committed before still answers. "
            "Free some disk space, then run the same command again; it resumes."
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _damaged(error, path)
    if code == sqlite3.SQLITE_READONLY:
        return StoreError(
            f"{path} cannot be written ({error}). Check the file's and the folder's permissions."
        )
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_AUTH):
        return StoreError(f"{path} cannot be opened or read ({error}). Check the path and its permissions.")
    return error


def _damaged(error: Exception, path: Path) -> StoreDamaged:
    return StoreDamaged(
        f"{path} is damaged ({error}). Run `qmd cleanup` to repair what can be derived; if that fails, "
        "move the file away and run `qmd update`: your documents are not touched."
    )


def _name(error: sqlite3.DatabaseError) -> str:
    return str(getattr(error, "sqlite_errorname", ""))


class _Own:
    """The connection of one thread: closed when the thread ends, unless that is in a forked child."""

    def __init__(self, db: sqlite3.Connection, among: set[sqlite3.Connection]) -> None:
        self.db = db
        self._among = among
        self._pid = os.getpid()
        among.add(db)

    def __del__(self) -> None:
        if os.getpid() == self._pid:
            self._among.discard(self.db)
            with suppress(sqlite3.Error):
                self.db.close()


class Connection:
    """SQLite connections to one file, one for each thread. All statements pass through here.

    Rows are fetched at once, so that every error is raised, and explained, by the call that caused it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._local = threading.local()
        self._all: set[sqlite3.Connection] = set()
        self._writer = threading.RLock()
        self._pid = os.getpid()
        self._closed = False
        self.raw  # noqa: B018  opens now, so that errors show at the door

    @property
    def raw(self) -> sqlite3.Connection:
        """This thread's connection."""
        own: _Own | None = getattr(self._local, "own", None)
        if own is None:
            if self._closed:
                raise StoreError(f"{self.path} was closed. Open the store again.")
            with explained(self.path):
                self._local.own = own = _Own(_connect(self.path), self._all)
        return own.db

    def all(self, sql: str, parameters: Sequence[object] = ()) -> list[Row]:
        with explained(self.path):
            return self.raw.execute(sql, parameters).fetchall()

    def one(self, sql: str, parameters: Sequence[object] = ()) -> Row | None:
        with explained(self.path):
            row: Row | None = self.raw.execute(sql, parameters).fetchone()
            return row

    def value(self, sql: str, parameters: Sequence[object] = ()) -> Any:
        row = self.one(sql, parameters)
        return None if row is None else row[0]

    def run(self, sql: str, parameters: Sequence[object] = ()) -> int:
        """Execute; gives the number of rows changed."""
        with explained(self.path):
            return self.raw.execute(sql, parameters).rowcount

    def many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        with explained(self.path):
            self.raw.executemany(sql, rows)

    @contextmanager
    def transaction(self, *, wait_s: float = BUSY_TIMEOUT_S) -> Iterator[None]:
        """One write transaction: all of it is kept, or none. Other writers wait up to `wait_s`, then StoreBusy."""
        if not self._writer.acquire(timeout=wait_s):
            raise StoreBusy(
                f"another thread has been writing {self.path} for {wait_s:.0f} s. Try again later."
            )
        try:
            db = self.raw
            if db.in_transaction:
                raise StoreError("a write transaction is already open in this thread.")
            with explained(self.path):
                _begin(db, wait_s)
            try:
                yield
                with explained(self.path):
                    db.execute("COMMIT")
            finally:
                if self.raw.in_transaction:
                    with suppress(sqlite3.Error):
                        self.raw.execute("ROLLBACK")
        finally:
            self._writer.release()

    def snapshot(self) -> Any:
        """A read transaction: everything read inside sees one state of the database."""
        return _snapshot(self.raw, self.path)

    def checkpoint(self) -> None:
        """Move the log into the database file and cut it to nothing, if nobody is in the way."""
        self.run("PRAGMA busy_timeout = 200")
        try:
            self.one("PRAGMA wal_checkpoint(TRUNCATE)")
        except StoreBusy:
            return  # the next writer, or the last to close, does it
        finally:
            self.run(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")

    def close(self) -> None:
        self._closed = True
        if os.getpid() == self._pid:  # a forked child must not touch its parent's locks
            for db in list(self._all):
                with suppress(sqlite3.Error):
                    db.close()
            self._all.clear()
        self._local = threading.local()

    def __del__(self) -> None:
        self.close()  # SQLite's own connections refer to themselves, and would wait for the collector


@contextmanager
def _snapshot(db: sqlite3.Connection, path: Path) -> Iterator[None]:
    if db.in_transaction:
        yield
        return
    with explained(path):
        db.execute("BEGIN")
    try:
        yield
    finally:
        with explained(path):
            db.execute("COMMIT")


def _begin(db: sqlite3.Connection, wait_s: float) -> None:
    """BEGIN IMMEDIATE, waiting with short growing pauses. Fairer than SQLite's own wait, and bounded."""
    deadline = time.monotonic() + wait_s
    pause = 0.002
    db.execute("PRAGMA busy_timeout = 0")
    try:
        while True:
            try:
                db.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                if time.monotonic() >= deadline:
                    raise
            time.sleep(pause)
            pause = min(pause * 1.5, 0.05)
    finally:
        db.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")


def open_database(path: Path, *, create: bool) -> Connection:
    """Open an index; make it first when it does not exist and `create` is set; migrate an older one.

    Raises StoreError (missing, not an index), StoreTooNew, StoreDamaged.
    """
    if not path.exists():
        if not create:
            raise StoreError(f"there is no index at {path}. Run `qmd add FOLDER` to make one.")
        create_database(path)
    connection = Connection(path)
    try:
        _check_version(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _check_version(connection: Connection) -> None:
    path = connection.path
    application = connection.value("PRAGMA application_id")
    version = int(connection.value("PRAGMA user_version"))
    if application != APPLICATION_ID:
        raise StoreError(
            f"{path} is not a QMD index (application id {application:#x}). Choose another name with `--index`, "
            "or move the file away."
        )
    if version > FORMAT_VERSION:
        raise StoreTooNew(
            f"{path} has format version {version}; this QMD reads up to {FORMAT_VERSION}. "
            "Run `pip install --upgrade qmd-python`, or use another index with `--index`."
        )
    if version < FORMAT_VERSION:
        with connection.transaction(), explained(path):
            migrate(connection.raw, int(connection.value("PRAGMA user_version")))


def beside(database: Path, ending: str) -> Path:
    """A file that belongs to an index: `a.answers` to `a.sqlite`, `a.db.answers` to `a.db`, so that no two share one.

    What an index of another name had before stays its own, unless it may be that of `a.sqlite`."""
    former, own = database.with_suffix(ending), database.with_name(database.name + ending)
    if database.suffix == ".sqlite":
        return former
    taken = own.exists() or not former.exists() or database.with_suffix(".sqlite").exists()
    return own if taken else former


def create_database(path: Path) -> None:
    """Make an empty index in one atomic step: built under another name, then linked; the first to link wins."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot make the folder {path.parent}: {error.strerror}.") from error
    draft = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.new")
    try:
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with explained(path):
            _build(draft)
        try:
            os.link(draft, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            if not path.exists():
                os.rename(draft, path)
    except OSError as error:
        if error.errno in (28, 122, 27):  # ENOSPC, EDQUOT, EFBIG
            raise StoreFull(f"no space left to make {path}. Free some disk space and try again.") from error
        raise StoreError(f"cannot make {path}: {error.strerror}. Check the folder's permissions.") from error
    finally:
        for end in ("", "-wal", "-shm", "-journal"):
            with suppress(OSError):
                os.unlink(f"{draft}{end}")


def _build(draft: Path) -> None:
    db = sqlite3.connect(draft, isolation_level=None)
    try:
        db.execute(f"PRAGMA page_size = {PAGE_SIZE}")
        db.execute("PRAGMA auto_vacuum = NONE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("BEGIN IMMEDIATE")
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        migrate(db, 0)
        db.execute("COMMIT")
    finally:
        db.close()
    with open(draft, "r+b") as file:  # Windows flushes only what may be written
        os.fsync(file.fileno())


def _connect(path: Path) -> sqlite3.Connection:
    """A connection to a file that exists. Sets nothing that is kept in the file."""
    uri = f"file:{quote(str(path.absolute()).encode('utf-8', 'surrogateescape'))}?mode=rw"
    db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, cached_statements=256)
    db.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute("PRAGMA cache_size = -16000")
    db.execute("PRAGMA mmap_size = 0")  # a truncated file must give an error, not a signal
    db.execute("PRAGMA wal_autocheckpoint = 4000")
    db.create_function("qmd_fold", 1, lambda text: text.casefold(), deterministic=True)
    db.create_function("qmd_fold_letters", 1, fold_letters, deterministic=True)
    return db
