"""Jobs whose script writes its own checkpoints (`checkpoint.files`): these files are kept safe. See docs/files.md.

`matching` finds them, `writers` knows which are being written, `settling` says when the set may be copied, `taking`
copies and examines it, `local` keeps the copies on this machine, `storing` and `fetching` carry them to storage and
back, `placing` puts them before a start where the script looks for them, and `keeper` has the whole in hand.
"""

from __future__ import annotations
