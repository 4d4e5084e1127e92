"""Benchmarks that compare the tiers: `python -m benchmarks read_path write_path preload outage --json FILE`."""
