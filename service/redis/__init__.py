"""Attune between processes: queue, ownership and states in Redis. docs/redis.md tells how and why."""
