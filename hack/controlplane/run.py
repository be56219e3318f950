"""Runs an API server for as long as it is needed.

Made for tests and the demo on a machine that its user trusts: everything listens on 127.0.0.1 and TLS and
RBAC are real, but etcd answers any local process and does not wait for the disk, so a power cut loses data.

There is no controller manager, scheduler or kubelet beside the API server (k3s aside): no garbage collection,
no service accounts that appear by themselves, no Pods that run.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from hack.controlplane.child import Child
from hack.controlplane.errors import ControlPlaneError, last_lines
from hack.controlplane.k3s import k3s_command, k3s_kubectl
from hack.controlplane.kubeconfig import admin_kubeconfig, write_private
from hack.controlplane.lookup import Kind, Source
from hack.controlplane.servers import (
    ADDRESS,
    apiserver_command,
    certificate_file,
    etcd_command,
    find_kubectl,
    free_port,
    tokens_file,
)

READY_DEADLINE_S = 90.0
POLL_INTERVAL_S = 0.1
KUBECTL_DEADLINE_S = 60.0
# An API server with open watches takes a minute over SIGTERM. It holds no data, so nothing is lost by being
# short.
API_SERVER_STOP_DEADLINE_S = 2.0
STORE_STOP_DEADLINE_S = 10.0
# The API server makes these itself, some time after it first calls itself ready.
NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")
PORT_ATTEMPTS = 3
PORT_TAKEN = "address already in use"


class ControlPlane:
    """A Kubernetes API server and its etcd, or a cluster of the user's own behind the same face.

    Once started, `kubeconfig` is a file that works by itself: one cluster, one admin user, certificates embedded.
    Without `data_folder` (created if missing) the data is temporary. All methods block; use one instance from
    one thread at a time.
    """

    def __init__(self, source: Source, data_folder: Path | None = None) -> None:
        self.source = source
        self._given_folder = data_folder
        self._folder: Path | None = None
        self._kubectl: Path | None = None
        self._store: Child | None = None
        self._server: Child | None = None

    @property
    def data_folder(self) -> Path:
        """Logs (`*.log`), kubeconfig and data. Raises ControlPlaneError if not started."""
        if self._folder is None:
            raise ControlPlaneError("control plane", reason="it has not been started", remedy="call start() first")
        return self._folder

    @property
    def kubeconfig(self) -> Path:
        """The admin's kubeconfig file, mode 600."""
        return self.data_folder / "kubeconfig"

    @property
    def kubectl(self) -> Path:
        """A kubectl executable. Raises ControlPlaneError if there is none or this has not been started."""
        if self._kubectl is None:
            if self.source.kind is Kind.K3S:
                self._kubectl = k3s_kubectl(self.source.where, self.data_folder)
            else:
                self._kubectl = find_kubectl(self.source.where)
        return self._kubectl

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the running children by name; empty for a cluster of the user's own."""
        return {child.name: child.pid for child in self._children() if child.pid is not None}

    def start(self) -> None:
        """Start everything and return once the API server is ready and has its namespaces (about 5 s).

        Raises ControlPlaneError with the end of the log; what was started is stopped then and the logs are
        kept.
        """
        if self._folder is not None:
            raise ControlPlaneError("control plane", reason="it is running already", remedy="call stop() first")
        if self._given_folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="pocketgrid-controlplane-"))
        else:
            self._folder = self._given_folder.absolute()
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            if self.source.kind is Kind.CLUSTER:
                self._adopt_cluster()
            else:
                self._start_on_free_ports()
        except BaseException:
            self._stop_children()
            if self._given_folder is None and not any(self._folder.glob("*.log")):
                shutil.rmtree(self._folder)
            self._folder = None
            raise

    def stop(self) -> None:
        """Stop what was started, and only that, and remove temporary data. May be repeated."""
        self._stop_children()
        if self._folder is not None and self._given_folder is None:
            shutil.rmtree(self._folder)
        self._folder = None
        self._kubectl = None

    def restart_apiserver(self) -> None:
        """Stop the API server and start it again on the same port, with the same credentials and data.

        Raises ControlPlaneError if it does not become ready, or if the cluster is the user's own.
        """
        if self._server is None:
            raise ControlPlaneError(
                "restart of the API server",
                reason="this process does not run it",
                remedy="call start() first; with a cluster of the user's own, leave out what needs a restart",
            )
        self._server.stop()
        self._server.start()
        self._await_ready()

    def require_running(self) -> None:
        """Raise ControlPlaneError, quoting its log, if one of the children has ended by itself."""
        for child in self._children():
            child.require_running()

    def run_kubectl(self, *arguments: str, stdin: str = "", deadline_s: float = KUBECTL_DEADLINE_S) -> str:
        """Run kubectl as the admin and return what it prints.

        Raises ControlPlaneError with kubectl's own message if it fails or takes longer than `deadline_s`
        seconds.
        """
        # In the user's home the discovery cache would outlive this cluster.
        command = [
            f"--kubeconfig={self.kubeconfig}",
            f"--cache-dir={self.data_folder / 'kubectl-cache'}",
            *arguments,
        ]
        return self._run_kubectl(command, stdin, deadline_s)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _adopt_cluster(self) -> None:
        view = ["config", "view", "--raw", "--minify", "--flatten", f"--kubeconfig={self.source.where}"]
        if self.source.context:
            view.append(f"--context={self.source.context}")
        write_private(self.kubeconfig, self._run_kubectl(view, "", KUBECTL_DEADLINE_S))
        self.run_kubectl("get", "--raw=/readyz")

    def _start_on_free_ports(self) -> None:
        for attempts_left in reversed(range(PORT_ATTEMPTS)):
            try:
                if self.source.kind is Kind.K3S:
                    self._start_k3s()
                else:
                    self._start_servers()
                return
            except ControlPlaneError as error:
                # Another process can take a port between the search and its use.
                if PORT_TAKEN not in error.reason or not attempts_left:
                    raise
                self._stop_children()

    def _start_k3s(self) -> None:
        # An old file would be read before the new one is written.
        self.kubeconfig.unlink(missing_ok=True)
        command = k3s_command(self.source.where, folder=self.data_folder, kubeconfig=self.kubeconfig, port=free_port())
        self._server = self._start_child("k3s", command, STORE_STOP_DEADLINE_S)
        self._await_ready()

    def _start_servers(self) -> None:
        programs, folder = self.source.where, self.data_folder
        port, etcd_port = free_port(), free_port()
        token = secrets.token_hex(32)
        write_private(tokens_file(folder), f'{token},admin,admin,"system:masters"\n')
        self._store = self._start_child(
            "etcd", etcd_command(programs, folder=folder, port=etcd_port), STORE_STOP_DEADLINE_S
        )
        self._server = self._start_child(
            "kube-apiserver",
            apiserver_command(programs, folder=folder, port=port, etcd_port=etcd_port),
            API_SERVER_STOP_DEADLINE_S,
        )
        deadline = time.monotonic() + READY_DEADLINE_S
        while not certificate_file(folder).with_suffix(".key").exists():
            self._wait_a_little(deadline)
        certificates = certificate_file(folder).read_bytes()
        write_private(self.kubeconfig, admin_kubeconfig(f"https://{ADDRESS}:{port}", certificates, token))
        self._await_ready()

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY_DEADLINE_S
        while True:
            try:
                self.run_kubectl("get", "--raw=/readyz", "--request-timeout=5s")
                self.run_kubectl("get", "namespaces", *NAMESPACES, "--request-timeout=5s")
                return
            except ControlPlaneError as error:
                self._wait_a_little(deadline, error)

    def _wait_a_little(self, deadline: float, latest: ControlPlaneError | None = None) -> None:
        self.require_running()
        if time.monotonic() > deadline:
            logs = "\n".join(f"  {child.log}:\n{last_lines(child.log)}" for child in self._children())
            raise ControlPlaneError(
                "control plane",
                reason=f"not ready within {READY_DEADLINE_S:.0f} s ({latest.reason if latest else 'no certificate'})"
                f"; the ends of its logs:\n{logs}",
                remedy="the logs usually name the cause; on a very busy machine, try again",
            )
        time.sleep(POLL_INTERVAL_S)

    def _start_child(self, name: str, command: Sequence[str], stop_deadline_s: float) -> Child:
        log = self.data_folder / f"{name}.log"
        child = Child(name, command, log=log, folder=self.data_folder, stop_deadline_s=stop_deadline_s)
        child.start()
        return child

    def _children(self) -> list[Child]:
        # The server first: without its store it only fills the log with complaints.
        return [child for child in (self._server, self._store) if child is not None]

    def _stop_children(self) -> None:
        for child in self._children():
            child.stop()
        self._server = self._store = None

    def _run_kubectl(self, arguments: Sequence[str], stdin: str, deadline_s: float) -> str:
        command = " ".join(("kubectl", *arguments))
        try:
            done = subprocess.run(
                [self.kubectl, *arguments],
                input=stdin,
                capture_output=True,
                text=True,
                timeout=deadline_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ControlPlaneError(
                command, reason=f"no answer within {deadline_s:.0f} s", remedy="see the API server's log"
            ) from error
        if done.returncode != 0:
            raise ControlPlaneError(
                command, reason=done.stderr.strip(), remedy="see kubectl's message; is the cluster reachable?"
            )
        return done.stdout
