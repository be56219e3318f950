"""Where processor time goes: sums over threads, and only what the thread itself spent."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pocketgrid.worktimes import Work, WorkTimes


def test_what_threads_add_at_once_is_all_there():
    times = WorkTimes()
    with ThreadPoolExecutor(4) as threads:
        for _ in range(1000):
            threads.submit(times.add, Work.READ, 0.5)
    assert times.seconds()[Work.READ] == pytest.approx(500.0)
    assert times.seconds()[Work.JUDGE] == 0.0


def test_a_measured_stretch_counts_the_processor_time_of_its_thread():
    times = WorkTimes()
    began = time.thread_time()
    with times.measure(Work.SEAL):
        inside = time.thread_time()
        while time.thread_time() - inside < 0.01:
            pass
    assert 0.01 <= times.seconds()[Work.SEAL] <= time.thread_time() - began


def test_a_stretch_that_fails_counts_too():
    times = WorkTimes()

    def fail() -> None:
        with times.measure(Work.COMMIT):
            sum(range(100_000))
            raise ValueError("damaged")

    with pytest.raises(ValueError, match="damaged"):
        fail()
    assert times.seconds()[Work.COMMIT] > 0
