"""What a coordinator trains by itself before the first round, on samples that no device owns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedtiny.data.partitions import Partition
from fedtiny.device.learner import Key, Learner
from fedtiny.engine.compile import Compilable, build
from fedtiny.errors import ExperimentError
from fedtiny.experiment.planning import searched

if TYPE_CHECKING:
    from fedtiny.data.tables import Task
    from fedtiny.experiment import Experiment
    from fedtiny.experiment.schema import Pretrain
    from fedtiny.tensors import Float32

NOBODY = 2**32 - 1
"""The device whose stream the order of the samples is drawn from: no fleet has it."""


def check_public(experiment: Experiment, task: Task) -> None:
    """ExperimentError where there is nothing to train or to judge on."""
    if getattr(task, "public", 0):
        return
    having = "set data.public to how many, such as 100"
    if not isinstance(task, Partition):
        having = "take a source whose data set is dealt out, such as 'label-skew-digits'"
    for name, keys, asked in (
        ("[pretrain]", ("pretrain",), experiment.pretrain),
        ("run.gate", ("run", "gate"), experiment.run.gate),
        ("plan = 'auto'", ("device", "plan"), searched(experiment)),
    ):
        if asked:
            raise experiment.origin.error(
                keys,
                f"{name} needs samples that no device owns, and {experiment.data.source} has "
                f"none; {having}",
            )


def pretrained(
    net: Compilable, loss: str, task: Partition, said: Pretrain, model: Float32, seed: int
) -> Float32:
    """The model after the steps of the dense net, the same on every host."""
    learner = Learner(build(net, loss=loss, batch=said.batch).program)
    learner.load(model)
    key = Key(seed, 0, NOBODY)
    learner.train(*task.public_samples(seed), said.lr, said.steps, shuffle=True, key=key)
    model = np.asarray(learner.vector())
    wrong = model.size - np.count_nonzero(np.isfinite(model))
    if wrong:
        raise ExperimentError(
            f"after [pretrain] {wrong:,} of {model.size:,} values are not finite; lower "
            f"pretrain.lr = {said.lr:g} or pretrain.steps = {said.steps}"
        )
    return model
