"""How Tally reaches Redis, Kafka and Snowflake, and how it starts them on one machine."""
