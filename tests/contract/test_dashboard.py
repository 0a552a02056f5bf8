"""optuna-dashboard over a study's database: what it shows, and that it changes nothing."""

from __future__ import annotations

import json
from threading import Thread
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import pytest
from optuna.trial import TrialState
from PIL import Image

from harness.cli import main
from harness.spec.files import parse_study
from harness.store.optuna_private import id_of
from harness.store.records import TrialAttrs
from harness.store.studies import open_study
from harness.store.trials import Trials, write_attrs
from harness.tracking.dashboard import dashboard_server
from harness.training.run_folder import RunFolder
from tests.conftest import TINY_STUDY
from tests.servers import free_port

pytest.importorskip("optuna_dashboard", reason="the extra `dashboard` is not installed")

SPEC = parse_study("tiny", TINY_STUDY, shown_as="tiny.toml")


@pytest.fixture
def trials(home) -> Trials:
    """Trial 0 is finished and has a grid; 1 was pruned as today, 2 as earlier versions did it, with a value."""
    trials = Trials(open_study(SPEC, home), SPEC, home)
    finished, pruned, earlier = (trials.ask(9) for _ in range(3))
    folder = RunFolder(home.trial_dir("tiny", "0" * 8, 0))
    folder.path.mkdir(parents=True)
    Image.new("L", (8, 8), 77).save(folder.grid(0.1))
    write_attrs(finished, TrialAttrs(folder=str(folder.path.relative_to(home.root))))
    trials.end(finished, TrialState.COMPLETE, [345.0], "")
    pruned.report(71.0, 100)
    trials.end(pruned, TrialState.PRUNED, None, "worse than the median")
    earlier.report(71.0, 100)
    trials.storage.set_trial_state_values(id_of(earlier), TrialState.PRUNED, [71.0])
    return trials


@pytest.fixture
def ask(home, trials):
    server = dashboard_server(home, free_port())
    Thread(target=server.serve_forever, daemon=True).start()
    opener = build_opener(ProxyHandler({}))

    def ask(path: str, **request) -> tuple[int, bytes]:
        try:
            with opener.open(Request(f"http://127.0.0.1:{server.server_port}{path}", **request)) as answer:
                return answer.status, answer.read()
        except HTTPError as refused:
            return refused.code, refused.read()

    yield ask
    server.shutdown()
    server.server_close()


def shown(ask) -> dict:
    (study,) = json.loads(ask("/api/studies")[1])["study_summaries"]
    return json.loads(ask(f"/api/studies/{study['study_id']}")[1])


def test_only_finished_trials_have_a_value_on_the_final_scores_axis(ask, trials):
    values = [(trial["state"], trial.get("values")) for trial in shown(ask)["trials"]]
    assert values == [("Complete", [345.0]), ("Pruned", None), ("Pruned", None)]
    assert [trial.values for trial in trials.study.trials] == [[345.0], None, [71.0]], "the record is as it was"
    assert [trial.intermediate_values for trial in trials.study.trials] == [{}, {100: 71.0}, {100: 71.0}]


def test_sample_grids_are_a_trials_artifacts(ask, home, trials):
    first, *others = shown(ask)["trials"]
    (grid,) = first["artifacts"]
    assert (grid["filename"], grid["mimetype"]) == ("0.1-kimg.png", "image/png")
    status, picture = ask(f"/artifacts/{first['study_id']}/{first['trial_id']}/{grid['artifact_id']}")
    folder = RunFolder(home.root / TrialAttrs.parse(trials.study.trials[0].user_attrs).folder)
    assert (status, picture) == (200, folder.grid(0.1).read_bytes())
    assert all(trial["artifacts"] == [] for trial in others)
    assert ask(f"/artifacts/{first['study_id']}/{first['trial_id']}/{first['trial_id']}-7")[0] == 404


@pytest.mark.parametrize(
    "request_", [{"method": "DELETE"}, {"method": "POST", "data": b"{}"}, {"headers": {"Host": "evil.example"}}]
)
def test_nothing_is_changed_and_no_other_host_is_answered(ask, trials, request_):
    status, text = ask("/api/studies/1", **request_)
    assert (status, b"read-only" in text) == (403, True)
    assert len(trials.study.trials) == 3


def test_a_port_that_is_taken_is_one_sentence(home, trials, monkeypatch, capsys):
    monkeypatch.setenv("HARNESS_HOME", str(home.root))
    with dashboard_server(home, free_port()) as server:
        assert main(["dashboard", "--port", str(server.server_port)]) == 2
    assert f"port {server.server_port} is in use" in capsys.readouterr().err


def test_without_a_study_there_is_nothing_to_show(home, monkeypatch, capsys):
    monkeypatch.setenv("HARNESS_HOME", str(home.root))
    assert main(["dashboard"]) == 1
    assert "no study has been started yet" in capsys.readouterr().err
    assert not (home.root / "optuna.db").exists()
