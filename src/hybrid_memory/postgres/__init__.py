"""The durable tier on Postgres: the adapters behind `DurableTier` and `ChangeFeed`, and its administration."""
