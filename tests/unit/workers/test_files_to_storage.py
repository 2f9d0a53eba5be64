"""When versions go to storage, and what becomes of them while it is away."""

from __future__ import annotations

from support.files import kill, newest, run_script, versions, wait_log, wait_version
from support.server import wait_for
from support.workers import Failing


def test_without_storage_it_goes_on_from_this_machine(machine):
    machine.storage.mood = Failing("blobs")
    one = run_script(
        machine,
        """
        at = load()
        save(at + 1)
        if at == 0:
            wait("saved")
        """,
    )
    wait_for("version 1 is taken", lambda: newest(one) == 1, 30)
    machine.waits("saved")
    one.wait_note("is not in storage yet")
    kill(one)
    wait_log(one, "goes on from 1")
    machine.storage.mood = lambda what, path: None
    assert one.end()["outcome"] == "succeeded"
    assert versions(one)[-1] == 2


def test_the_script_s_own_steps_count_where_its_files_tell_them(machine):
    one = run_script(
        machine,
        """
        for at in range(1, 5):
            save(at)
            wait(f"saved-{at}")
        """,
        every_steps=2,
    )
    for at in (1, 2, 3, 4):
        wait_for(f"version {at}", lambda at=at: newest(one) == at, 30)
        if at in (1, 3):
            wait_version(one, at)
        machine.go(f"saved-{at}")
    assert one.end()["outcome"] == "succeeded"
    assert versions(one) == [1, 3, 4]
