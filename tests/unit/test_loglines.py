"""Log lines stay lines, whoever's words are in them."""

import logging

import pytest

from pocketgrid.loglines import LONGEST_LINE, LineFormatter, one_line


def formatted(message: str, *arguments: object, error: BaseException | None = None) -> str:
    information = (type(error), error, error.__traceback__) if error is not None else None
    record = logging.LogRecord("room", logging.WARNING, __file__, 1, message, arguments, information)
    return LineFormatter("%(levelname)s %(name)s %(message)s").format(record)


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("plain words, also ünïcödé", "plain words, also ünïcödé"),
        ("two\nlines", r"two\nlines"),
        ("back\rto the start", r"back\rto the start"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("right\u202eto left", r"right\u202eto left"),
        ("\x00\x9b\u2028", r"\x00\x9b\u2028"),
    ],
)
def test_what_moves_a_cursor_or_begins_a_line_is_escaped(said: str, shown: str) -> None:
    assert formatted("cause=%s", said) == f"WARNING room cause={shown}"


def test_a_line_has_an_end() -> None:
    line = formatted("cause=%s", "x" * (10 * LONGEST_LINE))
    assert len(line) < LONGEST_LINE + 100
    assert str(10 * LONGEST_LINE + len("cause=")) in line
    assert one_line("abc", 2) == "ab... (3 characters)"


def test_a_traceback_is_indented_so_that_nothing_in_it_passes_for_a_line() -> None:
    try:
        raise ValueError("evil\n2026-01-01 ERROR forged\x1b[2J")
    except ValueError as error:
        first, *rest = formatted("failed", error=error).splitlines()
    assert first == "WARNING room failed"
    assert len(rest) >= 3
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
