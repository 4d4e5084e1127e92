"""What pyproject.toml cannot say: every package found under src/, and the schemas/ folder as one package more."""

from setuptools import find_packages, setup

setup(packages=[*find_packages("src"), "hybrid_memory.schemas"])
