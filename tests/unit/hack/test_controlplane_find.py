"""How the control plane for tests is looked for and kept; nothing is started or downloaded here."""

import io
import shutil
import threading
from pathlib import Path

import pytest

from hack.controlplane import Absent, ControlPlane, ControlPlaneError, Kind, Progress, Source, ensure, find, lookup
from hack.controlplane.build import openapi_packages
from hack.controlplane.cache import PROGRAMS, cached_programs, missing_programs, only_builder, publish, workplace
from hack.controlplane.debian import Archive
from hack.controlplane.kubeconfig import admin_kubeconfig, require_ours, write_private
from hack.controlplane.mirror import Mirror, debian_mirrors

KEYRING = Path("/keys/debian.gpg")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A machine that has nothing."""
    (tmp_path / "home").mkdir()
    (tmp_path / "bin").mkdir()
    return {"HOME": str(tmp_path / "home"), "PATH": str(tmp_path / "bin")}


def install(folder: Path, *names: str) -> Path:
    """Put executables of these names into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("#!/bin/sh\n", encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


class TestOrder:
    """Each way hides the ones after it; each test takes the first one away."""

    @pytest.fixture
    def everything(self, environment: dict[str, str], tmp_path: Path) -> dict[str, str]:
        kubeconfig = tmp_path / "kubeconfig"
        kubeconfig.touch()
        install(tmp_path / "bin", "k3s")
        install(cached_programs(environment), *PROGRAMS)
        assets = install(tmp_path / "assets", *PROGRAMS)
        return {**environment, "POCKETGRID_KUBECONFIG": str(kubeconfig), "KUBEBUILDER_ASSETS": str(assets)}

    def test_an_argument_wins_over_the_environment(self, everything: dict[str, str], tmp_path: Path) -> None:
        argument = tmp_path / "another"
        argument.touch()
        found = find(argument, "blue", environment=everything, is_root=True)
        assert found == Source(Kind.CLUSTER, argument, "blue")

    def test_then_the_kubeconfig_from_the_environment(self, everything: dict[str, str], tmp_path: Path) -> None:
        found = find(environment=everything, is_root=True)
        assert found == Source(Kind.CLUSTER, tmp_path / "kubeconfig")

    def test_then_k3s(self, everything: dict[str, str], tmp_path: Path) -> None:
        del everything["POCKETGRID_KUBECONFIG"]
        assert find(environment=everything, is_root=True) == Source(Kind.K3S, tmp_path / "bin" / "k3s")

    def test_then_the_assets_also_when_k3s_is_there_but_root_is_not(
        self, everything: dict[str, str], tmp_path: Path
    ) -> None:
        del everything["POCKETGRID_KUBECONFIG"]
        assert find(environment=everything, is_root=False) == Source(Kind.ASSETS, tmp_path / "assets")

    def test_then_the_cache(self, everything: dict[str, str]) -> None:
        del everything["POCKETGRID_KUBECONFIG"], everything["KUBEBUILDER_ASSETS"]
        assert find(environment=everything, is_root=False) == Source(Kind.CACHE, cached_programs(everything))

    def test_then_nothing_with_a_reason_for_each_way(self, environment: dict[str, str]) -> None:
        found = find(environment=environment, is_root=True)
        assert isinstance(found, Absent)
        assert [reason.partition(":")[0] for reason in found.reasons] == [
            "a cluster of your own",
            "k3s",
            "KUBEBUILDER_ASSETS",
            "an earlier build",
        ]


class TestWishes:
    """What was asked for is used or refused, never passed over."""

    def test_a_context_alone_means_the_usual_kubeconfig(self, environment: dict[str, str], tmp_path: Path) -> None:
        usual = tmp_path / "home" / ".kube" / "config"
        usual.parent.mkdir()
        usual.touch()
        found = find(environment={**environment, "POCKETGRID_CONTEXT": "blue"})
        assert found == Source(Kind.CLUSTER, usual, "blue")

    def test_kubeconfig_alone_is_no_wish_as_it_may_point_at_production(
        self, environment: dict[str, str], tmp_path: Path
    ) -> None:
        (tmp_path / "production").touch()
        found = find(environment={**environment, "KUBECONFIG": str(tmp_path / "production")})
        assert isinstance(found, Absent)

    def test_a_missing_kubeconfig_is_an_error(self, environment: dict[str, str]) -> None:
        with pytest.raises(ControlPlaneError, match=r"kubeconfig /no/such(.|\n)*To mend it: .*POCKETGRID_KUBECONFIG"):
            find(environment={**environment, "POCKETGRID_KUBECONFIG": "/no/such"})

    def test_assets_without_a_server_are_an_error_that_names_what_is_missing(
        self, environment: dict[str, str], tmp_path: Path
    ) -> None:
        assets = install(tmp_path / "assets", "etcd")
        with pytest.raises(ControlPlaneError, match="no kube-apiserver that can be executed"):
            find(environment={**environment, "KUBEBUILDER_ASSETS": str(assets)})

    def test_a_source_says_what_and_where(self) -> None:
        text = str(Source(Kind.CLUSTER, Path("/a/config"), "blue"))
        assert text == "using your own cluster: /a/config, context blue"


class TestEnsure:
    def test_what_is_found_is_not_built(self, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delattr(lookup, "build")
        install(cached_programs(environment), *PROGRAMS)
        assert ensure(environment=environment) == Source(Kind.CACHE, cached_programs(environment))

    def test_what_is_not_found_is_built(self, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        built: list[tuple[Path, bool]] = []
        monkeypatch.setattr(lookup, "build", lambda target, progress, *, rebuild: built.append((target, rebuild)))
        target = cached_programs(environment)
        assert ensure(environment=environment) == Source(Kind.CACHE, target)
        assert ensure(environment=environment, rebuild=True) == Source(Kind.CACHE, target)
        assert built == [(target, False), (target, True)]

    def test_when_no_way_is_left_every_way_and_a_remedy_are_told(
        self, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(target: Path, progress: Progress, *, rebuild: bool) -> None:
            raise ControlPlaneError("apt-get", reason="not on PATH", remedy="run on Debian")

        monkeypatch.setattr(lookup, "build", fail)
        with pytest.raises(ControlPlaneError) as caught:
            ensure(environment=environment)
        text = str(caught.value)
        for expected in (
            "a cluster of your own",
            "k3s: not on PATH",
            "KUBEBUILDER_ASSETS: not set",
            str(cached_programs(environment)),
            "a build from Debian's source: apt-get: not on PATH",
            "To mend it: for the last one: run on Debian",
        ):
            assert expected in text


class TestMirrors:
    def test_one_line_format(self, tmp_path: Path) -> None:
        (tmp_path / "sources.list").write_text(
            "# deb http://commented.test/debian bookworm main\n"
            f"deb [arch=amd64 signed-by={KEYRING}] http://mirror.test/debian bookworm main contrib # why\n"
            f"deb-src [ signed-by={KEYRING} ] http://mirror.test/debian/ trixie main\n"
            "deb http://mirror.test/debian bookworm-updates main\n"
            "deb https://vendor.test/apt cloud-sdk-bookworm main\n"
            "deb https://vendor.test/linux bookworm stable\n"
            "nonsense\n",
            encoding="utf-8",
        )
        assert debian_mirrors(tmp_path) == [
            Mirror("http://mirror.test/debian", KEYRING),
            Mirror("http://mirror.test/debian/", KEYRING),
        ]

    def test_deb822_format(self, tmp_path: Path) -> None:
        (tmp_path / "sources.list.d").mkdir()
        (tmp_path / "sources.list.d" / "debian.sources").write_text(
            "Types: deb\n"
            "# a comment between the fields\n"
            "URIs: http://first.test/debian\n"
            " http://second.test/debian\n"
            "Suites: bookworm bookworm-updates\n"
            "Components: main\n"
            f"Signed-By: {KEYRING}\n"
            "\n"
            "Types: deb\n"
            "URIs: http://off.test/debian\n"
            "Suites: bookworm\n"
            "Components: main\n"
            "Enabled: no\n"
            " \n"
            "Types: deb\n"
            "URIs: http://security.test/debian-security\n"
            "Suites: bookworm-security\n"
            "Components: main\n",
            encoding="utf-8",
        )
        assert debian_mirrors(tmp_path) == [
            Mirror("http://first.test/debian", KEYRING),
            Mirror("http://second.test/debian", KEYRING),
        ]

    def test_others_under_debians_suite_names_come_last(self, tmp_path: Path) -> None:
        (tmp_path / "sources.list.d").mkdir()
        (tmp_path / "sources.list.d" / "a-vendor.list").write_text(
            f"deb [signed-by={KEYRING}] http://vendor.test bookworm main\n", encoding="utf-8"
        )
        (tmp_path / "sources.list.d" / "debian.list").write_text(
            f"deb [signed-by={KEYRING}] http://mirror.test/debian bookworm main\n", encoding="utf-8"
        )
        assert [mirror.uri for mirror in debian_mirrors(tmp_path)] == [
            "http://mirror.test/debian",
            "http://vendor.test",
        ]

    def test_disabled_files_and_a_missing_folder_count_for_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "sources.list.save").write_text("deb http://old.test/debian bookworm main\n", encoding="utf-8")
        assert debian_mirrors(tmp_path) == []
        assert debian_mirrors(tmp_path / "missing") == []

    @pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt")
    def test_a_mirror_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        archive = Archive("bookworm", folder=tmp_path, log=tmp_path / "log.txt")
        with pytest.raises(ControlPlaneError, match=r"Debian bookworm: none of the configured(.|\n)*file:/no/such"):
            archive.open([Mirror("file:/no/such", None)])

    @pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt")
    def test_a_machine_without_a_debian_mirror_is_told_what_to_add(self, tmp_path: Path) -> None:
        with pytest.raises(ControlPlaneError, match=r"names none(.|\n)*sources\.list\(5\)"):
            Archive("bookworm", folder=tmp_path, log=tmp_path / "log.txt").open([])


class TestCache:
    def test_it_lies_outside_the_checkout(self, environment: dict[str, str], tmp_path: Path) -> None:
        folder = cached_programs(environment)
        assert folder.parent == tmp_path / "home/.cache/pocketgrid/controlplane"
        elsewhere = cached_programs({**environment, "XDG_CACHE_HOME": "/elsewhere"})
        assert elsewhere == Path("/elsewhere/pocketgrid/controlplane") / folder.name
        assert cached_programs({**environment, "XDG_CACHE_HOME": "relative"}) == folder

    def test_programs_must_be_files_that_can_be_executed(self, tmp_path: Path) -> None:
        install(tmp_path, "etcd", "kubectl")
        (tmp_path / "kubectl").chmod(0o644)
        (tmp_path / "kube-apiserver").mkdir()
        assert missing_programs(tmp_path) == ["kube-apiserver", "kubectl"]

    def test_a_build_appears_only_when_finished(self, tmp_path: Path) -> None:
        target = tmp_path / "target"
        with only_builder(target, pytest.fail), workplace(target) as folder:
            finished = install(folder / "finished", *PROGRAMS)
            assert not target.exists()
            publish(finished, target)
            assert missing_programs(target) == []
        assert missing_programs(target) == []

    def test_a_rebuild_replaces_the_old_programs(self, tmp_path: Path) -> None:
        target = install(tmp_path / "target", *PROGRAMS, "old")
        with only_builder(target, pytest.fail), workplace(target) as folder:
            publish(install(folder / "finished", *PROGRAMS), target)
        assert sorted(path.name for path in target.iterdir()) == sorted(PROGRAMS)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["target", "target.lock"]

    def test_a_failed_build_leaves_nothing(self, tmp_path: Path) -> None:
        target = tmp_path / "target"

        def fail_late() -> None:
            with only_builder(target, pytest.fail), workplace(target) as folder:
                install(folder / "finished", *PROGRAMS)
                raise ControlPlaneError("go", reason="failed", remedy="none")

        with pytest.raises(ControlPlaneError):
            fail_late()
        assert [path.name for path in tmp_path.iterdir()] == ["target.lock"]

    def test_the_leftovers_of_a_killed_build_are_removed_by_the_next(self, tmp_path: Path) -> None:
        target = tmp_path / "target"
        leftover = install(tmp_path / "target.building-killed" / "finished", *PROGRAMS)
        assert missing_programs(target) != []
        with only_builder(target, pytest.fail), workplace(target):
            assert not leftover.exists()

    def test_a_second_builder_waits_for_the_first_and_says_so(self, tmp_path: Path) -> None:
        target = tmp_path / "target"
        waiting, order = threading.Event(), list[str]()

        def second() -> None:
            with only_builder(target, waiting.set):
                order.append("second")

        with only_builder(target, pytest.fail):
            thread = threading.Thread(target=second)
            thread.start()
            assert waiting.wait(10)
            order.append("first")
        thread.join(10)
        assert order == ["first", "second"]


def test_openapi_definitions_are_wanted_for_tagged_packages_only(tmp_path: Path) -> None:
    for file, text in {
        "pkg/apis/core/v1/doc.go": "// +k8s:openapi-gen=true",
        "pkg/apis/core/doc.go": "package core",
        "staging/src/k8s.io/api/batch/v1/doc.go": "// +k8s:openapi-gen=true",
        "staging/src/k8s.io/code-generator/main.go": "// +k8s:openapi-gen=true",
        "staging/src/k8s.io/sample-apiserver/doc.go": "// +k8s:openapi-gen=true",
    }.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    assert openapi_packages(tmp_path) == [
        "k8s.io/kubernetes/pkg/apis/core/v1",
        "k8s.io/kubernetes/vendor/k8s.io/api/batch/v1",
    ]


def test_a_source_package_of_another_shape_is_refused(tmp_path: Path) -> None:
    archive = Archive("bookworm", folder=tmp_path, log=tmp_path / "log.txt")
    with pytest.raises(ControlPlaneError, match="source package kubernetes: expected one"):
        archive.unpack_upstream("kubernetes", tmp_path, tmp_path)


class TestKubeconfig:
    def test_it_is_private_from_the_first_byte_and_recognised_as_ours(self, tmp_path: Path) -> None:
        path = tmp_path / "config"
        write_private(path, admin_kubeconfig("https://127.0.0.1:1", b"certificate", "token"))
        assert path.stat().st_mode & 0o777 == 0o600
        require_ours(path)
        assert [file.name for file in tmp_path.iterdir()] == ["config"]

    def test_one_of_somebody_else_is_recognised_too(self, tmp_path: Path) -> None:
        (tmp_path / "config").write_text("apiVersion: v1\n", encoding="utf-8")
        with pytest.raises(ControlPlaneError, match="was not written by this program"):
            require_ours(tmp_path / "config")

    def test_a_control_plane_has_none_before_it_is_started(self) -> None:
        with pytest.raises(ControlPlaneError, match=r"not been started(.|\n)*call start"):
            _ = ControlPlane(Source(Kind.CACHE, Path("/nowhere"))).kubeconfig


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class TestProgress:
    def test_a_log_gets_one_line_a_stage_when_it_begins(self) -> None:
        stream = io.StringIO()
        with Progress(stream).stage("compile"):
            assert stream.getvalue() == "[control plane    0 s] compile ...\n"
        assert stream.getvalue().count("\n") == 1

    def test_a_terminal_is_told_how_a_stage_ended(self) -> None:
        stream = Terminal()
        progress = Progress(stream)
        with progress.stage("unpack"):
            pass
        with pytest.raises(ControlPlaneError), progress.stage("compile"):
            raise ControlPlaneError("go", reason="failed", remedy="none")
        lines = stream.getvalue().split("\n")
        assert "unpack: done" in lines[0]
        assert "compile: failed" in lines[1]
