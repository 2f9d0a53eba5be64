"""Workers of jobs whose scripts write their own checkpoints: real processes, real kills, no Ray."""

from __future__ import annotations

import textwrap

import torch

from support.files import EXAMPLES, example, kill, undisturbed, wait_log, wait_version

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
    restored = [event["step"] for event in one.told("Restored")]
    assert restored[2] == restored[1] - 1 if len(restored) > 2 else restored
    state, expected = (torch.load(path / "checkpoint.pth.tar") for path in (machine.workdir, whole))
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    marked = machine.files("quarantine")
    assert len(marked) == 1
    assert marked[0] in machine.files("manifests")
