"""Real SIGKILLs, one case per row of the failures table that this version covers; the seed moves their moment."""

from __future__ import annotations

import random
from collections.abc import Callable

import psutil
import pytest

from support.leftovers import of_jobs
from support.recovery import (
    STEPS,
    Victim,
    assert_chain_kept,
    assert_recovered,
    kill,
    placement_groups,
    starts,
)
from support.seaweed import SeaweedFS
from support.server import Server, wait_for

pytestmark = pytest.mark.chaos


def _somewhere(rng: random.Random) -> int:
    return rng.randrange(STEPS // 6, STEPS // 2)


def test_training_process_killed(server: Server, undisturbed: bytes, rng: random.Random) -> None:
    victim = Victim(server)
    victim.wait_step(_somewhere(rng))
    assert victim.kill_training()
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert starts(detail)[1]["restored_from"] == "memory"
    assert detail["attempt"] == 1, "restarted in place"
    assert victim.final_bytes() == undisturbed
    assert_chain_kept(victim)
    victim.assert_nothing_left()


def test_guard_killed(server: Server, undisturbed: bytes, rng: random.Random) -> None:
    """Nobody sees the exit status then; the agent ends what is left and restarts in place."""
    victim = Victim(server)
    victim.wait_step(_somewhere(rng))
    guard = psutil.Process(victim.events("ProcessStarted")[-1]["pid"]).parent()
    assert guard is not None
    assert kill(guard.pid)
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert victim.final_bytes() == undisturbed
    victim.assert_nothing_left()


def test_agent_killed(server: Server, undisturbed: bytes, rng: random.Random) -> None:
    victim = Victim(server)
    victim.wait_step(_somewhere(rng))
    trained = victim.events("ProcessStarted")[-1]["pid"]
    assert victim.kill_agent()
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert detail["attempt"] == 2
    assert starts(detail)[1]["restored_from"] == "memory", "the next agent adopts the slots"
    assert trained != victim.events("ProcessStarted")[-1]["pid"]
    assert victim.final_bytes() == undisturbed
    assert_chain_kept(victim)
    victim.assert_nothing_left()


def test_both_killed_on_s3(
    server: Server,
    seaweed: SeaweedFS,
    undisturbed: bytes,
    rng: random.Random,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    settings = {
        "checkpoint.storage.url": seaweed.url(f"chaos-{rng.getrandbits(32):x}"),
        **{f"checkpoint.storage.options.{name}": value for name, value in seaweed.options.items()},
        **{f"env.{name}": value for name, value in seaweed.env.items() if name.startswith("AWS")},
    }
    victim = Victim(server, *(f"--set={name}={value}" for name, value in settings.items()))
    victim.wait_step(_somewhere(rng))
    assert victim.kill_training()
    victim.wait_event("Recovered", lambda data: data["generation"] == "000001.000002")
    victim.wait_event("CheckpointCommitted", lambda data: data["generation"] == "000001.000002")
    assert victim.kill_agent()
    detail = victim.finish()
    assert_recovered(detail, kills=2)
    assert victim.final_bytes() == undisturbed
    victim.assert_nothing_left()


def test_agent_and_its_memory_lost(server: Server, undisturbed: bytes, rng: random.Random) -> None:
    """As if the machine had gone: what is in storage is all there is."""
    victim = Victim(server)
    victim.wait_event("CheckpointCommitted", lambda data: data["step"] > 1)
    victim.wait_step(_somewhere(rng))
    _spoil_memory(server, victim)
    assert victim.kill_agent()
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert starts(detail)[-1]["restored_from"] == "storage"
    assert victim.final_bytes() == undisturbed
    victim.assert_nothing_left()


def test_newest_checkpoint_damaged(server: Server, undisturbed: bytes) -> None:
    victim = Victim(server)
    victim.wait_event("CheckpointCommitted", lambda data: data["step"] > 100)
    _spoil_memory(server, victim)
    assert victim.kill_agent()
    # The agent is dead before the shard is touched, so what is newest now stays newest.
    newest = max(
        (server.home / "storage" / victim.id / "manifests").glob("*/*.json"), key=lambda path: path.stem
    )
    shard = next(
        (server.home / "storage" / victim.id / "shards" / newest.parent.name / newest.stem).glob("*")
    )
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert starts(detail)[-1]["restored_step"] < int(newest.stem)
    assert any("quarantine" in note["text"] for note in detail["notes"])
    assert victim.final_bytes() == undisturbed
    victim.assert_nothing_left()


def test_controller_killed(server: Server, undisturbed: bytes, rng: random.Random) -> None:
    victim = Victim(server)
    victim.wait_step(_somewhere(rng))
    assert victim.kill_controller()
    detail = victim.finish()
    assert len(starts(detail)) == 1, "training was not disturbed"
    assert len(victim.events("ProcessStarted")) == 1
    assert victim.events("Adopted")
    assert victim.final_bytes() == undisturbed
    victim.assert_nothing_left()


def test_controller_and_training_process_killed(
    server: Server, undisturbed: bytes, rng: random.Random
) -> None:
    """The leader recovers in place without a controller, which learns of it from the journal."""
    victim = Victim(server)
    victim.wait_step(_somewhere(rng))
    training = victim.events("ProcessStarted")[-1]["pid"]
    assert victim.kill_controller()
    assert kill(training)
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert detail["attempt"] == 1
    assert victim.final_bytes() == undisturbed
    victim.assert_nothing_left()


def test_controller_and_agent_killed(server: Server, undisturbed: bytes, rng: random.Random) -> None:
    victim = Victim(server)
    victim.wait_step(_somewhere(rng))
    agent = victim.events("AgentUp")[-1]["pid"]
    assert victim.kill_controller()
    assert kill(agent)
    detail = victim.finish()
    assert_recovered(detail, kills=1)
    assert victim.final_bytes() == undisturbed
    victim.assert_nothing_left()


@pytest.mark.parametrize("now", [False, True])
def test_cancelled_at_a_random_moment(server: Server, rng: random.Random, now: bool) -> None:
    victim = Victim(server)
    moments: list[Callable[[], object]] = [
        lambda: None,
        lambda: victim.wait_event("AgentUp"),
        lambda: victim.wait_event("ProcessStarted"),
        lambda: victim.wait_step(_somewhere(rng)),
    ]
    rng.choice(moments)()
    server.cli("cancel", victim.id, *(["--now"] if now else []))
    server.cli("wait", victim.id, check=3)
    assert victim.detail()["state"] == "CANCELLED"
    victim.assert_nothing_left()


def test_without_restoring_the_kill_test_fails(
    server: Server, undisturbed: bytes, rng: random.Random
) -> None:
    """The final bytes alone do not show a recovery: a job that starts over ends with the same ones."""
    victim = Victim(server, "--set=env.RESTORE=0")
    victim.wait_step(_somewhere(rng))
    assert victim.kill_training()
    detail = victim.finish()
    assert victim.final_bytes() == undisturbed
    with pytest.raises(AssertionError, match="started over"):
        assert_recovered(detail, kills=1)
    victim.assert_nothing_left()


def test_everything_is_gone_between_two_jobs(server: Server) -> None:
    jobs = [job["id"] for job in server.client().jobs()]
    wait_for("no leftovers", lambda: not of_jobs(server.home, jobs))
    assert not placement_groups(server, *jobs)


def _spoil_memory(server: Server, victim: Victim) -> None:
    """Makes the slots unusable for whoever comes next, as a new machine would have none."""
    from orch_workers.config import WorkerPaths

    paths = WorkerPaths(victim.id, 0, server.home / "node", server.home / "jobs")
    for name in ("slot-0", "slot-1", "restore", "lineage.json"):
        (paths.snapshots / name).unlink(missing_ok=True)
