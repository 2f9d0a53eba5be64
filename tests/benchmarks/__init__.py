"""orch beside its peers, each pair in the same run: `python -m tests.benchmarks [recovery|submit|status]`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest's pythonpath has it
