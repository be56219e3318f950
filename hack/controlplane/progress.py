"""Tells a waiting person which stage runs and for how long it has.

On a terminal the line of the running stage counts its seconds; elsewhere (CI logs, files) each stage is one
line, printed when the stage begins, because a log that stays silent for two minutes looks like one that
hangs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

REDRAW_INTERVAL_S = 1.0


class Progress:
    """Prints stages to a stream; the seconds in front of each line count from the construction."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._began = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        """Seconds since construction."""
        return time.monotonic() - self._began

    def say(self, text: str) -> None:
        """Print one line at once."""
        self._stream.write(f"{self._prefix()} {text}\n")
        self._stream.flush()

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Show `title` while the body runs; a failing body leaves its line marked as failed."""
        if not self._live:
            self.say(f"{title} ...")
            yield
            return
        finished = threading.Event()
        painter = threading.Thread(target=self._repaint, args=(title, finished), daemon=True)
        painter.start()
        outcome = "failed"
        try:
            yield
            outcome = "done"
        finally:
            finished.set()
            painter.join()
            self._stream.write(f"\r{self._prefix()} {title}: {outcome}\033[K\n")
            self._stream.flush()

    def _repaint(self, title: str, finished: threading.Event) -> None:
        stage_began = time.monotonic()
        while not finished.is_set():
            self._stream.write(f"\r{self._prefix()} {title} ... {time.monotonic() - stage_began:.0f} s\033[K")
            self._stream.flush()
            finished.wait(REDRAW_INTERVAL_S)

    def _prefix(self) -> str:
        return f"[control plane {self.elapsed_s:4.0f} s]"
