"""Tells a waiting person which measurement runs, which round, and what it gave."""

from __future__ import annotations

import sys
import time


class Progress:
    """Prints lines to standard error; standard output is for figures alone."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._measurement = ""

    def begin(self, measurement: str) -> None:
        """A measurement begins."""
        self._measurement = measurement
        self.say("begins")

    def say(self, text: str) -> None:
        """Something of the current measurement has happened."""
        elapsed = time.monotonic() - self._began
        print(f"[bench {elapsed:4.0f} s] {self._measurement}: {text}", file=sys.stderr, flush=True)
