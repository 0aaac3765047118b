"""The report: what stands in it, that it needs nothing else, and that it is the same every time."""

import math
import re
from collections.abc import Iterable
from html import escape
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.engine.program import ram_parts
from fedtiny.report import plots, write_report
from fedtiny.report.page import page
from fedtiny.report.record import Record
from fedtiny.report.units import binary, measured, percent, scale, si, time_scale, with_interval
from fedtiny.runs import RunFolder
from tests.synthetic_run import REASON, program, synthetic_run


def _page(run: RunFolder) -> str:
    return write_report(run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def sine(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _page(synthetic_run(tmp_path_factory.mktemp("sine") / "run"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    return _page(synthetic_run(tmp_path_factory.mktemp("digits") / "run", classes=True))


# ---- what stands in it -----------------------------------------------------------------------


def test_every_section_is_there_in_order(sine: str) -> None:
    sections = ["Results", "Learning", "Training", "Memory", "The experiment"]
    assert re.findall(r"<h2>(.*?)</h2>", sine) == sections
    assert "<h1>tinyreptile on sine</h1>" in sine


def test_the_table_compares_the_last_evaluation_with_the_first(sine: str) -> None:
    rows = re.findall(r'<tr class="(last|first)">(.*?)</tr>', sine)
    cells = [[re.sub("<.*?>", "", c) for c in re.findall(r"<t[hd].*?</t[hd]>", r)] for _, r in rows]
    fallen = math.exp(-5)
    after = f"{0.15 + 3 * fallen:.3f} ± {0.06 + 0.3 * fallen:.3f}"
    assert cells[0] == ["stream", "40", "100", f"{3.5 + 0.5 * fallen:.2f} ± 0.40", after]
    assert cells[1] == ["stream", "0", "100", "4.00 ± 0.40", "3.15 ± 0.36"]
    assert [row[0] for row in cells] == ["stream", "stream", "eight", "eight"]


def test_the_tiles_add_up(sine: str) -> None:
    tiles = dict(re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)<small>", sine))
    assert tiles == {
        "Virtual time": "00:20:00",  # 40 rounds of 30 s
        "Updates": "320",  # 40 rounds of 8
        "Carried": "3.32 MB",  # 40 rounds of 46,120 B down and 36,896 B up
        "Energy": "10 J",  # 40 rounds of 0.25 J
    }


def test_the_loss_is_drawn_against_rounds_time_bytes_and_energy(sine: str) -> None:
    labels = re.findall(r'<svg role="img" aria-label="([^"]*)"', sine)
    assert labels == [
        "loss against rounds",
        "loss against virtual time (min)",
        "loss against bytes carried (MB)",
        "loss against energy of all devices (J)",
        "training loss against rounds",
        "devices in a round",
    ]
    for unit in ("rounds", "virtual time (min)", "bytes carried (MB)"):
        assert f">{unit}</text>" in sine


def test_a_run_that_prunes_shows_each_layer(tmp_path: Path) -> None:
    record = Record.read(synthetic_run(tmp_path / "run"))
    told = {0: (0.5, 0.25), 20: (0.125, 0.031)}
    for row in record.rounds:
        if row["round"] in told:
            density, index = told[row["round"]]
            row["telemetry"] = {"density.<conv1>": density, "pq.<conv1>": index, "spent": 1.0}
    for profile, live in zip(record.profiles, (1234, 200, 100), strict=True):
        # 4 B a float, live ones and 50 biases, and an index of 2 B each
        figures = {"live_values": live, "index_bytes": 2 * live}
        profile["report"].update(figures, parameters_bytes=4 * (live + 50) + 2 * live)
    text = page(record)
    assert 'aria-label="density (%) against rounds"' in text
    assert 'aria-label="PQ index against rounds"' in text
    cells = "<td>50 %</td><td>12.5 %</td><td>0.031</td>"
    assert f'<th scope="row">&lt;conv1&gt;</th>{cells}' in text
    assert "<figcaption>PQ index</figcaption>" in text
    assert "at most 1,234 live weights, found by 2,468 B of index; a training step takes" in text
    assert "1,284 live parameters" in text


def test_every_layer_of_a_deep_net_has_a_shade_of_its_own(tmp_path: Path) -> None:
    record = Record.read(synthetic_run(tmp_path / "run"))
    layers = {f"density.conv{i}": 0.1 + 0.04 * i for i in range(21)}  # as many as ResNet18 has
    record.rounds[0]["telemetry"] = layers
    drawn = page(record).split("<h2>Pruning</h2>")[1].split("<h2>")[0]
    legend, plot = drawn.split("</ul>", 1)
    shades = re.findall(r"background:([^\"]*)", legend)
    assert len(set(shades)) == 21
    assert all(f"stroke: {shade}" in plot for shade in shades)


@pytest.mark.parametrize(("told", "drawn"), [((7,), 1), ((7, 9, 11), 3), (range(40), 0)])
def test_few_rounds_with_a_loss_are_marked_one_by_one(
    tmp_path: Path, told: Iterable[int], drawn: int
) -> None:
    record = Record.read(synthetic_run(tmp_path / "run"))
    for row in record.rounds:
        row["loss"] = row["loss"] if row["round"] in told else None
    plot = plots.training(record)
    assert plot is not None
    assert len(re.findall(r"<use [^>]*fill: var\(--ink\)", plot.svg)) == drawn


def test_a_layer_that_is_told_of_once_is_marked() -> None:
    assert "fill: var(--series-0)" in plots.by_layer({"conv": [(1, 0.3)]}, "density (%)", 100).svg


def test_a_run_that_does_not_prune_has_no_section_on_it(sine: str) -> None:
    assert "<h2>Pruning</h2>" not in sine


def test_class_labels_add_the_accuracy(sine: str, digits: str) -> None:
    assert "accuracy against rounds" in digits
    assert "89.8 ± 1.5 %" in digits
    assert "ccuracy" not in sine


def test_the_costs_of_an_evaluation_are_those_of_the_rounds_before_it(tmp_path: Path) -> None:
    record = Record.read(synthetic_run(tmp_path / "run"))
    points = record.evaluations["eight"]
    assert [p.round for p in points] == [0, 10, 20, 30, 40]
    assert [p.nbytes for p in points] == [p.round * (46120 + 36896) for p in points]
    assert [p.energy_j for p in points] == [p.round * 0.25 for p in points]


def test_memory_bars_have_the_widths_of_the_bytes(sine: str) -> None:
    report = program().report()
    bars = re.findall(r'<div class="parts">(.*?)</div>', sine)
    widths = {n: float(w) for w, n in re.findall(r'width:([\d.]+)%;[^>]*title="(\w+)', bars[0])}
    assert len(bars) == 3
    assert set(widths) == {n for n, nbytes in ram_parts(report).items() if nbytes}
    for name, width in widths.items():
        share = report[f"{name}_bytes"] / (1.1 * report["ram_bytes"])
        assert width == pytest.approx(100 * share, abs=0.006)


def test_room_for_a_dense_model_is_a_bar_of_those_that_have_it(sine: str, tmp_path: Path) -> None:
    record = Record.read(synthetic_run(tmp_path / "run"))
    report = record.profiles[0]["report"]
    report.update(base_bytes=4000, ram_bytes=report["ram_bytes"] + 4000)
    text = page(record)
    bars = re.findall(r'<div class="parts">(.*?)</div>', text)
    assert ['title="base 4,000 B"' in bar for bar in bars] == [True, False, False]
    assert "<th>base</th>" in text
    assert "<th>base</th>" not in sine


def test_the_dtype_and_the_plan_of_a_profile_stand_beside_its_devices(tmp_path: Path) -> None:
    record = Record.read(synthetic_run(tmp_path / "run"))
    record.profiles[0].update(dtype="int8", plan="biases+last:1")  # type: ignore[attr-defined]
    text = page(record)
    assert "700 devices · int8, biases+last:1 · " in text


def test_a_profile_that_does_not_fit_is_marked_with_the_reason(sine: str) -> None:
    (unfit,) = re.findall(r'<div class="memory unfit">(.*?)</div>\n', sine)
    assert "thimble" in unfit
    assert "does not fit" in unfit
    assert escape(REASON) in unfit


def test_the_experiment_stands_at_the_end_as_it_was_written(sine: str) -> None:
    text = re.findall(r"<pre>(.*?)</pre>", sine, re.DOTALL)[0]
    assert "source = &quot;sine&quot;  # &lt;amplitude&gt; &amp; phase differ" in text
    assert sine.endswith("</pre>\n</body>\n</html>\n")


def test_an_interrupted_run_has_a_report_of_what_there_is(tmp_path: Path) -> None:
    page = _page(synthetic_run(tmp_path / "run", ended=False))
    rows = len(Record.read(RunFolder.open(tmp_path / "run")).rounds)
    assert f"The run stopped after {rows} of 40 rounds." in page
    assert "<h2>Learning</h2>" in page


REASONS = {
    "device N moved by N": {"count": 2, "example": "device 7 moved by 9e9"},
    "device N has <NaN>": {"count": 12, "example": "device 3 has <NaN>"},
}
TOLD = [
    "12 refused, such as for: device 3 has <NaN>",
    "2 refused, such as for: device 7 moved by 9e9",
]


def test_the_reasons_of_refusals_stand_on_the_page_the_most_frequent_first(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run")
    run.save_summary({**(run.summary() or {}), "reasons": REASONS})
    assert Record.read(run).refusals == TOLD
    training = _page(run).partition("<h2>Training</h2>")[2].partition("<h2>")[0]
    assert re.findall(r'<p class="reason">(.*?)</p>', training) == [escape(why) for why in TOLD]


def test_reasons_add_up_over_the_rounds_of_an_interrupted_run(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run", ended=False)
    first = Record.read(run).rounds[0]
    for counts in ((1, 5), (1, 7)):
        told = {k: {**why, "count": n} for (k, why), n in zip(REASONS.items(), counts, strict=True)}
        run.append({**first, "reasons": told})
    assert Record.read(run).refusals == TOLD


def test_a_run_without_a_round_has_a_report(tmp_path: Path) -> None:
    page = _page(synthetic_run(tmp_path / "run", rounds=0))
    assert "<h2>Training</h2>" not in page
    assert "<h2>Results</h2>" in page


def test_a_run_without_evaluations_says_so(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run")
    rounds = [line for line in _history(run).read_text().splitlines() if '"round"}' not in line]
    _history(run).write_text("".join(f"{line}\n" for line in rounds if "evaluation" not in line))
    assert "Nothing was evaluated" in _page(run)


def _history(run: RunFolder) -> Path:
    return run.path / "history.jsonl"


# ---- what it needs ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sine", "digits"])
def test_the_page_refers_to_nothing_outside(name: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(name)
    assert re.findall(r"https?:|//|<script|<link|<img|@import|\bsrc=|url\((?!#)", page) == []
    targets = re.findall(r'href="([^"]*)"', page)
    assert [t for t in targets if not t.startswith("#")] == []


@pytest.mark.parametrize("name", ["sine", "digits"])
def test_ids_are_unique_and_all_references_lead_to_one(
    name: str, request: pytest.FixtureRequest
) -> None:
    page = request.getfixturevalue(name)
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', page)) <= set(ids)


@pytest.mark.parametrize("name", ["sine", "digits"])
def test_every_colour_is_one_of_the_style_sheet(name: str, request: pytest.FixtureRequest) -> None:
    page = request.getfixturevalue(name)
    light, dark = re.findall(r":root \{(.*?)\}", page, re.DOTALL)
    defined = set(re.findall(r"--([\w-]+):", light))
    assert set(re.findall(r"--([\w-]+):", dark)) == defined
    assert set(re.findall(r"var\(--([\w-]+)\)", page)) <= defined
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert re.findall(r"(?:fill|stroke): *#\w+", drawn) == []


def test_the_same_history_gives_the_same_bytes(tmp_path: Path) -> None:
    pages = [_page(synthetic_run(tmp_path / name, classes=True)) for name in ("one", "another")]
    assert pages[0] == pages[1]
    run = RunFolder.open(tmp_path / "one")
    assert _page(run) == pages[0]


# ---- figures ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "B", "0 B"),
        (999, "B", "999 B"),
        (999.6, "B", "1 kB"),
        (4_612_000, "B", "4.61 MB"),
        (0.0123, "J", "12.3 mJ"),
        (0.9996, "J", "1 J"),
    ],
)
def test_figures_have_three_digits_and_a_prefix(value: float, unit: str, text: str) -> None:
    assert si(value, unit) == text


def test_sizes_from_a_mebibyte_on_are_told_in_binary_units() -> None:
    sizes = (0, 2**20 - 1, 2**20, 3 * 2**19, 4 * 2**30, 5 * 2**50)
    told = ["0 B", "1,048,575 B", "1 MiB", "1.5 MiB", "4 GiB", "5120 TiB"]
    assert [binary(size) for size in sizes] == told


@given(st.floats(1e-3, 1e15))
def test_a_figure_is_right_within_its_three_digits(value: float) -> None:
    number, unit = si(value, "J").split()
    powers = {"m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15}
    assert float(number) * 10.0 ** powers[unit[:-1]] == pytest.approx(value, rel=0.0051)
    assert 1 <= float(number) < 1000


@given(st.floats(-1e3, 1e3), st.floats(1e-5, 1e3))
def test_an_interval_keeps_two_digits_and_the_value_as_many_places(
    value: float, half: float
) -> None:
    shown, width = with_interval(value, half).split(" ± ")
    assert float(width) == pytest.approx(half, rel=0.051)
    assert abs(float(shown) - value) <= 0.051 * half + 0.5 * (half >= 10)


def test_an_interval_that_is_unknown_is_left_out() -> None:
    assert with_interval(1.2345, 0.0) == "1.23"
    assert with_interval(math.nan, 1.0) == "nan"
    assert measured("accuracy", 0.876, 0.0123) == "87.6 ± 1.2 %"


def test_shares_and_axes_have_readable_numbers() -> None:
    assert [percent(s) for s in (2.5, 0.15, 0.015)] == ["250 %", "15 %", "1.5 %"]
    assert percent(0.00015) == "under 0.1 %"
    assert scale(3.3e6, "B") == (1e6, "MB")
    assert scale(0.0, "J") == (1.0, "J")
    assert [time_scale(s)[1] for s in (90, 1200, 9000, 1e6)] == ["s", "min", "h", "days"]
