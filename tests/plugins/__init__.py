"""Fixtures that several suites share; `tests/conftest.py` names them."""
