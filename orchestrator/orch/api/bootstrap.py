"""`python -m orch.api.bootstrap start|stop --home H`: brings the server up or down on this machine.

A process of its own because it needs Ray and the CLI must not import it. It speaks JSON lines on stdout:
`{"progress": "…"}` while it works, then `{"ready": {"url": …}}`, `{"stopped": …}` or `{"error": {…}}`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orch import __version__
from orch.control import raylocal
from orch.model.errors import NoServer, OrchError

LOCK_LIMIT_S = 120.0
CONTROLLER_LIMIT_S = 60.0
STOP_LIMIT_S = 40.0
POLL_S = 0.05


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201 - stdout is this program's protocol


def server_record(home: Path) -> dict[str, Any] | None:
    """What `server.json` says, if the server it names answers."""
    try:
        record: dict[str, Any] = json.loads((home / "server.json").read_text())
    except (OSError, ValueError):
        return None
    return record if api_answers(record.get("url", ""), home) else None


def api_answers(url: str, home: Path, limit_s: float = 2.0) -> bool:
    if not url.startswith("http://"):
        return False
    try:
        token = (home / "token").read_text().strip()
        request = urllib.request.Request(f"{url}/api/v1/server", headers={"Authorization": f"Bearer {token}"})  # noqa: S310
        with urllib.request.urlopen(request, timeout=limit_s) as answer:  # noqa: S310 - our own loopback URL
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Two submits at once on a fresh machine start one server; the second waits for it."""
    with (home / "server.lock").open("w") as file:
        deadline = time.monotonic() + LOCK_LIMIT_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise NoServer(
                        f"another process has been starting the server in {home} for too long"
                    ) from None
                time.sleep(POLL_S)
        yield


def start(home: Path, cluster: str | None, num_cpus: int | None, num_gpus: int | None) -> dict[str, Any]:
    running = server_record(home)
    if running is not None:
        return running
    if cluster is None:
        address = raylocal.recorded_address(home)
        if address is None:
            say(progress="starting Ray on this machine (loopback only)")
            raylocal.stop_ray(home)  # whatever a crash left
            address = raylocal.start_ray(home, num_cpus=num_cpus, num_gpus=num_gpus)
    else:
        address = cluster
        if not raylocal.answers(address):
            raise NoServer(
                f"no Ray cluster answers at {address}; check --cluster, ORCH_CLUSTER or the config file"
            )
    say(progress="starting the controller")
    _start_controller(home, address, local=cluster is None)
    deadline = time.monotonic() + CONTROLLER_LIMIT_S
    while time.monotonic() < deadline:
        running = server_record(home)
        if running is not None:
            return running
        time.sleep(POLL_S)
    raise NoServer(f"the controller was started but its API does not answer; see {home / 'controller.log'}")


def _start_controller(home: Path, address: str, *, local: bool) -> None:
    if local:
        raylocal.ensure_token(home)
        os.environ.update(raylocal.ray_environment(home))
    # After the environment: Ray reads it when it is imported.
    from orch.api.actor import ControllerActor
    from orch.control.cluster import start_controller

    start_controller(
        ControllerActor,
        (str(home), address, __version__),
        address=address,
        node_address=raylocal.LOOPBACK if local else None,
        code=None if local else _our_code(),
        limit_s=CONTROLLER_LIMIT_S,
    )


def _our_code() -> list[str]:
    """What travels to a cluster where orch is not installed: its packages; their dependencies must be there."""
    import orch
    import orch_policies
    import orch_workers

    return [str(Path(module.__path__[0])) for module in (orch, orch_workers, orch_policies)]


def stop(home: Path) -> dict[str, Any]:
    """Asks the controller to have every agent save what it holds, then ends the local Ray.

    Unfinished jobs stay in the store; the next start resumes them.
    """
    record = server_record(home)
    if record is not None:
        say(progress="saving what the running jobs hold")
        token = (home / "token").read_text().strip()
        request = urllib.request.Request(  # noqa: S310 - our own loopback URL
            f"{record['url']}/api/v1/server/stop", method="POST", headers={"Authorization": f"Bearer {token}"}
        )
        try:
            urllib.request.urlopen(request, timeout=STOP_LIMIT_S).close()  # noqa: S310
        except OSError as error:
            say(progress=f"the controller did not confirm ({error}); stopping all the same")
    ended = raylocal.stop_ray(home)
    (home / "server.json").unlink(missing_ok=True)
    return {"processes_ended": ended}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="orch.api.bootstrap")
    parser.add_argument("verb", choices=["start", "stop"])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--cluster", help="address of an existing Ray cluster")
    parser.add_argument("--num-cpus", type=int)
    parser.add_argument("--num-gpus", type=int)
    given = parser.parse_args(arguments)
    home: Path = given.home.resolve()
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with only_one(home):
            if given.verb == "start":
                say(ready=start(home, given.cluster, given.num_cpus, given.num_gpus))
            else:
                say(stopped=stop(home))
    except OrchError as error:
        say(error={"message": str(error), "exit_code": error.exit_code})
        return error.exit_code
    except OSError as error:
        say(error={"message": f"{home}: {error}", "exit_code": 5})
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(main())
