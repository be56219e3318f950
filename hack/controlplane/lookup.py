"""Where the Kubernetes API server for the demo and the tests comes from.

The order puts what a person asked for before what the machine happens to have, and anything ready before
anything that must be built:

1. a cluster of the user's own: arguments, or POCKETGRID_KUBECONFIG / POCKETGRID_CONTEXT. Nothing is started.
   KUBECONFIG alone is not enough: it may well point at production.
2. `k3s` on PATH (see k3s.py);
3. KUBEBUILDER_ASSETS, the folder of envtest;
4. the cache of an earlier build;
5. a build from Debian's source into that cache (see build.py).

A wish that cannot be met is an error and never falls through to the next way; a way that nobody asked for and
that is not there is only a reason, kept for the case that no way is left.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from hack.controlplane.build import build
from hack.controlplane.cache import PROGRAMS, SERVERS, cached_programs, missing_programs
from hack.controlplane.errors import ControlPlaneError
from hack.controlplane.progress import Progress


class Kind(Enum):
    """The ways to come by an API server; the value completes the sentence "using ..."."""

    CLUSTER = "your own cluster"
    K3S = "k3s from PATH"
    ASSETS = "the programs in KUBEBUILDER_ASSETS"
    CACHE = "the programs built from Debian's source"


@dataclass(frozen=True, slots=True)
class Source:
    """A way that will work: which kind, and where.

    `where` is a kubeconfig file for CLUSTER, the executable for K3S, otherwise a folder of programs.
    `context` is the kubeconfig context for CLUSTER; None means the file's current one.
    """

    kind: Kind
    where: Path
    context: str | None = None

    def __str__(self) -> str:
        context = f", context {self.context}" if self.context else ""
        return f"using {self.kind.value}: {self.where}{context}"


@dataclass(frozen=True, slots=True)
class Absent:
    """Nothing is ready; one reason for each way that was tried."""

    reasons: tuple[str, ...]


def find(
    kubeconfig: Path | None = None,
    context: str | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    is_root: bool | None = None,
) -> Source | Absent:
    """Look for an API server that is ready to use; builds and starts nothing.

    `environment` and `is_root` default to those of this process.
    Raises ControlPlaneError if an explicit wish cannot be met.
    """
    environment = os.environ if environment is None else environment
    is_root = os.geteuid() == 0 if is_root is None else is_root
    own = _own_cluster(kubeconfig, context, environment)
    if own is not None:
        return own
    reasons = ["a cluster of your own: neither POCKETGRID_KUBECONFIG nor POCKETGRID_CONTEXT is set"]

    k3s = shutil.which("k3s", path=environment.get("PATH"))
    if k3s is not None and is_root:
        return Source(Kind.K3S, Path(k3s))
    reasons.append(f"k3s: {k3s} needs root" if k3s else "k3s: not on PATH")

    if assets := environment.get("KUBEBUILDER_ASSETS"):
        folder = Path(assets).absolute()
        if missing := missing_programs(folder, SERVERS):
            raise ControlPlaneError(
                f"KUBEBUILDER_ASSETS={assets}",
                reason=f"this folder has no {' and no '.join(missing)} that can be executed",
                remedy=f"let it name a folder with {', '.join(PROGRAMS)}, or unset it",
            )
        return Source(Kind.ASSETS, folder)
    reasons.append("KUBEBUILDER_ASSETS: not set")

    cached = cached_programs(environment)
    if not missing_programs(cached):
        return Source(Kind.CACHE, cached)
    reasons.append(f"an earlier build: {cached} does not have it")
    return Absent(tuple(reasons))


def ensure(
    kubeconfig: Path | None = None,
    context: str | None = None,
    *,
    rebuild: bool = False,
    progress: Progress | None = None,
    environment: Mapping[str, str] | None = None,
) -> Source:
    """Find an API server or, if there is none, build one, which takes minutes and is told on `progress`.

    `rebuild` builds anew even if there is one. `progress` defaults to standard error.
    Raises ControlPlaneError, listing every way that was tried, if there is none to be had.
    """
    environment = os.environ if environment is None else environment
    found = find(kubeconfig, context, environment=environment)
    if isinstance(found, Source) and not rebuild:
        return found
    target = cached_programs(environment)
    try:
        build(target, progress or Progress(sys.stderr), rebuild=rebuild)
    except ControlPlaneError as error:
        if isinstance(found, Source):
            raise
        ways = [*found.reasons, f"a build from Debian's source: {error.thing}: {error.reason}"]
        raise ControlPlaneError(
            "Kubernetes API server",
            reason="none is to be had on this machine. Tried:\n" + "\n".join(f"  - {way}" for way in ways),
            remedy=f"for the last one: {error.remedy}. Or, whichever is easiest: name a cluster by "
            "POCKETGRID_KUBECONFIG; install k3s and be root; set KUBEBUILDER_ASSETS to a folder with "
            f"{', '.join(PROGRAMS)} (setup-envtest fetches one)",
        ) from error
    return Source(Kind.CACHE, target)


def _own_cluster(kubeconfig: Path | None, context: str | None, environment: Mapping[str, str]) -> Source | None:
    if kubeconfig is None and (named := environment.get("POCKETGRID_KUBECONFIG")):
        kubeconfig = Path(named)
    context = context or environment.get("POCKETGRID_CONTEXT") or None
    if kubeconfig is None:
        if context is None:
            return None
        home = environment.get("HOME") or str(Path.home())
        kubeconfig = Path(environment.get("KUBECONFIG") or f"{home}/.kube/config")
    if not kubeconfig.is_file():
        raise ControlPlaneError(
            f"kubeconfig {kubeconfig}",
            reason="there is no such file, yet it was asked for by argument or environment",
            remedy="name one existing file by --kubeconfig or POCKETGRID_KUBECONFIG, or unset POCKETGRID_KUBECONFIG "
            "and POCKETGRID_CONTEXT to let a control plane be started",
        )
    return Source(Kind.CLUSTER, kubeconfig.absolute(), context)
