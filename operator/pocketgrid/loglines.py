"""Log lines that stay lines, whoever's words are in them. Stands beside `clock` because operator and agents use it.

Device names, reasons, messages of engines and of manifests come from elsewhere. In a log they must neither begin a line
of their own, which would look like one of ours, nor move a terminal's cursor or colour it.
"""

from __future__ import annotations

import logging

LONGEST_LINE = 4096
"""Characters of one message."""


def one_line(text: str, limit: int = LONGEST_LINE) -> str:
    """`text` without anything that is not printable, escaped as in Python, and cut to `limit` characters."""
    if len(text) > limit:
        text = text[:limit] + f"... ({len(text)} characters)"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class LineFormatter(logging.Formatter):
    """Formats records so that each is one line, and a traceback is indented below it."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        """The line itself."""
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:  # noqa: N802
        """The traceback below it."""
        lines = super().formatException(ei).splitlines()  # type: ignore[arg-type]  # whatever logging gave us
        return "\n".join("    " + one_line(line) for line in lines)
