"""Long runs with faults injected; one module for each kind of fault, each with a `run(seconds=, seed=)`."""
