"""The plan that adds most to learning within a budget of RAM, flash and multiply-adds.

What one would write is tried first: the last layers, the last biases. Then choices grow greedily:
what adds most for each byte is taken in its order, as far as it fits, and what still fits beside
it. Then small random changes of the best choices, of which the better ones stay. Whether something
fits is never estimated: every choice is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, TypeVar

from fedtiny import rng
from fedtiny.engine.compile import Compilable, build
from fedtiny.engine.patching import stage_of
from fedtiny.engine.quantize import INT8
from fedtiny.errors import BudgetError
from fedtiny.planning.choice import Choice, Menu, plan_gain, written
from fedtiny.tensors import FLOAT_BYTES
from fedtiny.update_plan import WHOLE, UpdatePlan

if TYPE_CHECKING:
    from fedtiny.engine.built import Build
    from fedtiny.planning.contribution import Contributions

SECOND_TRIES = 8
"""Choices that do not fit are left out; so many that come after the first one are still tried."""
CHANGES, PARENTS, COMPILED = 400, 4, 20
"""Random changes, the choices that they start from, and how many of them are compiled at most."""
READ_COSTS = (0.0, 1.0)
"""How much of what a gradient reads of the forward pass is thought to cost bytes: none where the
peak lies elsewhere, all where it lies there. The greedy choice is made for each."""
_BIAS_STEP = 4
_SLACK_BYTES = 1024
"""By how much the arena of a larger choice may be below that of the head alone."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a device has; ``macs_per_step`` 0: as long as it takes."""

    ram_bytes: int
    flash_bytes: int
    macs_per_step: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """A plan that was compiled: what it gives, and what it takes.

    ``gain`` is in units of what the head alone adds. ``weights`` are the parameters that train but
    for biases, of which ``slices`` train in part.
    """

    plan: str
    gain: float
    ram_bytes: int
    flash_bytes: int
    macs_per_step: int
    sent_bytes: int
    biases: int
    weights: int
    slices: int

    def rank(self) -> tuple[float, int, int, str]:
        """By which the best one is the least; of equals the one that is shortest to write."""
        return -round(self.gain, 9), self.ram_bytes, len(self.plan), self.plan

    def dominates(self, other: Found) -> bool:
        """Whether it gives as much for as little, and is not the same."""
        mine, its = ((round(f.gain, 9), -f.ram_bytes, -f.macs_per_step) for f in (self, other))
        return mine != its and all(a >= b for a, b in zip(mine, its, strict=True))

    def fits(self, limits: Limits) -> bool:
        """Whether a device has what it takes."""
        return (
            self.ram_bytes <= limits.ram_bytes
            and self.flash_bytes <= limits.flash_bytes
            and not 0 < limits.macs_per_step < self.macs_per_step
        )


@dataclass(frozen=True)
class Result:
    """The best plan, and all that were compiled on the way and fit."""

    best: Found
    tried: tuple[Found, ...]

    @property
    def frontier(self) -> tuple[Found, ...]:
        """Those than which no other gives more for less, by their RAM."""
        free = (f for f in self.tried if not any(o.dominates(f) for o in self.tried))
        alone: dict[tuple[int, int], Found] = {}
        for found in sorted(free, key=Found.rank):
            alone.setdefault((found.ram_bytes, found.macs_per_step), found)
        return tuple(alone[key] for key in sorted(alone))


def search(
    net: Compilable,
    contributions: Contributions,
    limits: Limits,
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda tried: None,
    **options: Any,
) -> Result:
    """The best plan of a net within the limits: at least as good as any `written` one that fits.

    Args:
        net: The model.
        contributions: What each coordinate adds (`fedtiny.planning.contribution`).
        limits: What the device has.
        seed: Of the random changes.
        progress: Told how many plans have been compiled.
        options: Those of `fedtiny.engine.compile.build`: loss, dtype, batch, ...

    Raises BudgetError if not even the head can train.
    """
    menu = Menu.of(net, contributions)
    asked = _with_stage(net, options)
    trial = _Trial(net, contributions, limits, asked, progress)
    _try_written(trial)
    if trial.fits(menu.plan(Choice())):
        # The last few percent of the bytes take the compiler longer than all else.
        quick = {**asked, "minimise": "time", "settle": False}
        _try_choices(replace(trial, options=quick), menu, seed)
    return trial.confirmed(options)


def _with_stage(net: Compilable, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with patches settled as they are best for the head: what trains beside it hardly
    changes them, and to choose them takes longer than all else."""
    if options.get("patches", 1) == 1:
        return dict(options)
    built = build(net, plan="last:1", **options)
    return {**options, "patches": stage_of(built.graph) or 1}


# ---- what fits -------------------------------------------------------------------------------


@dataclass
class _Trial:
    """The plans that were compiled, and what they take."""

    net: Compilable
    contributions: Contributions
    limits: Limits
    options: Mapping[str, Any]
    progress: Callable[[int], None]
    known: dict[UpdatePlan, Found] = field(default_factory=dict)

    def fits(self, plan: UpdatePlan) -> bool:
        """Whether it does; every plan is compiled once."""
        if plan not in self.known:
            self.known[plan] = self._found(plan, self.options)
            self.progress(len(self.known))
        return self.known[plan].fits(self.limits)

    def takes(self, menu: Menu, choice: Choice) -> bool:
        """Whether a choice fits. What trains comes on top of what the head alone takes, so that a
        choice which is too large by this need not be compiled."""
        head = self.known[menu.plan(Choice())]
        least = head.ram_bytes + menu.trained_bytes(choice, self.width)
        return least <= self.limits.ram_bytes + _SLACK_BYTES and self.fits(menu.plan(choice))

    @property
    def width(self) -> int:
        """Bytes of a weight that trains."""
        return 1 if self.options.get("dtype") == INT8 else FLOAT_BYTES

    @property
    def fitting(self) -> list[Found]:
        """Those that fit, the best one first."""
        fitting = (found for found in self.known.values() if found.fits(self.limits))
        return sorted(fitting, key=Found.rank)

    def confirmed(self, options: Mapping[str, Any]) -> Result:
        """The best that fits as it will be compiled; BudgetError where nothing does."""
        fitting = self.fitting
        for at, found in enumerate(fitting):
            final = self._found(UpdatePlan.parse(found.plan), options)
            if final.fits(self.limits):
                return Result(final, (final, *fitting[at + 1 :]))
        raise self._misfit(build(self.net, plan="last:1", **options))

    def _misfit(self, built: Build) -> BudgetError:
        """Of the head alone."""
        built.check(self.limits.ram_bytes, self.limits.flash_bytes)
        macs, most = built.program.report()["macs_per_step"], self.limits.macs_per_step
        return BudgetError(
            f"a step that trains the head alone takes {macs:,} multiply-adds of {most:,}; "
            "give it more time, or take a smaller net",
            macs, most, built.program,
        )  # fmt: skip

    def _found(self, plan: UpdatePlan, options: Mapping[str, Any]) -> Found:
        program = build(self.net, plan=plan, **options).program
        report, layout = program.report(), self.net.graph(1).layout
        parts = plan.resolve(layout)
        biases = sum(name.rpartition(".")[2] == "bias" for name in parts)
        return Found(
            str(plan), plan_gain(layout, self.contributions, plan), report["ram_bytes"],
            report["flash_bytes"], report["macs_per_step"],
            FLOAT_BYTES * report["trained_parameters"], biases, len(parts) - biases,
            sum(part != WHOLE for part in parts.values()),
        )  # fmt: skip


def _try_written(trial: _Trial) -> None:
    """The largest of each kind that fits."""
    for row in written(trial.net.graph(1).layout):
        _largest(row, trial.fits)


def _largest(row: Sequence[_Item], fits: Callable[[_Item], bool]) -> int:
    """The place of the last that fits of a row from the least to the most; 0 if none does."""
    low, high = 0, len(row) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(row[middle]) else (low, middle - 1)
    return low if fits(row[low]) else 0


# ---- greedy ----------------------------------------------------------------------------------


def _try_choices(trial: _Trial, menu: Menu, seed: int) -> None:
    """Greedy choices, their changes, and what fits beside the best of these."""
    best = [_greedy(trial, menu, _Prices(trial.width, read)) for read in READ_COSTS]
    behind = len(trial.known) + COMPILED
    for change in range(CHANGES):
        changed = _changed(menu, best, (seed, change))
        better = len(best) < PARENTS or menu.gain(changed) > menu.gain(best[-1])
        if better and changed not in best and trial.takes(menu, changed):
            best = sorted([*best, changed], key=menu.gain, reverse=True)[:PARENTS]
        if len(trial.known) >= behind:
            break
    best.sort(key=menu.gain, reverse=True)
    prices = _Prices(trial.width, 1.0)
    moves = sorted(_moves(menu, best[0]), key=lambda m: -prices.worth(menu, best[0], m))
    _filled(trial, menu, best[0], moves[:SECOND_TRIES])


@dataclass(frozen=True, slots=True)
class _Prices:
    """About what a choice takes: the bytes of a value, and the share of what a gradient reads that
    is kept for it alone. Of what an activation may have clipped a bit is kept."""

    width: int
    read: float

    def bytes(self, menu: Menu, choice: Choice) -> float:
        """Of a choice."""
        saved = sum(float(s) * menu.layers[at].read for at, s in choice.shares.items())
        clipped = sum(bias.outputs / 8 for bias in menu.through(choice))
        return menu.trained_bytes(choice, self.width) + self.read * self.width * saved + clipped

    def worth(self, menu: Menu, before: Choice, after: Choice) -> float:
        """What a larger choice adds for a byte."""
        more = self.bytes(menu, after) - self.bytes(menu, before)
        return (menu.gain(after) - menu.gain(before)) / max(1.0, more)


def _greedy(trial: _Trial, menu: Menu, prices: _Prices) -> Choice:
    """As many of the moves as fit, in their order."""
    ladder = [Choice(), *_ladder(menu, prices)]
    at = _largest(ladder, lambda choice: trial.takes(menu, choice))
    return _filled(trial, menu, ladder[at], ladder[at + 1 :][:SECOND_TRIES])


def _filled(trial: _Trial, menu: Menu, choice: Choice, steps: Iterable[Choice]) -> Choice:
    """The choice with what else fits of some larger ones."""
    for step in steps:
        for at, share in step.shares.items():
            wider = menu.settled(choice.with_share(at, share))
            if share > choice.shares.get(at, 0) and trial.takes(menu, wider):
                choice = wider
    return choice


def _ladder(menu: Menu, prices: _Prices) -> Iterator[Choice]:
    """Ever larger choices: each takes what adds most for a byte beside the one before."""
    choice = Choice()
    while moves := list(_moves(menu, choice)):
        choice = max(moves, key=lambda move: prices.worth(menu, choice, move))
        yield choice


def _moves(menu: Menu, choice: Choice) -> Iterator[Choice]:
    if choice.biases < len(menu.biases):
        yield replace(choice, biases=min(choice.biases + _BIAS_STEP, len(menu.biases)))
    for at, layer in enumerate(menu.layers):
        own = choice.shares.get(at, Fraction(0))
        for share in (s for s in layer.shares if s > own):
            yield menu.settled(choice.with_share(at, share))


# ---- small random changes --------------------------------------------------------------------


def _changed(menu: Menu, best: Sequence[Choice], key: tuple[int, int]) -> Choice:
    """One of the best, with other shares of one or two layers, and maybe more or fewer biases."""
    seed, change = key[0] & 0xFFFFFFFF, key[1]
    words = rng.philox((change, 0, 0, 0), (seed, 0)) + rng.philox((change, 1, 0, 0), (seed, 0))
    choice = best[words[0] % len(best)]
    for first in range(1, 2 + words[6] % 2 * 2, 2):
        at = words[first] % len(menu.layers)
        shares = (Fraction(0), *menu.layers[at].shares)
        choice = choice.with_share(at, shares[words[first + 1] % len(shares)])
    if words[7] % 3 == 0:
        choice = replace(choice, biases=words[5] % (len(menu.biases) + 1))
    return menu.settled(choice)
