"""Everything that computes, made when it is first needed: an idle device carries neither numpy nor an engine.

Importing this module imports them, which takes 30 MB and some tenths of a second, more on a phone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pocketgrid_agent.cache import ModelCache
from pocketgrid_agent.compute import ComputePool
from pocketgrid_agent.engine_facts import EngineFacts
from pocketgrid_agent.models import Preparation
from pocketgrid_agent.runtime import OnnxRuntime
from pocketgrid_agent.sensors import resident_bytes
from pocketgrid_agent.settings import Settings

if TYPE_CHECKING:
    from pocketgrid_agent.link import Link


class Workshop:
    """Slots, the engine, and the models it has loaded.

    Args:
        wake: called from a slot when something is done; see ComputePool.

    Raises:
        ImportError: the engine is not installed, or does not load.
    """

    def __init__(self, settings: Settings, cache: ModelCache, link: Link, wake: Callable[[], None]) -> None:
        engine = OnnxRuntime(
            threads=max(1, settings.threads // settings.slots),
            spin=not settings.facts.has_battery,
            graph_optimization=settings.graph_optimization,
        )
        self.facts = EngineFacts(engine.description, engine.providers, engine.opset)
        self.pool = ComputePool(settings.slots, wake)
        self.models = Preparation(
            engine,
            cache,
            link,
            self.pool,
            memory_bytes=settings.memory_bytes,
            slots=settings.slots,
            micro_batch=settings.micro_batch,
            resident=resident_bytes,
        )
        self.pool.start()

    def close(self) -> None:
        """Let go of all models."""
        self.models.close()
