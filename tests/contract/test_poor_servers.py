"""An MLflow server that answers badly: no start, death, interruption or report waits for it for longer than is said."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread, current_thread
from threading import enumerate as living
from urllib.parse import urlsplit

import pytest

import harness.sweep.reconcile as reconcile_module
import harness.tracking.client as client_module
import harness.tracking.mlflow as mlflow_module
from harness.errors import TrackingError
from harness.spec.files import parse_study
from harness.store.database import write_study_attrs
from harness.store.records import StudyAttrs, TrialAttrs
from harness.store.studies import open_study
from harness.store.trials import Trials
from harness.sweep.reconcile import ParentRun
from harness.tracking.client import client_for, new_client, within
from harness.tracking.mlflow import MlflowTracker, attach_report
from tests.conftest import ROOT, TINY_STUDY

SPEC = parse_study("tiny", TINY_STUDY, shown_as="tiny.toml")
MODES = ("429", "503", "drip", "header", "endless", "silent", "html")


class Poor:
    """Answers every request in one bad way."""

    def __init__(self) -> None:
        self.mode, self.over = "silent", Event()
        poor = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _any(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if poor.mode in ("429", "503"):
                    self.send_response(int(poor.mode))
                    self.send_header("Retry-After", "3600")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                if poor.mode == "silent":
                    poor.over.wait()
                    return
                self.send_response(200)
                if poor.mode in ("html", "pages"):
                    answer = b"<html></html>" if poor.mode == "html" else b'{"next_page_token": "the same"}'
                    self.send_header("Content-Length", str(len(answer)))
                    self.end_headers()
                    self.wfile.write(answer)
                    return
                if poor.mode != "header":
                    self.send_header("Transfer-Encoding", "chunked")
                    self.end_headers()
                else:
                    self.flush_headers()
                    self.wfile.write(b"X-Slow: ")
                piece = b"1\r\n \r\n" if poor.mode == "drip" else b"x" if poor.mode == "header" else b"10000\r\n" + (
                    b" " * 65536 + b"\r\n"
                )  # fmt: skip
                while not poor.over.wait(0 if poor.mode == "endless" else 0.2):
                    self.wfile.write(piece)
                    self.wfile.flush()

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _any

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def close(self) -> None:
        self.over.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def poor(monkeypatch):
    server = Poor()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3600")
    monkeypatch.setattr(client_module, "_left", [])
    monkeypatch.setattr(client_module, "_CALL_S", 3.0)
    yield server
    server.close()


def seconds(call) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def refused(home) -> None:
    with pytest.raises(TrackingError, match="MLflow does not answer"):
        client_for(home)


@pytest.mark.parametrize("mode", MODES)
def test_every_call_ends(home, poor, mode):
    client_module.load()
    poor.mode = mode
    assert seconds(lambda: refused(home)) < 15


def test_a_command_ends_where_a_database_server_says_nothing(home, poor):
    # In a process of its own: MLflow's locks would keep other tests from their databases.
    script = (
        "import sys, harness.tracking.client as client; from pathlib import Path; from harness.home import Home\n"
        "client._CALL_S = 3.0\n"
        "client.client_for(Home(Path(sys.argv[1])))"
    )
    address = f"postgresql+psycopg://joe@127.0.0.1:{urlsplit(poor.url).port}/x"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": address}
    done = subprocess.run(
        [sys.executable, "-c", script, str(home.root)], env=environment, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    assert "no answer within 3 s" in done.stderr


def test_a_token_from_a_file_is_used_without_the_end_of_its_line_and_not_shown(home, poor, monkeypatch):
    poor.mode = "html"
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "tokenOfMine\n")
    with pytest.raises(TrackingError, match="MLflow does not answer") as caught:
        client_for(home)
    assert "tokenOfMine" not in str(caught.value)
    assert os.environ["MLFLOW_TRACKING_TOKEN"] == "tokenOfMine"


def test_calls_that_never_end_do_not_pile_up(poor):
    over = Event()
    for _ in range(20):
        with pytest.raises(TimeoutError):
            within(0.0, over.wait)
    assert len(client_module._left) == client_module._MOST_LEFT
    over.set()
    for thread in client_module._left:
        thread.join()
    assert within(5.0, lambda: 7) == 7


def test_pages_that_never_end_are_not_all_read(home, poor, monkeypatch):
    client_module.load()
    poor.mode = "pages"
    monkeypatch.setattr(mlflow_module, "_MOST_PAGES", 3)
    with pytest.raises(TrackingError, match="does not end"):
        MlflowTracker(new_client(home), "1", "abc").runs_by_key()


def test_a_call_that_was_given_up_asks_nothing_more(home, poor):
    client_module.load()
    poor.mode = "pages"
    from mlflow.exceptions import MlflowException

    client, threads = new_client(home)._real, list[Thread]()

    def history() -> None:
        threads.append(current_thread())
        client.get_metric_history("abc", "loss_g")

    with pytest.raises((TimeoutError, MlflowException)):
        within(1.0, history)
    threads[0].join(30.0)
    assert not threads[0].is_alive()


def test_an_end_that_somebody_interrupted_leaves_nothing_that_python_would_wait_for(home, poor, known, monkeypatch):
    client_module.load()
    poor.mode = "silent"
    monkeypatch.setattr(reconcile_module, "_WAIT_S", 1.0)
    waited: list[object] = []
    monkeypatch.setattr(reconcile_module.atexit, "register", lambda *call: waited.append(call))
    for level, waits in ((1, 0), (0, 1)):
        parent = ParentRun(known, home, "cpu", lambda text: None, lambda level=level: level).known()
        parent.close(4)
        assert len(waited) == waits
    assert all(thread.daemon for thread in living() if thread.name.startswith("mlflow"))


@pytest.fixture
def known(home) -> Trials:
    trials = Trials(open_study(SPEC, home), SPEC, home)
    write_study_attrs(trials.study, StudyAttrs(mlflow_experiment="1", mlflow_parent="abc", final_metric="fid20"))
    return trials


@pytest.mark.parametrize("mode", ["silent", "drip"])
def test_a_death_a_start_and_an_end_do_not_wait(home, poor, known, monkeypatch, mode):
    client_module.load()
    poor.mode = mode
    monkeypatch.setattr(reconcile_module, "_KNOWN_S", 1.0)
    monkeypatch.setattr(reconcile_module, "_WAIT_S", 1.0)
    monkeypatch.setattr(reconcile_module, "_LAST_S", 2.0)
    said: list[str] = []
    parent = ParentRun(known, home, "cpu", said.append)
    assert seconds(parent.open) < 5
    assert said[-1].endswith("the sweep continues, and MLflow gets everything when it is back")
    trial = known.ask(9)
    known.storage.set_trial_user_attrs(trial._trial_id, TrialAttrs(worker={"pid": 1, "host": "x"}).stored())
    assert seconds(lambda: parent.heal(crashed=True)) < 2
    assert seconds(lambda: parent.close(4)) < 3
    assert any("MLflow is slow" in line or "does not answer" in line for line in said)


def test_a_second_interruption_ends_the_wait(home, poor, known):
    client_module.load()
    poor.mode = "drip"
    parent = ParentRun(known, home, "cpu", lambda text: None, lambda: 2)
    assert seconds(parent.open) < 2
    assert seconds(lambda: parent.close(4)) < 2


def test_a_report_is_written_and_the_command_ends(home, poor, tmp_path, monkeypatch):
    client_module.load()
    poor.mode = "drip"
    monkeypatch.setattr(mlflow_module, "_ATTACH_S", 2.0)
    page, said = tmp_path / "report.md", []
    page.write_text("report")
    tracker = MlflowTracker(new_client(home), "1")
    assert seconds(lambda: attach_report(tracker, "abc", page, said.append)) < 6
    assert said[0].startswith("the report could not be attached to its run in MLflow (TimeoutError")


def test_nothing_is_left_to_threads_of_mlflow_that_would_outlive_a_command(home, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ENABLE_ASYNC_LOGGING", "true")
    client = client_for(home)
    from mlflow.entities import Metric

    run = client.create_run("0").info.run_id
    assert client.log_batch(run, metrics=[Metric("loss_g", 1.0, 0, 0)]) is None
    assert client.get_run(run).data.metrics == {"loss_g": 1.0}
