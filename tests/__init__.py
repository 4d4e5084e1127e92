"""Tests are claims about the product, on real SQLite files and a real Postgres."""
