"""What has been made of a model: its Program, the figures, and whether it fits."""

from __future__ import annotations

from functools import cached_property

from fedtiny.engine import ir, ops
from fedtiny.engine.image import write_image
from fedtiny.engine.ir import Op
from fedtiny.engine.program import Program, ram_parts
from fedtiny.engine.quantize import INT8
from fedtiny.engine.records import Decisions, tables
from fedtiny.engine.sparsity import PLACE_BYTES
from fedtiny.errors import BudgetError
from fedtiny.tensors import FLOAT_BYTES

STACK_BYTES = 2048
"""Bound of the small runtime's stack; a test adds up the compiler's own figures."""
RUNTIME_BYTES = 64 * 1024
"""Bound of the small runtime's code and constants; a test measures it."""
FLASH_PARTS = ("image", "runtime", "frozen")
"""What a device's flash holds; ``PART_bytes`` are keys of a Program's report."""


class Build(Decisions):
    """The Program of these decisions."""

    @cached_property
    def program(self) -> Program:
        """The Program; its card carries the report, whose image size depends on the card itself."""
        report = _report(self)
        size = 0
        while report["image_bytes"] != size:
            size = report["image_bytes"]
            image = write_image(tables(self, report))
            report["image_bytes"] = len(image)
            report["flash_bytes"] = len(image) + RUNTIME_BYTES + report["frozen_bytes"]
        return Program(image, self.graph.start)

    def check(self, ram: int, flash: int) -> None:
        """BudgetError with the figures if it needs more bytes."""
        report = self.program.report()
        for what, needed, given, told in (
            ("RAM", report["ram_bytes"], ram, _told_ram),
            ("flash", report["flash_bytes"], flash, _told_flash),
        ):
            if needed > given:
                message = f"needs {needed:,} B of {given:,} B {what} {told(self, report)}"
                raise BudgetError(message, needed, given, self.program)


# ---- the report ------------------------------------------------------------------------------


def _report(build: Build) -> dict[str, int]:
    graph, pool = build.graph, build.pool
    tensors, ops_macs = graph.tensors, [_macs(build, op) for op in graph.ops]
    bucket_bytes = pool.bucket * PLACE_BYTES
    figures = {
        "parameters_bytes": build.bytes_of(ir.PARAMETER) + pool.words * 4,
        "arena_bytes": build.memory.arena_bytes,
        "state_bytes": build.state_floats * 4 + bucket_bytes,
        "sample_bytes": tensors[graph.input].nbytes + tensors[graph.label].nbytes,
        "stack_bytes": STACK_BYTES,
        "reserve_bytes": build.reserve,
        **({"base_bytes": graph.layout.nbytes} if build.dense_base else {}),
        **({"kept_bytes": build.kept_bytes} if build.kept_vectors else {}),
    }
    pruned = {
        "live_values": pool.capacity,
        "index_bytes": pool.index_words * 4,
        "bucket_bytes": bucket_bytes,
    }
    return {
        **figures,
        "ram_bytes": sum(figures.values()),
        "image_bytes": -1,
        "runtime_bytes": RUNTIME_BYTES,
        "frozen_bytes": build.bytes_of(ir.FROZEN_HOME),
        "flash_bytes": 0,
        "lower_bound_bytes": build.lower_bound,
        "trained_parameters": build.trained_floats,
        "macs_per_forward": sum(ops_macs[: graph.n_forward]),
        "macs_per_step": sum(ops_macs),
        **(pruned if pool.counts else {}),
    }


def _macs(build: Build, op: Op) -> int:
    dense = ops.macs(op, build.graph.tensors)
    return build.pool.macs(op, dense)


# ---- the budget ------------------------------------------------------------------------------


def _told_ram(build: Build, report: dict[str, int]) -> str:
    """What it is needed for, and what would need less."""
    parts = ", ".join(f"{name} {nbytes:,}" for name, nbytes in ram_parts(report).items())
    fewer = "select fewer candidates: candidates = 1 needs no dense model; "
    keep = f"keep fewer vectors than {build.kept_vectors}: leave transforms out; "
    return (
        f"({parts}); largest: {_largest(build, ir.ARENA, ir.PARAMETER)}; "
        f"{fewer if build.dense_base else ''}{keep if build.kept_vectors else ''}"
        f"train fewer layers, lower the batch, {_smaller(build)}"
    )


def _told_flash(build: Build, report: dict[str, int]) -> str:
    """What it is needed for, and what would need less."""
    parts = ", ".join(f"{name} {report[f'{name}_bytes']:,}" for name in FLASH_PARTS)
    frozen = f"; largest: {_largest(build, ir.FROZEN_HOME)}" if report["frozen_bytes"] else ""
    return f"({parts}){frozen}; {_smaller(build)}"


def _smaller(build: Build) -> str:
    eighths = "" if build.dtype == INT8 else "compile with dtype='int8', "
    return f"{eighths}or take a smaller net"


def _largest(build: Build, *homes: str) -> str:
    """The three largest tensors there."""
    sizes = [(t.nbytes, t.name) for t in build.graph.tensors.values() if t.home in homes]
    if build.pool.words and ir.PARAMETER in homes:
        sizes.append((build.pool.words * FLOAT_BYTES, "the live weights"))
    return ", ".join(f"{name} {size:,} B" for size, name in sorted(sizes, reverse=True)[:3])
