"""Every key, group and lifetime in Redis, in one place.

All keys begin with `NAMESPACE:VERSION:`, so that deployments, and versions of this layout, do not see each
other. Redis Cluster is not supported: scripts touch keys of several slots.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

LAYOUT_VERSION = 1
PARTITIONS = 64
"""Streams are spread over so many; no more workers than that can share the work."""

GROUP = "workers"
"""The consumer group of every queue."""

API_ALIVE_MS = 60_000
"""An API process that has not said so for this long is gone; its results are dropped."""
RESULTS_TTL_MS = 60_000
"""Results that nobody has read are deleted after this."""
WITHDRAWN_TTL_S = 600
"""How long it is remembered that a client left; longer than any deadline."""
GATHERING_TTL_S = 86_400
"""Gathered queries whose stream is not used any more."""
MAX_RESULTS = 20_000
"""Results waiting for one API process; beyond, the oldest go (their clients have left long since)."""


def partition_of(home: str) -> int:
    """The partition of a stream, or of whatever else decides which worker does a job."""
    return zlib.crc32(home.encode()) % PARTITIONS


@dataclass(frozen=True)
class Keys:
    """Names of keys. p: partition, 0..PARTITIONS-1."""

    namespace: str

    @property
    def prefix(self) -> str:
        return f"{self.namespace}:{LAYOUT_VERSION}:"

    # -- the query stream ---------------------------------------------------------------------------

    def queue(self, p: int) -> str:
        """Stream: one entry a job, fields `job` (service.codec) and `items`. Deleted when settled."""
        return f"{self.prefix}queue:{p}"

    def bell(self, p: int) -> str:
        """List of at most one element: something is in the queue. Wakes the partition's owner."""
        return f"{self.prefix}bell:{p}"

    @property
    def waiting(self) -> str:
        """Number: items accepted and not settled, over all partitions."""
        return f"{self.prefix}waiting"

    def withdrawn(self, p: int) -> str:
        """Set: entries whose client left while a worker had them in its buffer."""
        return f"{self.prefix}withdrawn:{p}"

    def attempts(self, p: int) -> str:
        """Hash: entry -> how often a worker has begun it."""
        return f"{self.prefix}attempts:{p}"

    def results(self, api: str) -> str:
        """Stream: fields `job` (id) and `reply` (service.codec), for one API process."""
        return f"{self.prefix}results:{api}"

    # -- ownership ----------------------------------------------------------------------------------

    def lease(self, p: int) -> str:
        """String `worker:token`, expiring: who owns the partition."""
        return f"{self.prefix}lease:{p}"

    def fence(self, p: int) -> str:
        """Number: the last token given out, at least the time (ms since 1970). Only rises."""
        return f"{self.prefix}fence:{p}"

    @property
    def workers(self) -> str:
        """Sorted set: worker -> ms since 1970 when it was last heard of."""
        return f"{self.prefix}workers"

    @property
    def apis(self) -> str:
        """Sorted set: API process -> ms since 1970 when it was last heard of."""
        return f"{self.prefix}apis"

    # -- streams ------------------------------------------------------------------------------------

    def stream(self, name: str) -> str:
        """Hash: `state` (the packed stream: parameters, moments, memory, counters) and `card` (JSON)."""
        return f"{self.prefix}stream:{name}"

    @property
    def streams(self) -> str:
        """Sorted set: stream -> seconds since 1970 of its last write."""
        return f"{self.prefix}streams"

    def gathering(self, stream: str, track: str) -> str:
        """List: jobs of a track that are answered and wait for a full batch, oldest first."""
        return f"{self.prefix}gathering:{stream}/{track}"

    def gatherings(self, p: int) -> str:
        """Sorted set, by name: `stream/track` of the partition that hold gathered jobs."""
        return f"{self.prefix}gatherings:{p}"

    # -- what all know ------------------------------------------------------------------------------

    @property
    def encoder(self) -> str:
        """String: the encoder's card (JSON) of the deployment."""
        return f"{self.prefix}encoder"

    @property
    def galleries(self) -> str:
        """Hash: gallery -> its description (JSON)."""
        return f"{self.prefix}galleries"

    def lock(self, name: str) -> str:
        """Held while something is made that several processes might make."""
        return f"{self.prefix}lock:{name}"
