"""Seeded runs of the whole core on one thread: real product code, virtual time, and a model of Postgres."""
