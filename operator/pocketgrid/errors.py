"""Everything PocketGrid raises on purpose, in one tree.

Expected outcomes are values (a verdict, a refusal with its reasons); these are for what stops a caller
from going on. Each rim translates the tree once: the gateway to gRPC status codes, the controller to
conditions and retries, the command line to exit codes.
"""

from __future__ import annotations


class PocketGridError(Exception):
    """Root of all errors raised on purpose."""


# What a user asked for can never work as it stands; trying again is pointless.


class InvalidSpecError(PocketGridError):
    """A manifest, or what it points at, can never run.

    Attributes:
        reason: CamelCase reason, fit for a Kubernetes condition.
        field: path of the offending field, such as ``spec.model.sha256``; empty if no single field is to blame.
    """

    def __init__(self, reason: str, message: str, *, field: str = "") -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.reason = reason
        self.field = field


# Something this process keeps on disk.


class StoreError(PocketGridError):
    """Reading or writing durable state failed; the state already acknowledged is intact."""


class StaleEpochError(StoreError):
    """Another writer has taken over this job's commit log; this one must stop without acknowledging."""


class InputChangedError(StoreError):
    """A data set is not what it was when its job was admitted; reading on would mix two data sets in one output."""


class CorruptLogError(StoreError):
    """Durable state contradicts itself in a way that redoing work cannot mend."""


# The party on the other side of a link.


class PeerError(PocketGridError):
    """The other side broke the protocol or is not who it must be."""


class ProtocolError(PeerError):
    """The other side sent something this protocol version does not allow."""


class RefusedError(PeerError):
    """The other side understood and said no.

    Attributes:
        reason: CamelCase reason given by the other side.
        message: for people, without the reason.
        retry: whether asking again later can succeed.
    """

    def __init__(self, reason: str, message: str, *, retry: bool) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.retry = retry


class InternalError(PocketGridError):
    """A fault of our own; please report it."""
