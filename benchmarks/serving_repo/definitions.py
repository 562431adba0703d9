"""The plain views of the lookup benchmarks, as a repository for `feast serve` with our online store."""

from datetime import timedelta

from feast import Entity, FeatureView, Field, SnowflakeSource
from feast.types import Float64, Int64
from feast.value_type import ValueType

from benchmarks.definitions import AT, EIGHT, KEY, TABLE

TYPES = {"Float64": Float64, "Int64": Int64}

entity = Entity(name=KEY.name, join_keys=[KEY.name], value_type=ValueType.INT64)
rows = SnowflakeSource(name=TABLE.name, table=TABLE.table, timestamp_field=AT.name)


def plain_view(name: str) -> FeatureView:
    """What `benchmarks.definitions.latest_view` is."""
    fields = [Field(name=f"{name}_{i}", dtype=TYPES[dtype]) for i, dtype in enumerate(EIGHT)]
    schema = [Field(name=KEY.name, dtype=Int64), *fields]
    return FeatureView(name=name, entities=[entity], source=rows, ttl=timedelta(0), schema=schema)


x, y, z = plain_view("x"), plain_view("y"), plain_view("z")
