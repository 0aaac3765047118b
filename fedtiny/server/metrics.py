"""What Prometheus sees of a coordinator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, start_http_server
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from fedtiny.server.conductor import Conductor


class Metrics:
    """The counters of one coordinator, in a registry of its own."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor
        self.registry = CollectorRegistry()
        self._submitted = Counter(
            "fedtiny_updates", "Updates by the status of their receipt", ["status"],
            registry=self.registry,
        )  # fmt: skip
        self._judged = Counter(
            "fedtiny_judgements", "Judgements of held-out devices by the status of their receipt",
            ["status"], registry=self.registry,
        )  # fmt: skip
        self._refused = Counter(
            "fedtiny_refusals", "Calls and messages refused, by reason", ["reason"],
            registry=self.registry,
        )  # fmt: skip
        self._fetched = Counter(
            "fedtiny_fetched_bytes", "Bytes of Programs and models that were fetched",
            registry=self.registry,
        )  # fmt: skip
        self.registry.register(self)

    def submitted(self, status: str, judged: bool = False) -> None:
        """An update was answered, or what a held-out device has ``judged``."""
        (self._judged if judged else self._submitted).labels(status).inc()

    def refused(self, reason: str) -> None:
        """A call was refused."""
        self._refused.labels(reason).inc()

    def fetched(self, nbytes: int) -> None:
        """A chunk was fetched."""
        self._fetched.inc(nbytes)

    def serve(self, host: str, port: int) -> tuple[Any, int]:
        """Answer ``http://host:port/metrics``; the server, to be shut down, and its port."""
        server, _ = start_http_server(port, host, self.registry)
        return server, server.server_port

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What is so at the moment; each figure is read as it stands."""
        conductor = self._conductor
        gauges = {
            "fedtiny_devices_joined": ("Devices that have joined", len(conductor.devices)),
            "fedtiny_devices_waiting": ("Devices that wait for work", len(conductor.parked)),
            "fedtiny_cycles": ("Cycles of the conductor", conductor.cycles),
            "fedtiny_served_seconds": ("Seconds of service", conductor.now()),
        }
        for name, (told, value) in gauges.items():
            yield GaugeMetricFamily(name, told, value=value)
        yield from self._runs()

    def _runs(self) -> Iterator[GaugeMetricFamily]:
        figures: dict[str, tuple[str, Callable[[Any], float]]] = {
            "fedtiny_round": ("Committed rounds", lambda rounds: rounds.round),
            "fedtiny_version": ("Version of the model", lambda rounds: rounds.version),
            "fedtiny_accepted": ("Updates of the open round", lambda rounds: rounds.accepted),
            "fedtiny_drop_out": ("Share of lost leases", lambda rounds: rounds.drop_out.share),
        }
        for name, (told, figure) in figures.items():
            family = GaugeMetricFamily(name, told, labels=["run"])
            for run, hosted in self._conductor.hosted.items():
                family.add_metric([run], figure(hosted.coordinator.rounds))
            yield family
