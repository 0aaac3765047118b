"""The RAM in which large nets train on a device, beside that of the published engine.

    python benchmarks/budgets.py

Batch 1; stack and 24 KiB for the rest of the firmware are in it. "sparse" is the zoo's plan: 22
biases, the head, and a quarter of the input channels of four or five pointwise convolutions.
"""

from __future__ import annotations

from collections.abc import Iterator

from fedtiny.engine.compile import build
from fedtiny.engine.zoo import ZOO

NETS = ("mobilenet_v2", "mobilenet_v2_128", "mcunet")
PLANS = ("last:1", "sparse", "all")
RESERVE = 24 * 1024
PUBLISHED = (
    "| published engine, MCUNet at 128, sparse: as planned | | 173 KB |",
    "| the same as built for an emulated Cortex-M4, smaller plan (49 KB): with its stack | | "
    "254,768 B |",
)
"""Lin et al. 2022, figure 10; and what its own code takes (without 24 KiB for others)."""


def rows() -> Iterator[str]:
    """The table, row by row."""
    yield "| net, plan | float32 | int8 |"
    yield "| --- | ---: | ---: |"
    for name in NETS:
        for plan in PLANS:
            told = ZOO[name].sparse if plan == "sparse" else plan
            cells = (f"{ram_bytes(name, told, dtype):,} B" for dtype in ("float32", "int8"))
            yield f"| {name}, {plan} | {' | '.join(cells)} |"
    yield from PUBLISHED


def ram_bytes(name: str, plan: str, dtype: str) -> int:
    """The whole device's. Patches of the first stage are searched for where they pay."""
    entry = ZOO[name]
    patches = "auto" if dtype == "int8" and plan != "all" else 1
    built = build(
        entry.plain(), loss=entry.loss, plan=plan, dtype=dtype, reserve=RESERVE, patches=patches
    )
    return built.program.report()["ram_bytes"]


if __name__ == "__main__":
    for row in rows():
        print(row, flush=True)
