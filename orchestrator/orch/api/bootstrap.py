"""`python -m orch.api.bootstrap start|restart|stop --home H`: brings the server up or down on this machine.

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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orch import __version__
from orch.api.client import Client
from orch.api.outside import listen_of
from orch.control import raylocal
from orch.control.home import Home, write_private_file
from orch.model.config import load_config
from orch.model.errors import NoServer, OrchError
from orch.model.listening import Listen, listen_from, server_context

LOCK_LIMIT_S = 120.0
CONTROLLER_LIMIT_S = 60.0
END_LIMIT_S = 30.0
POLL_S = 0.05


def say(**line: Any) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201 - stdout is this program's protocol


def running(home: Home) -> dict[str, Any] | None:
    """What `server.json` says, if the server it names answers (one that is being restarted is waited for)."""
    record = home.read_server()
    if record is None:
        return None
    try:
        Client.find(home, {}).server()
    except NoServer:
        return None
    return asdict(home.read_server() or record)


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


def start(
    home: Home,
    cluster: str | None,
    num_cpus: int | None,
    num_gpus: int | None,
    listen: dict[str, Any] | None = None,
) -> dict[str, Any]:
    found = running(home)
    if found is not None:
        return found
    root = home.ensure().root
    outside = _checked_listen(listen_from(listen, root) if listen else load_config(root).listen)
    if listen:
        write_private_file(home.listen, json.dumps(listen))
    else:
        home.listen.unlink(missing_ok=True)
    if cluster is None:
        address = raylocal.recorded_address(root)
        if address is None:
            address = _start_ray(home, num_cpus, num_gpus)
    else:
        address = cluster
        if not raylocal.answers(address):
            raise NoServer(
                f"no Ray cluster answers at {address}; check --cluster, ORCH_CLUSTER or the config file"
            )
    say(progress="starting the controller")
    _start_controller(root, address, local=cluster is None)
    found = running(home)
    if found is None:
        raise NoServer(
            f"the controller was started but its API does not answer; see {root / 'controller.log'}"
        )
    return found | ({} if outside is None else {"listens": outside.url})


def _checked_listen(listen: Listen | None) -> Listen | None:
    """Before anything is started or ended: whether the controller will be able to. WrongUse."""
    if listen is not None:
        server_context(listen)
    return listen


def _start_ray(home: Home, num_cpus: int | None, num_gpus: int | None) -> str:
    root, state = home.root, load_config(home.root).ray_state
    again = raylocal.left_address(root) if state == "disk" else None
    say(progress="starting Ray on this machine (loopback only)")
    raylocal.stop_ray(root)  # whatever a crash left
    home.ensure_ray_token()
    if again is not None:
        try:
            return raylocal.start_ray(root, num_cpus=num_cpus, num_gpus=num_gpus, state=state, again=again)
        except NoServer as error:
            # The port is taken, or the state is damaged: the jobs are in orch's own store all the same.
            say(progress=f"Ray does not come back to what it knew ({error}); starting it anew")
    return raylocal.start_ray(root, num_cpus=num_cpus, num_gpus=num_gpus, state=state)


def _start_controller(home: Path, address: str, *, local: bool) -> None:
    if local:
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


def restart(home: Home, *, new_token: bool) -> dict[str, Any]:
    """Another controller, of the code that is installed now. Ray and the agents stay, and training goes on."""
    if running(home) is None:
        raise NoServer(f"no server answers for {home.root}; start one with `orch server start`")
    _checked_listen(listen_of(home, load_config(home.root)))
    client = Client.find(home, {})
    say(progress="ending the controller; training goes on")
    client.restart_server()
    record = home.read_server()
    assert record is not None
    _wait_silent(record.url.partition("://")[2])
    if new_token:
        home.token.unlink()
    local = raylocal.recorded_address(home.root) == record.ray_address
    say(progress="starting the controller")
    _start_controller(home.root, record.ray_address, local=local)
    return asdict(home.read_server() or record)


def _wait_silent(address: str) -> None:
    """Ray gives the name of an actor free before it ends its process: then the next one cannot be taken for it."""
    deadline = time.monotonic() + END_LIMIT_S
    while raylocal.answers(address):
        if time.monotonic() > deadline:
            raise NoServer(f"the controller at {address} did not end within {END_LIMIT_S:g} s; try again")
        time.sleep(POLL_S)


def stop(home: Home) -> dict[str, Any]:
    """Asks the controller to have every agent save what it holds, then ends the local Ray.

    Unfinished jobs stay in the store; the next start resumes them.
    """
    if running(home) is not None:
        say(progress="saving what the running jobs hold")
        try:
            Client.find(home, {}).stop_server()
        except OrchError as error:
            say(progress=f"the controller did not confirm ({error}); stopping all the same")
    ended = raylocal.stop_ray(home.root)
    home.forget_server()
    return {"processes_ended": ended}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="orch.api.bootstrap")
    parser.add_argument("verb", choices=["start", "restart", "stop"])
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--cluster", help="address of an existing Ray cluster")
    parser.add_argument("--num-cpus", type=int)
    parser.add_argument("--num-gpus", type=int)
    parser.add_argument(
        "--new-token", action="store_true", help="the API's old token is worth nothing any more"
    )
    parser.add_argument(
        "--listen", type=json.loads, help="where to listen beside loopback, as in the config file"
    )
    given = parser.parse_args(arguments)
    home = Home(given.home.resolve())
    try:
        home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with only_one(home.root):
            if given.verb == "start":
                say(ready=start(home, given.cluster, given.num_cpus, given.num_gpus, given.listen))
            elif given.verb == "restart":
                say(ready=restart(home, new_token=given.new_token))
            else:
                say(stopped=stop(home))
    except OrchError as error:
        say(error={"message": str(error), "exit_code": error.exit_code})
        return error.exit_code
    except OSError as error:
        say(error={"message": f"{home.root}: {error}", "exit_code": 5})
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(main())
