"""Settings of ``tracking=...``, and which addresses they may hold."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from dptrain.errors import ConfigError
from dptrain.ranges import choice


@dataclass
class TrackingConfig:
    """Where metrics are copied to. The run folder stays the truth."""

    name: str = "mlflow"
    """mlflow or none."""
    uri: str | None = None
    """MLflow store; default ``sqlite:///mlflow.db`` in the directory of launch. Holds no password or token."""
    experiment: str = "dptrain"
    """Experiment of the public tier; internal results go to ``<experiment>-internal``."""
    register_as: str | None = None
    """Register the finished bundle as a version of this model."""
    allow_http: bool = False
    """Accept a server on another host without TLS: whoever listens in reads metrics and tokens."""

    def __post_init__(self) -> None:
        choice("tracking.name", self.name, ["mlflow", "none"])
        if self.name == "mlflow" and self.uri is not None:
            refuse_credentials("tracking.uri", self.uri)
            refuse_plain_http("tracking.uri", self.uri, self.allow_http)


def shown(uri: str) -> str:
    """An address without user names, passwords and tokens, fit for a log.

    >>> shown("https://me:pass@host/x?token=abc")
    'https://host/x?token=***'
    """
    without = re.sub(r"//\S*@", "//", uri)
    return re.sub(r"([?&][^=&\s]*(?:pass|pwd|token|secret|key)[^=&\s]*=)[^&\s]*", r"\1***", without, flags=re.I)


def refuse_credentials(field: str, uri: str | None) -> None:
    """Refuses an address that holds a password or a token: configs are stored and logged. None is repeated.

    A user's name alone is welcome in the address of a database; before a web server it may be a token.

    Raises:
        ConfigError: it holds one.
    """
    if uri is None:
        return
    user = re.search(r"//(\S*)@", uri)
    web = uri.lower().startswith("http")
    if shown(uri) == uri or (user and not web and ":" not in user.group(1) and "?" not in uri):
        return
    where = "MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, in the environment"
    remedy = f"keep it in {where}" if web else "keep it in ~/.pgpass or PGPASSWORD"
    raise ConfigError(field, shown(uri), "holds a password or token", remedy)


def refuse_plain_http(field: str, uri: str, allowed: bool) -> None:
    """Refuses a server on another host that is spoken to without TLS, unless that was asked for.

    Args:
        field: that holds the address, ``uri`` at its end; ``allow_http`` stands beside it.
        uri: the address.
        allowed: ``allow_http``.

    Raises:
        ConfigError: it is one, and ``allowed`` is not set.
    """
    if allowed or not uri.lower().startswith("http:") or is_this_machine(uri):
        return
    problem = "sends metrics and tokens over the network in the clear"
    raise ConfigError(field, shown(uri), problem, f"use https://, or say {field.removesuffix('uri')}allow_http=true")


def is_this_machine(uri: str) -> bool:
    """Whether an address names the loopback interface."""
    try:
        host = urlsplit(uri).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
