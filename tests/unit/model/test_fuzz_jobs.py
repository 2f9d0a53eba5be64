"""Some hundred job files that nobody would write; `python -m tests.soak fuzz` reads 100,000."""

from __future__ import annotations

import json

from support import fuzzing_jobs


def test_whatever_they_hold_they_are_taken_or_refused(seed):
    told = fuzzing_jobs.fuzz(seed, 200)
    print(json.dumps(told))
    for kind in ("job file", "request", "config file"):
        assert told.get(f"{kind} refused"), told
    assert told.get("job file taken"), "the generator makes nothing but rubbish"
