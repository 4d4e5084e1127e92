"""Faults to inject, and what checks that nothing was lost: for the tests of whoever builds on `hybrid_memory`."""
