"""Places where files are: this machine, S3, the web, and whatever fsspec opens.

Responsible for finding and opening files by URI; not for what is in them. Each kind of place is a `Store`, chosen by
the scheme. Reads of remote places have deadlines and are tried again, so that a store that hangs costs a bounded
time and then an error that says what to do.
"""

from __future__ import annotations

from pocketgrid.errors import InputChangedError, InvalidSpecError, StoreError
from pocketgrid.storage.locations import LocalSource, Source, display, local_path
from pocketgrid.storage.places.base import UNKNOWN_SIZE, Found, Store
from pocketgrid.storage.places.patterns import split_pattern
from pocketgrid.storage.places.spool import Spool
from pocketgrid.storage.reasons import Refusal

__all__ = ["Found", "Spool", "Store", "find_files", "open_found", "open_place"]


def open_place(uri: str, *, field: str, spool: Spool | None = None) -> Source:
    """Open the one file at `uri` for reading in ranges.

    Args:
        spool: where a copy is kept if the place cannot be read in ranges; by default a folder for temporary files.

    Raises:
        InvalidSpecError: InvalidURI, UnsupportedScheme, NotFound or Unreadable, blaming `field`.
    """
    store, path, _ = _store_of(uri, field, spool)
    return _opened(store, path, field)


def open_found(store: Store, found: Found, *, field: str, keep_open: bool) -> Source:
    """Open a file that was listed before.

    Raises:
        InvalidSpecError: see `open_place`.
    """
    if keep_open or not store.is_local:
        return _opened(store, found.path, field)
    return _opened(store, found.path, field, keep_open=False)


def find_files(
    uri: str, *, field: str, most: int, spool: Spool | None = None, as_items: bool = False
) -> tuple[Store, list[Found]]:
    """The files that `uri` names: one file, a folder (ends in a slash) or a glob; the latter in order of name.

    Args:
        uri: what the user wrote.
        field: to blame.
        most: more files than this are refused.
        spool: see `open_place`.
        as_items: the files themselves are the items: also those of a folder that are hidden or private by their
            names, and with size and mark even where a single file is named.

    Raises:
        InvalidSpecError: see `open_place`; also TooManyFiles, and NotFound if there are none.
    """
    store, path, literal = _store_of(uri, field, spool)
    name = store.name_of(path)
    try:
        pattern = None if literal else split_pattern(path)
        if pattern is None:
            return store, [store.look(path) if as_items else Found(path, path.rpartition("/")[2], UNKNOWN_SIZE, "")]
        files = sorted(store.find(pattern, everything=as_items, most=most), key=lambda found: found.relative)
    except (OSError, StoreError) as error:
        raise _refusal(error, name, field) from error
    if len(files) > most:
        raise InvalidSpecError(
            Refusal.TOO_MANY_FILES,
            f"{name} names more than {most:,} files; pack them into fewer, larger ones, such as Parquet",
            field=field,
        )
    if not files:
        what = "no files in the folder" if pattern.is_folder else "no file that matches"
        raise InvalidSpecError(Refusal.NOT_FOUND, f"there is {what} {name}", field=field)
    return store, files


def _store_of(uri: str, field: str, spool: Spool | None) -> tuple[Store, str, bool]:
    """The store, the path as it calls it, and whether that is a name even if it reads like a pattern."""
    path = local_path(uri, field=field)
    if path is not None:
        from pocketgrid.storage.places.local import LocalStore, pattern_text

        return LocalStore(), *pattern_text(uri, path)
    scheme = uri.partition("://")[0].lower()
    try:
        match scheme:
            case "http" | "https":
                from pocketgrid.storage.places.web import WebStore

                return WebStore(spool if spool is not None else Spool()), uri, True
            case "s3" | "s3a":
                from pocketgrid.storage.places.s3 import S3Store

                return S3Store(), uri.partition("://")[2], False
            case _:
                from pocketgrid.storage.places.generic import open_generic

                return *open_generic(uri), False
    except (ImportError, ValueError) as error:
        raise InvalidSpecError(
            Refusal.UNSUPPORTED_SCHEME, f"nothing installed here opens {display(uri)}: {error}", field=field
        ) from error
    except OSError as error:
        raise _refusal(error, display(uri), field) from error


def _opened(store: Store, path: str, field: str, *, keep_open: bool = True) -> Source:
    try:
        if not keep_open:
            return LocalSource(path, keep_open=False)
        return store.open(path)
    except InputChangedError:
        raise
    except (OSError, StoreError) as error:
        raise _refusal(error, store.name_of(path), field) from error


def _refusal(error: OSError | StoreError, name: str, field: str) -> InvalidSpecError:
    if isinstance(error, StoreError):
        return InvalidSpecError(Refusal.UNREADABLE, str(error), field=field)
    if isinstance(error, FileNotFoundError):
        return InvalidSpecError(Refusal.NOT_FOUND, f"there is no file {name}", field=field)
    why = error.strerror or str(error)
    return InvalidSpecError(Refusal.UNREADABLE, f"cannot read {name}: {why}", field=field)
