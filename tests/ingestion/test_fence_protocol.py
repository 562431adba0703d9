"""Law 5 under every order of events that we can think of, and proof that the model would notice if it did not hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from redis import Redis

from ingestion import stream
from ingestion.redis_calls import load_library
from tests.ingestion.fence_protocol import FenceProtocol, machine

STEPS = 40
LIBRARY = resources.files("ingestion").joinpath("redis_functions.lua").read_text()


@pytest.fixture
def library(redis: Redis) -> Iterator[Redis]:
    """A server whose function library may be spoilt: it is loaded again at the end."""
    yield redis
    load_library(redis)


def test_the_protocol_holds(library: Redis) -> None:
    """Redis holds what the oracle computes, at every step of every run, and everything once at the end."""
    run_state_machine_as_test(
        machine(library, LIBRARY),
        settings=settings(stateful_step_count=STEPS, suppress_health_check=list(HealthCheck)),
    )


@dataclass(frozen=True)
class Planted:
    """A mistake: `right` stands once in the library, and is replaced by `wrong`."""

    name: str
    right: str
    wrong: str


MISTAKES = [
    Planted(
        "a server that came back is trusted",
        "if not witnessed[args[#args]] then fail('TALLYWITNESS', 'this server is not known to hold what you wrote') end",
        "",
    ),
    Planted(
        "a server is witnessed unseen",
        "if not stored or tonumber(stored) < tonumber(args[i + 1]) then return shown",
        "if false then return shown",
    ),
    Planted("the fence is not looked at", "if fence >= first then clear = false end", ""),
    Planted("the fence's own event counts again", "if fence >= first then", "if fence > first then"),
    Planted("an overlap is merged whole", "if fence >= first then", "if fence >= last then"),
    Planted("a part of what is new is dropped", "if fence >= first then", "if fence + 1 >= first then"),
    Planted("the fence is not written", "write('<I4i8', partition, last)", "write('<I4i8', partition, fence)"),
    Planted("the fence is written too far", "write('<I4i8', partition, last)", "write('<I4i8', partition, last + 1)"),
    Planted("the fence stands at the delta's first event", "write('<I4i8', partition, last)", "write('<I4i8', partition, first)"),
    Planted("another partition's fence is taken", "if stored == partition then", "if stored <= partition then"),
    Planted("fences of lower partitions are lost", "pieces[written] = write('<I4i8', stored, offset)", "written = written - 1"),
    Planted("fences of higher partitions are lost", "if rest > 0 then", "if false then"),
    Planted("a delta that was cut is applied and asked for again", "if not clear then return nil, known end", "if not clear and known[2] < 0 then return nil, known end"),
    Planted("tiles are pruned too early", "local tile = (number - remainder) / hop", "local tile = (number - remainder) / hop + 1"),
    Planted("the newest event moves back", "if less(high, low, stored_high, stored_low) then high, low = stored_high, stored_low end", ""),
    Planted(
        "a merged tile replaces the stored one",
        "written = merge_records(written, texts, value, at, text[place], records, sent_at, sent_text[next_sent])",
        "written = written + 1 pieces[written] = sub(records, sent_at + 9, sent_at + size - 1)",
    ),
    Planted("a sum is not carried", "a%d - 4294967296, a%d + 1 end", "a%d - 4294967296, a%d end"),
    Planted("what was written before shows through", "table.concat(pieces, '', 1, written)", "table.concat(pieces)"),
    Planted("a key gets the delta of another", "local at = 1 + 3 * number", "local at = 1 + 3 * (1 + #keys - number)"),
    Planted("a key is held against the extents of another", "args[at], args[at + 1], args[at + 2])", "args[at], args[5], args[at + 2])"),
    Planted("a key's answer is that of another", "replies[number] =", "replies[1 + #keys - number] ="),
    Planted("a call ends with the first key that was applied before", "local at = 1 + 3 * number", "local at = 1 + 3 * number if type(replies[number - 1]) == 'table' then replies[number] = 1 break end"),
    Planted("keys live half as long", "'PX', ttl_ms)", "'PX', ttl_ms / 2)"),
    Planted("keys never expire", "redis.call('SET', key, value, 'PX', ttl_ms)", "redis.call('SET', key, value)"),
    Planted("a load replaces what is newer", "offsets[partition] < offset then return 0", "false then return 0"),
    Planted("a load forgets a partition", "if not offsets[partition] or offsets[partition] < offset", "if offsets[partition] and offsets[partition] < offset"),
    Planted("progress falls", "if not stored or tonumber(stored) < tonumber(args[i + 1]) then\n", "if true then\n"),
    Planted("the latest row is the last one written", "if less(high, low, stored_high, stored_low) then return 0 end", ""),
    Planted("the latest row is the last in the topic, whatever its time", "for position = 10, 26, 8 do", "for position = 18, 26, 8 do"),
]  # fmt: skip


def run_until_found(spoilt: type[FenceProtocol]) -> None:
    """A bounded number of runs. The hardest mistake takes some 250 of them, more or fewer by what else was imported."""
    run_state_machine_as_test(
        spoilt,
        settings=settings(
            max_examples=5000, stateful_step_count=STEPS, derandomize=True, database=None, phases=[Phase.generate],
            report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("planted", MISTAKES, ids=lambda planted: planted.name)
def test_a_planted_mistake_is_found(library: Redis, planted: Planted) -> None:
    """The model is strict enough: with this mistake in the library, some run of a bounded number fails."""
    assert LIBRARY.count(planted.right) == 1, "the library has changed; plant this mistake anew"
    spoilt = machine(library, LIBRARY.replace(planted.right, planted.wrong))

    with pytest.raises(AssertionError):
        run_until_found(spoilt)


def test_a_delta_across_a_rebalance_is_found(library: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """So is a worker that takes what it read before and after a rebalance for one batch."""
    monkeypatch.setattr(stream, "rising", lambda partition, _: [slice(0, len(partition))])

    with pytest.raises(AssertionError):
        run_until_found(machine(library, LIBRARY))
