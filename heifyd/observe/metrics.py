"""What Prometheus is told: counters of what the log and the requests say, gauges of what a look sees."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, Metric, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import choose_encoder

from heifyd import __version__
from heifyd.observe.look import Look
from heifyd.wording import printable

OUTCOMES: Final = {f"recording.{outcome}": outcome for outcome in ("done", "failed", "changed", "reopened", "vanished")}
"""The log's events that end a recording's journey, and what that end is called."""

ENDPOINTS: Final = ("request-upload-url", "put", "get-transcription")
_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 4 * 3600, 24 * 3600, 72 * 3600)


class Metrics:
    """One heifyd's metrics. They live as long as the process, so that a reload resets no counter. Thread-safe.

    `tell` is to be given the log's events; `sent` and `answered` make it a `heify.Listener`.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._seen = _Seen()
        registry = self._registry
        ProcessCollector(registry=registry)
        Info("heifyd_build", "Which heifyd this is.", registry=registry).info({"version": __version__})
        self._settled = Counter(
            "heifyd_recordings_settled",
            "Recordings that were found finished, and were queued.",
            ["folder"],
            registry=registry,
        )
        self._recordings = Counter(
            "heifyd_recordings",
            "Recordings whose journey ended: done (in Heify, and filed), failed (moved to the failed directory), or "
            "changed, reopened or vanished (not the same file any more, or gone, before that).",
            ["folder", "outcome"],
            registry=registry,
        )
        self._seconds = Histogram(
            "heifyd_recording_seconds",
            "From a recording being found finished to its being in Heify and filed.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._bytes = Counter(
            "heifyd_uploaded_bytes",
            "Bytes of recordings handed to the network, those that had to be sent again included.",
            registry=registry,
        )
        self._requests = Counter(
            "heifyd_api_requests",
            "Requests to Heify (request-upload-url, get-transcription) and to its storage (put), by the HTTP status of "
            "the answer, or by the reason that there was none, such as dns, connect, tls or read_timeout.",
            ["endpoint", "status"],
            registry=registry,
        )
        self._stuck = Gauge(
            "heifyd_stuck_threads", "Threads that make no progress; /healthz names them.", registry=registry
        )
        registry.register(self._seen)
        for endpoint in ENDPOINTS:
            self._requests.labels(endpoint, "200")

    def know(self, folders: Iterable[str]) -> None:
        """Count for these folders from zero: a counter that appears with its first failure shows no increase."""
        for folder in map(label, folders):
            self._settled.labels(folder)
            self._recordings.labels(folder, "done")
            self._recordings.labels(folder, "failed")

    def tell(self, event: Mapping[str, Any]) -> None:
        """Take in an event of the log."""
        name = event["event"]
        if name == "recording.settled":
            self._settled.labels(label(event["folder"])).inc()
        elif (outcome := OUTCOMES.get(name)) is not None:
            self._recordings.labels(label(event["folder"]), outcome).inc()
            if outcome == "done":
                self._seconds.observe(event["total_ms"] / 1000)

    def sent(self, size_bytes: int) -> None:
        """Take in that so many bytes of a recording are on their way."""
        self._bytes.inc(size_bytes)

    def answered(self, endpoint: str, outcome: str) -> None:
        """Take in that a request is over."""
        self._requests.labels(endpoint, outcome).inc()

    def text(self, look: Look, stuck: Sequence[str], accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that an Accept header asks for, and the format's Content-Type.

        For one thread alone.
        """
        self._seen.look = look
        self._stuck.set(len(stuck))
        encode, content_type = choose_encoder(accept)
        return encode(_WithoutCreated(self._registry)), content_type

    def families(self, look: Look) -> list[Metric]:
        """Return every metric as it is with this look. For one thread alone."""
        self._seen.look = look
        return list(_WithoutCreated(self._registry).collect())


class _WithoutCreated:
    """A registry without the time at which each series began: it doubles them, and nothing here asks for it.

    prometheus_client leaves it out only for all registries of a process at once.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        """Give each metric."""
        for metric in self._registry.collect():
            metric.samples = [each for each in metric.samples if not each.name.endswith("_created")]
            yield metric


class _Seen:
    """Gives what a look sees as metrics (prometheus_client's custom collector)."""

    look: Look | None = None

    def describe(self) -> list[Metric]:
        """Return the metrics that this may give: none of another name has to be looked for."""
        return list(_gauges(None))

    def collect(self) -> Iterator[Metric]:
        """Give each metric."""
        return _gauges(self.look)


def _gauges(look: Look | None) -> Iterator[Metric]:
    """Give the metrics of a look, each without a value where there is none."""
    seen = look.overview if look else None
    readable = GaugeMetricFamily("heifyd_ledger_readable", "1 where the ledger can be read, else 0.")
    waiting = GaugeMetricFamily(
        "heifyd_waiting_recordings", "Recordings that wait for their upload.", labels=["folder"]
    )
    uploading = GaugeMetricFamily(
        "heifyd_uploading_recordings", "Recordings that a worker has in hand.", labels=["folder"]
    )
    failed = GaugeMetricFamily(
        "heifyd_failed_recordings", "Recordings that failed and were not brought back.", labels=["folder"]
    )
    oldest = GaugeMetricFamily(
        "heifyd_oldest_waiting_seconds",
        "How long ago the oldest recording that is not in Heify yet was found finished; 0 where there is none.",
        labels=["folder"],
    )
    holds = GaugeMetricFamily(
        "heifyd_holds",
        "1 for each hold in force: of everything or of a folder (scope), by whose fault (owner), and why (reason).",
        labels=["scope", "owner", "reason"],
    )
    workers = GaugeMetricFamily("heifyd_workers", "Recordings that may be uploaded at once.")
    busy = GaugeMetricFamily("heifyd_workers_busy", "Workers that have a recording in hand.")
    free = GaugeMetricFamily("heifyd_ledger_disk_free_bytes", "Room that is left on the ledger's disk.")
    if look is not None:
        if look.subject.is_running:
            readable.add_metric([], seen is not None)
        workers.add_metric([], look.subject.workers)
        for hold in look.holds:
            holds.add_metric([label(hold.scope) or "everything", hold.owner, hold.reason], 1)
        if look.free_bytes is not None:
            free.add_metric([], look.free_bytes)
    if look is not None and seen is not None:
        busy.add_metric([], sum(each.counts.uploading for each in seen.folders))
        for each in seen.folders:
            folder, counts = [label(each.folder)], each.counts
            waiting.add_metric(folder, counts.waiting)
            uploading.add_metric(folder, counts.uploading)
            failed.add_metric(folder, counts.failed)
            since = counts.oldest_settled_at
            oldest.add_metric(folder, 0.0 if since is None else max(0.0, look.at - since))
    yield from (readable, waiting, uploading, failed, oldest, holds, workers, busy, free)


def label(folder: str) -> str:
    """Turn a folder into a label's value: UTF-8, on one line, and different for different folders."""
    return printable(folder.replace("\\", "\\\\"))
