"""Which Debian mirrors this machine is set up to use.

The mirror is a decision of whoever runs the machine (a company proxy, a local copy), so no address is written
down in this project: it is read from apt's own configuration, in both of the formats that sources.list(5)
describes. Entries of other vendors are told apart only roughly here, by suite and component; the signature
that apt checks against Debian's keyring has the last word.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

APT_FOLDER = Path("/etc/apt")
DEBIAN_KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
# The machine may run another release than the one that is built from.
DEBIAN_SUITES = frozenset(
    {"bullseye", "bookworm", "trixie", "forky", "duke", "sid"}
    | {"oldoldstable", "oldstable", "stable", "testing", "unstable"}
)
_ONE_LINE = re.compile(r"deb(?:-src)?\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>.*)")


@dataclass(frozen=True, slots=True)
class Mirror:
    """A base address of a Debian archive and the keyring its signatures are checked with (None: apt's own)."""

    uri: str
    keyring: Path | None


def debian_mirrors(apt_folder: Path = APT_FOLDER) -> list[Mirror]:
    """List the Debian mirrors configured under `apt_folder`, likeliest first, without repeats.

    Third parties also publish under Debian's suite names; an address that ends in /debian is therefore
    preferred.
    """
    files = [apt_folder / "sources.list", *sorted(apt_folder.glob("sources.list.d/*"))]
    found: list[Mirror] = []
    for file in files:
        if not file.is_file():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        match file.suffix:
            case ".list":
                found.extend(parse_one_line_format(text))
            case ".sources":
                found.extend(parse_deb822_format(text))
    return sorted(dict.fromkeys(found), key=lambda mirror: not mirror.uri.rstrip("/").endswith("/debian"))


def parse_one_line_format(text: str) -> Iterator[Mirror]:
    """Yield the Debian mirrors in a `*.list` file."""
    for line in text.splitlines():
        entry = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if entry is None:
            continue
        options = dict(option.partition("=")[::2] for option in (entry["options"] or "").split())
        if _is_debian([entry["suite"]], entry["components"].split()):
            yield Mirror(entry["uri"], _keyring(options.get("signed-by", "")))


def parse_deb822_format(text: str) -> Iterator[Mirror]:
    """Yield the Debian mirrors in a `*.sources` file."""
    without_comments = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n[ \t]*\n", without_comments):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1].isspace():
                fields[name] = f"{fields.get(name, '')}\n{line.strip()}"
            else:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() in ("no", "false"):
            continue
        if _is_debian(fields.get("suites", "").split(), fields.get("components", "").split()):
            for uri in fields.get("uris", "").split():
                yield Mirror(uri, _keyring(fields.get("signed-by", "")))


def _is_debian(suites: list[str], components: list[str]) -> bool:
    return "main" in components and not DEBIAN_SUITES.isdisjoint(suites)


def _keyring(signed_by: str) -> Path | None:
    # Signed-By may also hold a fingerprint or a whole key; Debian's own keyring is then the stricter choice.
    if signed_by.startswith("/"):
        return Path(signed_by)
    return next((keyring for keyring in DEBIAN_KEYRINGS if keyring.is_file()), None)
