"""Child processes that cannot outlive this one.

A test run that is killed must not leave an API server behind. Python offers no safe way to set a parent-death
signal (`preexec_fn` may deadlock in a threaded process), but util-linux's setpriv(1) does: it sets the signal
and then becomes the program, under the same pid. Linux sends that signal when the *thread* that forked ends,
not the process, so servers are forked from a thread of their own that lives until they are stopped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from hack.controlplane.errors import ControlPlaneError, last_lines

KILL_DEADLINE_S = 10.0


def bound_to_parent(command: Sequence[str]) -> list[str]:
    """Prefix `command` so that it is killed when the thread that starts it ends.

    Without setpriv the command is returned as it is: only the clean-up after a killed parent is lost.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--", *command] if setpriv else list(command)


class Child:
    """One long-running server process with its log.

    `stop_deadline_s`: seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, name: str, command: Sequence[str], *, log: Path, folder: Path, stop_deadline_s: float) -> None:
        self.name = name
        self.log = log
        self._command = bound_to_parent(command)
        self._folder = folder
        self._stop_deadline_s = stop_deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._forker: ThreadPoolExecutor | None = None

    @property
    def pid(self) -> int | None:
        """Process id, or None when it is not running."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start the process; its output is appended to the log.

        Raises ControlPlaneError if the program cannot be executed.
        """
        self._forker = ThreadPoolExecutor(max_workers=1, thread_name_prefix=self.name)
        try:
            self._process = self._forker.submit(self._fork).result()
        except OSError as error:
            self._forker.shutdown()
            raise ControlPlaneError(
                self.name,
                reason=f"cannot be executed: {error}",
                remedy="check the file, or let it be built anew with `python -m hack.controlplane ensure --rebuild`",
            ) from error

    def stop(self) -> None:
        """End the process and wait until it is gone; may be repeated.

        SIGTERM first, SIGKILL after the deadline given at construction.
        """
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(self._stop_deadline_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(KILL_DEADLINE_S)
            self._process = None
        if self._forker is not None:
            self._forker.shutdown()
            self._forker = None

    def require_running(self) -> None:
        """Raise ControlPlaneError, quoting the log, if the process has ended by itself."""
        if self._process is None or self._process.poll() is None:
            return
        raise ControlPlaneError(
            self.name,
            reason=f"ended by itself with code {self._process.returncode}; the end of {self.log}:\n"
            f"{last_lines(self.log)}",
            remedy="the last lines of the log usually name the flag, port or file at fault",
        )

    def _fork(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                # A Ctrl-C on the terminal is for us; we then stop the servers in order.
                start_new_session=True,
            )


def run_logged(
    command: Sequence[str], *, log: Path, folder: Path, environment: Mapping[str, str], deadline_s: float
) -> None:
    """Run a command to its end, output appended to `log`.

    Raises ControlPlaneError, quoting the log, on a non-zero exit or after `deadline_s` seconds.
    """
    with log.open("ab") as output:
        output.write(f"$ {' '.join(command)[:2000]}\n".encode())
        output.flush()
        try:
            code: int | str = subprocess.run(
                bound_to_parent(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**os.environ, **environment},
                timeout=deadline_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            code = f"none within {deadline_s:.0f} s"
        except OSError as error:
            code = str(error)
    if code != 0:
        raise ControlPlaneError(
            Path(command[0]).name,
            reason=f"failed (exit code: {code}); the end of {log}:\n{last_lines(log)}",
            remedy="the whole output is in that log",
        )
