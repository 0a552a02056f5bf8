"""All imports of a worker, done once in the process that workers are forked from; nothing else imports this.

Imports take seconds; with them done, a worker that replaces a dead one starts at once. Nothing here may start a thread
or touch CUDA: neither survives a fork.
"""

import atexit
import gc
import os
import signal

# The supervisor decides what Ctrl-C and SIGTERM mean, also during the imports. This process ends with it.
for _number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_number, signal.SIG_IGN)

# What imports create stays. Searching it for garbage takes a quarter of their time, here and in every worker.
gc.disable()

import harness.sweep.worker  # noqa: E402, F401
from harness.machine.provenance import code_sha256  # noqa: E402
from harness.tracking.client import load  # noqa: E402

code_sha256()  # of the code that is imported here; its files may change later
load()
import mlflow.store.tracking.sqlalchemy_store  # noqa: E402, F401

gc.freeze()
gc.enable()
# Skip the cleaning up at the end, which would take two seconds.
atexit.register(os._exit, 0)
