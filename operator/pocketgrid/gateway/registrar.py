"""Decides who gets a certificate, and makes it: for the holder of a token, or for a key that is enrolled already.

A key that is enrolled gets its certificates without a token, over mutual TLS (`renew`) or, when its certificate has
run out because the device was switched off, for a request signed with the key (`enrol` without a token). Whoever
replays such a request gets a certificate for a key that he does not have. So certificates may be short-lived without
devices having to be enrolled by hand after each weekend; what ends a device's access is the register.

Not here: gRPC (`enrolment`, `servicer`).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass

from pocketgrid.clock import Clock
from pocketgrid.errors import InvalidSpecError, RefusedError
from pocketgrid.gateway.authority import Keyring
from pocketgrid.gateway.register import NOT_ENROLLED, DeviceRecord, Register, admit, decide_enrolment
from pocketgrid.gateway.throttle import Throttle
from pocketgrid.gateway.tokens import JoinToken, TokenStore, mark_of, split_token
from pocketgrid.model.ids import DeviceName

log = logging.getLogger(__name__)

RENEW_AFTER = 2 / 3
"""Share of a certificate's life after which a device asks for the next one."""

NOT_ACCEPTED = "TokenNotAccepted"
THROTTLED = "TooManyTries"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a device is given.

    Attributes:
        chain_pem: its certificate and who signed it.
        bundle_pem: whom to trust.
        valid_s: for so long from now.
    """

    chain_pem: bytes
    bundle_pem: bytes
    valid_s: float

    @property
    def renew_after_s(self) -> float:
        """When to ask for the next one."""
        return self.valid_s * RENEW_AFTER


class Registrar:
    """Belongs to one gateway.

    Args:
        keyring: the present one, asked each time.
        valid_s: life of a device's certificate.
    """

    def __init__(
        self,
        keyring: Callable[[], Keyring],
        tokens: TokenStore,
        register: Register,
        clock: Clock,
        *,
        trust_domain: str,
        valid_s: float,
        throttle: Throttle | None = None,
    ) -> None:
        self._keyring = keyring
        self._tokens = tokens
        self._register = register
        self._clock = clock
        self._trust_domain = trust_domain
        self._valid_s = valid_s
        self._throttle = throttle or Throttle()

    async def enrol(
        self, device: DeviceName, request_der: bytes, token: str, node_name: str, address: str
    ) -> Credentials:
        """A certificate for a device that dials from `address` and proves itself with a token, or with its key alone.

        Raises:
            RefusedError: it gets none.
            StoreError, PeerError: token or device cannot be looked up or kept now.
        """
        wait = self._throttle.wait_s(address, self._clock.monotonic())
        if wait > 0:
            message = f"too many wrong tries from {address}; come again in {wait:.0f} s"
            raise RefusedError(THROTTLED, message, retry=True)
        from pocketgrid.gateway import certificates

        try:
            public_key = certificates.read_request(request_der)
        except InvalidSpecError as exc:
            raise self._failed(address, RefusedError(exc.reason, str(exc), retry=False)) from exc
        key_sha256 = hashlib.sha256(public_key).hexdigest()
        if token:
            await self._join(device, key_sha256, token, node_name, address)
        else:
            try:
                admit(self._register.find(device), key_sha256)
            except RefusedError as exc:
                raise self._failed(address, exc) from exc
        return self.issue(device, public_key)

    def renew(self, record: DeviceRecord, certificate_pem: bytes) -> Credentials:
        """Another certificate for a device that was let in with that one."""
        from pocketgrid.gateway import certificates

        return self.issue(record.name, certificates.public_key_of(certificate_pem))

    async def _join(self, device: DeviceName, key_sha256: str, text: str, node_name: str, address: str) -> None:
        presented = split_token(text)
        token: JoinToken | None = None
        if presented is not None:
            token = await self._tokens.get(presented[0])
        if token is None or presented is None or not token.matches(presented[1]):
            raise self._failed(address, _wrong_token())
        now = self._clock.wall()
        known = self._register.find(device)
        record = decide_enrolment(known, device, key_sha256, token, node_name)
        # Before the register knows the device: whoever is known needs no token.
        if await self._tokens.redeem(token.token_id, mark_of(device, key_sha256), now) is None:
            raise self._failed(address, _wrong_token())
        if record != known:
            await self._register.enrol(record)
            log.info("enrolled device=%s owner=%s token=%s", device, record.owner, token.token_id)

    def issue(self, device: DeviceName, public_key: bytes) -> Credentials:
        """A certificate for that key under that name, for whoever has been found to deserve it."""
        from pocketgrid.gateway import certificates

        now, keyring = self._clock.wall(), self._keyring()
        signing = keyring.signing(now)
        chain = certificates.make_device(
            signing.certificate_pem,
            signing.key_pem,
            public_key,
            spiffe_id(self._trust_domain, device),
            dt.datetime.fromtimestamp(now, dt.UTC),
            dt.timedelta(seconds=self._valid_s),
        )
        return Credentials(chain + signing.certificate_pem, keyring.bundle(now), self._valid_s)

    def _failed(self, address: str, error: RefusedError) -> RefusedError:
        self._throttle.failed(address, self._clock.monotonic())
        return error


def spiffe_id(trust_domain: str, device: DeviceName) -> str:
    """What a device's certificate calls it."""
    return f"spiffe://{trust_domain}/device/{device}"


def device_of(uri: str, trust_domain: str) -> DeviceName:
    """The device a SPIFFE ID names.

    Raises:
        RefusedError: it names none of this grid's.
    """
    prefix = f"spiffe://{trust_domain}/device/"
    if not uri.startswith(prefix) or not uri[len(prefix) :]:
        message = f"the certificate names no device of {trust_domain}; join this grid first"
        raise RefusedError(NOT_ENROLLED, message, retry=False)
    return DeviceName(uri[len(prefix) :])


def _wrong_token() -> RefusedError:
    # One answer for all: what exactly is wrong is for those who can list the tokens.
    message = "the token is unknown, expired or used up; ask whoever runs the operator for a new join command"
    return RefusedError(NOT_ACCEPTED, message, retry=False)
