"""What type checkers make of the public surface. Nothing here is run: `make types` checks it."""
