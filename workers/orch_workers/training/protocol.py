"""What agent and training process say to each other: JSON lines over a Unix socket, one request at a time.

The training process asks, the agent answers each request with exactly one line, in order; messages marked
(no reply) are one-way. Everything the agent wants to say unasked stands in the page (see page.py).

======================================================================  ===================================
training process → agent                                                answer
======================================================================  ===================================
``hello {protocol, pid, python, frameworks, restore, places}``          ``welcome`` or ``refused``
``restored {step, source, seconds_s}`` (no reply)
``started {from, counts, skipped, missing, reshaped}`` (no reply)
``mismatch {message}`` (no reply): this state can never be loaded
``save {size_bytes, step, reason, wait}``                               ``slot {index, path}`` or ``busy``
``saved {index, step, epoch, reason, blocked_s}`` (no reply)
``save_failed {index, message}`` (no reply)
``metrics {step, epoch, values}`` (no reply)
``note {level, message}`` (no reply): shown in status
``finished {step, epoch}``                                              ``ok``
======================================================================  ===================================

The word before the braces is the message's ``type``. hello's restore is false when the script starts from nothing
although there may be a checkpoint; ``restored`` then has step 0 and source ``none``, as when there was none. Its
places (optional) say which piece of each tensor this rank holds that is divided over the ranks: the name of the
``entry`` (or of what its entries are below), ``global_shape``, ``offsets``, ``shape``.
A metric that is not finite is the string ``nan``, ``inf`` or ``-inf``, as JSON has no such numbers.

``welcome {protocol, generation, page, rules, restore, start}``; rules is ``{steps, epochs, first, last, snapshots,
stop}``; restore is null or ``{path, source, generation, step, skip}`` with path a READY slot file and source ``memory``
or ``storage``; skip: how many steps' data is left out then, after a rollback. start is null, or what a job without a
state of its own begins with: ``{path, label, only, maps}``, a slot file of another job; ``started`` says what of it was
loaded, with counts of the names ``loaded`` and the three others. ``refused {message}``.
"""

from __future__ import annotations

PROTOCOL_VERSION = 1

ENV_SOCKET = "ORCH_SOCKET"
ENV_JOB_ID = "ORCH_JOB_ID"
ENV_GENERATION = "ORCH_GENERATION"
ENV_CHECKPOINT_DIR = "ORCH_CHECKPOINT_DIR"

EXIT_LEFT = 75
"""Exit status (EX_TEMPFAIL) of a training process that left because it was told to."""

IN_MEMORY = "snapshot"
"""Reason of a save that is kept in memory alone, unless the process dies before there is a newer one."""

LINE_BYTES_MAX = 16 << 20
"""Longest line either side accepts."""
