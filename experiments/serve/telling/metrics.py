"""What Prometheus is told."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 128)


class Metrics:
    """The counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()

        def counter(name: str, about: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"resprune_{name}", about, labels, registry=own)

        def histogram(name: str, about: str, marks: tuple[float, ...]) -> Histogram:
            return Histogram(f"resprune_{name}", about, buckets=marks, registry=own)

        self.requests = counter("requests", "Chat requests by HTTP status.", ("status",))
        self.cancelled = counter(
            "cancelled_requests", "Clients that went away before their answer.", ("stage",)
        )
        self.batches = counter("batches", "Batches that ran.")
        self.batch_rows = histogram("batch_rows", "Requests of a batch.", _ROWS)
        self.wait = histogram("wait_seconds", "From acceptance to the batch.", _SECONDS)
        self.latency = histogram("request_seconds", "From the body's end to the answer.", _SECONDS)
        self.phases = counter("phase_seconds", "Time of batches by phase.", ("phase",))
        self.visual = counter(
            "visual_tokens", "Visual tokens of answered requests, given and kept.", ("stage",)
        )
        self.tokens = counter("generated_tokens", "Tokens of answers.")

    def gauges(self, read: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """Gauges that are read when they are asked for: by name, what they say and a function."""
        for name, (about, value) in read.items():
            Gauge(f"resprune_{name}", about, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
