"""S3 and what speaks its protocol.

Credentials, region and endpoint come from where every AWS tool takes them: the environment (AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL), the files below ~/.aws, a web identity, or the
instance. An endpoint that is not Amazon's is addressed by path (endpoint/bucket/key), which every server understands.

Every range is asked for under the condition that the object still has the entity tag with which it was opened. The
synchronous botocore client is used: it may be called from any thread, and has deadlines.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pocketgrid.errors import InputChangedError, StoreError
from pocketgrid.storage.locations import Source, change_message, fingerprint_of
from pocketgrid.storage.places.base import Found
from pocketgrid.storage.places.patterns import Pattern
from pocketgrid.storage.places.ranged import (
    CONNECT_SECONDS,
    SILENCE_SECONDS,
    RangedSource,
    TransientError,
    read_body,
    with_retries,
)

_PARALLEL = 8
"""Objects fetched at a time: a small one is nearly all waiting."""

PAGE_KEYS = 1000
"""Keys of a listing at a time; S3 gives no more."""

_MISSING = {"404", "NoSuchKey", "NoSuchBucket", "NotFound"}
_CHANGED = {"412", "PreconditionFailed"}
_DENIED = {"401", "403", "AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken",
           "InvalidToken", "AllAccessDisabled"}  # fmt: skip
_CREDENTIALS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the operator's environment"


class ObjectDeniedError(PermissionError):
    """One object may not be read, while the credentials as such are good."""


class S3Store:
    """See `places.base.Store`. Paths are ``bucket/key``."""

    is_local = False

    def __init__(self) -> None:
        self._client = _make_client()

    def name_of(self, path: str) -> str:
        """See `Store.name_of`."""
        return f"s3://{path}"

    def look(self, path: str) -> Found:
        """See `Store.look`."""
        bucket, key = _split(path)
        facts = self._ask(path, lambda: self._client.head_object(Bucket=bucket, Key=key))
        return Found(path, key.rpartition("/")[2], facts["ContentLength"], facts["ETag"])

    def find(self, pattern: Pattern, *, everything: bool, most: int) -> Iterator[Found]:
        """See `Store.find`."""
        bucket, prefix = _split(pattern.root, key_needed=False)
        token: dict[str, str] = {}
        count = 0
        while True:
            page = self._ask(
                pattern.root,
                lambda: self._client.list_objects_v2(  # used at once
                    Bucket=bucket,
                    Prefix=prefix,
                    MaxKeys=PAGE_KEYS,
                    **token,  # noqa: B023
                ),
            )
            for entry in page.get("Contents", ()):
                relative = entry["Key"][len(prefix) :]
                # Consoles make an object of no bytes to show an empty folder.
                if relative and not relative.endswith("/") and pattern.matches(relative, everything=everything):
                    count += 1
                    yield Found(f"{bucket}/{entry['Key']}", relative, entry["Size"], entry["ETag"])
                    if count > most:
                        return
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def open(self, path: str) -> Source:
        """See `Store.open`."""
        found = self.look(path)
        mark = fingerprint_of({"size": found.size, "etag": found.mark})
        name = self.name_of(path)

        def fetch(offset: int, length: int) -> bytes:
            try:
                return self._range(found, offset, length)
            except OSError as error:
                raise StoreError(f"cannot read {name}: {error.strerror}") from error

        return RangedSource(name, found.size, mark, fetch)

    def fetch(self, files: Sequence[Found]) -> list[bytes | OSError]:
        """See `Store.fetch`."""
        with ThreadPoolExecutor(min(_PARALLEL, max(1, len(files))), thread_name_prefix="s3") as pool:
            return list(pool.map(self._whole, files))

    def _whole(self, found: Found) -> bytes | OSError:
        try:
            return self._range(found, 0, found.size) if found.size else b""
        except ObjectDeniedError as error:
            return error
        except OSError as error:
            raise StoreError(f"cannot read {self.name_of(found.path)}: {error.strerror}") from error

    def _range(self, found: Found, offset: int, length: int) -> bytes:
        bucket, key = _split(found.path)
        wanted = f"bytes={offset}-{offset + length - 1}"

        def read() -> bytes:
            answer = self._client.get_object(Bucket=bucket, Key=key, Range=wanted, IfMatch=found.mark)
            with answer["Body"] as body:
                # What it wraps hands out bytes as they come, so that a deadline can be kept.
                return read_body(getattr(body, "_raw_stream", body), length)

        data: bytes = self._ask(found.path, read)
        if len(data) != length:
            raise StoreError(f"{self.name_of(found.path)} gave {len(data)} of {length} bytes at {offset}")
        return data

    def _ask(self, path: str, request: Any) -> Any:
        """The answer to `request`, or an error that says what to do."""
        exceptions = importlib.import_module("botocore.exceptions")
        broken = importlib.import_module("urllib3.exceptions").HTTPError
        name = self.name_of(path)

        def attempt() -> Any:
            try:
                return request()
            except exceptions.ClientError as error:
                raise _meaning(error, name) from error
            except (exceptions.NoCredentialsError, exceptions.PartialCredentialsError) as error:
                raise PermissionError(0, f"there are no complete credentials; set {_CREDENTIALS}") from error
            except exceptions.ParamValidationError as error:
                raise OSError(0, f"it is no valid bucket and key: {error}") from error
            except (exceptions.BotoCoreError, broken, OSError) as error:
                raise TransientError(f"{error}; is AWS_ENDPOINT_URL right, and the store up?") from error

        return with_retries(name, attempt)


def _meaning(error: Any, name: str) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _CHANGED or status == 412:
        return InputChangedError(change_message(name, "its entity tag is another"))
    if code in _MISSING:
        return FileNotFoundError(0, f"the store says {code}")
    if code in _DENIED:
        kind = ObjectDeniedError if code == "AccessDenied" else PermissionError
        return kind(0, f"the store says {code}; check {_CREDENTIALS}, and what they are allowed to read")
    if status >= 500 or status == 429 or code in ("SlowDown", "RequestTimeout"):
        return TransientError(f"the store says {code or status}")
    return OSError(0, f"the store says {code or status}: {error}")


def _split(path: str, *, key_needed: bool = True) -> tuple[str, str]:
    bucket, _, key = path.partition("/")
    if not bucket or (key_needed and not key):
        raise OSError(0, "it names no object; write s3://bucket/key")
    return bucket, key


@functools.cache
def _service_data() -> Any:
    """What botocore knows of the service: some megabytes of JSON, read once."""
    return importlib.import_module("botocore.loaders").create_loader()


def _make_client() -> Any:
    session = importlib.import_module("botocore.session").get_session()
    session.register_component("data_loader", _service_data())
    config = importlib.import_module("botocore.config").Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=SILENCE_SECONDS,
        retries={"total_max_attempts": 1},  # we try again ourselves, for all places alike
        max_pool_connections=2 * _PARALLEL,
        user_agent_extra="pocketgrid",
    )
    errors = importlib.import_module("botocore.exceptions")
    try:
        client = session.create_client("s3", config=config)
        if "amazonaws." not in client.meta.endpoint_url:
            by_path = importlib.import_module("botocore.config").Config(s3={"addressing_style": "path"})
            client = session.create_client("s3", config=config.merge(by_path))
    except (errors.BotoCoreError, ValueError) as error:
        raise OSError(0, f"the S3 client cannot be set up: {error}") from error
    return client
