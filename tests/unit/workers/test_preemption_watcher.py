"""One thread, many sources: who is asked when, and what is told how often."""

from __future__ import annotations

import logging
import threading

import pytest

from orch_workers.preemption.aws import Aws
from orch_workers.preemption.azure import Azure
from orch_workers.preemption.gcp import Gcp
from orch_workers.preemption.metadata import Metadata
from orch_workers.preemption.notice import Moment, Notice, SourceError, SourceSilentError, deadline_in
from orch_workers.preemption.sources import sources_of
from orch_workers.preemption.watcher import LEAD_S, PROBE_AGAIN_S, TOLD_MAX, Watcher
from support.metadata import Ec2, MetadataServer

LIMIT_S = 30.0


class Clock:
    def __init__(self):
        self.at_s = 1000.0

    def __call__(self):
        return Moment(self.at_s, 1_700_000_000.0 + self.at_s)


class Fake:
    """A source that says what a test wants: a Notice, None, or an error to raise."""

    def __init__(self, name="fake", *, there=True, says=None, interval_s=5.0, cloud=False):
        self.name, self.there, self.says, self.interval_s, self.cloud = name, there, says, interval_s, cloud
        self.probes = self.polls = 0

    def probe(self):
        self.probes += 1
        if isinstance(self.there, Exception):
            raise self.there
        return self.there

    def poll(self, now):
        self.polls += 1
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


def notice(clock, left_s=30.0, key="k", kind="preempt"):
    deadline = None if left_s is None else deadline_in(left_s, clock())
    return Notice("fake", kind, "goes", key, deadline)


@pytest.fixture
def clock():
    return Clock()


def watching(clock, *sources, answered=()):
    told = []
    watcher = Watcher(sources, told.append, answered=answered, now=clock)
    return watcher, told


def passing(watcher, clock, seconds_s):
    """Time goes by; whoever is due is asked."""
    end_s = clock.at_s + seconds_s
    while True:
        wait_s = watcher.look()
        if wait_s is None or clock.at_s + wait_s > end_s:
            clock.at_s = end_s
            return wait_s
        clock.at_s += wait_s


def test_each_source_is_asked_at_its_own_interval(clock):
    slow, fast = Fake("slow", interval_s=10), Fake("fast", interval_s=2)
    watcher, told = watching(clock, slow, fast)
    passing(watcher, clock, 21)
    assert (slow.polls, fast.polls) == (3, 11)
    assert (slow.probes, fast.probes) == (1, 1)
    assert told == []
    assert watcher.names == ["slow", "fast"]


def test_a_source_that_is_not_there_is_asked_once_in_a_life(clock, caplog):
    absent = [Fake("a", there=False, cloud=True), Fake("b", there=SourceError("refused"), cloud=True)]
    watcher, _ = watching(clock, *absent)
    with caplog.at_level(logging.DEBUG):
        assert watcher.look() is None  # nothing is left to do: the thread ends
        assert passing(watcher, clock, 3600) is None
    assert [(source.probes, source.polls) for source in absent] == [(1, 0), (1, 0)]
    assert not caplog.records


def test_silence_is_asked_again_a_few_times_and_then_taken_for_absence(clock, caplog):
    silent = Fake(there=SourceSilentError("no answer"), cloud=True)
    watcher, _ = watching(clock, silent)
    with caplog.at_level(logging.DEBUG):
        passing(watcher, clock, 3600)
    assert silent.probes == 1 + len(PROBE_AGAIN_S)
    assert silent.polls == 0
    assert not caplog.records


def test_a_service_that_comes_up_late_is_found(clock):
    late = Fake(there=SourceSilentError("no answer"), cloud=True)
    watcher, told = watching(clock, late)
    watcher.look()
    late.there, late.says = True, notice(clock)
    passing(watcher, clock, PROBE_AGAIN_S[0])
    assert len(told) == 1


def test_with_one_provider_found_the_others_are_not_asked(clock):
    first, other, local = Fake("first", cloud=True), Fake("other", cloud=True), Fake("local")
    watcher, _ = watching(clock, first, other, local)
    passing(watcher, clock, 60)
    assert other.probes == other.polls == 0
    assert watcher.names == ["first", "local"]


def test_a_notice_is_told_once_however_often_it_is_seen(clock):
    source = Fake()
    watcher, told = watching(clock, source)
    source.says = notice(clock)
    passing(watcher, clock, 25)
    assert source.polls == 6
    assert told == [source.says]


def test_the_same_notice_with_less_time_is_told_again_and_with_more_is_not(clock):
    source = Fake(says=notice(clock, 60))
    watcher, told = watching(clock, source)
    watcher.look()
    source.says = notice(clock, 90)
    passing(watcher, clock, 6)
    assert len(told) == 1
    source.says = notice(clock, 10)
    passing(watcher, clock, 6)
    assert len(told) == 2
    source.says = notice(clock, 10, key="another")
    passing(watcher, clock, 6)
    assert len(told) == 3


def test_a_notice_far_ahead_waits_until_it_is_time(clock):
    far_s = LEAD_S + 600
    source = Fake(says=notice(clock, far_s))
    watcher, told = watching(clock, source)
    passing(watcher, clock, far_s - LEAD_S - 1)
    assert told == []
    passing(watcher, clock, source.interval_s + 2)
    assert told == [source.says]


def test_a_notice_that_is_taken_back_in_time_never_happened(clock):
    source = Fake(says=notice(clock, LEAD_S + 600))
    watcher, told = watching(clock, source)
    passing(watcher, clock, 100)
    source.says = None
    passing(watcher, clock, 3600)
    assert told == []


def test_a_warning_is_told_at_once(clock):
    source = Fake(says=notice(clock, LEAD_S + 600, kind="rebalance"))
    watcher, told = watching(clock, source)
    watcher.look()
    assert told == [source.says]


def test_what_this_machine_was_left_for_before_is_not_told_again(clock):
    source = Fake(says=notice(clock, key="old"))
    watcher, told = watching(clock, source, answered=("old",))
    passing(watcher, clock, 60)
    assert told == []
    source.says = notice(clock, key="new")
    passing(watcher, clock, 6)
    assert len(told) == 1


@pytest.mark.parametrize("fault", [SourceError("status 500"), ZeroDivisionError("ours")])
def test_trouble_is_said_once_asked_less_often_and_keeps_nobody_from_the_others(clock, caplog, fault):
    bad, good = Fake("bad", says=fault), Fake("good")
    watcher, told = watching(clock, bad, good)
    passing(watcher, clock, 100)
    assert good.polls == 21
    assert 4 < bad.polls < 10
    assert len([record for record in caplog.records if "cannot be asked" in record.message]) == 1
    bad.says = notice(clock)
    passing(watcher, clock, 21)
    assert len(told) == 1


def test_what_was_told_is_remembered_within_limits(clock):
    source = Fake(interval_s=1)
    watcher, told = watching(clock, source)
    for number in range(TOLD_MAX + 10):
        source.says = notice(clock, key=str(number))
        passing(watcher, clock, 1)
    assert len(told) == TOLD_MAX + 10
    assert len(watcher._told) == TOLD_MAX


def test_the_thread_tells_a_real_interruption_and_stops_when_told_to(monkeypatch):
    ec2 = Ec2()
    server = MetadataServer(ec2)
    monkeypatch.setattr(Aws, "interval_s", 0.01)
    told, seen = [], threading.Event()
    sources = [kind(Metadata(server.url)) for kind in (Gcp, Azure, Aws)]
    watcher = Watcher(sources, lambda found: (told.append(found), seen.set()))
    watcher.start()
    try:
        ec2.action = {"action": "terminate", "time": "2020-10-27T08:24:00Z"}
        assert seen.wait(LIMIT_S)
        assert told[0].source == "aws"
    finally:
        watcher.stop()
        watcher.join(LIMIT_S)
        server.close()
    assert not watcher._thread.is_alive()
    assert len(told) == 1


def test_where_nothing_is_there_the_thread_ends_by_itself():
    elsewhere = sources_of({"ORCH_METADATA": "http://127.0.0.1:1"}, lambda: None)[1:]
    watcher = Watcher(elsewhere, lambda found: pytest.fail(f"{found}"))
    watcher.start()
    watcher.join(LIMIT_S)
    assert not watcher._thread.is_alive()
