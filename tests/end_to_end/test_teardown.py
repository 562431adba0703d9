from __future__ import annotations

from feast.repo_operations import teardown

from tests.end_to_end.world import PROJECT, World


def test_feast_teardown(world: World) -> None:
    """What `feast teardown` calls removes the project's keys, every one, and no other's. (The folder's last test.)"""
    with world.redis() as redis, world.feast() as store:
        others = (f"{PROJECT}2/view@00000000/x", f"tally:{PROJECT}2:plan:x")
        for key in others:
            redis.set(key, "kept")
        assert world.stored_bytes()
        assert list(redis.scan_iter(match=f"tally:{PROJECT}:*"))

        teardown(store.config, world.repo)

        assert not world.stored_bytes()
        assert not list(redis.scan_iter(match=f"tally:{PROJECT}:*", count=10_000))
        assert redis.delete(*others) == len(others)
