import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.errors import DataError, ExperimentError
from fedtiny.experiment import Experiment
from fedtiny.simulator.clock import DAY
from fedtiny.simulator.traces import Always, Availability, Diurnal, Spans, Traces, availability_of

# ---- the laws of all three -------------------------------------------------------------------


@st.composite
def spans(draw: st.DrawFn) -> Spans:
    edges = sorted(draw(st.lists(st.integers(0, 5000), max_size=8)))
    edges = edges[: len(edges) // 2 * 2]
    period = draw(st.integers(5001, 400_000))
    return edges[::2], edges[1::2], period


TRACES = st.lists(spans(), min_size=1, max_size=5).filter(lambda rows: any(r[0] for r in rows))
FLEETS: st.SearchStrategy[Availability] = st.one_of(
    st.builds(Always),
    st.builds(Diurnal.draw, st.integers(0, 2**64 - 1), st.just(20)),
    TRACES.map(Traces.of),
)
TIMES = st.one_of(st.integers(0, 10**8).map(float), st.floats(0, 1e8))


@given(FLEETS, TIMES)
def test_a_device_can_be_reached_at_its_next_time_and_not_before(
    fleet: Availability, now: float
) -> None:
    devices = np.arange(20)
    then = fleet.next_available(devices, now)
    assert (then >= now).all()
    known = np.isfinite(then)
    assert fleet.available(devices[known], then[known]).all()
    np.testing.assert_array_equal(fleet.available(devices, now), then == now)
    between = now + (then[known] - now) * 0.5
    waits = then[known] > now
    assert not (fleet.available(devices[known], between) & waits & (between < then[known])).any()


@given(FLEETS, st.lists(st.tuples(st.integers(0, 19), TIMES), min_size=1, max_size=10))
def test_a_column_of_times_says_what_each_time_says(
    fleet: Availability, questions: list[tuple[int, float]]
) -> None:
    devices, times = (np.array(column) for column in zip(*questions, strict=True))
    each = [fleet.available(np.array([device]), time)[0] for device, time in questions]
    assert fleet.available(devices, times).tolist() == each
    later = [fleet.next_available(np.array([device]), time)[0] for device, time in questions]
    assert fleet.next_available(devices, times).tolist() == later


# ---- diurnal ---------------------------------------------------------------------------------


def test_a_diurnal_device_can_be_reached_each_day_in_its_window() -> None:
    fleet = Diurnal(start_s=np.array([3600.0, 82800.0]), length_s=np.array([7200.0, 7200.0]))
    both = np.arange(2)
    assert fleet.available(both, 3599).tolist() == [False, True]  # the second: 23:00 to 01:00
    assert fleet.available(both, 3600).tolist() == [True, False]
    assert fleet.available(both, 5 * DAY + 10799).tolist() == [True, False]
    assert fleet.available(both, 5 * DAY + 10800).tolist() == [False, False]
    assert fleet.next_available(both, 4 * DAY + 10800).tolist() == [5 * DAY + 3600, 4 * DAY + 82800]


def test_about_a_third_of_a_diurnal_fleet_can_be_reached_at_any_hour() -> None:
    fleet = Diurnal.draw(7, 20_000)
    devices = np.arange(20_000)
    shares = [fleet.available(devices, 3600 * hour).mean() for hour in range(24)]
    # windows of 6 to 10 hours in 24: 8 / 24 on average
    assert 0.31 < min(shares) <= max(shares) < 0.36


def test_the_windows_of_a_seed_do_not_depend_on_the_size_of_the_fleet() -> None:
    small, large = Diurnal.draw(7, 10), Diurnal.draw(7, 1000)
    np.testing.assert_array_equal(small.start_s, large.start_s[:10])
    np.testing.assert_array_equal(small.length_s, large.length_s[:10])
    assert (Diurnal.draw(8, 10).start_s != small.start_s).any()


# ---- traces ----------------------------------------------------------------------------------


def is_available(trace: dict[str, Any], time: float) -> bool:
    """The rule in the words of those who recorded the traces."""
    second = time % trace["finish_time"]
    span = int(np.searchsorted(trace["active"], second, side="right")) - 1
    return span >= 0 and bool(second <= trace["inactive"][span])


def a_trace(**changes: Any) -> dict[str, Any]:
    return {"active": [100, 300], "inactive": [200, 300], "finish_time": 1000} | changes


def write(folder: Path, document: Any) -> Path:
    path = folder / "device_traces.json"
    path.write_text(json.dumps(document))
    return path


def test_a_trace_repeats_and_includes_the_ends_of_its_spans(tmp_path: Path) -> None:
    path = write(tmp_path, {"fedscale_sample_100": [a_trace()]})
    fleet = Traces.load(path)
    open_at = [t for t in (0, 99, 100, 200, 201, 299, 300, 301, 1100, 1201, 1300)
               if fleet.available(np.array([0]), t)]  # fmt: skip
    assert open_at == [100, 200, 300, 1100, 1300]
    after = [fleet.next_available(np.array([0]), t)[0] for t in (0, 200, 201, 301, 999, 1301)]
    assert after == [100, 200, 300, 1100, 1100, 2100]


def test_a_device_beyond_the_traces_follows_one_of_them_a_day_ahead() -> None:
    fleet = Traces.of([([0], [10], 3 * 86400), ([50], [60], 86400 // 2)])
    first, third, fifth = np.array([0]), np.array([2]), np.array([4])
    assert fleet.next_available(first, 100)[0] == 3 * DAY
    assert fleet.next_available(third, 100)[0] == 2 * DAY
    assert fleet.next_available(fifth, 100)[0] == 1 * DAY


def test_a_trace_without_spans_is_never_available() -> None:
    fleet = Traces.of([([], [], 1000), ([5], [6], 1000), ([], [], 1000)])
    assert not fleet.available(np.arange(3), 2000).any()
    assert fleet.next_available(np.arange(3), 2000).tolist() == [np.inf, 2005, np.inf]


@given(TRACES, st.lists(st.integers(0, 10**7), min_size=1, max_size=20))
def test_columns_follow_the_rule_of_the_recording(rows: list[Spans], times: list[int]) -> None:
    fleet = Traces.of(rows)
    for device, (active, inactive, period) in enumerate(rows):
        trace = {"active": active, "inactive": inactive, "finish_time": period}
        told = fleet.available(np.full(len(times), device), times)
        assert told.tolist() == [is_available(trace, time) for time in times]


@pytest.mark.parametrize(
    ("document", "complaint"),
    [
        ([], "no list of devices under 'fedscale_sample_100'"),
        ({"fedscale_sample_100": []}, "no list of devices"),
        ({"fedscale_sample_100": [a_trace(), {}]}, "device 1 lacks"),
        ({"fedscale_sample_100": [7]}, "device 0 lacks"),
        ({"fedscale_sample_100": [a_trace(active=[100])]}, "1 beginnings of spans but 2 ends"),
        ({"fedscale_sample_100": [a_trace(active=[100, 150])]}, "overlap"),
        ({"fedscale_sample_100": [a_trace(active=[-1, 300])]}, "out of order"),
        ({"fedscale_sample_100": [a_trace(finish_time=250)]}, "past its finish_time of 250 s"),
        ({"fedscale_sample_100": [a_trace(active=[0.5, 300])]}, "not whole seconds"),
        ({"fedscale_sample_100": [a_trace(active=[], inactive=[])]}, "no device is ever active"),
    ],
)
def test_a_damaged_file_is_told_what_is_wrong(
    tmp_path: Path, document: Any, complaint: str
) -> None:
    with pytest.raises(DataError, match=rf"device_traces\.json.*{complaint}"):
        Traces.load(write(tmp_path, document))


@pytest.mark.parametrize("make", [lambda path: path, lambda path: path.write_text("{")])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    make(tmp_path / "no.json")
    with pytest.raises(DataError, match=r"no\.json cannot be read as JSON"):
        Traces.load(tmp_path / "no.json")


@pytest.mark.data
def test_the_recorded_traces_are_available_as_recorded(data_dir: Path) -> None:
    path = data_dir / "device_traces.json"
    rows = json.loads(path.read_text())["fedscale_sample_100"]
    fleet = Traces.load(path)
    times = np.arange(0, 10 * DAY, 7001.0)
    told = np.array([fleet.available(np.arange(100), time) for time in times])
    assert told.tolist() == [[is_available(row, time) for row in rows] for time in times]
    assert 0.6 < told.mean() < 0.9  # half of the devices: 75 % of the time


# ---- from an experiment ----------------------------------------------------------------------

BASE = {"model": {"build": "sine_mlp"}, "data": {"source": "sine"}, "strategy": {"name": "none"}}


def test_an_experiment_names_its_availability(tmp_path: Path) -> None:
    def kind(**fleet: Any) -> type:
        return type(availability_of(Experiment.of({**BASE, "fleet": fleet})))

    path = write(tmp_path, {"fedscale_sample_100": [a_trace()]})
    assert kind() is Always
    assert kind(availability="diurnal") is Diurnal
    assert kind(availability="traces", traces=str(path)) is Traces


def test_traces_are_looked_for_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = Experiment.of({**BASE, "fleet": {"availability": "traces"}})
    monkeypatch.delenv("FEDTINY_DATA", raising=False)
    with pytest.raises(ExperimentError, match=r"needs fleet\.traces = 'FILE', or FEDTINY_DATA"):
        availability_of(experiment)
    write(tmp_path, {"fedscale_sample_100": [a_trace()]})
    monkeypatch.setenv("FEDTINY_DATA", str(tmp_path))
    assert isinstance(availability_of(experiment), Traces)


def test_a_million_devices_are_asked_at_once() -> None:
    devices = np.arange(1_000_000)
    for fleet in (Diurnal.draw(1, len(devices)), Traces.of([([0, 50], [10, 60], 86400)] * 100)):
        reached = fleet.available(devices, 1e6)
        then = fleet.next_available(devices, 1e6)
        assert reached.shape == then.shape == devices.shape
        np.testing.assert_array_equal(reached, then == 1e6)
