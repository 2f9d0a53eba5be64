"""What a script can see or do must come out the same in a fresh start and in a standby that took over."""

from __future__ import annotations

import sys
import textwrap

import pytest

from support.standby import Stage

MIRROR = textwrap.dedent(
    """
    import json, os, resource, signal, subprocess, sys
    import plain, reads_argv, sets_env
    SESSION = "/proc/self/autogroup"
    def tasks():
        return sorted(
            [os.getpriority(os.PRIO_PROCESS, int(t)), os.sched_getscheduler(int(t))]
            for t in os.listdir("/proc/self/task")
        )
    status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    files = {}
    for name in sorted(os.listdir("/proc/self/fd")):
        try:
            files[name] = os.readlink("/proc/self/fd/" + name)
        except OSError:
            pass
    with open("out.json", "w") as out:
        json.dump({
            "argv": sys.argv, "name": __name__, "file": __file__, "spec": repr(__spec__).split(" at 0x")[0],
            "names": sorted(globals()),
            "orig_argv": getattr(sys, "orig_argv", None),
            "command": open("/proc/self/cmdline").read(),
            "path": sys.path, "flags": repr(sys.flags), "options": repr(sys._xoptions), "warn": sys.warnoptions,
            "modules": sorted(sys.modules), "finders": [repr(type(f)) for f in sys.meta_path],
            "cached_paths": sorted(sys.path_importer_cache),
            "environ": [k for k in os.environ if k not in ("ORCH_TREE",)],
            "stable": {k: v for k, v in os.environ.items()
                       if k not in ("ORCH_TREE", "ORCH_GENERATION", "MASTER_PORT")},
            "given": reads_argv.ARGUMENTS, "cwd": os.getcwd(), "umask": status["Umask"],
            "signals": [status[k] for k in ("SigBlk", "SigIgn", "SigCgt")],
            "handlers": [repr(signal.getsignal(n)) for n in (2, 10, 13, 15)],
            "limits": [resource.getrlimit(n) for n in range(10)],
            "threads": tasks(), "io": subprocess.check_output(["ionice", "-p", str(os.getpid())], text=True),
            "session priority": [line.split()[-1] for line in open(SESSION)] if os.path.exists(SESSION) else [],
            "session": os.getsid(0) == os.getpid() == os.getpgid(0),
            "hash": hash("orch"), "encoding": [sys.stdout.encoding, sys.stdout.line_buffering,
                                               sys.stdout.write_through, sys.stdin.read()],
            "files": files, "recursion": sys.getrecursionlimit(), "interactive": hasattr(sys, "ps1"),
        }, out, indent=1)
    print("said"); print("to both", file=sys.stderr)
    """
)


@pytest.fixture
def stage(tmp_path):
    made = []

    def make(**files):
        made.append(Stage(tmp_path, **files))
        return made[-1]

    yield make
    for one in made:
        one.close()


def assert_same(found):
    fresh, taken, _ = found
    assert taken.files == fresh.files
    assert taken.log == fresh.log
    assert taken.code == fresh.code


@pytest.mark.parametrize(
    "command",
    [
        ["python", "train.py", "--lr", "0.1"],
        ["python", "-u", "-O", "-X", "dev", "-W", "error::FutureWarning", "train.py"],
        ["python", "-Bm", "train", "x"],
        ["python", "-m", "pkg.deep.mod"],
        ["env", "EXTRA=1", "python3", "train.py"],
        ["tool", "serve"],
    ],
    ids=" ".join,
)
def test_everything_a_script_can_see_is_the_same(stage, command):
    one = stage(
        train=MIRROR,
        pkg__deep__mod="from . import near\nfrom .near import VALUE\n" + MIRROR,
        pkg__deep__near="VALUE = 3",
    )
    if command[0] == "tool":
        (one.work / "bin").mkdir()
        tool = one.work / "bin" / "tool"
        tool.write_text(f"#!{sys.executable}\n{MIRROR}")
        tool.chmod(0o755)
        one.env["PATH"] = f"{tool.parent}:{one.env['PATH']}"
    found = one.both(*command)
    assert_same(found)
    assert found[0].code == 0, found[0].log
    assert b'"threads"' in found[0].files["out.json"]
    assert found[2]["modules"] >= 3


def run(stage, text, *, modules, **files):
    """The script in both ways; `modules` of what it imports must have been warm."""
    one = stage(train=textwrap.dedent(text), **{name: textwrap.dedent(body) for name, body in files.items()})
    found = one.both("python", "train.py")
    assert_same(found)
    assert found[2]["modules"] == modules, found[2]
    return found


def test_what_a_script_sets_in_its_environment_before_an_import_counts(stage):
    fresh, _, told = run(
        stage,
        """
        import plain
        import os
        os.environ["OMP_NUM_THREADS"] = "1"
        os.putenv("KERAS_BACKEND", "jax")
        import reads_env
        open("out", "w").write(repr((reads_env.THREADS, reads_env.BACKEND)))
        """,
        modules=1,
    )
    assert fresh.files["out"] == b"('1', None)"
    assert told["warmed_up_to"] is None


@pytest.mark.parametrize(
    "change", ["os.environ.pop('HOME')", "os.unsetenv('HOME')", "os.environ.setdefault('KERAS_BACKEND', 'x')"]
)
def test_every_way_to_change_the_environment_ends_the_warming(stage, change):
    run(
        stage,
        f"import os\nimport plain\n{change}\nimport reads_env\nopen('out', 'w').write(str(reads_env.BACKEND))",
        modules=1,
    )


def test_a_change_made_by_a_library_that_the_script_calls_is_the_scripts(stage):
    one = stage(
        train="import dots\ndots.load()\nimport reads_env\nopen('out', 'w').write(str(reads_env.BACKEND))"
    )
    (one.libraries / "dots.py").write_text(
        "import os\ndef load():\n    os.environ['KERAS_BACKEND'] = 'torch'\n"
    )
    found = one.both("python", "train.py")
    assert_same(found)
    assert found[0].files["out"] == b"torch"
    assert found[2]["modules"] == 1


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("sys.path.insert(0, 'vendor')", "sys.path"),
        ("warnings.simplefilter('error')", "warnings"),
        ("sys.setrecursionlimit(5000)", "recursion limit"),
        ("signal.signal(signal.SIGUSR1, lambda *_: None)", "signal handlers"),
        ("locale.setlocale(locale.LC_NUMERIC, 'C.UTF-8')", "locale"),
        ("gc.disable()", "garbage collector"),
        ("logging.basicConfig(level=10)", "logging"),
        ("faulthandler.enable()", "faulthandler"),
        ("atexit.register(print, 'the script leaves')", "atexit functions"),
        ("os.chdir('/')", "folder"),
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", "threads"),
        ("sys.excepthook = lambda *_: None", "hooks"),
        ("socket.setdefaulttimeout(3)", "socket time-out"),
        ("os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})", "cores"),
    ],
)
def test_a_setting_changed_before_an_import_ends_the_warming(stage, change, name):
    one = stage(
        train="import atexit, faulthandler, gc, locale, logging, os, signal, socket, sys, threading, warnings\n"
        f"import plain\n{change}\nimport default_type\nprint(default_type.LIMIT)\n"
    )
    found = one.both("python", "train.py")
    assert_same(found)
    assert found[2]["warmed_up_to"] == f"before default_type the script has changed: {name}"


@pytest.mark.parametrize(
    ("library", "words"),
    [
        ("starts_thread", "it starts a thread"),
        ("draws", "it draws random numbers (random)"),
        ("keeps_device", "/dev/shm"),
        ("connects", "it opens a connection (socket.connect)"),
        ("starts_process", "it starts a process"),
        ("uses_settings", "it imports settings_of_mine, which is the user's own"),
    ],
)
def test_what_a_library_must_not_do_beside_the_training_ends_the_warming(stage, library, words):
    one = stage(
        train=f"import random\nrandom.seed(3)\nimport plain, {library}, reads_env\n"
        "import threading\nopen('out', 'w').write(repr((random.random(), threading.active_count())))",
        settings_of_mine="open('out-settings', 'a').write('run')\nVALUE = 3",
    )
    found = one.both("python", "train.py")
    assert_same(found)
    assert words in found[2]["not_warmed"][library]
    assert found[2]["modules"] == 2


def test_a_script_that_draws_after_its_imports_is_exact(stage):
    run(
        stage,
        """
        import random
        random.seed(1)
        import plain, binds_local, warns, prints, filters
        open("out", "w").write(repr([random.random() for _ in range(5)]))
        """,
        modules=6,
    )


def test_output_of_libraries_is_not_lost(stage):
    _, taken, _ = run(stage, "import prints, warns\nprint('script')", modules=2)
    assert "this library talks" in taken.log
    assert "this library is old" in taken.log


def test_functions_are_called_at_exit_in_the_same_order(stage):
    fresh, _, _ = run(
        stage,
        """
        import atexit, logging
        import at_exit, at_exit_too
        atexit.register(print, "the script leaves")
        """,
        modules=4,
    )
    assert fresh.log.splitlines() == ["the script leaves", "the other library leaves", "the library leaves"]


def test_a_users_module_is_never_run_before_the_script(stage):
    run(
        stage,
        "import plain\nimport mine\nimport reads_env\n",
        mine="open('out-mine', 'a').write('run once ')",
        modules=2,
    )


def test_a_users_module_that_hides_a_librarys_is_the_one_that_is_used(stage):
    fresh, _, _ = run(
        stage,
        "import plain, reads_env\nopen('out', 'w').write(repr((plain.VALUE, reads_env.BACKEND)))",
        plain="VALUE = 'mine'",
        modules=1,
    )
    assert fresh.files["out"] == b"('mine', None)"


def test_an_import_that_the_script_expects_to_fail_is_left_to_it(stage):
    fresh, _, _ = run(
        stage,
        """
        import plain
        try:
            import fails
        except ImportError as error:
            open("out", "w").write(str(error))
        import reads_env
        """,
        modules=1,
    )
    assert fresh.files["out"] == b"needs what is not there"


def test_top_level_code_pickles_and_spawned_children(stage):
    """A class of __main__ in a pickle written at exit; children that import __main__ by its path."""
    run(
        stage,
        """
        import atexit, multiprocessing, pickle, sys
        import plain
        class State:
            def __init__(self, value):
                self.value = value
        def double(x):
            return State(2 * x)
        def keep():
            with open("out.pickle", "wb") as file:
                pickle.dump(State([1, sys.argv]), file, protocol=4)
        atexit.register(keep)
        if __name__ == "__main__":
            for method in ("spawn", "fork", "forkserver"):
                with multiprocessing.get_context(method).Pool(1) as pool:
                    open("out", "a").write(str([one.value for one in pool.map(double, [1, 2])]))
        """,
        modules=3,
    )


def test_a_traceback_shows_the_script_alone(stage):
    fresh, _, _ = run(stage, "import plain\ndef f():\n    1 / 0\nf()\n", modules=1)
    assert fresh.code == 1
    first = next(line for line in fresh.log.splitlines() if line.startswith("  File"))
    assert first.endswith("line 4, in <module>")


@pytest.mark.parametrize(
    ("statement", "code"),
    [("sys.exit(3)", 3), ("os._exit(4)", 4), ("sys.exit('a word')", 1), ("raise KeyboardInterrupt", None)],
)
def test_the_end_is_the_same(stage, statement, code):
    fresh, _, _ = run(stage, f"import os, sys, plain\n{statement}\n", modules=1)
    assert fresh.code == code


def test_the_users_own_sitecustomize_is_run_once_and_stays(stage):
    one = stage(train="import sitecustomize, plain\nopen('out', 'w').write(sitecustomize.__file__)\n")
    (one.libraries / "sitecustomize.py").write_text("open('out-site', 'a').write('run ')\n")
    fresh = one.fresh("python", "train.py")
    told = one.warm()
    (one.work / "out-site").unlink(
        missing_ok=True
    )  # it was run by the standby already, as it waits after that
    taken = one.taken("python", "train.py")
    assert taken.files["out"] == fresh.files["out"] == str(one.libraries / "sitecustomize.py").encode()
    assert told["modules"] == 1


TORCH = """
import os
import torch
from torch.utils.data import DataLoader, TensorDataset
THREADS = torch.get_num_threads()
TASKS = len(os.listdir("/proc/self/task"))  # here: loaders of data leave threads behind that end in their own time
torch.manual_seed(3)
data = TensorDataset(torch.randn(64, 4))
def main():
    model = torch.nn.Sequential(torch.nn.Linear(4, 300), torch.nn.Dropout(0.5), torch.nn.Linear(300, 1))
    optimizer = torch.optim.Adam(model.parameters())
    for method in ("fork", "spawn"):
        for (x,) in DataLoader(data, 8, shuffle=True, num_workers=2, multiprocessing_context=method):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    torch.save([model.state_dict(), optimizer.state_dict(), torch.get_rng_state()], "out.pt")
    with open("out", "w") as file:
        file.write(repr((THREADS, torch.get_num_threads(), TASKS)))
if __name__ == "__main__":
    main()
"""


def test_torch_trains_to_the_same_bytes(stage):
    one = stage(train=TORCH)
    found = one.both("python", "train.py")
    assert_same(found)
    assert found[0].code == 0, found[0].log
    assert found[2]["modules"] == 1
    assert found[2]["state"] == "ready"
