"""Laws of believing results, in random worlds of honest devices, liars and mishaps.

`TrustWorld` checks at every step: nobody checks themselves, their owner, their neighbour or another numerics class;
what is final was provisional and is never taken back by the machine; nothing becomes final after its device was caught;
the answers to be kept are those of open questions; the figure for redundancy adds up.
"""

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketgrid.model.ids import DeviceName
from pocketgrid.model.job import ShardGrid
from pocketgrid.model.trust import TrustTier, Verification, VerificationMode, Witness
from tests.property.trust_world import Device, Troubles, TrustWorld

MODES = [VerificationMode.AUDIT, VerificationMode.QUORUM, VerificationMode.ADAPTIVE]
STEPS = 30_000

grids = st.builds(ShardGrid, st.integers(1, 240), st.integers(1, 12))
seeds = st.integers(0, 2**32)
specs = st.builds(
    Verification,
    mode=st.sampled_from(MODES),
    quorum=st.integers(2, 3),
    max_error_rate=st.sampled_from([0.5, 0.05, 0.001]),
    audit_floor=st.sampled_from([0.01, 0.2]),
)
mishaps = st.builds(
    Troubles,
    lost=st.sampled_from([0.0, 0.05]),
    late=st.sampled_from([0.0, 0.05]),
    reopened=st.sampled_from([0.0, 0.01]),
    unreadable=st.sampled_from([0.0, 0.05]),
    caught_elsewhere=st.sampled_from([0.0, 0.01]),
)
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def honest(count: int) -> list[Device]:
    return [Device(Witness(DeviceName(f"honest-{n}"), f"owner-{n}", f"10.0.{n}")) for n in range(count)]


def liars(count: int, share: float, league: str = "", after: int = 0) -> list[Device]:
    return [
        Device(Witness(DeviceName(f"liar-{n}"), f"villain-{n}", f"10.1.{n}"), share, league, after)
        for n in range(count)
    ]


@quick
@given(specs, grids, st.integers(2, 8), seeds, mishaps)
def test_honest_devices_settle_everything_and_nobody_is_caught(spec, grid, count, seed, troubles):
    world = TrustWorld(spec, grid, honest(max(count, spec.quorum + 1)), seed, troubles)
    world.run(STEPS)
    assert world.verified == set(range(grid.shards))
    assert not world.caught
    assert not world.machine.tally.disagreed
    assert not world.kept


@quick
@given(specs, grids, st.integers(1, 3), st.sampled_from([1.0, 0.3]), st.integers(0, 40), seeds, mishaps)
def test_liars_on_their_own_never_get_an_honest_device_caught(spec, grid, villains, share, after, seed, troubles):
    world = TrustWorld(spec, grid, honest(6) + liars(villains, share, after=after), seed, troubles)
    world.run(STEPS)
    assert world.verified == set(range(grid.shards))
    assert not world.honest_caught()


@quick
@given(specs, grids, st.integers(1, 3), seeds, mishaps)
def test_who_is_always_wrong_gets_nothing_through(spec, grid, villains, seed, troubles):
    world = TrustWorld(spec, grid, honest(6) + liars(villains, 1.0), seed, troubles)
    world.run(STEPS)
    assert world.wrong_rows() == 0


@quick
@given(grids, st.integers(2, 5), st.sampled_from([1.0, 0.3]), seeds, mishaps)
def test_fewer_in_league_than_a_quorum_needs_get_nothing_through(grid, quorum, share, seed, troubles):
    spec = Verification(VerificationMode.QUORUM, quorum=quorum)
    world = TrustWorld(spec, grid, honest(quorum + 4) + liars(quorum // 2, share, "the league"), seed, troubles)
    world.run(STEPS)
    assert world.verified == set(range(grid.shards))
    assert world.wrong_rows() == 0


@quick
@given(specs, grids, seeds, mishaps)
def test_the_same_seed_gives_the_same_decisions(spec, grid, seed, troubles):
    traces = []
    for _ in range(2):
        world = TrustWorld(spec, grid, honest(5) + liars(2, 0.5), seed, troubles)
        world.run(STEPS)
        traces.append((world.trace, world.machine.summary()))
    assert traces[0] == traces[1]


@quick
@given(specs, grids, st.data())
def test_owners_networks_and_classes_are_kept_apart(spec, grid, data):
    """Whatever the fleet looks like: it settles, or says who is missing; it never makes do."""
    seed = data.draw(seeds)
    rng = random.Random(seed)
    devices = [
        Device(
            Witness(
                DeviceName(f"device-{n}"),
                rng.choice(["", "ada", "bob", "cyd"]),
                rng.choice(["", "10.0.0", "10.0.1"]),
                rng.choice(["x86", "x86", "arm"]),
                rng.choice([TrustTier.PUBLIC, TrustTier.OWNED]),
            )
        )
        for n in range(data.draw(st.integers(1, 8)))
    ]
    world = TrustWorld(spec, grid, devices, seed)
    for _ in range(4_000):
        if not world.pending and not world.machine.wants_checks:
            break
        world.step()
    else:
        assert world.machine.blocked(world.usable(), world.now)
    assert not world.caught


def test_owned_devices_vouch_for_each_other_though_owner_and_network_are_one():
    devices = [Device(Witness(DeviceName(f"own-{n}"), "us", "192.168.1", tier=TrustTier.OWNED)) for n in range(3)]
    world = TrustWorld(Verification(VerificationMode.ADAPTIVE), ShardGrid(300, 10), devices, 1)
    world.run(STEPS)
    assert len(world.verified) == 30


def test_one_owner_alone_is_told_what_is_missing():
    devices = [Device(Witness(DeviceName(f"phone-{n}"), "ada")) for n in range(3)]
    world = TrustWorld(Verification(VerificationMode.AUDIT), ShardGrid(30, 10), devices, 1)
    for _ in range(300):
        world.step()
    assert not world.verified
    message = world.machine.blocked(world.usable(), world.now)
    assert message is not None
    assert "shares an owner" in message


def test_three_devices_of_three_owners_suffice_to_catch_one_of_them():
    world = TrustWorld(Verification(VerificationMode.ADAPTIVE), ShardGrid(600, 10), honest(2) + liars(1, 1.0), 3)
    world.run(STEPS)
    assert world.caught == {"liar-0"}
    assert world.wrong_rows() == 0


def test_a_model_that_never_gives_the_same_twice_is_given_up_and_nobody_is_blamed():
    grid = ShardGrid(10, 10)
    world = TrustWorld(Verification(VerificationMode.ADAPTIVE), grid, liars(12, 1.0), 5)
    for _ in range(2_000):
        world.step()
        if world.gave_up:
            break
    assert world.gave_up
    assert not world.caught
