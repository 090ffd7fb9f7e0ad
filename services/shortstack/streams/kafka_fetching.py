"""A partition that was paused is heard again after it is resumed.

kafka-python 3.0.12 sets aside what it holds of a paused partition, and fetches nothing more of it meanwhile. It takes
it up again only while no other partition's records are in line; but those stay in line when all of them were given out,
until the next fetch brings some. Where nothing else arrives, the resumed partition is never heard of again.
"""

from __future__ import annotations

from typing import Any, Final

from kafka.consumer.fetcher import Fetcher

__all__ = ["mend_fetching"]

_FETCHED: Final = Fetcher.fetched_records


def mend_fetching() -> None:
    """Puts `_fetched_records` in the place of kafka-python's; calling it twice changes nothing."""
    Fetcher.fetched_records = _fetched_records


def _fetched_records(fetcher: Any, *arguments: Any, **named: Any) -> Any:
    if not fetcher._next_partition_records:  # all given out is as good as nothing
        fetcher._next_partition_records = None
    return _FETCHED(fetcher, *arguments, **named)
