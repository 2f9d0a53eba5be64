"""FakeBootstrap: speaks the lines of `python -m orch.api.bootstrap`, and starts no Ray.

What it shall say stands in the file that FAKE_BOOTSTRAP names: JSON lines, or others for noise.
A `{"record": …}` becomes server.json. Its arguments end up beside that file.
"""

import json
import os
import sys
from pathlib import Path

script = Path(os.environ["FAKE_BOOTSTRAP"])
script.with_suffix(".arguments").write_text(json.dumps(sys.argv[1:]))
home = Path(sys.argv[sys.argv.index("--home") + 1])
for line in script.read_text().splitlines():
    if line.startswith('{"record"'):
        record = home / "server.json"
        record.touch(mode=0o600)
        record.write_text(json.dumps(json.loads(line)["record"]))
    elif line.startswith("exit"):
        sys.stderr.write("the reason stands here\n")
        sys.exit(int(line.split()[1]))
    else:
        print(line, flush=True)
