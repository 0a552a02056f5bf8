"""The saved views of a study, as MLflow keeps them; e2e/test_sweep.py looks at them in a browser."""

from __future__ import annotations

import base64
import json
import zlib

import pytest

from harness.home import Home
from harness.spec.files import parse_study
from harness.spec.study import PrunerSpec
from harness.tracking import ui, views
from harness.tracking.client import client_for
from harness.tracking.mlflow import open_experiment
from harness.tracking.views import VIEWS, write_views
from tests.conftest import TINY_STUDY

SPEC = parse_study("tiny", TINY_STUDY, shown_as="tiny.toml")
TAGS = {f"mlflow.sharedViewState.{view}" for view in VIEWS}


def state(tag: str) -> dict:
    packed = json.loads(tag)["state"].removeprefix("deflate;")
    return json.loads(zlib.decompress(base64.b64decode(packed)))


@pytest.fixture(params=["sqlite", "server"])
def experiment(request, home: Home, monkeypatch):
    """(client, id) of an experiment."""
    if request.param == "server":
        monkeypatch.setenv("MLFLOW_TRACKING_URI", request.getfixturevalue("mlflow_server").url)
    client = client_for(home)
    return client, open_experiment(client, home, f"views-{home.root.parent.name}")


def test_trials_are_ranked_by_the_final_score_with_what_is_searched_beside_it(experiment, home):
    client, number = experiment
    write_views(client, number, SPEC)
    tags = client.get_experiment(number).tags
    assert tags.keys() >= TAGS
    assert tags["mlflow.experimentKind"] == "custom_model_development"
    for tag in TAGS:
        shown = state(tags[tag])
        assert (shown["orderByKey"], shown["orderByAsc"]) == ("metrics.`fid20`", True)
        finished = " and tags.trial_state = 'COMPLETE'" if tag.endswith("samples") else ""
        assert shown["searchFilter"] == f"tags.role = 'trial'{finished}"
        assert shown["selectedColumns"] == [
            "metrics.`fid20`", "metrics.`fid_mnv2_20`", "tags.`trial_state`", "tags.`preset`",
            "params.`lr`", "params.`batch_size`", "params.`activation_g`", "params.`slope_g`",
        ]  # fmt: skip
    (chart,) = state(tags["mlflow.sharedViewState.parallel-coordinates"])["compareRunCharts"]
    assert (chart["selectedParams"], chart["selectedMetrics"]) == (["lr", "batch_size", "activation_g"], ["fid20"])
    promoted = SPEC.model_copy(update={"name": "promoted", "pruner": PrunerSpec(name="promotion")})
    number = open_experiment(client, home, f"promoted-{home.root.parent.name}")
    write_views(client, number, promoted)
    (chart,) = state(client.get_experiment(number).tags["mlflow.sharedViewState.parallel-coordinates"])[
        "compareRunCharts"
    ]
    assert chart["selectedMetrics"] == ["fid_mnv2_20"], "most trials end at a rung"
    (chart,) = state(tags["mlflow.sharedViewState.samples"])["compareRunCharts"]
    assert (chart["imageKeys"], chart["step"], chart["showRunParams"]) == (["final_samples"], 0, False)


def test_a_view_that_a_person_changed_stays(experiment):
    client, number = experiment
    client.set_experiment_tag(number, "mlflow.sharedViewState.ranked", "mine")
    write_views(client, number, SPEC)
    tags = client.get_experiment(number).tags
    assert tags["mlflow.sharedViewState.ranked"] == "mine"
    assert tags.keys() >= TAGS


def test_for_other_pages_of_mlflow_there_are_none(experiment, monkeypatch):
    monkeypatch.setattr(views, "MADE_WITH", "3.0.0")
    client, number = experiment
    write_views(client, number, SPEC)
    assert not TAGS & client.get_experiment(number).tags.keys()


def test_links_lead_to_the_views_or_where_there_are_none_to_a_ranked_table(home, monkeypatch):
    client = client_for(home)
    write_views(client, open_experiment(client, home, "tiny"), SPEC)
    metrics = {"tiny": "fid20", "not-in-mlflow": "fid20"}
    links = dict(ui.ui_links(home, 5000, metrics))
    assert list(links) == ["tiny, ranked", "tiny, parallel coordinates", "tiny, samples"]
    assert all(
        link.startswith("http://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=") for link in links.values()
    )
    monkeypatch.setattr(ui, "MADE_WITH", "3.0.0")
    ((name, link),) = ui.ui_links(home, 5000, metrics)
    assert name == "tiny"
    assert "searchFilter=tags.role+%3D+%27trial%27&orderByKey=metrics.%60fid20%60&orderByAsc=true" in link
