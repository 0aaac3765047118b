"""Which parameters an UpdatePlan trains in this engine."""

from __future__ import annotations

from fedtiny.errors import CompileError
from fedtiny.update_plan import Part, UpdatePlan
from fedtiny.values import Layout


def trained_parameters(plan: UpdatePlan, layout: Layout) -> tuple[str, ...]:
    """The names of the trained parameters, in the order of the layout.

    Raises CompileError for channel slices: this engine trains whole parameters.
    """
    parts = plan.resolve(layout)
    narrowed = {name: part.axis for name, part in parts.items() if part != Part()}
    if narrowed:
        raise CompileError(
            f"the plan narrows {narrowed}; this engine trains whole parameters: "
            "leave the parts out, or name fewer parameters"
        )
    return tuple(parts)
