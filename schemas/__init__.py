"""SQL and JSON schemas of hybrid_memory, shipped as package data."""
