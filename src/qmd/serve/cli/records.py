"""Plain mappings in every machine format: the one place where JSON, JSON lines, CSV and XML are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import msgspec

from qmd.serve.cli.escape import csv_row, xml, xml_attribute
from qmd.serve.cli.screen import encodable

Record = Mapping[str, Any]


def plain(value: Any) -> Any:
    """Turn frozen results into mappings, lists and scalars that every format can write, valid Unicode
    throughout.
    """
    if isinstance(value, str):
        return encodable(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if value - value == 0 else None
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {encodable(str(k)): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        return plain(value.item())
    return encodable(str(value))


def to_json(value: Any) -> str:
    """Indented JSON, ended by a newline; numbers that JSON has no name for become null."""
    return msgspec.json.format(msgspec.json.encode(plain(value)), indent=2).decode() + "\n"


def to_jsonl(records: Sequence[Any]) -> str:
    """One record a line."""
    return "".join(msgspec.json.encode(plain(r)).decode() + "\n" for r in records)


def to_csv(records: Sequence[Record], columns: Sequence[str]) -> str:
    """A header, then one row a record; lists joined by spaces."""

    def cell(value: Any) -> str | int | float | None:
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, (list, tuple)):
            return " ".join(map(str, value))
        return value if value is None or isinstance(value, (str, int, float)) else str(value)

    rows = [",".join(columns), *(csv_row(cell(r.get(c)) for c in columns) for r in records)]
    return "\n".join(rows) + "\n"


def to_xml(root: str, item: str, records: Sequence[Record], *, text: Sequence[str] = ()) -> str:
    """`<root><item a="...">text</item></root>`: keys are attributes, the first key of `text` that is there
    the content.
    """
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f"<{root}>"]
    for record in records:
        content = next((key for key in text if record.get(key) is not None), None)
        attributes = "".join(
            f' {key}="{xml_attribute(_flat(value))}"'
            for key, value in record.items()
            if key not in text and value is not None
        )
        if content is None:
            lines.append(f"<{item}{attributes}/>")
        else:
            lines.append(f"<{item}{attributes}>\n{xml(str(record[content]))}\n</{item}>")
    return "\n".join([*lines, f"</{root}>"]) + "\n"


def _flat(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "; ".join(map(str, value))
    if isinstance(value, Mapping):
        return msgspec.json.encode(plain(value)).decode()
    return str(value)
