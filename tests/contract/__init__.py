"""One suite for each port: every adapter, and every fault wrapper around one, passes it."""
