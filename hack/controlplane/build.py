"""Builds a kube-apiserver from Debian's source package, and puts etcd and kubectl beside it.

Why this is possible and what it takes:

- Debian 12 ships kubectl only, but its source package `kubernetes` holds the whole tree with its
  dependencies, and Debian also has Go 1.19 and etcd. So a real API server needs nothing but a Debian mirror.
  Its version is 1.20, older than what a new cluster runs; whoever needs a newer one points KUBEBUILDER_ASSETS
  at it.
- The tree is built in GOPATH mode: module mode refuses it, since Debian's go.mod files do not match vendor/.
- Debian drops the generated OpenAPI definitions, without which the server does not compile: they are
  generated here.
- The vendored reflect2 1.0.1 reads internals of the Go runtime that 1.18 changed, and crashes at random;
  Debian's package of 1.0.2 does not.
- Debian's own patches are left out: they concern how kubectl prints, and the server compiles none of those
  packages.
- Tag `providerless` leaves the cloud providers out and halves the time.

Everything happens in one folder that is removed at the end (1.7 GB); only the log stays. No step needs root.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from hack.controlplane.cache import missing_programs, only_builder, publish, workplace
from hack.controlplane.child import run_logged
from hack.controlplane.debian import Archive
from hack.controlplane.errors import ControlPlaneError
from hack.controlplane.progress import Progress

RELEASE = "bookworm"
SOURCE = "kubernetes"
# Not kubectl from PATH: a link to it could break later, and a wrapper script could not be copied.
PACKAGES = (
    "etcd-server",
    "golang-1.19-go",
    "golang-1.19-src",
    "golang-github-modern-go-reflect2-dev",
    "kubernetes-client",
)
NEEDED_BYTES = 3 * 1024**3
COMPILE_DEADLINE_S = 3600.0
OPENAPI_TAG = b"+k8s:openapi-gen="
VERSION_PACKAGE = "k8s.io/kubernetes/vendor/k8s.io/component-base/version"


def build(target: Path, progress: Progress, *, rebuild: bool = False) -> None:
    """Build into the folder `target`, unless it is complete and `rebuild` is false.

    Takes 2 minutes on 2 cores. Of several processes that call this at once, one builds and the others wait for it.
    Raises ControlPlaneError with the step that failed and the end of its log.
    """
    try:
        with only_builder(target, lambda: progress.say("waiting for another build of the control plane")):
            # Someone else may have finished it while we waited.
            if missing_programs(target) or rebuild:
                _require_space(target.parent)
                with workplace(target) as folder:
                    _Build(folder, target.with_name(f"{target.name}.log"), progress).run(target)
    except OSError as error:
        raise ControlPlaneError(
            f"build in {target.parent}",
            reason=str(error),
            remedy="make this folder writable, or set XDG_CACHE_HOME",
        ) from error


class _Build:
    def __init__(self, folder: Path, log: Path, progress: Progress) -> None:
        self._folder = folder
        self._log = log
        self._progress = progress
        self._root = folder / "root"
        self._downloads = folder / "downloads"
        self._finished = folder / "finished"
        self._tree = folder / "gopath" / "src" / "k8s.io" / "kubernetes"

    def run(self, target: Path) -> None:
        log, progress = self._log, self._progress
        log.write_bytes(b"")
        for name in ("root", "downloads", "finished", "apt", "upstream", "temporary"):
            (self._folder / name).mkdir()
        archive = Archive(RELEASE, folder=self._folder / "apt", log=log)
        progress.say(f"building a kube-apiserver from Debian's source, once; log: {log}")
        with progress.stage("read Debian's package index"):
            archive.open()
        with progress.stage("download sources, Go, etcd and kubectl (130 MB)"):
            archive.download_packages(PACKAGES, self._downloads)
            archive.download_source(SOURCE, self._downloads)
        with progress.stage("unpack"):
            archive.unpack_packages(self._downloads, self._root)
            self._arrange_tree(archive)
        with progress.stage("generate OpenAPI definitions"):
            self._generate_openapi()
        with progress.stage("compile kube-apiserver (2 minutes on 2 cores)"):
            self._compile_server()
        with progress.stage("check that the programs run"):
            self._collect()
        publish(self._finished, target)
        progress.say(f"built {target}")

    def _arrange_tree(self, archive: Archive) -> None:
        upstream = archive.unpack_upstream(SOURCE, self._downloads, self._folder / "upstream")
        # The folder is named after the true version; the package's own version number carries a "+really".
        self._version = upstream.name.removeprefix(f"{SOURCE}-")
        self._tree.parent.mkdir(parents=True)
        upstream.rename(self._tree)
        reflect2 = "github.com/modern-go/reflect2"
        shutil.rmtree(self._tree / "vendor" / reflect2)
        shutil.copytree(self._root / "usr/share/gocode/src" / reflect2, self._tree / "vendor" / reflect2)

    def _generate_openapi(self) -> None:
        generator = self._folder / "openapi-gen"
        self._go("build", "-o", str(generator), "k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen")
        self._run(
            str(generator),
            "--logtostderr",
            "--go-header-file=hack/boilerplate/boilerplate.generatego.txt",
            "--output-package=k8s.io/kubernetes/pkg/generated/openapi",
            "--output-file-base=zz_generated.openapi",
            # With a file of its own the list of style violations is no error.
            f"--report-filename={self._folder / 'violations'}",
            f"--input-dirs={','.join(openapi_packages(self._tree))}",
        )

    def _compile_server(self) -> None:
        major, minor, _ = self._version.split(".", 2)
        variables = {"gitVersion": f"v{self._version}", "gitMajor": major, "gitMinor": minor}
        stamp = " ".join(f"-X {VERSION_PACKAGE}.{name}={value}" for name, value in variables.items())
        server = str(self._finished / "kube-apiserver")
        options = ("-tags", "providerless", "-trimpath", "-ldflags", f"-s -w {stamp}")
        self._go("build", *options, "-o", server, "k8s.io/kubernetes/cmd/kube-apiserver")

    def _collect(self) -> None:
        for name in ("etcd", "kubectl"):
            shutil.copy2(self._root / "usr" / "bin" / name, self._finished / name)
        self._run(str(self._finished / "kube-apiserver"), "--version")
        self._run(str(self._finished / "etcd"), "--version")
        self._run(str(self._finished / "kubectl"), "version", "--client")

    def _go(self, *arguments: str) -> None:
        self._run(str(self._root / "usr/lib/go-1.19/bin/go"), *arguments)

    def _run(self, *command: str) -> None:
        environment = {
            "CGO_ENABLED": "0",
            "GO111MODULE": "off",
            "GOCACHE": str(self._folder / "gocache"),
            # Neither the user's Go settings nor another installed Go may leak in.
            "GOENV": "off",
            "GOFLAGS": "",
            "GOPATH": str(self._folder / "gopath"),
            "GOROOT": str(self._root / "usr/lib/go-1.19"),
            "HOME": str(self._folder),
            "PATH": f"{self._root / 'usr/lib/go-1.19/bin'}:{os.defpath}",
            "TMPDIR": str(self._folder / "temporary"),
        }
        run_logged(command, log=self._log, folder=self._tree, environment=environment, deadline_s=COMPILE_DEADLINE_S)


def openapi_packages(tree: Path) -> list[str]:
    """Import paths of all packages in a Kubernetes tree that ask for OpenAPI definitions, sorted."""
    folders = {file.parent.relative_to(tree) for file in _go_files(tree) if OPENAPI_TAG in file.read_bytes()}
    staging = Path("staging/src")
    return sorted(
        # What is under staging/ is imported through links under vendor/.
        f"k8s.io/kubernetes/vendor/{folder.relative_to(staging)}"
        if folder.is_relative_to(staging)
        else f"k8s.io/kubernetes/{folder}"
        for folder in folders
    )


def _go_files(tree: Path) -> Iterator[Path]:
    yield from (tree / "pkg").rglob("*.go")
    for component in (tree / "staging/src/k8s.io").iterdir():
        # These only mention the tag, in tools and examples that the server does not serve.
        if component.name != "code-generator" and not component.name.startswith("sample-"):
            yield from component.rglob("*.go")


def _require_space(folder: Path) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < NEEDED_BYTES:
        raise ControlPlaneError(
            f"build in {folder}",
            reason=f"{free_bytes / 1e9:.1f} GB are free, {NEEDED_BYTES / 1e9:.1f} GB are needed for its duration",
            remedy="free some space, or set XDG_CACHE_HOME to a folder on a larger disk",
        )
