"""The gateway's stores in a cluster: authority and tokens in Secrets, devices in EdgeNodes.

Every write that must be counted carries the resource version that was read, so that of two operators that do the same
one is told so and reads again. Nothing here is fenced by the lead: what two operators might both write is either made
once or counted once.

Rights beside the controller's own, all of them in the operator's namespace: get, create, update of Secrets; get,
create, update of the ConfigMap that tells `pocketgrid token` where devices join.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from pocketgrid.api.v1alpha1.meta import API_VERSION
from pocketgrid.controller.client import EDGE_NODES, Cluster, ConflictError, Endpoint, Json, NotFoundError
from pocketgrid.controller.records import EdgeRecord, Records
from pocketgrid.errors import PocketGridError, RefusedError, StoreError
from pocketgrid.gateway.register import NAME_TAKEN, DeviceRecord
from pocketgrid.gateway.tokens import JoinToken
from pocketgrid.model.ids import DeviceName
from pocketgrid.model.trust import TrustTier

log = logging.getLogger(__name__)

SECRETS = Endpoint("/api/v1", "secrets", namespaced=True)
CONFIG_MAPS = Endpoint("/api/v1", "configmaps", namespaced=True)

AUTHORITY_NAME = "pocketgrid-authority"
AUTHORITY_TYPE = "pocketgrid.dev/authority"
_AUTHORITY_KEY = "authority.json"

TOKEN_PREFIX = "join-token-"  # noqa: S105  # the name of a Secret
TOKEN_TYPE = "pocketgrid.dev/join-token"  # noqa: S105

GATEWAY_NAME = "pocketgrid-gateway"
"""ConfigMap with what `pocketgrid token create` prints beside the token."""

TRIES = 8


class SecretAuthority:
    """An `AuthorityStore`: one Secret."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace

    async def read(self) -> tuple[bytes, str] | None:
        """Content and resource version."""
        try:
            secret = await self._cluster.get(SECRETS, AUTHORITY_NAME, self._namespace)
        except NotFoundError:
            return None
        return _get(secret, _AUTHORITY_KEY).encode(), secret["metadata"]["resourceVersion"]

    async def create(self, content: bytes) -> bool:
        """Create it."""
        body = _secret(AUTHORITY_NAME, AUTHORITY_TYPE, {_AUTHORITY_KEY: content.decode()})
        try:
            await self._cluster.create(SECRETS, body, self._namespace)
        except ConflictError:
            return False
        return True

    async def replace(self, content: bytes, version: str) -> bool:
        """Replace it."""
        body = _secret(AUTHORITY_NAME, AUTHORITY_TYPE, {_AUTHORITY_KEY: content.decode()}, version)
        try:
            await self._cluster.replace(SECRETS, body, self._namespace)
        except (ConflictError, NotFoundError):
            return False
        return True


class SecretTokens:
    """A `TokenStore`: one Secret for each token."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self._cluster = cluster
        self._namespace = namespace

    async def get(self, token_id: str) -> JoinToken | None:
        """The token with that id."""
        found = await self._find(token_id)
        return read_token(found) if found is not None else None

    async def redeem(self, token_id: str, mark: str, now: float) -> JoinToken | None:
        """Count a use."""
        for _ in range(TRIES):
            found = await self._find(token_id)
            if found is None:
                return None
            before = read_token(found)
            after = before.redeem(mark, now)
            if after is None or after == before:
                return after
            try:
                body = token_secret(after, found["metadata"]["resourceVersion"])
                await self._cluster.replace(SECRETS, body, self._namespace)
                return after
            except ConflictError:
                continue
            except NotFoundError:
                return None
        raise StoreError(f"Secret {TOKEN_PREFIX}{token_id} changes again and again while a use of it is counted")

    async def create(self, token: JoinToken) -> None:
        """Keep a new one."""
        await self._cluster.create(SECRETS, token_secret(token), self._namespace)

    async def list(self) -> list[JoinToken]:
        """All that can be read."""
        found = []
        for secret in (await self._cluster.list(SECRETS, self._namespace))[0]:
            if secret.get("type") == TOKEN_TYPE:
                try:
                    found.append(read_token(secret))
                except StoreError as exc:
                    log.warning("%s", exc)
        return found

    async def delete(self, token_id: str) -> bool:
        """Let nobody join with it any more; whether there was one."""
        found = await self._find(token_id)
        if found is None:
            return False
        try:
            await self._cluster.delete(SECRETS, TOKEN_PREFIX + token_id, self._namespace, uid=found["metadata"]["uid"])
        except NotFoundError:
            return False
        return True

    async def _find(self, token_id: str) -> Json | None:
        try:
            secret = await self._cluster.get(SECRETS, TOKEN_PREFIX + token_id, self._namespace)
        except NotFoundError:
            return None
        return secret if secret.get("type") == TOKEN_TYPE else None


class EdgeNodeRegister:
    """A `Register`: what the watch has told of EdgeNodes, and our own writes as soon as they are answered.

    Attributes:
        records: shared with the controller, which fills them.
    """

    def __init__(self) -> None:
        self.records = Records()
        self._cluster: Cluster | None = None
        self._take: Callable[[Json], None] = lambda _: None
        self.on_change: Callable[[DeviceName], None] = lambda _: None

    def serve(self, cluster: Cluster, take: Callable[[Json], None]) -> None:
        """From now on devices can be enrolled; `take` is told of every EdgeNode that was written, as by the watch."""
        self._cluster, self._take = cluster, take

    def tell(self, device: DeviceName) -> None:
        """What is known of a device has changed."""
        self.on_change(device)

    def find(self, device: DeviceName) -> DeviceRecord | None:
        """What is known of a device."""
        edge = self.records.edge_nodes.get(device)
        return _record(edge) if edge is not None else None

    async def enrol(self, record: DeviceRecord) -> None:
        """Create its EdgeNode, or give the one there is another key."""
        assert self._cluster is not None, "nobody can be let in before the controller leads"
        known = self.records.edge_nodes.get(record.name)
        try:
            if known is None:
                body = await self._cluster.create(EDGE_NODES, build_edge_node(record))
            else:
                spec = build_edge_node(record)["spec"]
                absent = {key: None for key in ("nodeName", "hardwareClass") if key not in spec}
                body = await self._cluster.patch_spec(EDGE_NODES, known.name, {**absent, **spec}, uid=known.uid)
        except ConflictError as exc:
            # Somebody has just created it or deleted it; the watch will say who and what.
            message = f"the name {record.name} has just been taken or given up; come again"
            raise RefusedError(NAME_TAKEN, message, retry=True) from exc
        self._take(body)


def build_edge_node(record: DeviceRecord) -> Json:
    """A new EdgeNode for a device that has joined."""
    spec = {
        "owner": record.owner,
        "tier": record.tier.name.title(),
        "keySHA256": record.key_sha256,
        "hardwareClass": record.hardware_class,
        "nodeName": record.node_name,
    }
    return {
        "apiVersion": API_VERSION,
        "kind": "EdgeNode",
        "metadata": {"name": record.name},
        "spec": {key: value for key, value in spec.items() if value},
    }


def token_secret(token: JoinToken, version: str = "") -> Json:
    """The Secret of a token."""
    texts = {
        "token-id": token.token_id,
        "secret-sha256": token.secret_sha256,
        "owner": token.owner,
        "class": token.hardware_class,
        "tier": token.tier.name.title(),
        "node": token.node_name,
        "expiration": datetime.fromtimestamp(token.expires_at, UTC).isoformat(timespec="seconds"),
        "uses": str(token.uses),
        "redeemed": " ".join(token.redeemed),
    }
    return _secret(TOKEN_PREFIX + token.token_id, TOKEN_TYPE, texts, version)


def read_token(secret: Mapping[str, Any]) -> JoinToken:
    """The token of a Secret. Raises StoreError if it is none."""
    name = secret["metadata"]["name"]
    try:
        return JoinToken(
            token_id=_get(secret, "token-id"),
            secret_sha256=_get(secret, "secret-sha256"),
            owner=_get(secret, "owner"),
            hardware_class=_get(secret, "class"),
            tier=TrustTier[_get(secret, "tier").upper()],
            node_name=_get(secret, "node"),
            expires_at=datetime.fromisoformat(_get(secret, "expiration")).timestamp(),
            uses=int(_get(secret, "uses")),
            redeemed=tuple(_get(secret, "redeemed").split()),
        )
    except (KeyError, ValueError) as exc:
        raise StoreError(f"Secret {name} is no join token ({exc}); delete it, and make a new token") from exc


async def publish_gateway(cluster: Cluster, namespace: str, enrolment_address: str, ca_sha256: str) -> None:
    """Say where devices join and whom they are to believe there, for `pocketgrid token create`."""
    data = {"enrolmentAddress": enrolment_address, "caSHA256": ca_sha256}
    metadata = {"name": GATEWAY_NAME}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
    try:
        await cluster.create(CONFIG_MAPS, body, namespace)
    except ConflictError:
        await cluster.replace(CONFIG_MAPS, body, namespace)


async def read_gateway(cluster: Cluster, namespace: str) -> tuple[str, str]:
    """What `publish_gateway` wrote: enrolment address and SHA-256 of the authority.

    Raises:
        PocketGridError: nothing has been written there.
    """
    try:
        data = (await cluster.get(CONFIG_MAPS, GATEWAY_NAME, namespace)).get("data") or {}
        return data["enrolmentAddress"], data["caSHA256"]
    except (NotFoundError, KeyError) as exc:
        raise PocketGridError(
            f"no operator has said in namespace {namespace} where devices join (ConfigMap {GATEWAY_NAME}); start it, "
            "or name its namespace"
        ) from exc


def _record(edge: EdgeRecord) -> DeviceRecord:
    return DeviceRecord(
        name=DeviceName(edge.name),
        key_sha256=edge.key_sha256,
        owner=edge.owner,
        hardware_class=edge.hardware_class,
        tier=edge.tier,
        node_name=edge.node_name,
        revoked=edge.revoked,
    )


def _secret(name: str, kind: str, texts: Mapping[str, str], version: str = "") -> Json:
    metadata = {"name": name, **({"resourceVersion": version} if version else {})}
    data = {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}
    return {"apiVersion": "v1", "kind": "Secret", "type": kind, "metadata": metadata, "data": data}


def _get(secret: Mapping[str, Any], key: str) -> str:
    try:
        return base64.b64decode((secret.get("data") or {}).get(key) or "").decode()
    except ValueError as exc:
        raise StoreError(f"Secret {secret['metadata']['name']}: {key} is not base64 of a text") from exc
