"""In the user's interpreter, before the script: what it imports is recorded, or it is warmed up and waits.

orch puts ``sitecustomize.py`` and this package (under another name, see bundle.py) in a folder at the front of
PYTHONPATH, and an order in ORCH_STANDBY. The interpreter is started with the job's own command line, so that
whatever follows (``__main__``, ``sys.argv``, flags, ``sys.path[0]``) is done by the interpreter itself, as in any
start; this only makes it wait, between `site` and the script. Folder, order and these modules are taken away before
anything else runs, and the ``sitecustomize`` that is hidden is run in its place. Only built-in modules are used: an
import of ours would be one that the script finds done.

orders: ``probe:FILE`` writes down what kind of interpreter this is. ``record:FILE`` writes each module that the
user's own code imports, in order, with the state of the interpreter just before. ``wait:FOLDER`` imports what such a
record says, and waits in FOLDER for the agent's word (orch_workers/standby/process.py is the other side).
"""
