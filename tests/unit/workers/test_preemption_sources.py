"""Each source against a server that answers like the real one, and against everything else that may answer there."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from orch_workers.preemption.aws import TOKEN_TTL_S, Aws
from orch_workers.preemption.azure import Azure
from orch_workers.preemption.gcp import PREEMPTED_LEFT_S, TERMINATE_LEFT_S, Gcp
from orch_workers.preemption.metadata import BODY_BYTES_MAX, Metadata
from orch_workers.preemption.notice import Moment, SourceError, SourceSilentError
from orch_workers.preemption.ray_drain import RayDrain
from orch_workers.preemption.slurm import Slurm
from orch_workers.preemption.sources import sources_of
from support.metadata import NOT_FOUND, Ec2, Gce, Imds, MetadataServer

CLOUDS = (Aws, Gcp, Azure)
SECONDS_IN_A_DATE = 1.5
"""A Date header has whole seconds."""


@pytest.fixture
def serve():
    servers = []

    def start(answer):
        servers.append(MetadataServer(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def iso(wall_s):
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def present(kind, serve, answer, **more):
    """The source, seen to be there, and its server."""
    server = serve(answer)
    source = kind(Metadata(server.url, **more))
    assert source.probe()
    return source, server


def left_s(notice, now):
    assert notice.deadline.monotonic_s - now.monotonic_s == pytest.approx(
        notice.deadline.wall_s - now.wall_s, abs=0.01
    )
    return notice.deadline.monotonic_s - now.monotonic_s


# --- AWS ---


def test_aws_says_nothing_while_nothing_is_planned(serve):
    source, server = present(Aws, serve, Ec2())
    assert source.poll(Moment.now()) is None
    assert [path for method, path in server.asked if method == "PUT"] == ["/latest/api/token"]


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_aws_interruption_with_its_deadline(serve, action):
    ec2 = Ec2()
    source, _ = present(Aws, serve, ec2)
    now = Moment.now()
    ec2.action = {"action": action, "time": iso(now.wall_s + 120)}
    notice = source.poll(now)
    assert (notice.source, notice.kind, notice.leaves, notice.machine) == ("aws", "preempt", True, True)
    assert left_s(notice, now) == pytest.approx(120, abs=SECONDS_IN_A_DATE)
    assert action in notice.reason
    assert notice == source.poll(now) or notice.key == source.poll(now).key


def test_aws_deadline_is_read_on_the_services_own_clock(serve):
    """This machine's clock is an hour behind: two minutes are two minutes."""
    ec2 = Ec2()
    source, _ = present(Aws, serve, ec2)
    ec2.clock_ahead_s = 3600
    now = Moment.now()
    ec2.action = {"action": "terminate", "time": iso(now.wall_s + 3600 + 120)}
    assert left_s(source.poll(now), now) == pytest.approx(120, abs=SECONDS_IN_A_DATE)


def test_aws_deadline_that_is_past_is_now(serve):
    ec2 = Ec2()
    source, _ = present(Aws, serve, ec2)
    now = Moment.now()
    ec2.action = {"action": "stop", "time": iso(now.wall_s - 50)}
    assert left_s(source.poll(now), now) == 0


def test_aws_recommendation_is_a_warning_and_an_interruption_goes_before_it(serve):
    ec2 = Ec2()
    source, _ = present(Aws, serve, ec2)
    ec2.rebalance = {"noticeTime": "2020-10-27T08:22:00Z"}
    warning = source.poll(Moment.now())
    assert (warning.kind, warning.leaves, warning.deadline) == ("rebalance", False, None)
    ec2.action = {"action": "terminate", "time": "2020-10-27T08:24:00Z"}
    assert source.poll(Moment.now()).kind == "preempt"


def test_aws_token_is_used_again_and_renewed_before_it_ends(serve):
    ec2 = Ec2()
    source, _ = present(Aws, serve, ec2)
    now = Moment.now()
    source.poll(now)
    source.poll(now)
    assert len(ec2.tokens) == 1
    source.poll(Moment(now.monotonic_s + TOKEN_TTL_S, now.wall_s))
    assert len(ec2.tokens) == 2


def test_aws_token_that_is_refused_is_replaced_once(serve):
    ec2 = Ec2()
    source, server = present(Aws, serve, ec2)
    ec2.expire()
    ec2.action = {"action": "terminate", "time": "2020-10-27T08:24:00Z"}
    assert source.poll(Moment.now()) is not None
    ec2.expire()
    ec2.enabled = False  # switched off while the instance runs
    asked = len(server.asked)
    with pytest.raises(SourceError):
        source.poll(Moment.now())
    assert len(server.asked) <= asked + 2


def test_aws_on_demand_instance_is_never_asked_again(serve):
    ec2 = Ec2()
    ec2.life_cycle = "on-demand"
    assert not Aws(Metadata(serve(ec2).url)).probe()


@pytest.mark.parametrize(
    "action",
    [
        b"<html>captive portal</html>",
        b"\xff\xfe\x00",
        b"[1, 2]",
        b"null",
        b"[" * 20_000,
        {"action": "terminate"},
        {"action": "terminate", "time": "soon"},
        {"action": "terminate", "time": "9999999-01-01T00:00:00Z"},
        {"action": "dance", "time": "2020-10-27T08:24:00Z"},
        {"time": "2020-10-27T08:24:00Z"},
    ],
    ids=range(10),
)
def test_aws_garbage_is_no_notice(serve, action):
    ec2 = Ec2()
    source, _ = present(Aws, serve, ec2)
    ec2.action = action
    with pytest.raises(SourceError):
        source.poll(Moment.now())


# --- Google ---


def test_gcp_preemption_counts_from_when_it_was_first_seen(serve):
    gce = Gce()
    source, _ = present(Gcp, serve, gce)
    now = Moment.now()
    assert source.poll(now) is None
    gce.preempted = "TRUE"
    first = source.poll(now)
    again = source.poll(Moment(now.monotonic_s + 10, now.wall_s + 10))
    assert (first.kind, first.leaves) == ("preempt", True)
    assert left_s(first, now) == pytest.approx(PREEMPTED_LEFT_S)
    assert (again.key, again.deadline) == (first.key, first.deadline)


def test_gcp_maintenance_that_stops_the_machine_and_one_that_moves_it(serve):
    gce = Gce()
    source, _ = present(Gcp, serve, gce)
    now = Moment.now()
    gce.maintenance = "TERMINATE_ON_HOST_MAINTENANCE"
    stops = source.poll(now)
    assert (stops.kind, stops.leaves) == ("maintenance", True)
    assert left_s(stops, now) == pytest.approx(TERMINATE_LEFT_S)
    gce.maintenance = "MIGRATE_ON_HOST_MAINTENANCE"
    moves = source.poll(now)
    assert (moves.kind, moves.leaves) == ("rebalance", False)
    gce.maintenance = "NONE"
    assert source.poll(now) is None
    gce.maintenance = "MIGRATE_ON_HOST_MAINTENANCE"
    later = Moment(now.monotonic_s + 3600, now.wall_s + 3600)
    assert source.poll(later).key != moves.key  # another migration


@pytest.mark.parametrize("word", ["", "maybe", "<html>"])
def test_gcp_garbage_is_no_notice(serve, word):
    gce = Gce()
    source, _ = present(Gcp, serve, gce)
    gce.preempted = word
    with pytest.raises(SourceError):
        source.poll(Moment.now())


def test_gcp_needs_googles_header_in_the_answer(serve):
    """Something else that answers TRUE to everything must not end a job."""
    server = serve(lambda *_: (200, {}, b"TRUE"))
    source = Gcp(Metadata(server.url))
    assert not source.probe()
    with pytest.raises(SourceError):
        source.poll(Moment.now())


# --- Azure ---


@pytest.mark.parametrize(
    ("kind", "leaves"),
    [("Preempt", True), ("Terminate", True), ("Reboot", True), ("Redeploy", True), ("Freeze", False)],
)
def test_azure_events_of_this_machine(serve, kind, leaves):
    imds = Imds()
    source, _ = present(Azure, serve, imds)
    now = Moment.now()
    assert source.poll(now) is None
    imds.event(kind, now.wall_s + 30)
    notice = source.poll(now)
    assert notice.leaves is leaves
    assert left_s(notice, now) == pytest.approx(30, abs=SECONDS_IN_A_DATE)
    assert imds.events[0]["EventId"] in notice.key


def test_azure_event_under_way_is_due_now(serve):
    imds = Imds()
    source, _ = present(Azure, serve, imds)
    imds.event("Reboot", None)
    now = Moment.now()
    assert left_s(source.poll(now), now) == 0


def test_azure_events_of_others_and_unknown_ones_are_passed_over_and_the_worst_counts(serve):
    imds = Imds()
    source, server = present(Azure, serve, imds)
    now = Moment.now()
    imds.event("Preempt", now.wall_s + 30, Resources=["trainer_1"])
    imds.event("Preempt", now.wall_s + 30, EventStatus="Completed")
    imds.event("Levitate", now.wall_s + 30)
    assert source.poll(now) is None
    imds.event("Freeze", now.wall_s + 5)
    imds.event("Reboot", now.wall_s + 900)
    imds.event("Terminate", now.wall_s + 300)
    assert "deletes this machine" in source.poll(now).reason
    assert {method for method, _ in server.asked} == {"GET"}, "an event is never acknowledged"


@pytest.mark.parametrize(
    "event", [{"NotBefore": "soon"}, {"NotBefore": 17}, "text", None], ids=["time", "number", "text", "null"]
)
def test_azure_garbage_is_no_notice(serve, event):
    imds = Imds()
    source, _ = present(Azure, serve, imds)
    if isinstance(event, dict):
        imds.event("Preempt", 1.0, **event)
    else:
        imds.events.append(event)
    with pytest.raises(SourceError):
        source.poll(Moment.now())


# --- whatever may answer at a link-local address ---


@pytest.mark.parametrize("kind", CLOUDS)
@pytest.mark.parametrize("others", [Ec2, Gce, Imds])
def test_no_provider_is_taken_for_another(serve, kind, others):
    own = {Aws: Ec2, Gcp: Gce, Azure: Imds}[kind]
    source = kind(Metadata(serve(others()).url))
    assert source.probe() is (own is others)


@pytest.mark.parametrize("kind", CLOUDS)
def test_not_found_everywhere_is_absent(serve, kind):
    assert not kind(Metadata(serve(lambda *_: NOT_FOUND).url)).probe()


@pytest.mark.parametrize("kind", CLOUDS)
def test_a_redirect_is_not_followed(serve, kind):
    elsewhere = serve(lambda *_: (200, {"Metadata-Flavor": "Google"}, b"TRUE"))
    server = serve(lambda *_: (302, {"Location": elsewhere.url + "/"}, b""))
    with pytest.raises(SourceError, match="redirect"):
        kind(Metadata(server.url)).probe()
    assert elsewhere.asked == []


@pytest.mark.parametrize("kind", CLOUDS)
def test_silence_is_told_from_absence(serve, kind):
    silent = serve(lambda *_: None)
    with pytest.raises(SourceSilentError):
        kind(Metadata(silent.url, limit_s=0.05)).probe()


@pytest.mark.parametrize("kind", CLOUDS)
def test_nobody_there_is_an_error_and_quick(kind):
    with pytest.raises(SourceError) as caught:
        kind(Metadata("http://127.0.0.1:1")).probe()
    assert not isinstance(caught.value, SourceSilentError)


@pytest.mark.parametrize("answer", [b"x" * (BODY_BYTES_MAX + 1), b""])
@pytest.mark.parametrize("kind", CLOUDS)
def test_a_body_without_end_or_without_anything_is_no_metadata(serve, kind, answer):
    source = kind(Metadata(serve(lambda *_: (200, {}, answer)).url))
    if answer:
        with pytest.raises(SourceError, match="longer"):
            source.probe()
    else:
        assert not source.probe()


@pytest.mark.parametrize("kind", CLOUDS)
def test_status_500_after_the_probe_is_trouble_and_no_notice(serve, kind):
    own = {Aws: Ec2, Gcp: Gce, Azure: Imds}[kind]()
    broken = []
    source, _ = present(kind, serve, lambda *asked: (503, {}, b"") if broken else own(*asked))
    broken.append(True)
    with pytest.raises(SourceError, match="503"):
        source.poll(Moment.now())


def test_a_proxy_of_the_environment_is_not_used(serve, monkeypatch):
    proxy = serve(lambda *_: NOT_FOUND)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    assert present(Gcp, serve, Gce())
    assert proxy.asked == []


def test_only_http_addresses_are_metadata():
    for text in ("https://169.254.169.254", "file:///etc/passwd", "169.254.169.254", ""):
        with pytest.raises(ValueError, match="metadata service"):
            Metadata(text)


# --- the local ones ---


def test_slurm_end_of_the_allocation():
    now = Moment.now()
    source = Slurm({"SLURM_JOB_ID": "17", "SLURM_JOB_END_TIME": str(int(now.wall_s) + 90)})
    assert source.probe()
    notice = source.poll(now)
    assert left_s(notice, now) == pytest.approx(90, abs=1)
    assert "17" in notice.reason


@pytest.mark.parametrize(
    "environment", [{}, {"SLURM_JOB_ID": "17"}, {"SLURM_JOB_ID": "17", "SLURM_JOB_END_TIME": "never"}]
)
def test_without_slurm_there_is_no_such_source(environment):
    assert not Slurm(environment).probe()


def test_ray_drain_with_and_without_a_deadline():
    now = Moment.now()
    deadlines = {"ms": None}
    source = RayDrain(lambda: deadlines["ms"])
    assert source.probe()
    assert source.poll(now) is None
    deadlines["ms"] = int((now.wall_s + 12) * 1000)
    assert left_s(source.poll(now), now) == pytest.approx(12, abs=0.01)
    deadlines["ms"] = 0
    assert source.poll(now).deadline is None


def test_the_metadata_address_can_be_another_one_or_none():
    names = lambda environment: [s.name for s in sources_of(environment, lambda: None)]  # noqa: E731
    assert names({}) == ["ray", "slurm", "aws", "gcp", "azure"]
    assert names({"ORCH_METADATA": "off"}) == ["ray", "slurm"]
    elsewhere = sources_of({"ORCH_METADATA": "http://127.0.0.1:1"}, lambda: None)
    for source in elsewhere[2:]:
        with pytest.raises(SourceError, match="refused"):
            source.probe()
