"""Runs k3s as a bare control plane.

Untried: k3s was not at hand when this was written. It uses only options that k3s documents, and as few as
possible; who first runs it should correct it and strike out this paragraph. `--disable-agent` ("agentless
servers", experimental) keeps kubelet and container runtime away, which neither the demo nor the tests need.
Unlike a bare kube-apiserver, k3s brings the controller manager, so garbage collection and node lifecycle are
at work.
"""

from __future__ import annotations

import shutil
from pathlib import Path


def k3s_command(executable: Path, *, folder: Path, kubeconfig: Path, port: int) -> list[str]:
    """The command that serves on 127.0.0.1, keeps its data in `folder` and writes an admin kubeconfig."""
    return [
        str(executable),
        "server",
        "--disable-agent",
        "--bind-address=127.0.0.1",
        f"--https-listen-port={port}",
        f"--data-dir={folder / 'k3s'}",
        f"--write-kubeconfig={kubeconfig}",
    ]


def k3s_kubectl(executable: Path, folder: Path) -> Path:
    """A kubectl: the one on PATH, otherwise k3s itself, which acts as kubectl when called by that name."""
    if (on_path := shutil.which("kubectl")) is not None:
        return Path(on_path)
    link = folder / "kubectl"
    link.unlink(missing_ok=True)
    link.symlink_to(executable)
    return link
