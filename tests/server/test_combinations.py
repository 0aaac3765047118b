"""A coordinator serves no experiment whose parts do not go together."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedtiny.errors import ExperimentError
from fedtiny.experiment.rules import RuleWarning
from tests.server.desk import Desk, experiment


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            ("attack.kind=sign-flip", "attack.share=0.3"),
            "attacks are simulated: a coordinator makes nobody lie",
        ),
        (("evaluate.a.lr=0.1", "evaluate.a.devices=training"), "real devices with evaluation on"),
        (("strategy.name=median", "strategy.transforms=['topk:0.1']"), "a robust rule with topk"),
    ],
)
def test_what_does_not_go_together_is_refused_before_a_run_begins(
    tmp_path: Path, settings: tuple[str, ...], told: str
) -> None:
    desk = Desk(tmp_path, experiment(name="sound"))
    desk.conductor.database.close()
    sound, desk.experiments = desk.experiments, (experiment(*settings, name="unsound"),)
    with pytest.raises(ExperimentError, match=told):
        desk.open()
    desk.experiments = sound
    desk.open()
    assert list(desk.conductor.hosted) == ["sound"]  # nothing is left of the other
    desk.close()


def test_what_is_doubtful_is_served_with_a_warning(tmp_path: Path) -> None:
    with pytest.warns(RuleWarning, match="noise with no clip"):
        desk = Desk(tmp_path, experiment("strategy.transforms=['noise:0.01']"))
    assert len(desk.conductor.hosted) == 1
    desk.close()
