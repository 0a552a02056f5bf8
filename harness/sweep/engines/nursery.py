"""Imported by the process that a machine's workers are forked from, and by nothing else: all that a worker imports.

Imports take seconds, and are done once: a worker that takes a dead one's place, and every one but the first, begins at
once. Nothing here may start a thread or touch CUDA, neither of which would survive the fork.
"""

import signal

# The supervisor's end is this process's end; what reaches every process of a terminal or of a job is the supervisor's
# to understand, also during the imports.
for _number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(_number, signal.SIG_IGN)

import harness.scoring.scorer  # noqa: E402
import harness.sweep.worker  # noqa: E402
import harness.tracking.courier  # noqa: E402, F401
from harness.tracking.mlflow import quiet  # noqa: E402

quiet()
import mlflow.store.tracking.sqlalchemy_store  # noqa: E402, F401 - with most of what a client needs
