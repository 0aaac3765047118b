"""The structures of a fleet call lie in memory as the C header says."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

from fedtiny.engine.fleet_call import FleetStruct, OutcomeStruct, PhaseStruct, TaskStruct
from fedtiny.engine.native import HyperStruct, ScoreStruct
from fedtiny.engine.runtime import build

PROBE = """
#include <stdio.h>
#include "host/ft_fleet.h"
int main(void) {{
  {lines}
  return 0;
}}
"""


STRUCTS = {
    "ft_task": TaskStruct, "ft_fleet": FleetStruct, "ft_hyper": HyperStruct,
    "ft_phase": PhaseStruct, "ft_score": ScoreStruct, "ft_outcome": OutcomeStruct,
}  # fmt: skip


def test_the_structures_are_those_of_the_header(tmp_path: Path) -> None:
    expected = {}
    for name, struct in STRUCTS.items():
        expected[name, ""] = ctypes.sizeof(struct)
        for field, *_ in struct._fields_:
            expected[name, field] = getattr(struct, field).offset
    sizes = [
        f"offsetof({name}, {field})" if field else f"sizeof({name})" for name, field in expected
    ]
    lines = "\n".join(f'printf("%zu\\n", (size_t)({size}));' for size in sizes)
    source, binary = tmp_path / "probe.c", tmp_path / "probe"
    source.write_text(PROBE.format(lines=lines))
    subprocess.run(
        [*build.compiler(), "-std=c99", f"-I{build.HERE}", source, "-o", binary], check=True
    )
    found = subprocess.run([binary], capture_output=True, text=True, check=True).stdout.split()
    assert dict(zip(expected, map(int, found), strict=True)) == expected
