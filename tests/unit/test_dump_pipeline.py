"""The threads of a dump: order, bounds, failures."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from sevkvm.dump.pipeline import Pipeline


def squares(workers: int, depth: int, deliver) -> Pipeline[int, int]:
    return Pipeline(lambda: lambda number, job: job * job, deliver, workers=workers, depth=depth)


def put_many(pipeline: Pipeline[int, int]) -> None:
    for job in range(100):
        pipeline.put(job)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_delivered_once_each_in_order(workers):
    got: list[int] = []
    jobs = list(range(500))
    pipeline = squares(workers, 7, got.append)
    for job in jobs:
        pipeline.put(job)
    pipeline.finish()
    pipeline.close()
    assert got == [job * job for job in jobs]


def test_a_slow_job_holds_the_order_and_no_more_than_depth_jobs_are_under_way():
    release = threading.Event()
    started: list[int] = []
    got: list[int] = []

    def work(number: int, job: int) -> int:
        started.append(job)
        if job == 0:
            assert release.wait(20)
        return job

    pipeline = Pipeline(lambda: work, got.append, workers=2, depth=4)
    putter = threading.Thread(target=lambda: [pipeline.put(job) for job in range(10)])
    putter.start()
    deadline = time.monotonic() + 20
    while len(started) < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert got == []
    assert sorted(started) == [0, 1, 2, 3]
    release.set()
    putter.join(20)
    pipeline.finish()
    pipeline.close()
    assert got == list(range(10))


@pytest.mark.parametrize("where", ["work", "deliver", "new"])
def test_what_a_thread_raises_comes_out_of_put_or_finish(where):
    def fail(*_: object) -> int:
        raise OSError(where)

    def new():
        return fail() if where == "new" else fail if where == "work" else lambda number, job: job

    pipeline = Pipeline(new, fail if where == "deliver" else print, workers=2, depth=3)
    with pytest.raises(OSError, match=where):
        put_many(pipeline)
    with pytest.raises(OSError, match=where):
        pipeline.finish()
    pipeline.close()


def test_nothing_is_delivered_after_close():
    got: list[int] = []
    hold = threading.Event()

    def work(number: int, job: int) -> int:
        hold.wait(0.2)
        return job

    pipeline = Pipeline(lambda: work, got.append, workers=1, depth=100)
    for job in range(50):
        pipeline.put(job)
    pipeline.close()
    count = len(got)
    assert count < 50
    hold.set()
    assert len(got) == count


def test_signals_are_not_for_its_threads():
    masks: list[set[signal.Signals]] = []

    def work(number: int, job: int) -> int:
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return job

    pipeline = Pipeline(lambda: work, lambda done: None, workers=1, depth=1)
    pipeline.put(1)
    pipeline.finish()
    pipeline.close()
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} <= masks[0]
