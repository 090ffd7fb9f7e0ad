"""TGI's metrics under TGI's names, in an exposition of our own.

`prometheus_client` would add `_total` to every counter, and TGI's dashboards and alerts know no such name. As in
TGI, a metric appears with its first sample, so a server that has answered nothing shows an empty page.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

__all__ = ["Counter", "Gauge", "Histogram", "Metrics", "Summary"]

_Labels = tuple[tuple[str, str], ...]


def _shown(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def _sample(name: str, labels: _Labels, value: float) -> str:
    inside = ",".join(f'{key}="{text}"' for key, text in labels)
    return f"{name}{{{inside}}} {_shown(value)}" if inside else f"{name} {_shown(value)}"


class _Metric:
    kind = ""

    def __init__(self, name: str, described: str) -> None:
        self.name = name
        self.described = described
        self._lock = threading.Lock()

    def lines(self) -> list[str]:
        """Exposition lines with their head; none before the first sample."""
        with self._lock:
            samples = list(self._samples())
        head = [f"# HELP {self.name} {self.described}"] if self.described else []
        return [*head, f"# TYPE {self.name} {self.kind}", *samples] if samples else []

    def _samples(self) -> Iterator[str]:
        raise AssertionError(f"{type(self).__name__} gives no samples")


class _Single(_Metric):
    def __init__(self, name: str, described: str) -> None:
        super().__init__(name, described)
        self._values: dict[_Labels, float] = {}

    def value(self, **labels: str) -> float:
        """The present value; 0 before the first sample."""
        return self._values.get(tuple(sorted(labels.items())), 0.0)

    def _samples(self) -> Iterator[str]:
        return (_sample(self.name, labels, value) for labels, value in self._values.items())


class Counter(_Single):
    """A count that only grows."""

    kind = "counter"

    def add(self, amount: float = 1, **labels: str) -> None:
        """Counts ``amount`` more."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            self._values[key] = self._values.get(key, 0) + amount


class Gauge(_Single):
    """A value that goes up and down."""

    kind = "gauge"

    def set(self, value: float) -> None:
        """The value from now on."""
        with self._lock:
            self._values[()] = value


@dataclass(slots=True)
class _Distribution:
    buckets: list[int]
    total: float = 0.0
    count: int = 0


class Histogram(_Metric):
    """Counts by upper bound, cumulative on the page."""

    kind = "histogram"

    def __init__(self, name: str, described: str, bounds: Iterable[float]) -> None:
        super().__init__(name, described)
        self._bounds = sorted(bounds)
        self._series: dict[_Labels, _Distribution] = {}

    def observe(self, value: float, **labels: str) -> None:
        """Adds one value."""
        key = tuple(sorted(labels.items()))
        with self._lock:
            series = self._series.setdefault(key, _Distribution([0] * (len(self._bounds) + 1)))
            series.buckets[bisect_left(self._bounds, value)] += 1
            series.total += value
            series.count += 1

    def _samples(self) -> Iterator[str]:
        for labels, series in self._series.items():
            seen = 0
            for bound, count in zip(self._bounds, series.buckets[:-1], strict=True):
                seen += count
                yield _sample(f"{self.name}_bucket", (*labels, ("le", repr(float(bound)))), seen)
            yield _sample(f"{self.name}_bucket", (*labels, ("le", "+Inf")), series.count)
            yield _sample(f"{self.name}_sum", labels, series.total)
            yield _sample(f"{self.name}_count", labels, series.count)


class Summary(_Metric):
    """TGI's `tgi_request_skipped_tokens` is one; without speculation every value is 0."""

    kind = "summary"

    def __init__(self, name: str, described: str) -> None:
        super().__init__(name, described)
        self._count = 0

    def observe_zeros(self, count: int) -> None:
        """Adds ``count`` values, each 0."""
        with self._lock:
            self._count += count

    def _samples(self) -> Iterator[str]:
        if not self._count:
            return
        for quantile in ("0", "0.5", "0.9", "0.95", "0.99", "0.999", "1"):
            yield _sample(self.name, (("quantile", quantile),), 0)
        yield _sample(f"{self.name}_sum", (), 0)
        yield _sample(f"{self.name}_count", (), self._count)


def _durations() -> list[float]:
    """Seconds: 0.00015 × 1.5 thirty-five times, up to 146 (tgi-wire/19)."""
    bounds = [0.0001 * 1.5]
    while len(bounds) < 35:
        bounds.append(bounds[-1] * 1.5)
    return bounds


def _hundredths(largest: int) -> list[float]:
    return [largest * step / 100 for step in range(1, 101)]


def _time(name: str, described: str) -> Histogram:
    return Histogram(name, described, _durations())


@dataclass(frozen=True, slots=True)
class _RequestTimes:
    total: Histogram
    validation: Histogram
    queue: Histogram
    inference: Histogram
    per_token: Histogram


class Metrics:
    """Every metric of the server.

    Args:
        max_input_tokens, max_total_tokens: largest values of the length histograms.
    """

    def __init__(self, max_input_tokens: int, max_total_tokens: int) -> None:
        self.request_count = Counter("tgi_request_count", "Total number of requests")
        self.request_success = Counter("tgi_request_success", "Number of successful requests")
        self.request_failure = Counter("tgi_request_failure", "")
        self.batch_concat = Counter("tgi_batch_concat", "")
        self.batch_inference_count = Counter(
            "tgi_batch_inference_count", "Inference calls per method (prefill or decode)"
        )
        self.batch_inference_success = Counter(
            "tgi_batch_inference_success", "Number of successful inference calls per method (prefill or decode)"
        )
        self.batch_inference_failure = Counter("tgi_batch_inference_failure", "")
        self.queue_size = Gauge("tgi_queue_size", "Current queue size")
        self.batch_current_size = Gauge("tgi_batch_current_size", "Current batch size")
        self.batch_current_max_tokens = Gauge("tgi_batch_current_max_tokens", "Maximum tokens for the current batch")
        self.request_times = _RequestTimes(
            _time("tgi_request_duration", "Request duration"),
            _time("tgi_request_validation_duration", "Request validation duration"),
            _time("tgi_request_queue_duration", "Request queue duration"),
            _time("tgi_request_inference_duration", "Request inference duration"),
            _time("tgi_request_mean_time_per_token_duration", "Mean time per token per request"),
        )
        self.input_length = Histogram(
            "tgi_request_input_length", "Input token length per request", _hundredths(max_input_tokens)
        )
        self.generated_tokens = Histogram(
            "tgi_request_generated_tokens", "Generated tokens per request", _hundredths(max_total_tokens)
        )
        self.max_new_tokens = Histogram(
            "tgi_request_max_new_tokens", "Maximum new tokens per request", _hundredths(max_total_tokens)
        )
        self.skipped_tokens = Summary("tgi_request_skipped_tokens", "Speculated tokens per request")
        self.batch_next_size = Histogram("tgi_batch_next_size", "Batch size of the next batch", range(1, 1025))
        self.batch_inference_duration = _time("tgi_batch_inference_duration", "Batch inference duration")
        self.batch_forward_duration = _time(
            "tgi_batch_forward_duration", "Batch forward duration per method (prefill or decode)"
        )
        self.batch_decode_duration = _time(
            "tgi_batch_decode_duration", "Time spent decoding a batch per method (prefill or decode)"
        )
        self.batch_filter_duration = _time(
            "tgi_batch_filter_duration",
            "Time spent filtering batches and sending generated tokens per method (prefill or decode)",
        )

    def all(self) -> list[_Metric]:
        """Every metric, in the order of the page."""
        times = self.request_times
        own = [value for value in vars(self).values() if isinstance(value, _Metric)]
        return [*own, times.total, times.validation, times.queue, times.inference, times.per_token]

    def page(self) -> str:
        """The text of `/metrics`; empty until a request was counted (health checks are not)."""
        if not self.request_count.value():
            return ""
        return "".join(f"{line}\n" for metric in self.all() for line in metric.lines())
