"""Bugs planted one at a time into a copy of the source, each with the tests that have to catch it."""
