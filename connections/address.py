"""REDIS_URL: what one string says about where Redis is and how to log in. Pure: nothing is opened.

    redis://[USER:PASSWORD@]HOST[:PORT][/DB]                              one server
    redis+sentinel://[USER:PASSWORD@]HOST[:PORT],.../SERVICE[/DB]         the master that Sentinels name
    redis+cluster://[USER:PASSWORD@]HOST[:PORT],...                       Redis Cluster, from any of its nodes
    unix://[USER:PASSWORD@]/PATH[?db=DB]                                  one server on this machine

`rediss` instead of `redis` is TLS. USER, PASSWORD, SERVICE and the parameters' values are percent-encoded. Parameters
follow as ?NAME=VALUE&..., with redis-py's names; `PARAMETERS` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from tally.errors import ArgumentError

Node = tuple[str, int]
"""(host, port)."""

REDIS_PORT: Final = 6379
SENTINEL_PORT: Final = 26379
TIMEOUT_SECONDS: Final = 5.0
"""How long to wait for a connection, and for an answer, unless the address says otherwise."""

Topology = Literal["standalone", "sentinel", "cluster"]
_SCHEMES: Final[Mapping[str, tuple[Topology, bool]]] = {
    "redis": ("standalone", False),
    "rediss": ("standalone", True),
    "unix": ("standalone", False),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_BOOLEANS: Final = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _boolean(text: str) -> bool:
    try:
        return _BOOLEANS[text.lower()]
    except KeyError:
        raise ValueError(text) from None


PARAMETERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "db": int,
    "socket_timeout": float,
    "socket_connect_timeout": float,
    "max_connections": int,
    "ssl_ca_certs": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_cert_reqs": str,
    "ssl_check_hostname": _boolean,
    "sentinel_username": str,
    "sentinel_password": str,
}
"""Parameters of an address: seconds, numbers, paths of PEM files, and the login of the Sentinels, if it is another one."""

_NOT_OPTIONS: Final = ("db", "sentinel_username", "sentinel_password")


@dataclass(frozen=True)
class Address:
    """A parsed REDIS_URL. `nodes` are servers, cluster nodes or Sentinels; `options` are redis-py's keyword arguments.

    Prints without secrets.
    """

    topology: Topology
    tls: bool
    nodes: tuple[Node, ...]
    path: str = ""
    db: int = 0
    service: str = ""
    username: str = ""
    password: str = field(default="", repr=False)
    sentinel_username: str = ""
    sentinel_password: str = field(default="", repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, url: str, timeout: float = TIMEOUT_SECONDS) -> Address:
        """`timeout` is that of sockets, in seconds, where the address says nothing else.

        Raises ArgumentError, which does not repeat the address: it may hold a password.
        """
        try:
            return _parsed(url, timeout)
        except ValueError as error:
            reason = f" ({error})" if type(error) is _AddressError else ""
            raise ArgumentError(
                f"REDIS_URL is not a Redis address{reason}; it looks like redis://HOST:6379/0, rediss://USER:PASSWORD@HOST:6379, "
                "redis+sentinel://HOST:26379,HOST:26379/SERVICE/0 or redis+cluster://HOST:6379,HOST:6379, where special "
                "characters of a password are percent-encoded."
            ) from None

    def __str__(self) -> str:
        scheme = "unix" if self.path else "rediss" if self.tls else "redis"
        if self.topology != "standalone":
            scheme += f"+{self.topology}"
        login = f"{self.username}:***@" if self.username or self.password else ""
        nodes = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.nodes)
        service = f"/{self.service}" if self.service else ""
        db = f"/{self.db}" if self.topology != "cluster" and not self.path else ""
        return f"{scheme}://{login}{nodes}{self.path}{service}{db}"


def redacted(url: str) -> str:
    """An address for messages: without passwords and parameters. One that cannot be read is only named by its scheme."""
    try:
        return str(Address.parse(url))
    except ArgumentError:
        scheme, mark, _ = url.partition("://")
        return f"{scheme if mark and scheme in _SCHEMES else '***'}://***"


class _AddressError(ValueError):
    """Says what is wrong with an address without repeating any of its values."""


def _parsed(url: str, timeout: float) -> Address:
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES:
        raise _AddressError(f"it starts with none of {', '.join(f'{scheme}://' for scheme in _SCHEMES)}")
    topology, tls = _SCHEMES[parts.scheme]
    if parts.fragment:
        raise _AddressError("it has a #")
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    parameters = _parameters(parts, topology, tls=tls)
    given = {name: parameters.pop(name) for name in _NOT_OPTIONS if name in parameters}
    timeouts = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    path, service, db = _places(parts, topology)
    return Address(
        topology,
        tls,
        () if path else _nodes(hosts, SENTINEL_PORT if topology == "sentinel" else REDIS_PORT, topology),
        path,
        given.pop("db", db),
        service,
        unquote(username),
        unquote(password),
        options=timeouts | parameters,
        **given,
    )


def _parameters(parts: SplitResult, topology: Topology, *, tls: bool) -> dict[str, Any]:
    values = {}
    for name, text in parse_qsl(parts.query, keep_blank_values=True):
        if name not in PARAMETERS:
            raise _AddressError(f"there is no parameter {name!r}; there are {', '.join(PARAMETERS)}")
        if name.startswith("ssl_") and not tls:
            raise _AddressError(f"{name} needs TLS: {parts.scheme.replace('redis', 'rediss', 1)}://")
        if name.startswith("sentinel_") and topology != "sentinel":
            raise _AddressError(f"{name} needs redis+sentinel://")
        if name == "db" and topology == "cluster":
            raise _AddressError("a cluster has no numbered databases")
        try:
            values[name] = PARAMETERS[name](text)
        except ValueError:
            raise _AddressError(f"the value of {name} is not a {PARAMETERS[name].__name__.strip('_')}") from None
    return values


def _places(parts: SplitResult, topology: Topology) -> tuple[str, str, int]:
    """(path of a socket, service of Sentinel, number of the database)."""
    if parts.scheme == "unix":
        if not parts.path:
            raise _AddressError("the socket's path is missing")
        return unquote(parts.path), "", 0
    pieces = [unquote(piece) for piece in parts.path.split("/") if piece]
    service = ""
    if topology == "sentinel":
        if not pieces:
            raise _AddressError("the name of the Sentinels' service is missing")
        service = pieces.pop(0)
    if not pieces:
        return "", service, 0
    if topology == "cluster":
        raise _AddressError("a cluster has no numbered databases")
    if len(pieces) > 1 or not pieces[0].isdecimal():
        raise _AddressError("the database is not a number")
    return "", service, int(pieces[0])


def _nodes(hosts: str, port: int, topology: Topology) -> tuple[Node, ...]:
    texts = hosts.split(",") if topology != "standalone" else [hosts]
    nodes = []
    for text in texts:
        try:
            one = urlsplit(f"//{text}")
            node = one.hostname or "", one.port or port
        except ValueError:
            raise _AddressError("a host or a port cannot be read") from None
        if not node[0] and len(texts) > 1:
            raise _AddressError("a host is missing")
        nodes.append((node[0] or "localhost", node[1]))
    return tuple(nodes)
