"""How a device joins, keeps its certificate fresh, and who is not let in: over real TLS, with the agent's own code."""

import asyncio
import datetime as dt
import time
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from pocketgrid.errors import RefusedError
from pocketgrid.gateway import certificates
from pocketgrid.gateway.authority import OVERLAP, Keyring, add_authority, encode, load_keyring
from pocketgrid.gateway.filestores import FileAuthority, FileRegister, FileTokens
from pocketgrid.gateway.register import DeviceRecord
from pocketgrid.gateway.tokens import make_token, split_token
from pocketgrid.model.ids import DeviceName
from pocketgrid.wire.v1 import agent_pb2 as pb
from pocketgrid.wire.v1 import agent_pb2_grpc as rpc
from pocketgrid_agent import joining
from pocketgrid_agent.credentials import KEY_FILE, Credentials, load
from tests.unit.agent.gateway_peer import make_certificates
from tests.unit.gateway.grid import DEADLINE_S, KEY, Device, Grid, a_grid, a_hello, a_job, until

DAY_S = 86400.0


async def an_invitation(grid: Grid, owner: str = "alice", **grants) -> joining.Invitation:
    made = make_token(owner=owner, now=time.time(), ttl_s=grants.pop("ttl_s", 600.0), **grants)
    await FileTokens(grid.gateway_folder).create(made.token)
    return joining.Invitation(grid.gateway.enrolment_address, made.text, grid.identity.ca_sha256)


async def joined(grid: Grid, folder: Path, name: str = "phone", **grants) -> Credentials:
    folder.mkdir(parents=True, exist_ok=True)
    return await joining.join(folder, name, await an_invitation(grid, **grants))


def refused(reason: str):
    return pytest.raises(RefusedError, match=f"^{reason}: ")


async def handshake_fails(grid: Grid, held: Credentials) -> None:
    async with Device(grid, a_hello(held.device), credentials=held) as device:
        with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
            await device.attach()
        assert await device.call.code() is grpc.StatusCode.UNAVAILABLE
    assert grid.gateway.sessions == 0


async def refusal_of(grid: Grid, held: Credentials, **of_hello) -> pb.Refusal:
    """Why a device is not let in, by message, or by status if the stream closes under its first write."""
    async with Device(grid, a_hello(held.device, **of_hello), credentials=held) as device:
        try:
            await device.say(hello=device.hello)
            return (await device.hear()).refusal
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            assert await device.call.code() is grpc.StatusCode.UNAUTHENTICATED
            reason, _, message = (await device.call.details()).partition(": ")
            return pb.Refusal(reason=reason, message=message, retry=False)


# ---- joining ----


async def test_a_device_joins_with_a_token_and_attaches_as_what_the_token_says(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        held = await joined(grid, tmp_path / "phone", hardware_class="phone-arm64")
        certificate = x509.load_pem_x509_certificate(held.chain_pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == ["spiffe://pocketgrid.dev/device/phone"]
        now = dt.datetime.now(dt.UTC)
        assert now - certificate.not_valid_before_utc > dt.timedelta(minutes=30), "for clocks that are behind"
        assert abs(certificate.not_valid_after_utc - now - dt.timedelta(days=1)) < dt.timedelta(minutes=1)
        assert (held.valid_s, held.renew_after_s) == (DAY_S, DAY_S * 2 / 3)
        assert held.gateway_address == grid.gateway.address
        assert {p.stat().st_mode & 0o777 for p in (tmp_path / "phone").iterdir()} == {0o600}
        assert load(tmp_path / "phone") == held
        async with Device(grid, a_hello("phone"), credentials=held) as device:
            await device.attach()
            identity = grid.engine.device_views()[DeviceName("phone")].identity
            assert (identity.owner, identity.hardware_class) == ("alice", "phone-arm64")
            assert identity.network_prefix == "", "nothing is known of private ones"


async def test_the_key_is_made_on_the_device_and_sent_nowhere(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        held = await joined(grid, tmp_path / "phone")
        assert (tmp_path / "phone" / KEY_FILE).read_bytes() == held.key_pem
        secret = serialization.load_pem_private_key(held.key_pem, None).private_numbers().private_value
        for path in grid.gateway_folder.rglob("*"):
            assert path.is_dir() or secret.to_bytes(32).hex() not in path.read_bytes().hex(), path


async def test_a_token_is_kept_as_a_hash(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        invitation = await an_invitation(grid)
        _, secret = split_token(invitation.token)
        (kept,) = (grid.gateway_folder / "tokens").glob("*.json")
        assert secret not in kept.read_text()


async def test_a_token_lets_in_as_many_devices_as_it_says(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        invitation = await an_invitation(grid, uses=2)
        for name in ("one", "two", "three"):
            (tmp_path / name).mkdir()
        await joining.join(tmp_path / "one", "one", invitation)
        await joining.join(tmp_path / "two", "two", invitation)
        with refused("TokenNotAccepted"):
            await joining.join(tmp_path / "three", "three", invitation)
        # An answer that was lost costs no second use, not even when there is none left.
        again = await joining.join(tmp_path / "one", "one", invitation)
        async with Device(grid, a_hello("one"), credentials=again) as device:
            await device.attach()


async def test_two_who_use_the_last_use_at_once(tmp_path) -> None:
    tokens, other = FileTokens(tmp_path), FileTokens(tmp_path)
    made = make_token(owner="alice", now=0.0, ttl_s=10.0, uses=3).token
    await tokens.create(made)
    marks = [f"device-{n}" for n in range(12)]
    taken = await asyncio.gather(
        *(store.redeem(made.token_id, mark, 1.0) for mark in marks for store in (tokens, other))
    )
    assert sum(each is not None for each in taken) == 6, "three devices, each twice"
    assert (await tokens.get(made.token_id)).uses_left == 0


@pytest.mark.parametrize("token", ["abcdef.0123456789abcdef", "no token", "a" * 5000, "abcdef."])
async def test_a_token_that_is_none(tmp_path, token) -> None:
    async with a_grid(tmp_path) as grid:
        invitation = replace(await an_invitation(grid), token=token)
        (tmp_path / "phone").mkdir()
        with refused("TokenNotAccepted"):
            await joining.join(tmp_path / "phone", "phone", invitation)
        assert load(tmp_path / "phone") is None


async def test_right_id_and_wrong_secret(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        good = await an_invitation(grid)
        last = "a" if good.token[-1] != "a" else "b"
        (tmp_path / "phone").mkdir()
        with refused("TokenNotAccepted"):
            await joining.join(tmp_path / "phone", "phone", replace(good, token=good.token[:-1] + last))


async def test_a_token_that_has_expired(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        with refused("TokenNotAccepted"):
            await joined(grid, tmp_path / "phone", ttl_s=0.001)


async def test_who_shows_another_authority_is_told_nothing(tmp_path) -> None:
    async with a_grid(tmp_path / "ours") as ours, a_grid(tmp_path / "theirs") as theirs:
        meant, met = await an_invitation(ours), await an_invitation(theirs)
        (tmp_path / "phone").mkdir()
        with refused("WrongAuthority"):
            await joining.join(tmp_path / "phone", "phone", replace(meant, address=met.address))


async def test_guessing_is_throttled_by_address(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        good = await an_invitation(grid)
        (tmp_path / "phone").mkdir()
        for number in range(10):
            with refused("TokenNotAccepted"):
                await joining.join(tmp_path / "phone", "phone", replace(good, token=f"guess{number}.{'a' * 16}"))
        with pytest.raises(joining.NotReachedError, match="TooManyTries"):
            await joining.join(tmp_path / "phone", "phone", good)


async def test_a_name_of_another_owner_is_taken(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        alices = await joined(grid, tmp_path / "one", owner="alice")
        with refused("NameTaken"):
            await joined(grid, tmp_path / "two", owner="mallory")
        async with Device(grid, a_hello("phone"), credentials=alices) as device:
            await device.attach()


async def test_a_device_that_was_reset_takes_over_its_name_and_the_old_key_is_out(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        old = await joined(grid, tmp_path / "before", owner="alice")
        async with Device(grid, a_hello("phone"), credentials=old) as before:
            await before.attach()
            new = await joined(grid, tmp_path / "after", owner="alice")
            refusal = await before.hear_of("refusal")
            assert (refusal.reason, refusal.retry) == ("NotEnrolled", False)
        assert (await refusal_of(grid, old)).reason == "NotEnrolled"
        async with Device(grid, a_hello("phone"), credentials=new) as device:
            await device.attach()


async def test_only_who_was_allowed_to_runs_on_a_node(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        (tmp_path / "board").mkdir()
        invitation = await an_invitation(grid)
        with refused("WrongNode"):
            await joining.join(tmp_path / "board", "board", invitation, node_name="k3s-1")
        invitation = await an_invitation(grid, node_name="k3s-1")
        with refused("WrongNode"):
            await joining.join(tmp_path / "board", "board", invitation, node_name="k3s-2")
        held = await joining.join(tmp_path / "board", "board", invitation, node_name="k3s-1")
        assert (await refusal_of(grid, held, node_name="k3s-2")).reason == "WrongNode"
        async with Device(grid, a_hello("board"), credentials=held) as device:
            await device.attach()
            assert grid.engine.device_views()[DeviceName("board")].identity.node_name == "k3s-1"


async def test_nothing_but_enrolment_is_served_where_devices_join(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        held = await grid.credentials("device-1")
        address = grid.gateway.enrolment_address
        async with Device(grid, credentials=held, address=address) as device:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await device.stub.Check(pb.CheckRequest(), timeout=DEADLINE_S)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        credentials = grpc.ssl_channel_credentials(held.bundle_pem, held.key_pem, held.chain_pem)
        async with grpc.aio.secure_channel(grid.gateway.address, credentials) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rpc.EnrolmentStub(channel).Enrol(pb.EnrolRequest(device_name="x"), timeout=DEADLINE_S)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"device_name": "../etc"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"node_name": "No Node"}, grpc.StatusCode.INVALID_ARGUMENT),
        ({"certificate_request": b"rubbish"}, grpc.StatusCode.PERMISSION_DENIED),
        ({"certificate_request": KEY.request_der[:-3] + b"abc"}, grpc.StatusCode.PERMISSION_DENIED),
        ({"token": "x" * (1 << 20)}, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_requests_that_make_no_sense(tmp_path, changes, code) -> None:
    async with a_grid(tmp_path) as grid:
        invitation = await an_invitation(grid)
        held = await grid.credentials("device-1")
        fields = {"device_name": "phone", "certificate_request": KEY.request_der, "token": invitation.token}
        async with grpc.aio.secure_channel(
            grid.gateway.enrolment_address, grpc.ssl_channel_credentials(held.bundle_pem)
        ) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rpc.EnrolmentStub(channel).Enrol(pb.EnrolRequest(**{**fields, **changes}), timeout=DEADLINE_S)
        assert caught.value.code() is code


# ---- certificates that are not good ----


async def test_without_a_certificate_there_is_no_connection(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        held = await grid.credentials("device-1")
        async with grpc.aio.secure_channel(
            grid.gateway.address, grpc.ssl_channel_credentials(held.bundle_pem)
        ) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await rpc.DeviceGatewayStub(channel).Check(pb.CheckRequest(), timeout=DEADLINE_S)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_that_has_run_out(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        held = await grid.credentials("device-1")
        keyring = await load_keyring(FileAuthority(grid.gateway_folder), time.time())
        old = certificates.make_device(
            keyring.authorities[0].certificate_pem,
            keyring.authorities[0].key_pem,
            KEY.public_key,
            "spiffe://pocketgrid.dev/device/device-1",
            dt.datetime.now(dt.UTC) - dt.timedelta(days=2),
            dt.timedelta(days=1),
        )
        await handshake_fails(grid, replace(held, chain_pem=old))


async def test_a_certificate_of_another_authority(tmp_path) -> None:
    async with a_grid(tmp_path / "ours") as ours, a_grid(tmp_path / "theirs") as theirs:
        mine, foreign = await ours.credentials("device-1"), await theirs.credentials("device-1")
        await handshake_fails(ours, replace(mine, chain_pem=foreign.chain_pem))


async def test_a_certificate_that_signed_itself(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        held, own = await grid.credentials("device-1"), make_certificates()
        await handshake_fails(grid, replace(held, chain_pem=own.certificate, key_pem=own.key))


async def test_a_certificate_without_its_key(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        held = await grid.credentials("device-1")
        await handshake_fails(grid, replace(held, key_pem=certificates.make_key()))


async def test_the_gateways_own_certificate_is_no_devices(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        held = await grid.credentials("device-1")
        await handshake_fails(grid, replace(held, chain_pem=grid.identity.chain_pem, key_pem=grid.identity.key_pem))


async def test_a_certificate_for_another_name(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        held = await grid.credentials("device-1")
        await grid.credentials("device-2")
        async with Device(grid, a_hello("device-2"), credentials=held) as device:
            await device.say(hello=device.hello)
            refusal = (await device.hear()).refusal
        assert (refusal.reason, refusal.retry) == ("WrongName", False)


async def test_a_certificate_of_another_trust_domain(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        held = await grid.credentials("device-1")
    async with a_grid(tmp_path, trust_domain="elsewhere.example") as grid:
        refusal = await refusal_of(grid, held)
        assert (refusal.reason, refusal.retry) == ("NotEnrolled", False)


async def test_a_device_nobody_has_enrolled(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        held = await grid.credentials("device-1")
        for path in (grid.gateway_folder / "devices").glob("*.json"):
            path.unlink()
        refusal = await refusal_of(grid, held)
        assert (refusal.reason, refusal.retry) == ("NotEnrolled", False)


# ---- what a device may say of itself ----


async def test_a_device_cannot_say_whose_it_is_nor_what_it_belongs_to(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        held = await grid.credentials("device-1", owner="alice", hardware_class="phone-arm64")
        assert (await refusal_of(grid, held, owner="bob")).reason == "WrongOwner"
        boasts = {
            "pocketgrid.dev/class": "server-gold",
            "pocketgrid.dev/owner": "bob",
            "pocketgrid.dev/tier": "Owned",
            "sub.pocketgrid.dev/kind": "server",
            "kubernetes.io/arch": "quantum",
            "room": "kitchen",
        }
        async with Device(grid, a_hello("device-1", labels=boasts), credentials=held) as device:
            await device.attach()
            identity = grid.engine.device_views()[DeviceName("device-1")].identity
            assert dict(identity.labels) == {"room": "kitchen"}
            assert (identity.owner, identity.hardware_class) == ("alice", "phone-arm64")


async def test_a_device_reads_and_answers_only_what_it_leased(tmp_path) -> None:
    """Tokens of one device's shards are worth nothing in the hands of another."""
    spec = a_job(tmp_path, items=40, per_shard=10)
    async with (
        a_grid(tmp_path) as grid,
        Device(grid, a_hello("honest")) as honest,
        Device(grid, a_hello("thief")) as thief,
    ):
        grid.engine.submit(spec)
        await honest.attach()
        await honest.ready_for_work()
        lease = await honest.hear_of("lease")
        await thief.attach()
        stolen = pb.ShardResult(shard=lease.shards[0].index, token=lease.shards[0].token)
        await thief.say(results=pb.Results(job=spec.uid, results=[stolen]))
        assert (await thief.hear_of("settled")).refused[0].reason == "NotLeased"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await thief.fetch(spec.model.sha256, session=honest.session_id)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


# ---- being shut out ----


async def test_a_device_that_is_shut_out_is_gone_at_once_and_stays_out(tmp_path) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as device:
        await device.attach()
        held = device.credentials
        register = grid.gateway._stores.register
        assert isinstance(register, FileRegister)
        before = time.monotonic()
        await register.enrol(replace(register.find(DeviceName("device-1")), revoked=True))
        refusal = await device.hear_of("refusal")
        assert (refusal.reason, refusal.retry) == ("Revoked", False)
        await until(lambda: grid.gateway.sessions == 0, "the session is over")
        assert time.monotonic() - before < 5
        assert (await refusal_of(grid, held)).reason == "Revoked"
        for call in (device.stub.Check(pb.CheckRequest()), device.stub.Renew(pb.RenewRequest())):
            with pytest.raises(grpc.aio.AioRpcError, match="Revoked") as caught:
                await call
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        (tmp_path / "state").mkdir()
        with refused("Revoked"):
            await joining.come_back(tmp_path / "state", replace(held, join_address=grid.gateway.enrolment_address))
        with refused("Revoked"):
            await joined(grid, tmp_path / "anew", "device-1", owner="tester")


async def test_a_device_that_becomes_somebody_elses_attaches_anew_as_that(tmp_path) -> None:
    async with a_grid(tmp_path) as grid, Device(grid) as device:
        await device.attach()
        register = grid.gateway._stores.register
        known = register.find(DeviceName("device-1"))
        await register.enrol(replace(known, hardware_class="slow"))
        refusal = await device.hear_of("refusal")
        assert (refusal.reason, refusal.retry) == ("Changed", True)
        async with Device(grid, credentials=device.credentials) as again:
            await again.attach()
            assert grid.engine.device_views()[DeviceName("device-1")].identity.hardware_class == "slow"


# ---- staying in ----


async def test_renewal_gives_another_certificate_for_the_same_key_and_cuts_nothing(tmp_path) -> None:
    async with a_grid(tmp_path) as grid:
        first = await joined(grid, tmp_path / "phone")
        async with Device(grid, a_hello("phone"), credentials=first) as device:
            await device.attach()
            second = await joining.renew(tmp_path / "phone", first, first.gateway_address)
            assert second.chain_pem != first.chain_pem
            assert second.key_pem == first.key_pem
            await device.say(heartbeat=pb.Heartbeat(sequence=9))
            assert (await device.hear_of("pulse")).sequence == 9
        async with Device(grid, a_hello("phone"), credentials=second) as device:
            await device.attach()


async def test_who_was_away_for_longer_than_its_certificate_comes_back_with_its_key(tmp_path) -> None:
    async with a_grid(tmp_path, certificate_seconds=1.0) as grid:
        stale = await joined(grid, tmp_path / "phone")
        await until(lambda: stale.remaining_s(time.time()) < -1, "it has run out, whole seconds and all")
        await handshake_fails(grid, stale)
    async with a_grid(tmp_path) as grid:
        away = replace(stale, join_address=grid.gateway.enrolment_address)
        fresh = await joining.come_back(tmp_path / "phone", away)
        async with Device(grid, a_hello("phone"), credentials=fresh) as device:
            await device.attach()
        # A key that nobody has enrolled comes back to nothing, and neither does a known one under another's name.
        other = joining.key_and_request(_made(tmp_path / "other"))[1]
        with refused("NotEnrolled"):
            await joining.come_back(tmp_path / "other", replace(away, request_der=other))
        with refused("NotEnrolled"):
            await joining.come_back(tmp_path / "other", replace(away, device="another"))


async def test_the_authority_changes_and_nobody_is_cut_off(tmp_path) -> None:
    """Both steps of an overlap, with the same device staying attached through all of it."""
    folder = tmp_path / "gateway"
    folder.mkdir(mode=0o700)
    store, now, overlap = FileAuthority(folder), time.time(), OVERLAP.total_seconds()

    def aged(keyring: Keyring, *ages_s: float) -> Keyring:
        ages = zip(keyring.authorities, ages_s, strict=True)
        return Keyring(tuple(replace(authority, made_at=now - age) for authority, age in ages))

    old = add_authority((), now)
    both = add_authority(old.authorities, now)
    await store.create(encode(aged(old, 10 * overlap)))
    async with a_grid(tmp_path) as grid:
        first = await joined(grid, tmp_path / "phone")
        assert first.trusts(old.authorities[0].sha256)
        async with Device(grid, a_hello("phone"), credentials=first) as device:
            await device.attach()

            async def go_on(keyring: Keyring) -> Credentials:
                grid.gateway._keyring = keyring
                renewed = await joining.renew(tmp_path / "phone", load(tmp_path / "phone"), grid.gateway.address)
                await device.say(heartbeat=pb.Heartbeat(sequence=1))
                await device.hear_of("pulse")
                return renewed

            # Announced: devices are told of it, and the old one goes on signing.
            second = await go_on(aged(both, 10 * overlap, 0.5 * overlap))
            assert second.trusts(both.authorities[1].sha256)
            assert grid.identity.ca_sha256 == old.authorities[0].sha256
            # Taken over: what the old one signed is still believed.
            third = await go_on(aged(both, 10 * overlap, 1.5 * overlap))
            assert grid.identity.ca_sha256 == both.authorities[1].sha256
            assert third.trusts(old.authorities[0].sha256)
            # Over: devices have the new certificate, and the old authority is nobody's any more.
            fourth = await go_on(aged(both, 10 * overlap, 2.5 * overlap))
            assert not fourth.trusts(old.authorities[0].sha256)
            await device.say(heartbeat=pb.Heartbeat(sequence=2))
            assert (await device.hear_of("pulse")).sequence == 2
        async with Device(grid, a_hello("phone"), credentials=fourth) as device:
            await device.attach()
        outdated = replace(second, bundle_pem=fourth.bundle_pem)
        async with Device(grid, a_hello("phone"), credentials=outdated) as device:
            with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):
                await device.attach()


async def test_gateways_that_start_together_make_one_authority(tmp_path) -> None:
    stores = [FileAuthority(tmp_path) for _ in range(8)]
    keyrings = await asyncio.gather(*(load_keyring(store, 1000.0) for store in stores))
    assert len(set(keyrings)) == 1
    late = 1000.0 + 3650 * DAY_S - 2 * OVERLAP.total_seconds()
    grown = await asyncio.gather(*(load_keyring(store, late) for store in stores))
    assert len(set(grown)) == 1
    assert len(grown[0].authorities) == 2


async def test_a_register_is_kept_over_restarts(tmp_path) -> None:
    record = DeviceRecord(DeviceName("d" * 253), "ab" * 32, "alice", "phone")
    await FileRegister(tmp_path).enrol(record)
    assert FileRegister(tmp_path).find(record.name) == record
    (path,) = (tmp_path / "devices").glob("*.json")
    path.write_text("damaged")
    assert FileRegister(tmp_path).find(record.name) is None, "who cannot be read is not let in"


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
