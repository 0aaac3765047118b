"""What a round asks of a Program: what comes back, and what the Program cannot do."""

from __future__ import annotations

from collections.abc import Iterator

from fedtiny.engine.image import FEATURES
from fedtiny.engine.program import Program
from fedtiny.errors import FedtinyError
from fedtiny.layout import Layout, Ranges
from fedtiny.masks import remembered
from fedtiny.tensors import FLOAT_BYTES
from fedtiny.transforms import table
from fedtiny.values import CALIBRATE, EVALUATE, RANGES, TRAIN, Instruction


def returned(program: Program, asked: Instruction) -> Ranges:
    """The coordinates that come back: of the model, of statistics of candidates, or of sums."""
    if asked.sums:
        return ((0, asked.sums.floats(program.layout)),)
    if asked.asks_ranges:
        blind = program.range_parameters and asked.returns == RANGES
        return () if blind else ((0, asked.floats(program.layout)),)
    if asked.pools:
        return ((0, len(asked.candidates) * program.statistics_floats),)
    if asked.grow and asked.sends_gradient:
        return ((0, program.layout.size),)
    return program.sent_ranges(asked)


def kept_vectors(asked: Instruction, layout: Layout) -> int:
    """How many vectors as long as the model a device holds beside it to carry this out: for its
    transforms, its control variate, a model of its own, the way back from a step ahead; or the
    model with other last layers, and sums in float64."""
    if asked.sums:
        return 1 + -(-2 * asked.sums.floats(layout) // layout.size)
    changed = table.kept_vectors(asked.transforms, asked.sends_gradient)
    looks_ahead = any(phase.ahead for phase in asked.phases)
    return changed + asked.control + bool(asked.own) + looks_ahead


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
    if asked.pools or asked.sums:
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
    if asked.sums:
        yield from _sums_flaws(program, asked.sums.head)
    if program.int8_parameters:
        yield from _int8_flaws(program, asked)
    yield from _memory_flaws(program, asked)
    if program.density < 1 and picks_masks(asked) and "base_bytes" not in program.report():
        yield (
            "has candidates, for which the Programs have no memory: the rehearsal of the run had "
            "none; let it not depend on what devices send whether masks are selected"
        )
    if program.density < 1 and not all(isinstance(one, int) for one in asked.candidates):
        yield "has candidates that are vectors; those of pruned Programs are the seeds of masks"


def _memory_flaws(program: Program, asked: Instruction) -> Iterator[str]:
    moving = sorted({"feedback", "randomk"} & {transform.name for transform in asked.transforms})
    if program.density < 1 and moving:
        yield (
            f"uses {' and '.join(moving)} with pruned Programs (density {program.density:g}), "
            "whose mask moves from round to round; take topk, or set device.density = 1"
        )
    floats = program.layout.size
    if program.density < 1:
        floats += program.capacity - _prunable_floats(program)
    needed = FLOAT_BYTES * floats * kept_vectors(asked, program.layout)
    room = program.report().get("kept_bytes", 0)
    if needed > room:
        yield (
            f"makes devices keep {needed:,} B beside the model, the Programs have memory for "
            f"{room:,} B; ask for as much in round 0 too"
        )


def _int8_flaws(program: Program, asked: Instruction) -> Iterator[str]:
    remedy = "; set device.dtype = 'float32'"
    if any(phase.ahead for phase in asked.phases):
        yield f"looks a step ahead, and the way back would round int8 weights{remedy}"
    if picks_masks(asked):
        yield f"has candidates by their seeds, which int8 has no ranges of activations for{remedy}"
    if asked.sums and program.head in {p.name for p in program.int8_parameters}:
        yield f"sums what {program.head} takes, which is int8; set device.head = 'float32'"


def _sums_flaws(program: Program, head: str) -> Iterator[str]:
    if program.density < 1:
        yield (
            f"sums features of pruned Programs (density {program.density:g}), which do not store "
            "every weight of the last layer; set device.density = 1"
        )
    elif program.head != head:
        ends = f"ends with {program.head}" if program.head else "does not end with a linear layer"
        yield f"sums what {head} takes, but the model {ends}; sum features of its last layer"
    if program.loss != "cross_entropy":
        yield f"sums features by class; the samples have none, the loss is {program.loss}"


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
