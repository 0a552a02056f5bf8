"""Imported by the process that a machine's workers are forked from, and by nothing else: all that a worker imports.

Imports take seconds, and are done once: a worker that takes a dead one's place, and every one but the first, begins at
once. Nothing here may start a thread or touch CUDA, neither of which would survive the fork.
"""

import atexit
import gc
import os
import signal

# The supervisor's end is this process's end; what reaches every process of a terminal or of a job is the supervisor's
# to understand, also during the imports.
for _number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_number, signal.SIG_IGN)

# What imports make stays. Looking for garbage in it takes a quarter of their time here, and as much in every worker.
gc.disable()

import harness.sweep.worker  # noqa: E402, F401
from harness.machine.provenance import code_sha256  # noqa: E402
from harness.tracking.client import load  # noqa: E402

code_sha256()  # of what is imported here, not of what its files become later
load()
import mlflow.store.tracking.sqlalchemy_store  # noqa: E402, F401

gc.freeze()
gc.enable()
# Nothing here is to be tidied up at the end, which would take two seconds.
atexit.register(os._exit, 0)
