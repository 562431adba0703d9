"""What REDIS_URL may say, and how it is refused."""

from __future__ import annotations

import pytest

from connections import Address, redacted
from tally.errors import ArgumentError


@pytest.mark.parametrize(
    ("url", "nodes", "shown"),
    [
        ("redis://", (("localhost", 6379),), "redis://localhost:6379/0"),
        ("redis://cache/2", (("cache", 6379),), "redis://cache:6379/2"),
        ("rediss://:pa%2Fss@cache:7000", (("cache", 7000),), "rediss://:***@cache:7000/0"),
        ("redis://[::1]:7000/1", (("::1", 7000),), "redis://[::1]:7000/1"),
        (
            "redis+cluster://worker:p@a:1,b",
            (("a", 1), ("b", 6379)),
            "redis+cluster://worker:***@a:1,b:6379",
        ),
        (
            "rediss+sentinel://a,b:7/features/3?sentinel_username=s&sentinel_password=q",
            (("a", 26379), ("b", 7)),
            "rediss+sentinel://a:26379,b:7/features/3",
        ),
        ("unix:///run/redis.sock?db=4", (), "unix:///run/redis.sock"),
    ],
)
def test_addresses_are_read_and_shown_without_secrets(url: str, nodes: object, shown: str) -> None:
    """Hosts, default ports, and the form for messages."""
    address = Address.parse(url)

    assert address.nodes == nodes
    assert str(address) == redacted(url) == shown


def test_all_parts_of_an_address() -> None:
    """Users and passwords are percent-decoded, parameters typed; timeouts are there unless given."""
    address = Address.parse(
        "rediss+sentinel://w%40x:p%3Aq@s:1/svc/5?socket_timeout=0.5&max_connections=7&ssl_ca_certs=/ca%20.pem"
        "&ssl_check_hostname=no&sentinel_password=z%26"
    )

    assert (address.topology, address.tls, address.service, address.db) == ("sentinel", True, "svc", 5)
    assert (address.username, address.password, address.sentinel_password) == ("w@x", "p:q", "z&")
    assert address.options == {
        "socket_timeout": 0.5,
        "socket_connect_timeout": 5.0,
        "max_connections": 7,
        "ssl_ca_certs": "/ca .pem",
        "ssl_check_hostname": False,
    }
    assert Address.parse("unix:///s?db=4").db == 4


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("cache:6379", "starts with none of redis://"),
        ("http://cache", "starts with none of"),
        ("redis://cache/zero", "database is not a number"),
        ("redis://cache:secret", "a host or a port cannot be read"),
        ("redis+cluster://a,b/1", "no numbered databases"),
        ("redis+cluster://a?db=1", "no numbered databases"),
        ("redis+cluster://a,,b", "a host is missing"),
        ("redis+sentinel://a,b", "service is missing"),
        ("redis+sentinel://a/svc/1/2", "database is not a number"),
        ("redis://a?ssl_ca_certs=x", "needs TLS: rediss://"),
        ("redis+cluster://a?ssl_ca_certs=x", r"needs TLS: rediss\+cluster://"),
        ("redis://a?sentinel_password=secret", r"needs redis\+sentinel://"),
        ("redis://a?timeout=secret", "no parameter 'timeout'; there are db, socket_timeout"),
        ("redis://a?socket_timeout=secret", "value of socket_timeout is not a float"),
        ("rediss://a?ssl_check_hostname=secret", "value of ssl_check_hostname is not a boolean"),
        ("redis://:se#cret@a", "it has a #"),
        ("unix://", "path is missing"),
    ],
)
def test_what_cannot_be_read_is_refused_without_being_repeated(url: str, reason: str) -> None:
    """The error says what is wrong and what addresses look like; a secret is never in it."""
    with pytest.raises(ArgumentError, match=f"REDIS_URL is not a Redis address .*{reason}") as raised:
        Address.parse(url)

    text = f"{raised.value} {redacted(url)}"
    assert "secret" not in text
    assert "cret" not in text


def test_an_address_prints_without_secrets() -> None:
    """In logs and tracebacks."""
    assert "secret" not in repr(Address.parse("redis+sentinel://u:secret@a/s?sentinel_password=secret"))
