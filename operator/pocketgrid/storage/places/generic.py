"""Every other place that fsspec knows, such as gs:// or abfs://, if its driver is installed.

Deadlines and retries are the driver's. Whether a file changed while it is read is not noticed here, except by its
size; after a restart it is, by what the driver says of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pocketgrid.errors import StoreError
from pocketgrid.storage.locations import Source, display, fingerprint_of
from pocketgrid.storage.places.base import Found
from pocketgrid.storage.places.patterns import Pattern
from pocketgrid.storage.places.ranged import RangedSource

_STABLE_FACTS = ("size", "etag", "mtime", "lastmodified", "modified", "created", "md5", "md5hash", "crc32c",
                 "checksum", "generation", "versionid")  # fmt: skip
"""Facts by which file systems of fsspec tell one content from another; others, such as access times, are volatile."""


def open_generic(uri: str) -> tuple[GenericStore, str]:
    """The store for a URI, and the path as it calls it.

    Raises:
        ImportError: no driver is installed for the scheme.
        ValueError: there is no such scheme.
        OSError: the driver cannot be set up.
    """
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(uri)
    except (ImportError, ValueError):
        raise
    except Exception as error:  # a file system may log in while it is made, and fail in its own way
        raise OSError(0, f"its driver says {error}") from error
    slash = "/" if uri.endswith("/") and not path.endswith("/") else ""
    return GenericStore(filesystem, uri.partition("://")[0]), path + slash


class GenericStore:
    """See `places.base.Store`."""

    is_local = False

    def __init__(self, filesystem: Any, scheme: str) -> None:
        self._filesystem = filesystem
        self._scheme = scheme

    def name_of(self, path: str) -> str:
        """See `Store.name_of`."""
        return display(f"{self._scheme}://{path.lstrip('/')}")

    def look(self, path: str) -> Found:
        """See `Store.look`."""
        facts = self._facts(path)
        if facts.get("type") == "directory":
            raise OSError(0, "it is a folder")
        if facts.get("size") is None:
            raise OSError(0, "the store does not say how large it is, so it cannot be read in ranges")
        return _found(path, path.rpartition("/")[2], facts)

    def find(self, pattern: Pattern, *, everything: bool, most: int) -> Iterator[Found]:
        """See `Store.find`."""
        root = pattern.root
        try:
            listing = self._filesystem.find(root.rstrip("/") or root, detail=True)
        except OSError:
            raise
        except Exception as error:  # each file system has errors of its own, often not even OSError
            raise OSError(0, str(error)) from error
        for path, facts in listing.items():
            relative = path.removeprefix(root) if path.startswith(root) else path.lstrip("/")[len(root.lstrip("/")) :]
            if pattern.matches(relative, everything=everything):
                yield _found(path, relative, facts)

    def open(self, path: str) -> Source:
        """See `Store.open`."""
        found = self.look(path)

        def fetch(offset: int, length: int) -> bytes:
            content = self._read(path, offset, offset + length)
            if isinstance(content, OSError):
                raise StoreError(f"cannot read {self.name_of(path)}: {content}") from content
            if len(content) != length:
                raise StoreError(f"{self.name_of(path)} gave {len(content)} of {length} bytes; did it change?")
            return content

        return RangedSource(self.name_of(path), found.size, found.mark, fetch)

    def fetch(self, files: Sequence[Found]) -> list[bytes | OSError]:
        """See `Store.fetch`."""
        return [self._read(found.path, None, None) for found in files]

    def _read(self, path: str, start: int | None, end: int | None) -> bytes | OSError:
        try:
            return bytes(self._filesystem.cat_file(path, start=start, end=end))
        except PermissionError as error:
            return error
        except Exception as error:  # see above
            raise StoreError(f"cannot read {self.name_of(path)}: {error}") from error

    def _facts(self, path: str) -> dict[str, Any]:
        try:
            facts: dict[str, Any] = self._filesystem.info(path)
        except OSError:
            raise
        except Exception as error:  # see above
            raise OSError(0, str(error)) from error
        return facts


def _found(path: str, relative: str, facts: dict[str, Any]) -> Found:
    stable = {}
    for key, value in facts.items():
        folded = key.lower().replace("_", "").replace("-", "")
        if folded in _STABLE_FACTS:
            stable[folded] = value
    return Found(path, relative, int(facts.get("size") or 0), fingerprint_of(stable))
