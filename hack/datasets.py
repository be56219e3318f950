"""Data sets for the demo and the benchmarks: fetched once, kept outside the checkout, verified at every use.

Responsible for WordNet's glosses, real English sentences of very different lengths. They come from Debian's package
`wordnet-base`: apt checks its signature, nothing of it is installed or run, and no address is written down here. What
is kept is one small text file whose digest is known, so a cut download, a full disk or a changed package is found out
before anybody measures with it.

WordNet 3.0, Princeton University 2006; format of its files: wndb(5WN).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from hack.controlplane.debian import Archive
from hack.controlplane.errors import ControlPlaneError

PACKAGE = "wordnet-base"
RELEASE = "bookworm"
PARTS_OF_SPEECH = ("noun", "verb", "adj", "adv")
GLOSSES = 117_659
SHA256 = "e473ac57f76ffd159f45931e3ba01165265dcc16ffd5fd1832fbaf6b848849f9"
"""Of the file `_write` makes from WordNet 3.0."""

INSTALLED = Path("/usr/share/wordnet")
DEADLINE_S = 300.0
PROGRAMS = ("apt-get", "dpkg-deb")

Say = Callable[[str], None]


class DatasetError(Exception):
    """A data set cannot be had; `str()` gives the thing, the reason and the remedy."""

    def __init__(self, thing: str, *, reason: str, remedy: str) -> None:
        super().__init__(f"{thing}: {reason}\n  To mend it: {remedy}")


def wordnet_glosses(count: int = GLOSSES, *, say: Say | None = None) -> list[tuple[str, str]]:
    """Glosses of WordNet, with the synset each belongs to, such as ``("noun.00001740", "that which is ...")``.

    Args:
        count: how many; they are spread evenly over all of them, so that a few are as mixed as the whole.
        say: told, in short lines, what takes time. Default: standard error.

    Raises:
        DatasetError: they are not in the cache and cannot be fetched, or there are fewer than `count`.
    """
    if not 0 < count <= GLOSSES:
        raise DatasetError("WordNet", reason=f"it has {GLOSSES:,} glosses, not {count:,}", remedy="ask for fewer")
    path = cache_folder(os.environ) / "wordnet-3.0-glosses.tsv"
    data = _read_verified(path)
    if data is None:
        say = say or (lambda text: print(text, file=sys.stderr, flush=True))
        _build(path, say)
        data = _read_verified(path)
        if data is None:
            raise DatasetError(
                str(path),
                reason="it was written and read back, and the two differ",
                remedy="check that disk; nothing else can explain it",
            )
    lines = data.decode().splitlines()
    chosen = (lines[number * GLOSSES // count] for number in range(count))
    return [(key, gloss) for key, _, gloss in (line.partition("\t") for line in chosen)]


def cache_folder(environment: Mapping[str, str]) -> Path:
    """Where data sets are kept; it may not exist yet."""
    base = environment.get("XDG_CACHE_HOME", "")
    # The XDG specification wants relative values ignored.
    root = Path(base) if base.startswith("/") else Path(environment.get("HOME") or Path.home()) / ".cache"
    return root / "pocketgrid" / "datasets"


def parse_glosses(part_of_speech: str, lines: Iterator[str]) -> Iterator[tuple[str, str]]:
    """Synset and gloss of every line of a `data.*` file.

    The licence at its beginning is indented by two blanks, which is how wndb(5WN) tells readers to skip it.
    """
    for line in lines:
        if line.startswith("  "):
            continue
        head, _, gloss = line.partition(" | ")
        yield f"{part_of_speech}.{head[:8]}", gloss.strip()


def _read_verified(path: Path) -> bytes | None:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return data if hashlib.sha256(data).hexdigest() == SHA256 else None


def _build(path: Path, say: Say) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=path.parent) as folder:
            if (INSTALLED / "data.noun").is_file():
                _write(INSTALLED, path)
                if _read_verified(path) is not None:
                    return
            say(f"fetching WordNet (Debian's {PACKAGE}, 6 MB); once, then it is in {path.parent}")
            root = _fetch(Path(folder), say)
            _write(root / "usr" / "share" / "wordnet", path)
    except OSError as error:
        raise DatasetError(
            str(path.parent),
            reason=f"cannot be written or read: {error}",
            remedy="make room or give the right to write there, or set XDG_CACHE_HOME to a folder that has both",
        ) from error
    if _read_verified(path) is None:
        path.unlink()
        raise DatasetError(
            f"package {PACKAGE}",
            reason="it holds other glosses than WordNet 3.0's",
            remedy="Debian has changed the package; compare, then adapt SHA256 and GLOSSES in hack/datasets.py",
        )


def _write(source: Path, path: Path) -> None:
    """Make the file of glosses appear at once or not at all."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as target:
            for part in PARTS_OF_SPEECH:
                with (source / f"data.{part}").open(encoding="utf-8") as lines:
                    target.writelines(f"{key}\t{gloss}\n" for key, gloss in parse_glosses(part, lines))
            target.flush()
            os.fsync(target.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _fetch(folder: Path, say: Say) -> Path:
    """Download and unpack the package below `folder`; the root of what was in it."""
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise DatasetError(
                "WordNet",
                reason=f"it comes from Debian's package {PACKAGE}, and {program} is not on PATH",
                remedy="install apt and dpkg (any Debian or Ubuntu has them), or on another system put WordNet 3.0's "
                f"data.noun, data.verb, data.adj and data.adv into {INSTALLED}",
            )
    packages, root = folder / "packages", folder / "root"
    packages.mkdir()
    root.mkdir()
    command = ["apt-get", "--option", "APT::Sandbox::User=root", "download", PACKAGE]
    # The machine's own package lists are the quick way; freshly made images have none, nor need apt know Debian.
    if _run(command, packages) is None or not list(packages.glob("*.deb")):
        say("  apt has no package lists yet; reading Debian's into a private place ...")
        private = folder / "apt"
        private.mkdir()
        try:
            archive = Archive(RELEASE, folder=private, log=folder / "apt.log")
            archive.open()
            archive.download_packages([PACKAGE], packages)
        except ControlPlaneError as error:
            raise DatasetError(
                f"package {PACKAGE}",
                reason=f"apt cannot download it:\n{error}",
                remedy="check the network and apt's proxy; `apt-get download wordnet-base` shows the same error",
            ) from error
    for package in packages.glob("*.deb"):
        if _run(["dpkg-deb", "--extract", str(package), str(root)], folder) is None:
            raise DatasetError(
                package.name, reason="dpkg-deb cannot unpack it", remedy="try again; the download was damaged"
            )
    return root


def _run(command: list[str], folder: Path) -> str | None:
    """Output of a command; None if it failed or took too long."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=True,
        )
    except (subprocess.SubprocessError, OSError):
        return None
    return done.stdout
