"""The Kubernetes API, as thin as it can be: plain JSON in and out, a deadline on every call, one translation of errors.

`kubernetes.aio` brings authentication, TLS and connection pooling; its generated models are left out, because they
know nothing of custom resources, drop what they do not know and cost more than the calls themselves. Watching is
kopf's task (see `watching`).
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pocketgrid.api.v1alpha1.edge_node import EdgeNode
from pocketgrid.api.v1alpha1.hardware_class import HardwareClass
from pocketgrid.api.v1alpha1.inference_job import InferenceJob
from pocketgrid.api.v1alpha1.meta import API_VERSION, Kind
from pocketgrid.api.v1alpha1.tolerance_profile import ToleranceProfile
from pocketgrid.errors import PeerError, RefusedError

if TYPE_CHECKING:
    import kopf
    from aiohttp import ClientSession
    from kubernetes.aio.client import ApiClient, Configuration

Json = dict[str, Any]

FIELD_MANAGER = "pocketgrid-gateway"
"""Under this name the fields we apply are ours, and all others somebody else's."""

CALL_SECONDS = 10.0
"""Deadline of one call. An API server that takes longer is as good as away; every caller tries again."""

PAGE = 500
"""Objects of one page of a list."""


class UnavailableError(PeerError):
    """The API server cannot be reached, is overloaded or broken; the same call may succeed later."""


class FencedError(PeerError):
    """This process may not write any more, or not at this moment."""


class ForbiddenError(RefusedError):
    """This operator's account lacks the right; granting it is enough, whoever asks tries again."""


class NotFoundError(RefusedError):
    """The object, its kind or its namespace does not exist."""


class ConflictError(RefusedError):
    """The object exists already, has changed since it was read, or a field belongs to somebody else.

    Attributes:
        fields: paths of fields that belong to somebody else, as the API server writes them.
    """

    def __init__(self, reason: str, message: str, fields: tuple[str, ...]) -> None:
        super().__init__(reason, message, retry=True)
        self.fields = fields


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where objects of one kind live.

    Attributes:
        prefix: group and version, such as ``/api/v1``.
        namespaced: whether a namespace belongs to the address.
    """

    prefix: str
    plural: str
    namespaced: bool = False

    def path(self, name: str = "", namespace: str = "", subresource: str = "") -> str:
        """Path of one object, or of all of them without `name`; over all namespaces without `namespace`."""
        parts = [self.prefix]
        if self.namespaced and namespace:
            parts.append(f"namespaces/{namespace}")
        parts.append(self.plural)
        return "/".join(part for part in (*parts, name, subresource) if part)


def _endpoint(kind: type[Kind]) -> Endpoint:
    return Endpoint(f"/apis/{API_VERSION}", kind.resource.plural, kind.resource.namespaced)


NODES = Endpoint("/api/v1", "nodes")
EVENTS = Endpoint("/api/v1", "events", namespaced=True)
LEASES = Endpoint("/apis/coordination.k8s.io/v1", "leases", namespaced=True)
JOBS = _endpoint(InferenceJob)
CLASSES = _endpoint(HardwareClass)
PROFILES = _endpoint(ToleranceProfile)
EDGE_NODES = _endpoint(EdgeNode)


class Cluster:
    """One API server and the right to talk to it. Made by `connect`."""

    def __init__(self, api: ApiClient, may_write: Callable[[], bool] = lambda: True) -> None:
        self._api = api
        self._may_write = may_write
        self._sessions: list[ClientSession] = []

    @classmethod
    @asynccontextmanager
    async def connect(cls, kubeconfig: Path | None = None, context: str | None = None) -> AsyncIterator[Self]:
        """Log in, without talking to the server yet.

        Args:
            kubeconfig: file to use; None: the service account if this runs in a Pod, else the user's own file.
            context: context of the file; None: its current one.

        Raises:
            UnavailableError: there are no credentials to be found, or they cannot be read.
        """
        from kubernetes.aio.client import ApiClient

        configuration = await _configuration(kubeconfig, context)
        async with ApiClient(configuration) as api:
            cluster = cls(api)
            try:
                yield cluster
            finally:
                # kopf closes those it has begun to use.
                for session in cluster._sessions:
                    await session.close()

    def fenced(self, may_write: Callable[[], bool]) -> Self:
        """The same, but each write is sent only if `may_write` says so at that moment.

        A process that was stopped in the middle of several calls does not know how much time has passed; what it was
        about to write may be somebody else's to write by now.
        """
        return type(self)(self._api, may_write)

    async def get(self, endpoint: Endpoint, name: str, namespace: str = "") -> Json:
        """Read one object."""
        return await self._call("GET", endpoint.path(name, namespace))

    async def list(self, endpoint: Endpoint, namespace: str = "") -> tuple[list[Json], str]:
        """Read all objects of a kind, over all namespaces without one; with the resource version of the list."""
        found: list[Json] = []
        query = {"limit": str(PAGE)}
        while True:
            page = await self._call("GET", endpoint.path(namespace=namespace), query)
            found += page.get("items") or []
            metadata = page["metadata"]
            if not metadata.get("continue"):
                return found, metadata["resourceVersion"]
            query["continue"] = metadata["continue"]

    async def require(self, *endpoints: Endpoint) -> None:
        """Make sure that the API server serves these kinds, to us.

        Raises:
            NotFoundError: it does not, or not yet.
            ForbiddenError: not to us.
        """
        for prefix in {endpoint.prefix for endpoint in endpoints}:
            served = {found["name"] for found in (await self._call("GET", prefix)).get("resources") or ()}
            for endpoint in endpoints:
                if endpoint.prefix == prefix and endpoint.plural not in served:
                    raise NotFoundError("NotServed", f"GET {prefix}: {endpoint.plural} is not among it", retry=True)
        for endpoint in endpoints:
            await self._call("GET", endpoint.path(), {"limit": "1"})

    async def create(self, endpoint: Endpoint, body: Json, namespace: str = "") -> Json:
        """Create an object."""
        return await self._call("POST", endpoint.path(namespace=namespace), {"fieldManager": FIELD_MANAGER}, body)

    async def replace(self, endpoint: Endpoint, body: Json, namespace: str = "") -> Json:
        """Replace an object, if it still has the resource version that `body` carries."""
        path = endpoint.path(body["metadata"]["name"], namespace)
        return await self._call("PUT", path, {"fieldManager": FIELD_MANAGER}, body)

    async def apply(self, endpoint: Endpoint, body: Json, namespace: str = "", *, force: bool = False) -> Json:
        """Server-side apply: own the fields of `body`, and no others. Creates the object unless `body` has a uid."""
        query = {"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"}
        path = endpoint.path(body["metadata"]["name"], namespace)
        return await self._call("PATCH", path, query, body, "application/apply-patch+yaml")

    async def patch(self, endpoint: Endpoint, name: str, patch: Json, namespace: str = "") -> Json:
        """Merge `patch` into an object, if it still has the uid and resource version that `patch` carries."""
        path, kind = endpoint.path(name, namespace), "application/merge-patch+json"
        return await self._call("PATCH", path, {"fieldManager": FIELD_MANAGER}, patch, kind)

    async def patch_spec(self, endpoint: Endpoint, name: str, patch: Json, namespace: str = "", *, uid: str) -> Json:
        """Merge `patch` into the spec of the object that has this `uid`."""
        return await self.patch(endpoint, name, {"metadata": {"uid": uid}, "spec": patch}, namespace)

    async def patch_status(
        self, endpoint: Endpoint, name: str, patch: Mapping[str, Any], namespace: str = "", *, uid: str
    ) -> Json:
        """Merge `patch` into the status of the object that has this `uid`, whatever else has changed in it."""
        body = {"metadata": {"uid": uid}, "status": patch}
        path = endpoint.path(name, namespace, "status")
        return await self._call("PATCH", path, {"fieldManager": FIELD_MANAGER}, body, "application/merge-patch+json")

    async def patch_node_status(self, name: str, status: Json, *, uid: str) -> Json:
        """Merge into a Node's status as kubelets do: conditions by type, addresses by kind."""
        body = {"metadata": {"uid": uid}, "status": status}
        path, kind = NODES.path(name, subresource="status"), "application/strategic-merge-patch+json"
        return await self._call("PATCH", path, {"fieldManager": FIELD_MANAGER}, body, kind)

    async def delete(self, endpoint: Endpoint, name: str, namespace: str = "", *, uid: str) -> None:
        """Delete the object that has this `uid`."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}}
        await self._call("DELETE", endpoint.path(name, namespace), None, body)

    async def kopf_login(self) -> kopf.AiohttpSession:
        """The same credentials, in kopf's words, over connections that are used for one request each.

        A connection that went half open while it was idle would otherwise be taken for the next watch, and each of them
        costs as long as a watch may be silent.
        """
        import aiohttp
        import kopf

        configuration = self._api.configuration
        header = await configuration.get_api_key_with_prefix("BearerToken", alias="authorization") or ""
        scheme, _, token = header.rpartition(" ")
        login = kopf.ConnectionInfo(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            insecure=not configuration.verify_ssl,
            scheme=scheme.capitalize() or None,
            token=token or None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
        )
        connector = aiohttp.TCPConnector(limit=0, ssl=login.as_ssl_context(), force_close=True)
        session = aiohttp.ClientSession(connector=connector, headers=login.as_http_headers(), proxy=configuration.proxy)
        self._sessions = [*(s for s in self._sessions if not s.closed), session]
        return kopf.AiohttpSession(server=configuration.host, aiohttp_session=session)

    async def _call(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
    ) -> Json:
        import aiohttp

        if method != "GET" and not self._may_write():
            raise FencedError(f"{method} {path}: not sent, another operator may lead by now")
        headers = {"Accept": "application/json", "Content-Type": content_type}
        try:
            # The deadline covers the body as well, which the library leaves for us to read.
            request = await self._api.param_serialize(
                method,
                path,
                header_params=headers,
                query_params=list((query or {}).items()),
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._api.call_api(*request, _request_timeout=aiohttp.ClientTimeout(total=CALL_SECONDS))
            text = await response.read()  # type: ignore[no-untyped-call]  # the library has no type here
        except (aiohttp.ClientError, OSError) as exc:
            raise UnavailableError(f"{method} {path}: {str(exc) or type(exc).__name__}; is the API server up?") from exc
        try:
            answer: Json = json.loads(text)
        except ValueError as exc:
            raise UnavailableError(f"{method} {path}: status {response.status} and no JSON") from exc
        if response.status < 300:
            return answer
        raise _refusal(f"{method} {path}", response.status, answer)


async def _configuration(kubeconfig: Path | None, context: str | None) -> Configuration:
    import yaml
    from kubernetes.aio import config
    from kubernetes.aio.client import Configuration

    # The library has no types for these.
    in_cluster: Callable[..., None] = config.load_incluster_config
    from_file: Callable[..., Awaitable[Any]] = config.load_kube_config
    configuration = Configuration()
    try:
        if kubeconfig is None and context is None:
            try:
                in_cluster(client_configuration=configuration)
            except config.ConfigException:
                await from_file(client_configuration=configuration, persist_config=False)
        else:
            await from_file(
                config_file=str(kubeconfig) if kubeconfig else None,
                context=context,
                client_configuration=configuration,
                # The file is the user's, who did not ask us to write to it.
                persist_config=False,
            )
    except (config.ConfigException, OSError, yaml.YAMLError) as exc:
        where = kubeconfig or "the service account and the user's kubeconfig"
        raise UnavailableError(f"no credentials in {where}: {exc}; name a kubeconfig that kubectl can use") from exc
    return configuration


def _refusal(call: str, status: int, answer: Json) -> PeerError:
    reason = answer.get("reason") or f"Status{status}"
    message = f"{call}: {answer.get('message') or 'no message'}"
    if status == 403 and "is being terminated" not in message:
        # The server's own words name account, verb, resource and group.
        remedy = "grant the operator's account this right with a Role or ClusterRole, it will try again"
        return ForbiddenError(reason, f"{message}; {remedy}", retry=True)
    if status == 404:
        return NotFoundError(reason, message, retry=False)
    if status == 409:
        causes = (answer.get("details") or {}).get("causes") or []
        return ConflictError(reason, message, tuple(c["field"] for c in causes if c.get("field")))
    if status == 429 or status >= 500:
        return UnavailableError(message)
    return RefusedError(reason, message, retry=status == 401)
