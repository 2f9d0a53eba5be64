"""Where a home's server listens for other machines."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from orch.control.home import read_private_file
from orch.model.errors import WrongUse
from orch.model.listening import Listen, listen_from

if TYPE_CHECKING:
    from orch.control.home import Home
    from orch.model.config import Config


def listen_of(home: Home, config: Config) -> Listen | None:
    """What `orch server start` was told, which holds until the next start; else what the config file says. WrongUse."""
    try:
        return listen_from(json.loads(read_private_file(home.listen)), home.root)
    except FileNotFoundError:
        return config.listen
    except ValueError as error:
        raise WrongUse(
            f"{home.listen} cannot be read: {error}; start the server with --listen again"
        ) from None
