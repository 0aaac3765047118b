"""What a round asks of a Program: what comes back, and what the Program cannot do."""

from __future__ import annotations

from collections.abc import Iterator

from fedtiny.engine.image import FEATURES
from fedtiny.engine.program import Program
from fedtiny.errors import FedtinyError
from fedtiny.masks import remembered
from fedtiny.values import CALIBRATE, EVALUATE, TRAIN, Instruction, Ranges


def returned(program: Program, asked: Instruction) -> Ranges:
    """The coordinates that come back: of the model, or of the statistics of candidates."""
    if asked.pools:
        return ((0, len(asked.candidates) * program.statistics_floats),)
    if asked.grow and asked.sends_gradient:
        return ((0, program.layout.size),)
    return program.sent_ranges(asked)


def picks_masks(asked: Instruction) -> bool:
    """Whether pruned devices are to try masks of their own making on all weights of the model."""
    return any(isinstance(one, int) for one in asked.candidates)


def measured(program: Program, asked: Instruction) -> tuple[str, ...]:
    """The names of what a visit measures, as a Learner gives them."""
    if asked.kind == TRAIN:
        return ("loss_sum", "steps")
    if asked.kind == EVALUATE:
        return (
            *(f"{n}_{at}" for n in ("loss_sum", "correct") for at in ("before", "after")),
            "count",
        )
    if asked.pools:
        return ()
    if asked.kind == CALIBRATE:
        moments = ("count", "sum", "sum_squares", "min", "max")
        return tuple(f"{name}.{what}" for name in program.forward_names for what in moments)
    return (*(f"loss_sum.{index}" for index in range(len(asked.candidates))), "count")


def flaws(program: Program, asked: Instruction) -> Iterator[str]:
    """What of an instruction the Program cannot carry out."""
    # The gradient is returned in the memory of the momentum.
    sgd, bits = asked.sgd, FEATURES | {"gradient": FEATURES["momentum"]}
    for feature, bit in bits.items():
        if getattr(sgd, feature) and not program.tables.features & bit:
            yield (
                f"uses {feature}, for which the Programs have no memory; ask for it in round 0 "
                f"too, or declare `reserve: ClassVar[Sgd] = Sgd({feature}=...)`"
            )
    if asked.kind == TRAIN and not program.sent_ranges(asked):
        yield (
            "trains groups of which a Program of the fleet sends nothing; name others, or change "
            "the plan"
        )
    if asked.kind in (TRAIN, EVALUATE):
        yield from _mask_flaws(program, asked)
    if asked.grow:
        yield from _growth_flaws(program, asked)
    if program.density < 1 and picks_masks(asked) and "base_bytes" not in program.report():
        yield (
            "has candidates, for which the Programs have no memory: the rehearsal of the run had "
            "none; let it not depend on what devices send whether masks are selected"
        )
    if program.density < 1 and not all(isinstance(one, int) for one in asked.candidates):
        yield "has candidates that are vectors; those of pruned Programs are the seeds of masks"


def _mask_flaws(program: Program, asked: Instruction) -> Iterator[str]:
    if program.density == 1:
        return
    try:
        blob = asked.of(program.density).mask
        mask = remembered(blob, program.layout) if blob else None
    except FedtinyError as error:
        yield f"has masks that are of no use: {error}"
        return
    if mask is None:
        yield (
            f"has no mask for the density {program.density:g} of its devices; take a strategy that "
            "prunes, such as fedtiny, or set device.density = 1"
        )
        return
    live = mask.length(program.layout.ranges(program.prunable))
    if live > program.capacity:
        yield (
            f"keeps {live:,} weights alive where the Programs of density {program.density:g} hold "
            f"{program.capacity:,}; let masks() keep fewer, or raise device.density"
        )
    dead = program.layout.size - mask.count - (_prunable_floats(program) - live)
    if dead:
        yield f"prunes {dead:,} parameters that are no weights of {', '.join(program.prunable)}"


def _prunable_floats(program: Program) -> int:
    return sum(program.layout[name].size for name in program.prunable)


def _growth_flaws(program: Program, asked: Instruction) -> Iterator[str]:
    unknown = {name for name, _ in asked.grow} - set(program.prunable)
    if unknown:
        yield f"grows {sorted(unknown)}; what can be pruned are {', '.join(program.prunable)}"
    if program.density == 1:
        yield "grows weights of Programs that are dense; set device.density below 1"
        return
    wanted, bucket = sum(count for _, count in asked.grow), program.tables.bucket
    if wanted > bucket:
        yield (
            f"grows {wanted:,} weights; the Programs of density {program.density:g} have memory to "
            f"find {bucket:,}: let bucket() return more, or grow fewer"
        )
