"""Time for those who read progress from it."""

from hypothesis import given
from hypothesis import strategies as st

from pocketgrid.clock import ForwardWall, ManualClock

steps = st.lists(st.tuples(st.floats(0, 1e4), st.floats(-1e6, 1e6)), max_size=30)


@given(steps)
def test_it_never_goes_back_and_is_never_behind(jumps: list[tuple[float, float]]) -> None:
    clock = ManualClock()
    wall = ForwardWall(clock)
    last = wall.now()
    for passed, jump in jumps:
        clock.advance(passed)
        clock.wall_offset += jump
        now = wall.now()
        assert now >= last + passed * 0.999
        assert now >= clock.wall()
        last = now


def test_it_follows_a_clock_that_is_right() -> None:
    clock = ManualClock()
    wall = ForwardWall(clock)
    clock.advance(10)
    assert wall.now() == clock.wall()


def test_it_goes_on_while_the_clock_is_behind_and_follows_it_again_later() -> None:
    clock = ManualClock()
    wall = ForwardWall(clock)
    clock.wall_offset -= 3600
    clock.advance(10)
    assert wall.now() == clock.wall() + 3600
    clock.wall_offset += 7200
    assert wall.now() == clock.wall()
