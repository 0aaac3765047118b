"""The one place that knows how flwr looks inside: what its strategies need in order to run.

They talk to nodes over a Grid. `CohortGrid` has the nodes of one cohort and carries no message:
what a strategy wants to send is read, and the replies are made of the updates that were accepted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NoReturn

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import strategy_utils
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedtiny.errors import StrategyError

_RUN = 1


def claim_process() -> None:
    """Make this process one in which strategies run: messages have a sender, and nobody waits.

    A strategy that wants more nodes than there are would look again every second for ever.
    """
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = _RUN
    vars(strategy_utils)["sleep"] = _refuse_to_wait


def _refuse_to_wait(seconds: float) -> NoReturn:
    raise StrategyError(
        "it waits for more devices than the cohort has; raise cohort, or lower min_train_nodes, "
        "min_evaluate_nodes and min_available_nodes (2 where they are not given)"
    )


class CohortGrid(Grid):
    """A Grid with these nodes."""

    def __init__(self, nodes: Sequence[int]) -> None:
        self._nodes = list(nodes)
        self._run = Run.create_empty(_RUN)

    def set_run(self, run: Run) -> None:
        """Which run this is."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str,
        ttl: float | None = None,
    ) -> Message:  # fmt: skip
        """A message."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes of the cohort."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Refused: fedtiny talks to the devices."""
        raise _not_alone()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Refused: fedtiny talks to the devices."""
        raise _not_alone()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Refused: fedtiny talks to the devices."""
        raise _not_alone()


def _not_alone() -> StrategyError:
    return StrategyError(
        "it sends messages of its own over the grid; fedtiny carries those alone that "
        "configure_train and configure_evaluate return"
    )


def reply(message: Message, number: int, content: RecordDict) -> Message:
    """The answer to a message that was never sent; on its way it would have got an id."""
    message.metadata.__dict__["_message_id"] = f"fedtiny-{number}"
    return Message(content, reply_to=message)
