"""The verbs of reports."""

from __future__ import annotations

import os
from typing import Any

from harness.cli.display import say
from harness.cli.front import front
from harness.cli.options import DEFAULT_STUDY, PATH, argument, required
from harness.home import Home


@front.verb(
    "report", "write a study's report again, from the database; or compare studies",
    argument("studies", f"one: its report (STUDY, default {DEFAULT_STUDY}); several: a comparison", many=True),
)  # fmt: skip
def report(given: Any) -> None:
    from harness.api.reports import write_comparison, write_report

    home, studies = Home.from_environment(), given.studies or [os.environ.get("STUDY") or DEFAULT_STUDY]
    if len(studies) > 1:
        say(str(write_comparison(studies, home)))
    else:
        say(str(write_report(studies[0], home, say)))


@front.verb(
    "report-diff", "say what changed between two reports of one study",
    required("old", PATH, "an older copy of reports/STUDY"), required("new", PATH, "a newer one"),
)  # fmt: skip
def report_diff(given: Any) -> None:
    from harness.report.facts import read_facts, report_diff

    changed = list(report_diff(read_facts(given.old), read_facts(given.new)))
    for line in changed or ["nothing changed"]:
        say(line)
