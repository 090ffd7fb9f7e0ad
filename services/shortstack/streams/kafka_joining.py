"""A join that outlives the poll it began in is finished by the next one.

kafka-python 3.0.12 gives a join up to the time-out of its poll, and asks before each poll whether the group has to be
joined. Where it joins because its topics' metadata changed, which it does once after every start, the leader forgets
that reason as soon as it has made the assignment, in the middle of the join. A poll that ends between that and the
join's end leaves a member that is never joined: it goes on reading what it held before, sends no heartbeat, is
expelled after its session, and every commit is refused as "rebalancing", for ever.
"""

from __future__ import annotations

from typing import Any, Final

from kafka.coordinator.consumer import ConsumerCoordinator

__all__ = ["mend_joining"]

_NEEDED: Final = ConsumerCoordinator.need_rejoin


def mend_joining() -> None:
    """Puts `_need_rejoin` in the place of kafka-python's; calling it twice changes nothing."""
    ConsumerCoordinator.need_rejoin = _need_rejoin


def _need_rejoin(coordinator: Any) -> bool:
    """Whether the group has to be joined; ``rejoining`` is set from a join's beginning until it was applied."""
    return bool(coordinator.rejoining or _NEEDED(coordinator))
