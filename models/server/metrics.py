"""What the server counts, in the text format of Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters of one server.

    Args:
        waiting: number of requests that wait for the model. under_way: number of requests that are taken.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, waiting: Callable[[], float], under_way: Callable[[], float]) -> None:
        self._registry = own = CollectorRegistry()
        labels = ["method"]
        self._requests = Counter("ofa_requests", "Answered requests.", [*labels, "status"], registry=own)
        self._seconds = Histogram("ofa_request_seconds", "From head to answer.", labels, registry=own, buckets=SECONDS)
        self._batches = Histogram("ofa_batch_size", "Requests in a batch.", labels, registry=own, buckets=SIZES)
        Gauge("ofa_queue_length", "Requests that wait for the model.", registry=own).set_function(waiting)
        Gauge("ofa_requests_under_way", "Requests that are taken.", registry=own).set_function(under_way)

    def request(self, method: str, status: int, seconds: float) -> None:
        """Counts a request."""
        self._requests.labels(method, str(status)).inc()
        self._seconds.labels(method).observe(seconds)

    def batch(self, method: str, size: int) -> None:
        """Counts a batch."""
        self._batches.labels(method).observe(size)

    def text(self) -> bytes:
        """All of it."""
        return generate_latest(self._registry)
