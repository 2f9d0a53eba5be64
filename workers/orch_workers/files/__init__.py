"""Jobs whose script writes its own checkpoints (`checkpoint.files`): these files are kept safe. See docs/files.md.

`matching` finds them, `writers` knows which are being written, and `looking` is one look at both; `settling` says when
the set may be copied, and `watching` has that done while the script runs. `collecting` makes a version: `taking` copies
the set, `sets` and `formats` say whether it is whole, `judging` whether what a killed script left may be taken. `local`
keeps the copies on this machine, `storing` and `fetching` carry them to storage and back, `placing` puts them before a
start where the script looks for them, `fallback` says whether a start died of what it was given, `lines` finds metrics
in the log, and `keeper` has the whole in hand.
"""

from __future__ import annotations
