"""Writes kubeconfig files.

A kubeconfig is a password: it is created readable by its owner only, and complete or not at all. The
certificate is embedded, so that the file can be copied away from the data folder.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

from hack.controlplane.errors import ControlPlaneError

MARK = "# Written by hack.controlplane; worthless once that control plane has stopped."

_TEMPLATE = """\
{mark}
apiVersion: v1
kind: Config
current-context: pocketgrid
clusters:
- name: pocketgrid
  cluster:
    server: {url}
    certificate-authority-data: {authority}
contexts:
- name: pocketgrid
  context:
    cluster: pocketgrid
    namespace: default
    user: admin
users:
- name: admin
  user:
    token: {token}
"""


def admin_kubeconfig(url: str, certificates: bytes, token: str) -> str:
    """The text of a kubeconfig with one cluster and one user.

    The server is verified by `certificates` (PEM); the user has a bearer token.
    """
    authority = base64.b64encode(certificates).decode()
    return _TEMPLATE.format(mark=MARK, url=url, authority=authority, token=token)


def write_private(path: Path, text: str) -> None:
    """Write a file with mode 600, replacing an older one in a single step."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.unlink(missing_ok=True)
    unfinished.touch(mode=0o600, exist_ok=False)
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(path)


def require_ours(path: Path) -> None:
    """Raise ControlPlaneError if `path` holds a kubeconfig that somebody else may need."""
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(MARK):
        raise ControlPlaneError(
            f"kubeconfig {path}",
            reason="the file exists and was not written by this program",
            remedy="name another file; delete this one first if it is not needed",
        )
