"""Read by `site` when this folder is on PYTHONPATH; see the package beside it."""

import os

if __name__ == "sitecustomize":
    try:
        from orch_standby import start  # type: ignore[import-not-found]  # its name where bundle.py puts it
    except BaseException:
        if os.environ.get("ORCH_STANDBY", "").startswith("wait:"):
            os._exit(70)  # never go on: the script would run beside itself
        raise
    start.main(__name__, __file__.rpartition("/")[0])
