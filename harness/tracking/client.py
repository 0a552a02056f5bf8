"""MLflow's client: quiet, with limits to the time and the size of every answer."""

from __future__ import annotations

import gc
import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from threading import Thread, local
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import unquote, urlsplit, urlunsplit

from filelock import FileLock, Timeout

from harness.errors import ESCAPES, TrackingError, UsageError, check_addresses, first_line, is_address
from harness.home import Home
from harness.store.connection import read_address
from harness.tracking.database import forget_connections, has_tables, make_tables, prepare

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from sqlalchemy import URL

R = TypeVar("R")

# No telemetry, no progress bars, no migration chatter; a dead server is noticed in seconds, not minutes.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    # The server's job runners are for its GenAI features: seven idle processes next to a sweep.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}
# Whatever the environment says.
_ALWAYS = {
    # A server may ask for hours of patience.
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    # With each run that ends it would print the address, and the password in it.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Queued points would count as logged, and a slow server would hold up the end.
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
}
_PASSWORDS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
# Seconds that a call may take, and one that sends a file; and making all tables, here or in a distant server.
_CALL_S, _FILE_S, _POLL_S, _MAKE_S = 30.0, 600.0, 0.2, 300.0
# Bytes of an answer, the longest of which is a page of 1,000 runs.
_MOST_BYTES = 64 * 2**20
# Calls that were given up, and are not over yet; until when the one of this thread is waited for.
_left: list[Thread] = []
_waited = local()
_MOST_LEFT = 8
_DAMAGED = "If mlflow.db is damaged, move it away: the next start shows everything again, from the runs' folders."
# The last two print a request's address, and what they raise with a traceback and the statement's values.
_LOG_LEVELS = {
    "mlflow": logging.WARNING,
    "alembic": logging.WARNING,
    "urllib3": logging.ERROR,
    "mlflow.store.db.utils": logging.CRITICAL,
}


def load() -> None:
    """Import MLflow, quietly; without looking for garbage meanwhile, which takes a third of the time and finds none."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    os.environ.update(_ALWAYS)
    for name in _PASSWORDS:  # with the end of a file's line it would be refused, and shown
        if os.environ.get(name):
            os.environ[name] = os.environ[name].strip()
    for name, level in _LOG_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    collects = gc.isenabled()
    gc.disable()
    try:
        import mlflow  # noqa: F401

        _limit_answers()
    finally:
        if collects:
            gc.enable()


def _limit_answers() -> None:
    """Have MLflow's requests read no more than :data:`_MOST_BYTES` of an answer, in any thread."""
    from mlflow.utils import request_utils
    from requests import PreparedRequest, Response, exceptions

    usual = request_utils.TCPKeepAliveHTTPAdapter

    class Limited(usual):  # type: ignore[misc,valid-type]
        def send(self, request: PreparedRequest, *args: Any, **kwargs: Any) -> Response:
            if time.monotonic() > getattr(_waited, "until", math.inf):  # the next page, or another try
                raise exceptions.ConnectionError("the call was given up")
            request.headers["Accept-Encoding"] = "identity"  # what is read is what there is
            response: Response = super().send(request, *args, **kwargs)
            if not kwargs.get("stream"):
                body = response.raw.read(_MOST_BYTES + 1)
                if len(body) > _MOST_BYTES:
                    response.close()
                    raise exceptions.ConnectionError(f"the answer is longer than {_MOST_BYTES >> 20} MiB")
                response._content = body
            return response

    if usual.__name__ != Limited.__name__:
        request_utils.TCPKeepAliveHTTPAdapter = Limited  # type: ignore[misc]


def within(seconds: float, call: Callable[[], R], stops: Callable[[], bool] = lambda: False) -> R:
    """The result of a call in a thread, which is abandoned after ``seconds``, or when ``stops()``.

    A library's timeouts do not end every wait: a server may send a byte a second, or headers forever.
    """
    _left[:] = [thread for thread in _left if thread.is_alive()]
    if len(_left) >= _MOST_LEFT:
        raise TimeoutError("earlier requests have not been answered")
    outcome: list[Callable[[], R]] = []
    until = time.monotonic() + seconds

    def work() -> None:
        _waited.until = until
        try:
            result = call()
            outcome.append(lambda: result)
        except BaseException as error:
            raised = error

            def reraise() -> R:
                raise raised

            outcome.append(reraise)

    thread = Thread(target=work, name="mlflow", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL_S)
        if thread.is_alive() and (stops() or time.monotonic() > until):
            _left.append(thread)
            raise TimeoutError("stopped" if stops() else f"no answer within {seconds:g} s")
    return outcome[0]()


class _Client:
    """MLflow's client, each of whose calls ends. Nothing is asked, and no database made, before the first of them."""

    def __init__(self, home: Home) -> None:
        self._home, self.tracking_uri = home, tracking_url(home)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            return getattr(self._real, name)
        seconds = _FILE_S if name in ("log_artifact", "log_artifacts", "log_image", "log_model_artifacts") else _CALL_S
        # Where MLflow's database is a server's, making the client waits for that.
        return lambda *args, **kwargs: within(seconds, lambda: getattr(self._real, name)(*args, **kwargs))

    @cached_property
    def _real(self) -> MlflowClient:
        make_database(self._home)
        from mlflow import MlflowClient
        from mlflow.tracking._tracking_service import utils

        utils._artifact_repos_cache.clear()  # by run, which a copy of a home has, too
        return MlflowClient(tracking_uri=_adopt_password(self.tracking_uri))


def make_database(home: Home) -> None:
    """Slow preparations, for which a call has no time: MLflow's imports, and its tables in a file or in PostgreSQL."""
    load()
    address, own = tracking_url(home), home.root / "mlflow.db"
    url = read_address(address)
    path = own if address == home.mlflow_url else _sqlite_file(url)
    if path:
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401

        path.parent.mkdir(parents=True, exist_ok=True)
        path = path.resolve()  # a link stays one
        try:
            with FileLock(path.with_name(f".{path.name}.lock"), timeout=_MAKE_S):
                prepare(path, home if path == own.resolve() else None)
        except Timeout:
            problem = f"another process has been making {path} for {_MAKE_S:g} s"
            raise TrackingError(problem, "Is it stopped? Let it continue, or end it.") from None
        forget_connections()
    elif url is not None and url.get_backend_name() == "postgresql" and not within(_CALL_S, lambda: has_tables(url)):
        within(_MAKE_S, lambda: make_tables(url, home))


def _sqlite_file(url: URL | None) -> Path | None:
    """The file of an address that names one."""
    named = url.database or "" if url is not None and url.get_backend_name() == "sqlite" else ""
    return Path(named) if named and not named.startswith((":", "file:")) else None


def tracking_url(home: Home) -> str:
    """``MLFLOW_TRACKING_URI``, or the database in the home folder."""
    url = os.environ.get("MLFLOW_TRACKING_URI") or home.mlflow_url
    remote = url.lower().startswith(("http:", "https:"))
    if not (is_address(url) if remote else _is_plain(url)):
        # Neither shown, for it may hold a password, nor left to a library to show.
        raise UsageError("MLFLOW_TRACKING_URI is not an address", f"Use http://HOST:PORT, or unset it. {ESCAPES}")
    if remote:
        check_addresses(os.environ)
        for name in _PASSWORDS:  # requests would refuse it, and show it
            if not os.environ.get(name, "").strip().isprintable():
                raise UsageError(f"{name} has a line break or another control character", "Set it again, in one line.")
    return url


def _is_plain(url: str) -> bool:
    """Whether an address that is not a server's over HTTP has no password, or one that ends where it must."""
    if "@" not in url or url.lower().startswith(("sqlite:", "file:")):
        return True
    return read_address(url) is not None and " " not in url


def version_of_pages(client: MlflowClient) -> str:
    """The version of MLflow whose pages show what the client writes: of a server its own, else the installed one."""
    import mlflow
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    url = client._tracking_client.tracking_uri  # without a password
    if urlsplit(url).scheme not in ("http", "https"):
        return mlflow.__version__
    return str(http_request(get_default_host_creds(url), "/version", "GET").text)  # type: ignore[no-untyped-call]


def without_password(text: str, url: str) -> str:
    """A text without the address's password, as it is written there."""
    secret = urlsplit(url).password
    return text.replace(secret, "***") if secret else text


def _adopt_password(url: str) -> str:
    """A server's address without user and password, which MLflow then has from the environment, and cannot print."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or parts.username is None:
        return url
    os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
    os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def new_client(home: Home) -> MlflowClient:
    """A client of which nothing is asked yet."""
    return cast("MlflowClient", _Client(home))


@contextmanager
def answers(home: Home) -> Iterator[None]:
    """Whatever MLflow raises within, where it cannot be reached or refuses, is a TrackingError."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ImportError, OSError, ValueError) as error:  # the last of a port
        first = without_password(first_line(error), tracking_url(home))
        hint = "Check MLFLOW_TRACKING_URI, or unset it." if os.environ.get("MLFLOW_TRACKING_URI") else _DAMAGED
        raise TrackingError(f"MLflow does not answer: {first}", hint) from None


def client_for(home: Home) -> MlflowClient:
    """A client that MLflow has answered; what :func:`answers` raises where it does not."""
    client = new_client(home)
    load()
    with answers(home):
        make_database(home)
        client.search_experiments(max_results=1)
    return client
