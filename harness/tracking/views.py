"""Saved views of a study's trials in MLflow's pages: ranked, as parallel coordinates, and by their samples.

MLflow keeps a saved view as a tag of the experiment: JSON in which ``state`` is the page's state, as JSON that is
compressed. This format belongs to one version of its pages and is undocumented: it was read from their source.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from harness.scoring.protocol import objective_name
from harness.spec.resolved import ResolvedStudy, compared
from harness.tracking.client import version_of_pages

if TYPE_CHECKING:
    from mlflow import MlflowClient

MADE_WITH = "3.17.2"
_TAG = "mlflow.sharedViewState."
# How MLflow shows the runs of each view; this is not a part of its state.
VIEWS = {"ranked": "TABLE", "parallel-coordinates": "CHART", "samples": "CHART"}
# A filter of MLflow's search. Only trials are ranked: not the study's own run, and no run that a person adds.
ONLY_TRIALS = "tags.role = 'trial'"


def write_views(client: MlflowClient, experiment_id: str, spec: ResolvedStudy) -> None:
    """Save the views of a study that are not there yet, unless MLflow's pages are of another version."""
    known = client.get_experiment(experiment_id).tags
    wanted = [view for view in VIEWS if _TAG + view not in known]
    if not wanted or version_of_pages(client) != MADE_WITH:
        return
    scores = dict.fromkeys([objective_name(spec.scoring.final), objective_name(spec.scoring.rung)])
    ranked_by, conditions = next(iter(scores)), compared(spec.identity())
    columns = [
        *(f"metrics.`{name}`" for name in scores),
        *(f"tags.`{name}`" for name in ("trial_state", *(("arm", "seed") if spec.plan else ("preset",)))),
        *(f"params.`{name}`" for name in conditions),
    ]
    shared = {
        "searchFilter": ONLY_TRIALS,
        "orderByKey": columns[0],
        "orderByAsc": True,
        "selectedColumns": columns,
        "columnOrder": columns,
    }
    # MLflow leaves out a run that has no value on an axis, so only what is in force in every trial has one. Where most
    # trials end at a rung, its score is what they all have.
    axes = [name for name, when in conditions.items() if not when]
    parallel = {
        "type": "PARALLEL",
        "displayName": f"Searched parameters and {'last rung score' if spec.promotions else 'score'}",
        "selectedParams": axes,
        "selectedMetrics": [list(scores)[-1] if spec.promotions else ranked_by],
        "showAllRuns": True,
    }
    # The last pictures of each run, which are at step 0, without its parameters. MLflow shows the runs in reverse.
    samples = {
        "type": "IMAGE",
        "displayName": "Samples",
        "imageKeys": ["final_samples"],
        "step": 0,
        "showRunParams": False,
    }
    states = {
        "ranked": shared,
        "parallel-coordinates": {**shared, "runsHiddenMode": "SHOW_ALL", **_charts(parallel, "Parallel coordinates")},
        "samples": {
            **shared,
            "searchFilter": f"{ONLY_TRIALS} and tags.trial_state = 'COMPLETE'",
            "runsHiddenMode": "FIRST_10_RUNS",
            **_charts(samples, "Samples of the ten best, the best last"),
        },
    }
    for view in wanted:
        state = base64.b64encode(zlib.compress(json.dumps(states[view]).encode())).decode()
        content = {"name": view.capitalize().replace("-", " "), "createdAt": 0, "state": f"deflate;{state}"}
        client.set_experiment_tag(experiment_id, _TAG + view, json.dumps(content))


# A section with one chart as wide as the page, this many pixels high.
_WIDE = {"columns": 1, "cardHeight": 440}


def _charts(chart: Mapping[str, Any], title: str) -> dict[str, Any]:
    """One chart, above those of every metric, which MLflow adds and which stay folded."""
    own = {"deleted": False, "isGenerated": False}
    return {
        "compareRunCharts": [{**chart, **own, "uuid": "chart", "metricSectionId": "own"}],
        "compareRunSections": [
            {**own, "uuid": "own", "name": title, "display": True, "isReordered": True, **_WIDE},
            {**own, "uuid": "metrics", "name": "Model metrics", "display": False, "isReordered": False},
        ],
        "isAccordionReordered": True,
    }


def view_links(tags: Mapping[str, str], page: str) -> dict[str, str]:
    """The address of each view that is saved among an experiment's tags; ``page`` is that of its runs."""
    # workflowType leaves the GenAI pages, in which runs are not shown and which are the default.
    return {
        view.replace("-", " "): f"{page}?"
        + urlencode({"viewStateShareKey": view, "compareRunsMode": mode, "workflowType": "machine_learning"})
        for view, mode in VIEWS.items()
        if _TAG + view in tags
    }
