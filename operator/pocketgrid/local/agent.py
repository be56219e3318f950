"""Starts one agent of a local run: the agent as it is, tied to the life of the process that started it.

A run that is killed cannot stop its agents. Without the tie they would dial a dead port for ever and keep their state
folders locked against the next run. The kernel is asked to end them instead (prctl(2), PR_SET_PDEATHSIG); killing an
agent is harmless, its journal knows what it had finished. Elsewhere than on Linux there is no such tie.

Run as ``python -m pocketgrid.local.agent PARENT_PID OPTIONS...``.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the agent."""
    parent = int(sys.argv.pop(1))
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        # It died before the tie was made.
        sys.exit(1)
    runpy.run_module("pocketgrid_agent", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
