"""Read the bytes of one regular file, bounded, and decode them. Never waits on a pipe, never follows a link."""

from __future__ import annotations

import codecs
import os
import re
import stat
from pathlib import Path

MAX_FILE_BYTES = 16 * 1024 * 1024


class CannotRead(Exception):
    """A file is left out; the message is the reason that is shown."""


def read_file(path: str | Path, max_file_bytes: int = MAX_FILE_BYTES) -> bytes:
    """The bytes of a regular file.

    Raises CannotRead, saying why: no regular file, too large, no permission, gone.
    """
    flags = (
        os.O_RDONLY
        | getattr(os, "O_NOFOLLOW", 0)
        | getattr(os, "O_NONBLOCK", 0)
        | getattr(os, "O_CLOEXEC", 0)
    )
    try:
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise CannotRead(f"cannot be opened: {getattr(error, 'strerror', None) or error}") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise CannotRead("not a regular file")
        if status.st_size > max_file_bytes:
            raise CannotRead(f"too large: {status.st_size:,} bytes, the limit is {max_file_bytes:,}")
        data = os.read(descriptor, status.st_size + 1)
        if len(data) == status.st_size:
            return data
        pieces = [data]
        total = len(data)
        while data:
            data = os.read(descriptor, 1 << 20)
            pieces.append(data)
            total += len(data)
            if total > max_file_bytes:
                raise CannotRead(
                    f"too large: it grew beyond the limit of {max_file_bytes:,} bytes while it was read"
                )
        return b"".join(pieces)
    except OSError as error:
        raise CannotRead(f"cannot be read: {error.strerror or error}") from None
    finally:
        os.close(descriptor)


_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CONTROLS = bytes(set(range(32)) - {7, 8, 9, 10, 12, 13, 27})
_PRIVATE_KEY = re.compile(r"\s*-----BEGIN [A-Z ]*PRIVATE KEY")
_HIGH = bytes(range(128))
_DECLARED = re.compile(
    rb"""(?:charset|encoding)\s*=\s*["']?(big5(?:-hkscs)?|gb2312|gbk|gb18030|shift[_-]jis|euc-jp|euc-kr)\b""",
    re.I,
)
"""What a page says of itself, of encodings that hardly fit a text in another one."""


def decode(data: bytes) -> tuple[str, str]:
    """Decode a file: (text with "\\n" line ends, name of the encoding).

    Raises CannotRead for binary content, private keys, and what no known encoding explains.
    """
    text, name = _decode(data)
    if "PRIVATE KEY" in text[:8192] and _PRIVATE_KEY.match(text):
        raise CannotRead("secret: a private key")
    return _lines(text), name


def _decode(data: bytes) -> tuple[str, str]:
    for bom, name in _BOMS:
        if data.startswith(bom):
            try:
                return data[len(bom) :].decode(name), name
            except UnicodeDecodeError:
                break
    if b"\0" in data:
        return _decode_utf16(data), "utf-16"
    head = data[:8192]
    if len(head.translate(None, _CONTROLS)) < len(head) * 0.98:
        raise CannotRead("binary: control characters")
    try:
        return data.decode(), "utf-8"
    except UnicodeDecodeError:
        return _decode_legacy(data)


def _lines(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _decode_utf16(data: bytes) -> str:
    """UTF-16 without a mark, if nearly every second byte of the head is NUL; else it is binary."""
    head = data[:4096]
    pairs = len(head) // 2
    for name, zeros in (("utf-16-le", head[1::2].count(0)), ("utf-16-be", head[0::2].count(0))):
        if pairs >= 2 and zeros > 0.6 * pairs and len(data) % 2 == 0:
            try:
                text = data.decode(name)
            except UnicodeDecodeError:
                continue
            if "\0" not in text:
                return text
    raise CannotRead("binary: NUL bytes")


def _decode_legacy(data: bytes) -> tuple[str, str]:
    """Text that is not UTF-8: believe the encoding it names, else replace a few broken bytes, else detect the encoding,
    else leave the file out."""
    declared = _DECLARED.search(data, 0, 1024)
    if declared is not None:
        name = codecs.lookup(declared[1].decode()).name
        try:
            return data.decode(name), name
        except UnicodeDecodeError:
            pass
    high = len(data.translate(None, _HIGH))
    text = data.decode("utf-8", "replace")
    broken = text.count("�")
    if broken * 10 <= high or broken <= 2 < high:
        return text, f"utf-8 ({broken} broken places replaced)"
    from charset_normalizer import from_bytes

    sample = data[: 64 * 1024]
    sample = sample[: sample.rfind(b"\n") + 1] or sample
    names = ["cp932", "euc_jp", "gb18030", "big5", "euc_kr", "cp1252", "cp1251", "koi8_r", "cp1250"]
    match = from_bytes(sample, cp_isolation=names, threshold=0.3, preemptive_behaviour=True).best()
    if match is not None:
        try:
            return data.decode(match.encoding), match.encoding
        except UnicodeDecodeError:
            decoded = data.decode(match.encoding, "replace")
            if decoded.count("�") * 100 <= high:
                return decoded, f"{match.encoding} (broken places replaced)"
    if high * 20 <= len(data):
        return text, f"utf-8 ({broken} broken places replaced)"
    raise CannotRead("no known text encoding")
