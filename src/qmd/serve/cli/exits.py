"""What a process says when it ends: the exit codes, in one place."""

from __future__ import annotations

FOUND = 0
"""Done. A search without hits is done, too: it says so on stderr and gives an empty list."""
FAILED = 1
"""The work could not be done, or `check` found a problem."""
USAGE = 2
"""The command line or the configuration is wrong."""
NOT_FOUND = 3
"""The named index, document, collection or context does not exist."""
INTERRUPTED = 130
"""Ctrl-C; what was done is kept."""
OUTPUT_CLOSED = 141
"""The reader of a pipe went away (`qmd search x | head -1`)."""
