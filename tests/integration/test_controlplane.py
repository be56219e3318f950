"""The control plane that the other integration tests stand on: real processes, real kubectl, real TLS."""

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hack.controlplane import ControlPlane, ControlPlaneError, Kind, Source
from hack.controlplane.__main__ import main

pytestmark = pytest.mark.cluster

GONE_DEADLINE_S = 15.0
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def own_servers(control_plane: ControlPlane) -> Source:
    """Where to start a further control plane from, for tests that break it."""
    if control_plane.source.kind not in (Kind.ASSETS, Kind.CACHE):
        pytest.skip("only servers started here can be broken")
    return control_plane.source


@pytest.fixture(scope="module")
def private_control_plane(own_servers: Source, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with ControlPlane(own_servers, tmp_path_factory.mktemp("private") / "data") as running:
        yield running


def is_alive(pid: int) -> bool:
    """Whether a process still runs; a zombie that its new parent has yet to reap does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def await_gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + GONE_DEADLINE_S
    while any(is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(is_alive(pid) for pid in pids)


def test_objects_can_be_created_and_read_with_kubectl(control_plane: ControlPlane) -> None:
    manifest = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "hello"}, "data": {"a": "b"}}
    control_plane.run_kubectl("apply", "--filename=-", stdin=json.dumps(manifest))
    try:
        value = control_plane.run_kubectl("get", "configmap", "hello", "--output=jsonpath={.data.a}")
    finally:
        control_plane.run_kubectl("delete", "configmap", "hello")
    assert value == "b"


def test_the_usual_namespaces_are_there_at_once(control_plane: ControlPlane) -> None:
    names = control_plane.run_kubectl("get", "namespaces", "--output=name").split()
    assert {"namespace/default", "namespace/kube-system", "namespace/kube-node-lease"} <= set(names)


def test_the_kubeconfig_is_readable_by_its_owner_only(control_plane: ControlPlane) -> None:
    assert control_plane.kubeconfig.stat().st_mode & 0o077 == 0


def test_a_refused_command_is_told_in_kubectls_own_words(control_plane: ControlPlane) -> None:
    with pytest.raises(ControlPlaneError, match="not found"):
        control_plane.run_kubectl("get", "configmap", "no-such-thing")


def test_python_verifies_the_certificate_and_strangers_are_refused(private_control_plane: ControlPlane) -> None:
    view = private_control_plane.run_kubectl("config", "view", "--raw", "--output=json")
    port = int(json.loads(view)["clusters"][0]["cluster"]["server"].rpartition(":")[2])
    authority = private_control_plane.data_folder / "certificates" / "apiserver.crt"
    context = ssl.create_default_context(cafile=str(authority))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=10)
    try:
        connection.request("GET", "/api/v1/secrets")
        assert connection.getresponse().status == http.HTTPStatus.FORBIDDEN
    finally:
        connection.close()


def test_data_credentials_and_address_survive_a_restart_of_the_api_server(
    private_control_plane: ControlPlane,
) -> None:
    before = private_control_plane.pids
    kubeconfig = private_control_plane.kubeconfig.read_text(encoding="utf-8")
    private_control_plane.run_kubectl("create", "configmap", "kept", "--from-literal=a=b")

    private_control_plane.restart_apiserver()

    after = private_control_plane.pids
    assert after["etcd"] == before["etcd"]
    assert after["kube-apiserver"] != before["kube-apiserver"]
    assert private_control_plane.kubeconfig.read_text(encoding="utf-8") == kubeconfig
    assert private_control_plane.run_kubectl("get", "configmap", "kept", "--output=name").strip() == "configmap/kept"


def test_a_crashed_api_server_is_noticed_and_can_be_restarted(private_control_plane: ControlPlane) -> None:
    pid = private_control_plane.pids["kube-apiserver"]
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + GONE_DEADLINE_S
    while "kube-apiserver" in private_control_plane.pids and time.monotonic() < deadline:
        time.sleep(0.05)
    with pytest.raises(ControlPlaneError, match="kube-apiserver: ended by itself"):
        private_control_plane.require_running()
    private_control_plane.restart_apiserver()
    private_control_plane.require_running()


def test_a_server_outlives_the_thread_that_restarted_it(private_control_plane: ControlPlane) -> None:
    thread = threading.Thread(target=private_control_plane.restart_apiserver)
    thread.start()
    thread.join()
    private_control_plane.run_kubectl("get", "--raw=/readyz")
    private_control_plane.require_running()


def test_stop_leaves_neither_process_nor_temporary_data(own_servers: Source) -> None:
    control_plane = ControlPlane(own_servers)
    control_plane.start()
    pids, folder = list(control_plane.pids.values()), control_plane.data_folder
    control_plane.stop()
    control_plane.stop()
    assert len(pids) == 2
    assert not any(is_alive(pid) for pid in pids)
    assert not folder.exists()


def test_a_failed_start_quotes_the_log_and_stops_what_was_started(own_servers: Source, tmp_path: Path) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("etcd", "kubectl"):
        (programs / name).symlink_to(own_servers.where / name)
    broken = programs / "kube-apiserver"
    broken.write_text("#!/bin/sh\necho the reason why\nexit 3\n", encoding="utf-8")
    broken.chmod(0o755)
    control_plane = ControlPlane(Source(Kind.ASSETS, programs), tmp_path / "data")
    with pytest.raises(ControlPlaneError, match=r"code 3(.|\n)*the reason why"):
        control_plane.start()
    assert control_plane.pids == {}


def test_servers_do_not_outlive_a_killed_parent(own_servers: Source, tmp_path: Path) -> None:
    program = f"""
        import sys, time
        from pathlib import Path
        from hack.controlplane import ControlPlane, Kind, Source
        control_plane = ControlPlane(Source(Kind.ASSETS, Path({str(own_servers.where)!r})), Path({str(tmp_path)!r}))
        control_plane.start()
        print(*control_plane.pids.values(), flush=True)
        time.sleep(600)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        parent.kill()
    assert len(pids) == 2
    assert await_gone(pids)


def test_a_cluster_of_the_users_own_is_used_and_left_running(control_plane: ControlPlane) -> None:
    own = Source(Kind.CLUSTER, control_plane.kubeconfig, "pocketgrid")
    if control_plane.source.kind is Kind.CLUSTER:
        own = control_plane.source
    with ControlPlane(own) as adopted:
        assert adopted.pids == {}
        assert "namespace/default" in adopted.run_kubectl("get", "namespaces", "--output=name")
        with pytest.raises(ControlPlaneError, match="does not run it"):
            adopted.restart_apiserver()
    control_plane.run_kubectl("get", "--raw=/readyz")


def test_an_unknown_context_is_told_and_leaves_nothing(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(ControlPlaneError, match="no-such-context"):
        ControlPlane(Source(Kind.CLUSTER, control_plane.kubeconfig, "no-such-context")).start()
    assert list(tmp_path.iterdir()) == []


def test_up_runs_until_sigterm_and_removes_the_kubeconfig_it_wrote(own_servers: Source, tmp_path: Path) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    command = [sys.executable, "-m", "hack.controlplane", "up", "--kubeconfig-out", str(kubeconfig)]
    environment = {**os.environ, "KUBEBUILDER_ASSETS": str(own_servers.where)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY, env=environment) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("stop it"):
                break
        assert kubeconfig.exists()
        running.terminate()
        assert "stopped" in running.stdout.read()
    assert running.returncode == 0
    assert not kubeconfig.exists()


def test_up_refuses_to_overwrite_a_kubeconfig_of_somebody_else(
    control_plane: ControlPlane, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    precious = tmp_path / "config"
    precious.write_text("apiVersion: v1\n", encoding="utf-8")
    own = str(control_plane.kubeconfig)
    assert main(["up", "--kubeconfig", own, "--kubeconfig-out", str(precious)]) == 1
    assert "was not written by this program" in capsys.readouterr().err
    assert precious.read_text(encoding="utf-8") == "apiVersion: v1\n"
