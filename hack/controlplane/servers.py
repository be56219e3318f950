"""The command lines of etcd and kube-apiserver, from 1.20 to current versions.

Each flag is here because the server refuses to start, or to be reachable in private, without it.
"""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from hack.controlplane.errors import ControlPlaneError

ADDRESS = "127.0.0.1"


def etcd_command(programs: Path, *, folder: Path, port: int) -> list[str]:
    """An etcd that keeps its data in `folder` and does not wait for the disk."""
    url = f"http://{ADDRESS}:{port}"
    return [
        str(programs / "etcd"),
        f"--data-dir={folder / 'etcd'}",
        "--unsafe-no-fsync",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        # A lone member talks to no peer, so any free port will do and nobody needs to know it.
        f"--listen-peer-urls=http://{ADDRESS}:0",
    ]


def apiserver_command(programs: Path, *, folder: Path, port: int, etcd_port: int) -> list[str]:
    """A kube-apiserver that makes its certificate in `folder`/certificates and knows `folder`/tokens.csv."""
    # The server makes its TLS key before it reads the key for service-account tokens, so one key serves both
    # and nothing else has to make RSA keys, which the standard library cannot.
    key = certificate_file(folder).with_suffix(".key")
    return [
        str(programs / "kube-apiserver"),
        f"--etcd-servers=http://{ADDRESS}:{etcd_port}",
        f"--bind-address={ADDRESS}",
        f"--advertise-address={ADDRESS}",
        f"--secure-port={port}",
        f"--cert-dir={certificate_file(folder).parent}",
        f"--token-auth-file={tokens_file(folder)}",
        "--authorization-mode=Node,RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={key}",
        f"--service-account-signing-key-file={key}",
        "--service-cluster-ip-range=10.0.0.0/24",
        # It would refuse every Pod, waiting for accounts that only the controller manager makes.
        "--disable-admission-plugins=ServiceAccount",
        # It would retry for ever to publish a loopback address, which is not allowed as an endpoint.
        "--endpoint-reconciler-type=none",
    ]


def certificate_file(folder: Path) -> Path:
    """Where the API server leaves its certificate and the authority that signed it."""
    return folder / "certificates" / "apiserver.crt"


def tokens_file(folder: Path) -> Path:
    """The server's list of bearer tokens."""
    return folder / "tokens.csv"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now; somebody else may take it before it is used."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        port: int = probe.getsockname()[1]
        return port


def find_kubectl(programs: Path) -> Path:
    """The kubectl on PATH, as that is what users have, otherwise the one among `programs`.

    Raises ControlPlaneError if there is neither.
    """
    for candidate in (shutil.which("kubectl"), shutil.which(str(programs / "kubectl"))):
        if candidate is not None:
            return Path(candidate)
    raise ControlPlaneError(
        "kubectl", reason=f"it is neither on PATH nor in {programs}", remedy="install kubectl (1.20 or newer)"
    )
