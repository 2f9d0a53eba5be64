"""A script that overwrites its only file again and again, killed at any moment of it."""

from __future__ import annotations

from support.files import kill, log_of, newest, run_script
from support.server import wait_for

KILLS = 20


def test_twenty_kills_at_any_moment_of_its_writing(machine, rng):
    """A script that overwrites its only file all the time never finds it in pieces, and never goes back."""
    one = run_script(
        machine,
        """
        at = load()
        open(f"up-{os.getpid()}", "w").close()
        while at < 10**6 and not os.path.exists("enough"):
            at += 1
            sum(range(1_000_000))
            with open("state.pkl", "wb") as file:
                pickle.dump({"step": at, "ballast": [bytes(2_000_000), bytes(1_000_000)]}, file)
        """,
        policy={"budgets": {"max_failures": None, "backoff_initial_s": 0.001, "backoff_max_s": 0.001}},
        standby=False,
    )
    for number in range(1, KILLS + 1):
        pid = one.wait_told("ProcessStarted", number)["pid"]
        machine.waits(f"up-{pid}")
        before, wanted = newest(one), rng.randrange(3)
        wait_for("some versions more", lambda a=before, b=wanted: newest(one) >= a + b, 60)
        kill(one)
    one.wait_told("ProcessStarted", KILLS + 1)
    (machine.workdir / "enough").write_text("")
    assert one.end()["outcome"] == "succeeded", log_of(one)
    assert [event["signal"] for event in one.told("ProcessExited")] == [9] * KILLS
    steps = [int(line.rsplit(" ", 1)[1]) for line in log_of(one).splitlines() if "goes on" in line]
    assert steps == sorted(steps)
