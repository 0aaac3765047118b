"""Everything that fedtiny raises on purpose.

FedtinyError
├── ExperimentError   3  the experiment file, or a value given on the command line, is wrong
├── CompileError      4  no Program can be made of this model
│   ├── GraphError       the graph is ill-formed; says which op
│   └── BudgetError      it does not fit; carries the bytes needed and given, and the Program
├── ImageError        5  a Program image is damaged, too new, or breaks a rule of the runtime
├── DataError         6  samples are missing, empty, of the wrong shape, or not finite
├── UpdateError       7  an update cannot be folded: not finite, too large, of the wrong size
├── StrategyError     8  a strategy is unknown, cannot be built, or failed in a round
├── RunError          9  a run cannot go on: no folder, no devices, a journal that does not fit
├── WireError        10  a message is not what it should be; carries the kind of flaw
├── IdentityError    11  a device may not take part: its token, certificate or key is refused
└── OutdatedError    12  a device and its coordinator speak no protocol that both know

A message says what is wrong, with the numbers, and what to do about it. The command-line tool
ends with the exit code beside its branch.
"""

from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``did you mean 'rounds'? ``, or nothing when no known name is near."""
    # Only who has made a mistake pays for the import: a device never does.
    from difflib import get_close_matches

    near = get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""


class FedtinyError(Exception):
    """The root; never raised itself."""

    exit_code = 1


class ExperimentError(FedtinyError):
    """The experiment file, or a value given on the command line, is wrong."""

    exit_code = 3


class CompileError(FedtinyError):
    """No Program can be made of this model."""

    exit_code = 4


class GraphError(CompileError):
    """The graph is ill-formed."""


class BudgetError(CompileError):
    """The Program does not fit its budget. Carries the figures in bytes, and the Program."""

    def __init__(
        self, message: str, needed_bytes: int, budget_bytes: int, program: object | None = None
    ) -> None:
        super().__init__(message)
        self.needed_bytes = needed_bytes
        self.budget_bytes = budget_bytes
        self.program = program


class ImageError(FedtinyError):
    """A Program image is damaged, too new, or breaks a rule of the runtime."""

    exit_code = 5


class DataError(FedtinyError):
    """Samples are missing, empty, of the wrong shape, or not finite.

    The message is for whoever owns them. ``public`` says the same for others, without any of the
    samples' values; it is the message where that has none.
    """

    exit_code = 6

    def __init__(self, message: str, public: str = "") -> None:
        super().__init__(message)
        self.public = public or message


class UpdateError(FedtinyError):
    """An update cannot be folded."""

    exit_code = 7


class StrategyError(FedtinyError):
    """A strategy is unknown, cannot be built, or failed in a round."""

    exit_code = 8


class RunError(FedtinyError):
    """A run cannot go on."""

    exit_code = 9


class WireError(FedtinyError):
    """A message is not what it should be. ``reason`` is the kind of flaw, to count refusals by."""

    exit_code = 10

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class IdentityError(FedtinyError):
    """A device may not take part. ``reason`` is a short label; ``status`` is that of gRPC."""

    exit_code = 11

    def __init__(self, reason: str, message: str, status: str = "PERMISSION_DENIED") -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status


class OutdatedError(FedtinyError):
    """A device and its coordinator speak no protocol that both know."""

    exit_code = 12
