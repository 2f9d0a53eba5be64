"""What runs on the machines: agent, guard, checkpoints, and the side inside the training process."""

from __future__ import annotations

import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)
