"""The hot tier: one SQLite file per process, and what is kept in memory beside it."""
