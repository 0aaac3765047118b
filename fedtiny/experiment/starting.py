"""The model that ``model.start`` names: an .npz file with an array for each parameter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedtiny.data.npz import array_names, read_arrays
from fedtiny.errors import DataError
from fedtiny.layout import RANGE

if TYPE_CHECKING:
    from pathlib import Path

    from fedtiny.experiment import Experiment
    from fedtiny.layout import Layout
    from fedtiny.tensors import Float32


def started(experiment: Experiment, layout: Layout) -> Float32:
    """The values of the file. Of ranges that it lacks none is known: they are (0, 0).

    Raises ExperimentError for what is no model of this layout.
    """
    path = experiment.find_file(experiment.model.start or "")
    try:
        if not path.is_file():
            raise DataError(f"there is no file {path}; `fedtiny export DIR --to npz` writes one")
        return _read(path, layout)
    except DataError as error:
        told = f"model.start = {experiment.model.start!r} is no start for this model: {error}"
        raise experiment.origin.error(("model", "start"), told) from None


def _read(path: Path, layout: Layout) -> Float32:
    names = set(array_names(path))
    ranges = {p.name for p in layout.activations}
    unknown = names.difference(p.name for p in layout.parameters)
    if strange := sorted(name for name in unknown if not name.endswith(RANGE)):
        known = ", ".join(p.name for p in layout.parameters if p.name not in ranges)
        raise DataError(f"it has the arrays {', '.join(strange)}; the model has {known}")
    due = [p for p in layout.parameters if p.name in names or p.name not in ranges]
    forms = {p.name: " ".join(["f4", *map(str, p.shape)]) for p in due}
    missing = {name: np.zeros(2, np.float32) for name in ranges - names}
    model = layout.flatten({**read_arrays(path, forms), **missing})
    if wrong := model.size - np.count_nonzero(np.isfinite(model)):
        raise DataError(f"{wrong:,} of {model.size:,} values are not finite")
    return model
