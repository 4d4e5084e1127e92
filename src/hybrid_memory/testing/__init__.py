"""Faults to inject, and what checks that nothing was lost: for the tests of whoever builds on `hybrid_memory`.

`proxy.Proxy` is a wire that is cut, slowed and silenced, `postgres.Cluster` a server to be killed, frozen and starved,
`failover.failing_over` a primary whose standby takes over.
"""
