"""Names and numbers that look alike but must not be mixed up."""

from __future__ import annotations

from typing import NewType

JobUid = NewType("JobUid", str)
"""Identity of one job for its whole life: the Kubernetes UID, or a random one in local mode."""

DeviceName = NewType("DeviceName", str)
"""Name of a device; also the name of its Node and EdgeNode. A DNS-1123 subdomain."""

ModelDigest = NewType("ModelDigest", str)
"""Lower-case hexadecimal SHA-256 of a model file."""

ShardIndex = NewType("ShardIndex", int)
"""Position of a shard in its job, from 0."""

LeaseId = NewType("LeaseId", int)
"""Number of a lease, unique within one epoch of one job."""

Epoch = NewType("Epoch", int)
"""How many times a writer has opened this job's commit log; fences off the earlier ones."""

AttemptSeq = NewType("AttemptSeq", int)
"""Fencing number of an attempt: epoch in the upper 32 bits, a counter below, so it only ever grows."""


def attempt_seq(epoch: Epoch, counter: int) -> AttemptSeq:
    """Combine an epoch and a counter (both below 2**32) into a number that grows over restarts."""
    if not 0 <= counter < 1 << 32 or not 0 <= epoch < 1 << 31:
        raise ValueError(f"attempt counter {counter} or epoch {epoch} out of range")
    return AttemptSeq((epoch << 32) | counter)
