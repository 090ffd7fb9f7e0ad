"""Whether the model can answer: a real generation until it once did, then a look at thread and device."""

from __future__ import annotations

import asyncio

import torch

from shortstack.core.errors import ShortstackError
from shortstack.inference.engine.engine import Engine
from shortstack.inference.generation import Generation
from shortstack.inference.validation import Job, Sampling

__all__ = ["HealthCheck"]


class HealthCheck:
    """TGI's `/health`.

    Args:
        patience: seconds a generation or a step may take; generous, since one core may read a long prompt.
    """

    def __init__(
        self, generation: Generation, engine: Engine, probe: tuple[int, ...], device: torch.device, patience: float
    ) -> None:
        self._generation = generation
        self._engine = engine
        self._job = Job(prompt=probe, max_new_tokens=1, stop=(), sampling=Sampling())
        self._device = device
        self._patience = patience
        self._proven = False

    async def healthy(self) -> bool:
        """Runs the check; False also when it takes longer than the patience."""
        try:
            async with asyncio.timeout(self._patience):
                if not self._proven:
                    await self._generation.run(self._job)
                    self._proven = True
                    return True
                return self._engine.responsive(self._patience) and await asyncio.to_thread(self._device_works)
        except (TimeoutError, ShortstackError, RuntimeError):
            return False

    def _device_works(self) -> bool:
        return float(torch.ones(2, device=self._device).sum()) == 2.0
