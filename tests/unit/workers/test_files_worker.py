"""Workers of jobs whose scripts write their own checkpoints: real processes, real kills, no Ray."""

from __future__ import annotations

import pickle
import textwrap

import torch

from support.files import (
    EXAMPLES,
    example,
    kill,
    log_of,
    newest,
    restored,
    run_script,
    undisturbed,
    versions,
    wait_log,
    wait_version,
)
from support.server import wait_for

BLOG = "unchanged/pytorch"
STOPS = """
    import builtins, os

    said = print

    def stop_once(name):
        if not os.path.exists(name):
            os.mkfifo(name)
            open(name).read()

    def printing(*words):
        said(*words)
        if words[0].startswith("[3]"):
            stop_once("third")

    builtins.print = printing
    exec(compile(open("train.py").read(), "train.py", "exec"))
    stop_once("saved")
"""
"""Runs the script as it is, and stands still once before it saves its third epoch, and once behind its last line."""


def test_the_script_of_every_blog_post_is_killed_twice_and_ends_as_if_it_had_not_been(machine, tmp_path):
    """Once in the middle, and once right after its last line has saved what its own loader cannot use."""
    example(machine, BLOG)
    whole = undisturbed(tmp_path / "whole", EXAMPLES / BLOG / "train.py")
    (machine.workdir / "stops.py").write_text(textwrap.dedent(STOPS))
    metrics = {"loss": "loss: ([0-9.]+)"}
    one = machine.worker(run="python stops.py", files=("checkpoint.pth.tar",), metrics=metrics)
    wait_version(one, 1)
    wait_log(one, "[3]")
    machine.waits("third")
    kill(one)
    wait_log(one, "(epoch 2)")
    wait_log(one, "Finished Training")
    machine.waits("saved")
    kill(one)
    wait_log(one, "KeyError: 'epoch'")
    wait_log(one, "Finished Training", 2)
    end = one.end()
    assert end["outcome"] == "succeeded", end
    assert "KeyError: 'epoch'" in one.told("ProcessExited")[-1]["what"]
    assert "falls back to the one before" in one.notes()
    steps = [step for step, _ in restored(one)]
    assert steps[2] == steps[1] - 1
    state, expected = (torch.load(path / "checkpoint.pth.tar") for path in (machine.workdir, whole))
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    marked = machine.files("quarantine")
    assert len(marked) == 1
    assert marked[0] in machine.files("manifests")


def test_killed_while_it_overwrites_its_only_file_it_gets_the_version_before(machine):
    one = run_script(
        machine,
        """
        at = load()
        save(at + 1)
        wait(f"saved-{at + 1}")
        if once("half"):
            file = save_half(at + 2)
            wait("half")
        save(at + 2)
        """,
    )
    wait_version(one, 1)
    machine.go("saved-1")
    machine.waits("half")
    kill(one)
    wait_log(one, "goes on from 1")
    assert "its end is missing" in one.notes() or "no whole pickle" in one.notes()
    machine.go("saved-2")
    assert one.end()["outcome"] == "succeeded"
    assert restored(one) == [(1, "disk")]


def test_killed_while_it_writes_its_first_file_it_starts_with_none(machine):
    one = run_script(
        machine,
        """
        at = load()
        if once("half"):
            save_half(1)
            os.kill(os.getpid(), 9)
        save(at + 1)
        """,
    )
    assert one.end()["outcome"] == "succeeded"
    assert log_of(one).count("starts from nothing") == 2
    assert "set aside" in one.notes()
    assert versions(one) == [1]


def test_what_was_shipped_is_the_first_version(machine):
    with (machine.workdir / "state.pkl").open("wb") as file:
        pickle.dump({"step": 7}, file)
    one = run_script(
        machine,
        """
        at = load()
        if once("half"):
            save_half(8)
            os.kill(os.getpid(), 9)
        save(at + 1)
        """,
    )
    assert one.end()["outcome"] == "succeeded"
    assert log_of(one).count("goes on from 7") == 2
    assert restored(one) == [(1, "disk")]


def test_killed_between_two_files_of_one_version_it_gets_both_of_the_version_before(machine):
    one = run_script(
        machine,
        """
        a, b = load("a.pkl"), load("b.pkl")
        assert a == b, (a, b)
        for at in range(a + 1, 4):
            save(at, "a.pkl")
            if at == 3 and once("between"):
                wait("between")
            save(at, "b.pkl")
            if at < 3:
                wait(f"saved-{at}")
        """,
        files=("*.pkl",),
    )
    wait_version(one, 1)
    machine.go("saved-1")
    wait_for("version 2 is taken", lambda: newest(one) == 2, 30)
    machine.go("saved-2")
    machine.waits("between")
    kill(one)
    end = one.end()
    assert end["outcome"] == "succeeded", log_of(one)
    assert log_of(one).count("goes on from 2") == 2
    assert "more may have been to follow" in one.notes()


def test_of_a_format_that_nobody_knows_only_what_stood_still_is_taken(machine):
    one = run_script(
        machine,
        """
        print("reads", open("state.txt").read() if os.path.exists("state.txt") else "nothing", flush=True)
        if once("first"):
            open("state.txt", "w").write("one")
            wait("written")
            file = open("state.txt", "w")
            file.write("tw")
            file.close()
            os.kill(os.getpid(), 9)
        """,
        files=("state.txt",),
    )
    wait_version(one, 1)
    machine.go("written")
    assert one.end()["outcome"] == "succeeded"
    assert "reads one" in log_of(one)
    assert "nothing in it says whether it is whole" in one.notes()


def test_on_another_machine_it_goes_on_from_storage(machine):
    script = """
    at = load()
    save(at + 1)
    if at == 1:
        sys.exit(0)
    wait("saved")
    """
    one = run_script(machine, script)
    wait_version(one, 1)
    machine.waits("saved")
    one.stop()
    (machine.workdir / "state.pkl").unlink()
    (machine.workdir / "saved").unlink()
    machine.moves_to("elsewhere")
    other = run_script(machine, script, attempt=2)
    assert other.end()["outcome"] == "succeeded"
    assert restored(other) == [(1, "storage")]
    assert [place[0] for place in machine.committed()] == ["000001.000001", "000002.000001"]


def test_what_was_written_under_an_agent_that_died_is_taken_by_the_next_one(machine):
    """Storage has nothing of it yet: the interval is long."""
    script = """
    at = load()
    save(at + 1)
    wait(f"saved-{at + 1}")
    """
    one = run_script(
        machine,
        """
        for at in range(load() + 1, 4):
            save(at)
            wait(f"saved-{at}")
        """,
    )
    wait_version(one, 1)
    machine.go("saved-1")
    machine.waits("saved-2")
    one.stop()
    assert versions(one) == [1]
    (machine.workdir / "saved-2").unlink()
    other = run_script(machine, script, attempt=2)
    wait_log(other, "goes on from 2")
    machine.go("saved-3")
    assert other.end()["outcome"] == "succeeded"
    assert restored(other) == [(2, "disk")]


def test_a_script_that_can_use_no_version_comes_to_an_end(machine):
    one = run_script(
        machine,
        """
        at = load()
        if at:
            raise ValueError("cannot use it")
        for at in range(1, 4):
            save(at)
            wait(f"saved-{at}")
        sys.exit(3)
        """,
        policy={"budgets": {"backoff_initial_s": 0.01, "max_failures": 9}},
    )
    for at in (1, 2, 3):
        wait_for(f"version {at}", lambda at=at: newest(one) == at, 30)
        machine.go(f"saved-{at}")
    end = one.end()
    assert end["outcome"] == "failed"
    assert "crash loop" in end["reason"]
    assert [step for step, _ in restored(one)] == [3, 2, 1, 1]
    assert len(machine.files("quarantine")) == 2


def test_a_kill_from_outside_says_nothing_about_the_file(machine):
    one = run_script(
        machine,
        """
        at = load()
        if at == 0:
            save(1)
            wait("saved-1")
            save(2)
        wait(f"loaded-{len(os.listdir('.'))}") if once("a") or once("b") else sys.exit(0)
        """,
    )
    wait_version(one, 1)
    machine.go("saved-1")
    wait_for("version 2", lambda: newest(one) == 2, 30)
    wait_for("it waits", lambda: list(machine.workdir.glob("loaded-*")), 30)
    kill(one)
    wait_log(one, "goes on from 2")
    wait_for("it waits", lambda: len(list(machine.workdir.glob("loaded-*"))) == 2, 30)
    kill(one)
    assert one.end()["outcome"] == "succeeded"
    assert restored(one) == [(2, "disk"), (2, "disk")]
    assert machine.files("quarantine") == []


def test_asked_to_leave_its_last_words_are_kept(machine):
    one = run_script(
        machine,
        """
        import signal
        at = load()
        def leave(*_):
            save(100)
            sys.exit(0)
        signal.signal(signal.SIGTERM, leave)
        save(at + 1)
        open("up", "w").close()
        while True:
            signal.pause()
        """,
    )
    wait_version(one, 1)
    machine.waits("up")
    one.worker.stop("left", 20.0, "preempted")
    end = one.end()
    assert end["outcome"] == "left"
    assert versions(one) == [1, 2]


def test_numbers_in_its_log_are_metrics_and_signs_of_progress(machine):
    one = run_script(
        machine,
        """
        print("epoch 1 loss: 0.5 acc=0.9")
        save(1)
        wait("one")
        print("nothing here", end="\\r")
        print("epoch 2 loss: nan-ish loss: 0.25")
        wait("two")
        """,
        metrics={"loss": r"loss: ([0-9.]+)", "acc": r"acc=([0-9.]+)"},
    )
    wait_version(one, 1)
    wait_for("its first line is seen", lambda: one.metrics() == {"loss": 0.5, "acc": 0.9}, 30)
    before = one.worker._keeper.beat().step
    machine.go("one")
    wait_for("the second line is seen", lambda: one.metrics()["loss"] == 0.25, 30)
    assert one.worker._keeper.beat().step == before + 1
    machine.go("two")
    assert one.end()["outcome"] == "succeeded"
    from orch_workers.checkpoint import Catalog

    catalog = Catalog(machine.storage, one.config.job_id)
    manifest = catalog.manifest(catalog.committed()[-1])
    assert (manifest.kind, manifest.metrics) == ("files", {"loss": 0.5, "acc": 0.9, "step": 1})


def test_a_loss_that_is_no_number_ends_it(machine):
    one = run_script(machine, "print('loss: nan'); save(1); wait('on')", metrics={"loss": r"loss: (\S+)"})
    end = one.end()
    assert end["outcome"] == "failed"
    assert "loss is nan" in end["reason"]


def test_patterns_that_match_nothing_are_said_with_what_the_job_did_write(machine, tmp_path):
    elsewhere = tmp_path / "model_dir"
    elsewhere.mkdir()
    one = run_script(
        machine,
        f"""
        events = open({str(elsewhere / "events.out.tfevents.1")!r}, "w")
        save(1, {str(elsewhere / "model.ckpt-1")!r})
        wait("up")
        """,
        files=("models/**",),
        every_seconds=0.2,
    )
    one.wait_note("nothing matches models/**")
    one.wait_note(f"{elsewhere}/model.ckpt-1 (")
    assert one.aware() is False
    machine.go("up")
    assert one.end()["outcome"] == "succeeded"


def test_what_it_appends_to_is_left_out_and_left_where_it_is(machine):
    one = run_script(
        machine,
        """
        os.makedirs("runs", exist_ok=True)
        log, events = open("runs/train.txt", "a"), open("runs/events.out.tfevents.7", "w")
        print("log of", os.path.getsize("runs/train.txt"), flush=True)
        at = load("runs/state.pkl")
        log.write("x"); log.flush()
        save(at + 1, "runs/state.pkl")
        if once("torn"):
            wait("saved")
            save(2, "runs/torn.pkl")
            save_half(3, "runs/torn.pkl")
            os.kill(os.getpid(), 9)
        """,
        files=("runs/**",),
    )
    wait_version(one, 1)
    machine.go("saved")
    assert one.end()["outcome"] == "succeeded"
    assert "log of 1" in log_of(one)
    assert "torn.pkl: left by a start" in one.notes()
    assert not (machine.workdir / "runs/torn.pkl").exists()
    assert list(machine.workdir.glob(".orch-aside/*/runs/torn.pkl"))


def test_a_script_that_uses_orch_as_well_is_told_to_choose(machine):
    one = machine.worker(script="job = Trainee()", files=("state.pkl",))
    end = one.end()
    assert end["outcome"] == "blocked"
    assert "remove one of the two" in end["reason"]


def test_the_folder_for_scripts_that_take_one(machine):
    one = run_script(
        machine,
        """
        folder = os.environ["ORCH_CHECKPOINT_DIR"]
        at = load(f"{folder}/state.pkl")
        save(at + 1, f"{folder}/state.pkl")
        if at == 0:
            os.kill(os.getpid(), 9)
        """,
        files=("models",),
    )
    assert one.end()["outcome"] == "succeeded"
    assert "goes on from 1" in log_of(one)
