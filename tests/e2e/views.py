"""MLflow's saved views of a study, and its comparison of two trials, clicked through as a person does it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from threading import Event

from harness.store.records import StudyRecord
from harness.tracking.views import MADE_WITH, VIEWS
from tests.browser import Page
from tests.servers import answers


def click_through(record: StudyRecord, server: subprocess.Popen[str], port: int, profile: Path) -> None:
    """Find the scores, parameters and pictures of the best one or two trials on screen; ends the server of the pages.

    Of another version of MLflow the pages have to be looked at first.
    """
    import mlflow

    assert mlflow.__version__ == MADE_WITH
    metrics = (record.attrs.final_metric, record.attrs.rung_metric)
    ranked = sorted(record.complete, key=lambda trial: trial.value)[:2]
    searched = next(iter(record.attrs.spec["space"]))
    columns = [f"metrics.`{name}`" for name in metrics] + ["tags.`trial_state`", "tags.`preset`"]
    columns += [f"params.`{name}`" for name in record.attrs.spec["space"]]
    page = Page(profile, width=2600)  # what lies beside the screen is not in MLflow's table
    try:
        links = {}
        while len(links) < len(VIEWS):
            name, _, address = server.stdout.readline().strip().partition(": http:")
            links |= {name: f"http:{address}"} if address else {}
        while not answers(port):
            assert server.poll() is None
            Event().wait(0.1)

        page.open(links[f"{record.name}, ranked"])
        # As they lie on the screen, which the order of a page's elements does not say.
        heads = (
            "[...document.querySelectorAll('.ag-header-viewport .ag-header-cell[col-id]')]"
            ".map(head => [head.getBoundingClientRect().x, head.getAttribute('col-id')])"
            ".sort((a, b) => a[0] - b[0]).map(head => head[1])"
        )
        page.wait_for(f"String({heads}) == String({json.dumps([*columns, 'duration'])})")
        row = "document.querySelector('.ag-%s-container [row-index=\"%d\"]')"
        for index, trial in enumerate(ranked):
            page.wait_for(f"/trial {trial.number}\\b/.test({row % ('pinned-left-cols', index)}?.innerText)")
            values = [trial.value, list(trial.intermediate.values())[-1], trial.state, trial.attrs.preset or "-"]
            values += [trial.params.get(name, "-") for name in record.attrs.spec["space"]]
            cell = f'{row % ("center-cols", index)}?.querySelector(`[col-id="${{CSS.escape(column)}}"]`)?.innerText'
            shown = dict(zip(columns, map(str, values), strict=True))
            page.wait_for(f"Object.entries({json.dumps(shown)}).every(([column, text]) => {cell} == text)")
            box = f"{row % ('pinned-left-cols', index)}.querySelector('input')"
            page.click(box)
            page.wait_for(f"{box}.checked")
        if len(ranked) == 2:
            page.click("[...document.querySelectorAll('button')].find(button => button.innerText.trim() == 'Compare')")
            page.shows("Comparing 2 Runs")
            for trial in ranked:
                page.shows(str(trial.params[searched]))
                page.shows(f"{trial.value:.3f}")

        page.open(links[f"{record.name}, parallel coordinates"])
        labels = "[...document.querySelectorAll('svg text')].map(text => text.textContent)"
        conditional = [name for name, parameter in record.attrs.spec["space"].items() if parameter.get("when")]
        promoted = record.attrs.spec["pruner"]["name"] == "promotion"
        axis = record.attrs.rung_metric if promoted else metrics[0]  # most trials have no other score
        wanted = [*(name for name in record.attrs.spec["space"] if name not in conditional), axis]
        page.wait_for(f"{json.dumps(wanted)}.every(name => {labels}.includes(name))")
        assert not {*conditional} & {*page.run(labels)}, "which not every trial has"

        # From one view to another as a person does it: MLflow then shows the table, whatever the view.
        page.click("document.querySelector('[data-testid=saved-views-trigger]')")
        page.click("document.querySelector('[data-testid$=\"-item-samples\"]')")
        page.wait_for("location.href.includes('=samples') && !location.href.includes('=CHART')")
        chart = "document.querySelector('input[name=runs-view-mode][value=CHART]')"
        page.click(f"{chart}?.closest('label')")
        page.wait_for(f"{chart}?.checked")
        pictures = (
            "[...document.images].filter(image => image.src.includes('final_samples') && image.naturalWidth > 64)"
        )
        page.wait_for(f"{pictures}.length == {len(record.complete)}")
        on_screen = "r => r.top > 0 && r.top < innerHeight && r.height > 64"
        page.wait_for(f"({on_screen})({pictures}[0].getBoundingClientRect())")
    finally:
        page.close()
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
