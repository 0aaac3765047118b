"""A net of which the strategy leaves some parameters on the devices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fedtiny.layout import LOCAL, Layout

if TYPE_CHECKING:
    from collections.abc import Collection

    from fedtiny.engine.compile import Compilable
    from fedtiny.engine.ir import Graph


@dataclass(frozen=True, eq=False)
class Localised:
    """The net with these parameters in the group "local", whatever group they were made in."""

    net: Compilable
    local: Collection[str]

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.net.sample_shape

    @property
    def axes(self) -> tuple[int, ...]:
        """The order in which a device stores a sample's axes."""
        return tuple(getattr(self.net, "axes", ()))

    def graph(self, batch: int) -> Graph:
        """The forward graph at a batch size."""
        graph = self.net.graph(batch)
        groups = ((p, LOCAL if p.name in self.local else p.group) for p in graph.layout.parameters)
        return replace(graph, layout=Layout.of(replace(p, group=group) for p, group in groups))
