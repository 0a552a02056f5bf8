"""Where the Optuna database is, and what messages may say of its address."""

from __future__ import annotations

import os

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from harness.errors import UsageError
from harness.home import Home


def database_url(home: Home) -> URL:
    """``HARNESS_STORAGE``, or the SQLite file in the home folder.

    Raises:
        UsageError: the address cannot be used. The message leaves it out, since it may contain a password.
    """
    address = os.environ.get("HARNESS_STORAGE")
    if not address:
        return make_url(home.optuna_url)
    try:
        url = make_url(address)
    except ArgumentError:
        raise UsageError("HARNESS_STORAGE is not a database's address", _ADDRESSES) from None
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise UsageError(f"HARNESS_STORAGE: {url.drivername} is not supported", _ADDRESSES)
    if url.drivername == "sqlite" and url.database in (None, "", ":memory:"):
        raise UsageError("HARNESS_STORAGE: SQLite without a file keeps nothing", _ADDRESSES)
    if url.drivername == "postgresql+psycopg":
        try:
            import psycopg  # noqa: F401
        except ImportError:
            raise UsageError(
                "HARNESS_STORAGE names PostgreSQL, but psycopg is not installed",
                "`.venv/bin/pip install -c constraints.txt -e '.[postgresql]'`, or `pip install 'psycopg[binary]'`.",
            ) from None
    return url


_ADDRESSES = (
    "Use postgresql+psycopg://USER@HOST/DATABASE with the password in PGPASSWORD, or sqlite:////PATH/optuna.db."
)


def describe_address(url: URL) -> str:
    """The address for messages and logs: no user, no password, no option."""
    if url.get_backend_name() == "sqlite":
        return str(url.database)
    return f"{url.get_backend_name()} database {url.database} on {url.host or 'this machine'}"


def without_password(message: str, url: URL) -> str:
    """The message with ``***`` for every password that the address or PGPASSWORD has."""
    secrets = {str(url.password or ""), os.environ.get("PGPASSWORD", "")}
    secrets |= {value for name, value in url.query.items() if "password" in name and isinstance(value, str)}
    for secret in secrets - {""}:
        message = message.replace(secret, "***")
    return message
