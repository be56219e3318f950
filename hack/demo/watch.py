"""Follows one object with `kubectl get --watch`, so that the demo sees exactly what a user would."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Sequence
from typing import Any, Self

from hack.controlplane.child import bound_to_parent


class ObjectWatch:
    """The latest state of one object. Use as a context manager.

    A watch ends when the API server says so; it is then started again.
    """

    def __init__(self, kubectl: Sequence[str], kind: str, name: str, namespace: str) -> None:
        self._command = [*kubectl, "get", kind, name, "-n", namespace, "-o", "json", "--watch"]
        self._latest: dict[str, Any] = {}
        self._process: subprocess.Popen[str] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    @property
    def status(self) -> dict[str, Any]:
        """The object's status; empty before it has one."""
        status = self._latest.get("status", {})
        return status if isinstance(status, dict) else {}

    @property
    def done(self) -> int:
        """Items done, failed ones included."""
        return int(self.status.get("items", {}).get("done", 0))

    def condition(self, kind: str) -> dict[str, Any]:
        """One condition; empty if it is not there."""
        found = (c for c in self.status.get("conditions", []) if c.get("type") == kind)
        return next(found, {})

    def is_true(self, kind: str) -> bool:
        """Whether a condition is True."""
        return bool(self.condition(kind).get("status") == "True")

    @property
    def ended_badly(self) -> bool:
        """Whether a job was refused, or has failed."""
        return self.is_true("Failed") or self.condition("Accepted").get("status") == "False"

    def __enter__(self) -> Self:
        """Begin to follow."""
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        """Stop following."""
        self._over.set()
        if self._process is not None:
            self._process.terminate()
        self._thread.join()

    def _follow(self) -> None:
        # The process is started by this thread and so bound to it: it cannot outlive us.
        while not self._over.wait(0.2):
            with subprocess.Popen(
                bound_to_parent(self._command), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            ) as process:
                self._process = process
                assert process.stdout is not None
                lines: list[str] = []
                for line in process.stdout:
                    lines.append(line)
                    # kubectl writes each object indented, so a closing brace in the first column ends it.
                    if line.startswith("}"):
                        self._latest = json.loads("".join(lines))
                        lines.clear()
                process.terminate()
