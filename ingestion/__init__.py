"""Data in: Snowflake to the offline store, Kafka to Redis, the offline store to Redis."""
