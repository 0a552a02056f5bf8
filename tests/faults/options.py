"""How long the suite may take: short in CI; ``make faults`` sets these for the long version."""

from __future__ import annotations

import os
from threading import Event

import pytest

LONG = os.environ.get("HARNESS_FAULTS") == "long"
SEED = int(os.environ.get("HARNESS_FAULTS_SEED", "0"))
KILLS = int(os.environ.get("HARNESS_FAULTS_KILLS", "20"))
TRIALS = int(os.environ.get("HARNESS_FAULTS_TRIALS", "12"))
MANY = int(os.environ.get("HARNESS_FAULTS_MANY", "200"))
long_only = pytest.mark.skipif(not LONG, reason="runs with `make faults`")
# (seconds that PostgreSQL is away, grace period)
OUTAGES = [(5.0, 40.0), (30.0, 40.0), (15.0, 5.0)] if LONG else [(1.0, 40.0)]


def pause(seconds: float) -> None:
    """The length of an outage, which is part of what is injected."""
    Event().wait(seconds)
