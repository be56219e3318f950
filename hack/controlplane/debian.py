"""Fetches packages and sources of one Debian release without root and without touching the system's apt.

apt works for any user as long as all its folders belong to that user; so it gets its own state, cache and one
sources.list, while proxies and credentials in the machine's apt.conf.d still count. Authenticity is apt's own
business and stays switched on: the Release file is checked against Debian's keyring and each file against the
Release file. Packages are only unpacked, never installed, hence no dependencies and no maintainer scripts.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from hack.controlplane.child import run_logged
from hack.controlplane.errors import ControlPlaneError
from hack.controlplane.mirror import Mirror, debian_mirrors

DOWNLOAD_DEADLINE_S = 1200.0
UNPACK_DEADLINE_S = 300.0

_CONFIGURATION = """\
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "-";
Dir::State "{folder}/state";
Dir::State::status "{folder}/state/status";
Dir::Cache "{folder}/cache";
Dir::Log "{folder}/log";
Acquire::Languages "none";
Acquire::Retries "3";
# Otherwise apt, as root, changes to a user of its own, who cannot enter this folder.
APT::Sandbox::User "root";
# What the machine does after its own updates (cleaning its cache, rebuilding indexes) is not meant for these.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""


class Archive:
    """One Debian release seen through a private apt in `folder`; output of the commands goes to `log`."""

    def __init__(self, release: str, *, folder: Path, log: Path) -> None:
        self._release = release
        self._folder = folder
        self._log = log
        self._configuration = folder / "apt.conf"

    def open(self, mirrors: Sequence[Mirror] | None = None) -> None:
        """Read the indexes from the first mirror that has this release with a good signature.

        Raises ControlPlaneError if apt or dpkg is missing or no mirror will do.
        """
        for program in ("apt-get", "dpkg", "dpkg-deb"):
            if shutil.which(program) is None:
                raise ControlPlaneError(
                    program,
                    reason=f"not on PATH; only a Debian can build from Debian's packages, not {platform.platform()}",
                    remedy="run on Debian, or give a control plane by KUBEBUILDER_ASSETS, k3s or a kubeconfig",
                )
        candidates = debian_mirrors() if mirrors is None else list(mirrors)
        if not candidates:
            raise ControlPlaneError(
                "Debian mirror",
                reason="apt's configuration in /etc/apt names none",
                remedy="add your Debian mirror there (component main), see sources.list(5)",
            )
        (self._folder / "state" / "lists" / "partial").mkdir(parents=True)
        (self._folder / "cache" / "archives" / "partial").mkdir(parents=True)
        (self._folder / "log").mkdir()
        (self._folder / "state" / "status").touch()
        self._configuration.write_text(_CONFIGURATION.format(folder=self._folder), encoding="utf-8")
        failures: list[str] = []
        for mirror in candidates:
            (self._folder / "sources.list").write_text(self._sources(mirror), encoding="utf-8")
            try:
                # Without this option apt takes an old index, or none, for a success.
                self._apt("update", "--error-on=any", into=self._folder)
                return
            except ControlPlaneError as error:
                failures.append(f"  {mirror.uri}: {error.reason}")
        raise ControlPlaneError(
            f"Debian {self._release}",
            reason="none of the configured mirrors serves it with a good signature:\n" + "\n".join(failures),
            remedy="check the network and the proxy settings of apt (apt-get update shows the same error)",
        )

    def download_packages(self, names: Sequence[str], into: Path) -> None:
        """Download binary packages (`*.deb`) into a folder."""
        self._apt("download", *names, into=into)

    def download_source(self, name: str, into: Path) -> None:
        """Download the archives of a source package into a folder, packed as they are."""
        self._apt("source", "--download-only", name, into=into)

    def unpack_packages(self, packages: Path, into: Path) -> None:
        """Unpack every `*.deb` of a folder into the root `into`; runs none of their scripts."""
        for package in sorted(packages.glob("*.deb")):
            self._run(["dpkg-deb", "--extract", str(package), str(into)], UNPACK_DEADLINE_S, into)

    def unpack_upstream(self, source: str, downloads: Path, into: Path) -> Path:
        """Unpack the upstream archive of a source package and return the one folder in it.

        Raises ControlPlaneError if there is not exactly one archive with exactly one folder.
        """
        archives = sorted(downloads.glob(f"{source}_*.orig.tar.*"))
        if len(archives) == 1:
            # Not Python's tarfile: the one in Debian 12 cannot refuse paths that lead out of the folder.
            extract = ["tar", "--extract", "--no-same-owner", f"--file={archives[0]}", f"--directory={into}"]
            self._run(extract, UNPACK_DEADLINE_S, into)
            if len(folders := sorted(into.iterdir())) == 1:
                return folders[0]
        raise ControlPlaneError(
            f"source package {source}",
            reason=f"expected one upstream archive with one folder, found {[archive.name for archive in archives]}",
            remedy="Debian has changed the package; adapt hack/controlplane/build.py",
        )

    def _apt(self, *arguments: str, into: Path) -> None:
        self._run(["apt-get", "--config-file", str(self._configuration), *arguments], DOWNLOAD_DEADLINE_S, into)

    def _run(self, command: Sequence[str], deadline_s: float, folder: Path) -> None:
        environment = {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        run_logged(command, log=self._log, folder=folder, environment=environment, deadline_s=deadline_s)

    def _sources(self, mirror: Mirror) -> str:
        keyring = f"signed-by={mirror.keyring}" if mirror.keyring else ""
        architecture = native_architecture()
        return (
            f"deb [arch={architecture} {keyring}] {mirror.uri} {self._release} main\n"
            f"deb-src [{keyring}] {mirror.uri} {self._release} main\n".replace("[] ", "")
        )


def native_architecture() -> str:
    """Debian's name of this machine's architecture, such as amd64."""
    command = ["dpkg", "--print-architecture"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
