"""`python watcher.py PID HOME`: puts the server of HOME away when process PID, which started it, is gone and has not.

It was killed, or is a pytest-xdist worker whose session was interrupted.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # as pytest's pythonpath has it

from support.server import Server


def main(starter: int, home: Path) -> None:
    with contextlib.suppress(ProcessLookupError):  # gone already
        select.select([os.pidfd_open(starter)], [], [])
    if home.is_dir():
        try:
            Server(home).put_away()
        finally:
            shutil.rmtree(home)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
