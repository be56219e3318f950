"""Command line: `python -m hack.controlplane ensure` and `... up`."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from hack.controlplane import ControlPlane, ControlPlaneError, Source, ensure
from hack.controlplane.kubeconfig import require_ours, write_private

CHECK_INTERVAL_S = 0.5

_DESCRIPTION = """\
Finds, builds and runs a real Kubernetes API server for the demo and the tests.

It is looked for in this order:
  1. a cluster of your own: --kubeconfig/--context, or POCKETGRID_KUBECONFIG/POCKETGRID_CONTEXT
  2. k3s on PATH (root only)
  3. KUBEBUILDER_ASSETS: a folder with kube-apiserver, etcd and kubectl
  4. the cache of an earlier build, under $XDG_CACHE_HOME or ~/.cache
  5. a build from Debian's source package: 2 minutes on 2 cores, once, no root needed
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 done, 1 failed with a message, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        source = ensure(
            options.kubeconfig,
            options.context,
            rebuild=options.command == "ensure" and options.rebuild,
        )
        print(source, flush=True)
        if options.command == "up":
            _serve(source, options.data_folder, options.kubeconfig_out)
    except ControlPlaneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _serve(source: Source, data_folder: Path | None, kubeconfig_out: Path | None) -> None:
    if kubeconfig_out is not None:
        require_ours(kubeconfig_out)
    stopping = threading.Event()
    # From here on a signal means an orderly stop, also while the servers are still starting.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())
    with ControlPlane(source, data_folder) as control_plane:
        kubeconfig = control_plane.kubeconfig
        if kubeconfig_out is not None:
            write_private(kubeconfig_out, kubeconfig.read_text(encoding="utf-8"))
            kubeconfig = kubeconfig_out.absolute()
        try:
            print(f"ready:   export KUBECONFIG={kubeconfig}", flush=True)
            print(f"then:    {control_plane.kubectl.name} get namespaces", flush=True)
            print(f"logs:    {control_plane.data_folder}", flush=True)
            print("stop it: Ctrl-C", flush=True)
            while not stopping.wait(CHECK_INTERVAL_S):
                control_plane.require_running()
        finally:
            if kubeconfig_out is not None:
                kubeconfig_out.unlink(missing_ok=True)
    print("stopped", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m hack.controlplane",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--kubeconfig", type=Path, metavar="PATH", help="use the cluster in this file, start nothing")
    where.add_argument("--context", metavar="NAME", help="the context in it; default: its current one")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    ensuring = commands.add_parser("ensure", parents=[where], help="find an API server, or build one, and say where")
    ensuring.add_argument("--rebuild", action="store_true", help="build anew, whatever there is")
    serving = commands.add_parser("up", parents=[where], help="run it in the foreground until Ctrl-C or SIGTERM")
    serving.add_argument(
        "--kubeconfig-out",
        type=Path,
        metavar="PATH",
        help="write the admin's kubeconfig here as well; removed at the end",
    )
    serving.add_argument("--data-folder", type=Path, metavar="PATH", help="keep data and logs here; default: temporary")
    return parser


if __name__ == "__main__":
    sys.exit(main())
