"""Files of web servers, by range requests where the server knows them and by a copy where it does not.

Whether it does is asked with a request for the first byte: the answer also has the size, and what tells this content
from another (ETag, Last-Modified). HEAD is not used: links that are signed for GET refuse it. Every later answer must
show the same, or the file has changed. Proxies are those of the environment (https_proxy, no_proxy). User name and
password of the URI are sent to that host only.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from pocketgrid.errors import InputChangedError
from pocketgrid.storage.locations import Source, change_message, display, fingerprint_of
from pocketgrid.storage.places.base import Found
from pocketgrid.storage.places.patterns import Pattern
from pocketgrid.storage.places.ranged import (
    SILENCE_SECONDS,
    PacedBody,
    RangedSource,
    TransientError,
    read_body,
    with_retries,
)
from pocketgrid.storage.places.spool import Spool, SpooledSource

_OPENER = urllib.request.OpenerDirector()
for _handler in (
    urllib.request.ProxyHandler,
    urllib.request.HTTPHandler,
    urllib.request.HTTPSHandler,
    urllib.request.HTTPDefaultErrorHandler,
    urllib.request.HTTPRedirectHandler,
    urllib.request.HTTPErrorProcessor,
    urllib.request.UnknownHandler,
):
    _OPENER.add_handler(_handler())
"""Without the handlers for file: and ftp:, to which a server could otherwise redirect."""

_NO_LISTINGS = "a web server does not list its files, so there are no folders and globs; name each file in uris"
_PARTIAL = 206


class WebStore:
    """See `places.base.Store`. Paths are whole URIs.

    Args:
        spool: for copies of files whose server knows no ranges.
    """

    is_local = False

    def __init__(self, spool: Spool) -> None:
        self._spool = spool

    def name_of(self, path: str) -> str:
        """See `Store.name_of`."""
        return display(path)

    def look(self, path: str) -> Found:
        """See `Store.look`."""
        source = self.open(path)
        source.close()
        return Found(path, unquote(urlsplit(path).path.rpartition("/")[2]), source.size, source.fingerprint)

    def find(self, pattern: Pattern, *, everything: bool, most: int) -> Iterator[Found]:
        """Web servers have no listings."""
        raise OSError(0, _NO_LISTINGS)

    def open(self, path: str) -> Source:
        """See `Store.open`."""
        name = self.name_of(path)
        named = urlsplit(path).path
        if named.endswith("/") or "*" in named:
            # Many servers would answer a folder with a page for people, which is no data.
            raise OSError(0, _NO_LISTINGS)
        return with_retries(name, lambda: self._open(path, name))

    def fetch(self, files: Sequence[Found]) -> list[bytes | OSError]:
        """See `Store.fetch`."""
        contents: list[bytes | OSError] = []
        for found in files:
            try:
                source = self.open(found.path)
            except OSError as error:
                contents.append(error)
                continue
            try:
                if source.fingerprint != found.mark:
                    raise InputChangedError(change_message(source.name, "it is not what it was when it was listed"))
                contents.append(source.read_at(0, source.size))
            finally:
                source.close()
        return contents

    def _open(self, path: str, name: str) -> Source:
        try:
            with _request(path, 0, 1) as answer:
                facts = _facts(answer.headers)
                if answer.status != _PARTIAL:
                    return self._copy(answer, facts, name)
                size = _full_size(answer.headers)
        except _EmptyError:
            facts, size = {}, 0
        if size is None:
            raise OSError(0, "the server does not say how large it is")
        facts["size"] = str(size)

        def fetch(offset: int, length: int) -> bytes:
            return with_retries(name, lambda: _range(path, name, facts, offset, length))

        return RangedSource(name, size, fingerprint_of(facts), fetch)

    def _copy(self, answer: Any, facts: dict[str, str], name: str) -> SpooledSource:
        stream = _Hashing(answer)
        copy = self._spool.copy(stream, name)
        announced = answer.headers.get("Content-Length")
        if announced is not None and copy.size != int(announced):
            copy.close()
            raise TransientError(f"{copy.size} of {announced} bytes came")
        copy.fingerprint = fingerprint_of({**facts, "size": copy.size, "content": stream.digest.hexdigest()})
        return copy


class _EmptyError(Exception):
    """The file has no first byte."""


class _Hashing:
    """An answer, hashed while it is read: servers without ranges often do not say what tells contents apart."""

    def __init__(self, answer: Any) -> None:
        self._answer = PacedBody(answer)
        self.digest = hashlib.blake2b(digest_size=16)

    def read(self, size: int) -> bytes:
        """Up to `size` bytes."""
        try:
            data = self._answer.read(size)
        except (http.client.HTTPException, OSError) as error:
            raise TransientError(f"the answer broke off: {str(error) or type(error).__name__}") from error
        self.digest.update(data)
        return data


def _range(path: str, name: str, facts: Mapping[str, str], offset: int, length: int) -> bytes:
    try:
        with _request(path, offset, length) as answer:
            data = read_body(answer, length) if answer.status == _PARTIAL else b""
            now = {**_facts(answer.headers), "size": str(_full_size(answer.headers))}
    except _EmptyError:
        data, now = b"", {"size": "smaller"}
    except (http.client.HTTPException, OSError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise TransientError(error.strerror) from error
        raise TransientError(str(error) or type(error).__name__) from error
    for fact, before in facts.items():
        if now.get(fact) != before:
            what = f"its {fact} went from {before} to {now.get(fact)}"
            raise InputChangedError(change_message(name, what))
    if len(data) != length:
        raise TransientError(f"{len(data)} of {length} bytes came")
    return data


def _request(path: str, offset: int, length: int) -> Any:
    parts = urlsplit(path)
    user, at, host = parts.netloc.rpartition("@")
    request = urllib.request.Request(  # noqa: S310  the opener knows no other schemes
        urlunsplit((parts.scheme, host, parts.path, parts.query, "")),
        headers={
            "Range": f"bytes={offset}-{offset + length - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": "pocketgrid",
        },
    )
    if at:
        secret = base64.b64encode(unquote(user).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {secret}")
    try:
        return _OPENER.open(request, timeout=SILENCE_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            raise _meaning(error) from error
    except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
        reason = getattr(error, "reason", error)
        raise TransientError(f"{reason or type(error).__name__}; is the server up, and its name right?") from error


def _meaning(error: urllib.error.HTTPError) -> Exception:
    says = f"the server says {error.code} {error.reason}"
    match error.code:
        case 404 | 410:
            return FileNotFoundError(0, says)
        case 401 | 403:
            return PermissionError(0, f"{says}; does it want a user name and password, or a newly signed link?")
        case 416:
            return _EmptyError()
        case 408 | 425 | 429:
            return TransientError(says)
        case code if code >= 500:
            return TransientError(says)
        case _:
            return OSError(0, says)


def _facts(headers: Any) -> dict[str, str]:
    named = {"ETag": headers.get("ETag"), "Last-Modified": headers.get("Last-Modified")}
    return {name: value for name, value in named.items() if value}


def _full_size(headers: Any) -> int | None:
    total = (headers.get("Content-Range") or "").rpartition("/")[2]
    return int(total) if total.isdigit() else None
