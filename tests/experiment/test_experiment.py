import re
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.data.digits import digits
from fedtiny.data.partitions import LabelSkew
from fedtiny.data.tasks import SineTask
from fedtiny.errors import CompileError, DataError, ExperimentError, StrategyError
from fedtiny.experiment import Experiment
from fedtiny.experiment.schema import Budget, Evaluation, Pretrain
from fedtiny.registry.profiles import BOARDS, board
from fedtiny.strategies.tinyreptile import TinyReptile

TEXT = """\
seed = 7

[model]
build = "mlp"
widths = [1, 8, 1]
activation = "tanh"

[data]
source = "sine"
support = 32
sample_period = "100ms"

[device]
ram = "256KiB"
reserve = "24KiB"
flash = "1MiB"

[device.pi-4]
ram = "64MiB"
batch = 10

[strategy]
name = "tinyreptile"
alpha = 0.5

[fleet]
devices = 1000
profiles = { cortex-m4 = 0.5, pi-zero-2w = 0.3, pi-4 = 0.2 }
availability = "diurnal"

[run]
rounds = 2000
deadline = "5min"

[evaluate.after-8]
support = 8
lr = 0.02
"""
BASE = {"model": {"build": "sine_mlp"}, "data": {"source": "sine"}, "strategy": {"name": "none"}}


def line_with(words: str, text: str) -> int:
    return text[: text.index(words)].count("\n") + 1


# ---- reading ---------------------------------------------------------------------------------


def test_an_experiment_is_read_in_plain_units() -> None:
    experiment = Experiment.parse(TEXT)
    assert experiment.seed == 7
    assert experiment.data.sample_period == 0.1
    assert experiment.data.arguments == {"support": 32}
    assert experiment.device.reserve == 24 * 1024
    assert experiment.strategy == {"name": "tinyreptile", "alpha": 0.5}
    assert experiment.fleet.profiles == {"cortex-m4": 0.5, "pi-zero-2w": 0.3, "pi-4": 0.2}
    assert (experiment.run.rounds, experiment.run.deadline) == (2000, 300)
    assert experiment.evaluate == {"after-8": Evaluation(support=8, lr=0.02)}


def test_a_small_experiment_has_sensible_defaults() -> None:
    experiment = Experiment.of(BASE)
    assert experiment.seed == 0
    assert (experiment.fleet.devices, experiment.held_out) == (100, 10)
    assert experiment.fleet.availability == "always"
    assert experiment.budget("cortex-m4") == Budget(
        256 * 1024, 1024 * 1024, 0, 1, "all", "float32", "float32", 1.0, 1
    )


def test_over_selection_is_a_factor_or_measured() -> None:
    experiment = Experiment.parse(TEXT)
    told = {
        said: experiment.override(f"run.over_selection={said}").run.leases_per_update
        for said in ("1", "1.3", "measured")
    }
    assert told == {"1": 1.0, "1.3": 1.3, "measured": 0.0}
    for said in ("0.99", "0", "guessed", "true"):
        with pytest.raises(ExperimentError, match=r"is not a number >= 1 or 'measured'"):
            experiment.override(f"run.over_selection={said}")


def test_a_deployed_run_draws_for_itself_unless_it_is_seeded() -> None:
    experiment = Experiment.parse(TEXT)
    assert (experiment.seeded, experiment.override("seeded=true").seeded) == (False, True)
    with pytest.raises(ExperimentError, match="seeded = 1 is not true or false"):
        experiment.override("seeded=1")
    with pytest.raises(ExperimentError, match=r"unknown key 'seded'; did you mean 'seeded'\?"):
        experiment.override("seded=true")


def test_a_tenth_of_the_devices_is_held_out_unless_said_otherwise() -> None:
    assert Experiment.parse(TEXT).held_out == 100
    assert Experiment.parse(TEXT).override("fleet.held_out=3").held_out == 3
    assert Experiment.of({**BASE, "fleet": {"devices": 9}}).held_out == 0


def test_an_experiment_is_made_of_a_file_a_table_or_itself(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(TEXT)
    loaded = Experiment.of(tmp_path / "a.toml")
    assert loaded.digest == Experiment.of(str(tmp_path / "a.toml")).digest
    assert Experiment.of(loaded) is loaded
    assert Experiment.of(loaded.given).digest == loaded.digest


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"no\.toml cannot be read"):
        Experiment.load(tmp_path / "no.toml")
    (tmp_path / "latin.toml").write_bytes(b"title = '\xe9'")
    with pytest.raises(ExperimentError, match=r"latin\.toml cannot be read"):
        Experiment.load(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seed = 7", "seed = -7", r"seed = -7 is not an integer from 0"),
        ("[run]", "[rnu]", r"unknown key 'rnu'; did you mean 'run'\? the top level has"),
        ("rounds =", "round =", r"unknown key 'run\.round'; did you mean 'rounds'\? \[run\] has"),
        ('"5min"', '"5mins"', r"run\.deadline = '5mins' is not a duration > 0 such as"),
        ('"24KiB"', '"24s"', r"device\.reserve = '24s' is not a size such as"),
        ("batch = 10", "bach = 10", r"unknown key 'device\.pi-4\.bach'; did you mean 'batch'\?"),
        ("pi-4 = 0.2", "pi-4 = 0.3", r"fleet\.profiles = .* they add up to 1\.1"),
        ("pi-4 = 0.2", "pi-44 = 0.2", r"unknown board 'pi-44'; did you mean 'pi-4'\?"),
        ("[device.pi-4]", "[device.mine]", r"unknown board 'mine'; .*like = 'cortex-m4'"),
        (
            '"64MiB"',
            '"64GiB"',
            r"device\.pi-4\.ram = 68,719,476,736 B, but a pi-4 has 4,294,967,296",
        ),
        ("lr = 0.02", "lr = 0", r"evaluate\.after-8\.lr = 0 is not a number > 0"),
        ('"diurnal"', '"nocturnal"', r".* not 'always' or 'diurnal' or 'traces'"),
        ("devices = 1000", "devices = 0", r"fleet\.devices = 0 is not an integer from 1 to"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_what_is_right(
    old: str, new: str, message: str
) -> None:
    assert TEXT.count(old) == 1
    text = TEXT.replace(old, new)
    with pytest.raises(ExperimentError, match=rf"a\.toml, line {line_with(new, text)}: {message}"):
        Experiment.parse(text, "a.toml")


@pytest.mark.parametrize(
    ("old", "new", "at", "message"),
    [
        ('build = "mlp"', "", "[model]", r"model\.build is missing"),
        ("lr = 0.02", "", "[evaluate.after-8]", r"evaluate\.after-8\.lr is missing"),
        ('name = "tinyreptile"', "", "[strategy]", r"give \[strategy\] either a name or build"),
        ('"diurnal"', '"diurnal"\ntraces = "x"', "traces =", r"traces are only read with"),
        (
            "[evaluate.after-8]",
            "[evaluate]",
            "support = 8\nlr",
            r"evaluate\.support = 8 must be a table",
        ),
        ("devices = 1000", "devices = 9", "[evaluate", r"nobody is held out to be evaluated"),
        ("devices = 1000", "held_out = 5\ndevices = 5", "held_out", r"5 of 5 devices are held out"),
    ],
)
def test_a_contradiction_is_named_with_the_line_to_change(
    old: str, new: str, at: str, message: str
) -> None:
    assert TEXT.count(old) == 1
    text = TEXT.replace(old, new)
    with pytest.raises(ExperimentError, match=rf"a\.toml, line {line_with(at, text)}: {message}"):
        Experiment.parse(text, "a.toml")


@pytest.mark.parametrize("section", ["model", "data", "device", "strategy", "fleet", "run"])
def test_a_value_in_place_of_a_section_is_refused(section: str) -> None:
    with pytest.raises(ExperimentError, match=section):
        Experiment.of({**BASE, section: 3})


# ---- settings --------------------------------------------------------------------------------


def test_a_setting_overrides_one_value() -> None:
    experiment = Experiment.parse(TEXT).override("run.rounds=3", "strategy.name=fedavg")
    assert experiment.run.rounds == 3
    assert experiment.run.deadline == 300
    assert experiment.strategy == {"name": "fedavg", "alpha": 0.5}


def test_a_wrong_setting_is_blamed_on_the_command_line() -> None:
    with pytest.raises(ExperimentError, match=r"^--set run\.rounds=ten: run\.rounds = 'ten'"):
        Experiment.parse(TEXT).override("run.rounds=ten")
    with pytest.raises(ExperimentError, match=r"^--set run\.round=1: .* did you mean 'rounds'"):
        Experiment.parse(TEXT).override("run.round=1")


# ---- devices ---------------------------------------------------------------------------------


def test_each_profile_has_its_density() -> None:
    classes = {"device": {"density": 0.03, "pi-4": {"density": 0.1}}}
    shares = {"cortex-m4": 0.5, "pi-4": 0.25, "esp32-s3": 0.25}
    experiment = Experiment.of({**BASE, **classes, "fleet": {"profiles": shares}})
    densities = [experiment.budget(name).density for name in shares]
    assert densities == [0.03, 0.1, 0.03]
    assert experiment.densities == (0.03, 0.1)


@pytest.mark.parametrize("density", [0, -0.1, 1.5, "much"])
def test_a_density_is_a_share_of_the_weights(density: object) -> None:
    with pytest.raises(ExperimentError, match=r"device.density = .* is not a number above 0, at"):
        Experiment.of({**BASE, "device": {"density": density}})


def test_pretraining_is_a_section_of_its_own() -> None:
    assert Experiment.of(BASE).pretrain is None
    assert "pretrain" not in Experiment.of(BASE).to_json()
    given = Experiment.of({**BASE, "pretrain": {"steps": 40}})
    assert given.pretrain == Pretrain(40, 0.05, 16)
    again = Experiment.parse(given.to_toml())
    assert (again.pretrain, again.digest) == (given.pretrain, given.digest)
    with pytest.raises(ExperimentError, match=r"pretrain.epochs'; .*\[pretrain\] has steps, lr"):
        Experiment.of({**BASE, "pretrain": {"epochs": 1}})


def test_a_profile_overrides_the_general_budget() -> None:
    experiment = Experiment.parse(TEXT)
    assert experiment.budget("cortex-m4") == Budget(
        262_144, 1_048_576, 24_576, 1, "all", "float32", "float32", 1.0, 1
    )
    assert experiment.budget("pi-4") == Budget(
        64 * 2**20, 1_048_576, 24_576, 10, "all", "float32", "float32", 1.0, 1
    )
    assert experiment.profile("pi-4") == board("pi-4")


def test_a_board_of_ones_own_is_like_another() -> None:
    mine = {"like": "cortex-m4", "ram": "64KiB", "macs_per_s": 3e6, "uplink": "50kbit/s"}
    experiment = Experiment.of(
        {**BASE, "device": {"mine": mine}, "fleet": {"profiles": {"mine": 1}}}
    )
    profile = experiment.profile("mine")
    assert (profile.name, profile.ram_bytes, profile.flash_bytes) == ("mine", 65536, 2**20)
    assert (profile.macs_per_s, profile.uplink_bps) == (3e6, 50e3)
    assert profile.sources["macs_per_s"] == "the experiment"
    assert profile.idle_w == board("cortex-m4").idle_w
    assert experiment.budget("mine").ram_bytes == 65536


def test_the_figures_of_a_known_board_can_be_measured_anew() -> None:
    experiment = Experiment.of({**BASE, "device": {"pi-5": {"active_w": 6, "ram": "1GiB"}}})
    assert experiment.profile("pi-5").active_w == 6
    assert experiment.profile("pi-5").ram_bytes == board("pi-5").ram_bytes  # ram is its budget
    assert experiment.budget("pi-5").ram_bytes == 2**30


# ---- what it names ---------------------------------------------------------------------------


def test_the_net_is_one_of_the_zoo_with_arguments() -> None:
    net = Experiment.parse(TEXT).build_net()
    assert net.graph(1).layout.size == 1 * 8 + 8 + 8 * 1 + 1


def test_a_net_of_ones_own_stands_beside_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "a_net_beside.py").write_text(
        "from fedtiny.engine.zoo import mlp\ndef build(width):\n    return mlp((1, width, 1))\n"
    )
    build = 'build = "a_net_beside:build"\nwidth = 4'
    given = 'build = "mlp"\nwidths = [1, 8, 1]\nactivation = "tanh"'
    (tmp_path / "a.toml").write_text(TEXT.replace(given, build))
    before = list(sys.path)
    try:
        net = Experiment.load(tmp_path / "a.toml").build_net()
    finally:
        sys.path[:] = before
    assert net.graph(1).layout.size == 4 + 4 + 4 + 1


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        ("sine_mpl", {}, r"fedtiny\.engine\.zoo has no 'sine_mpl'; .*'sine_mlp'"),
        ("no_such_module:f", {}, r"no_such_module.*beside the experiment or be installed"),
        ("math:no_such", {}, r"math has no 'no_such'"),
        ("mlp", {}, r"missing a required argument: 'widths'"),
        ("mlp", {"width": [1]}, r"takes no 'width'; did you mean 'widths'"),
    ],
)
def test_a_net_that_cannot_be_built_says_why(
    build: str, arguments: dict[str, Any], message: str
) -> None:
    experiment = Experiment.of({**BASE, "model": {"build": build, **arguments}})
    with pytest.raises(ExperimentError, match=message):
        experiment.build_net()


def test_the_task_is_built_from_its_section() -> None:
    assert Experiment.parse(TEXT).build_task() == SineTask(support=32)
    skewed = {"data": {"source": "label-skew-digits", "concentration": 0.1}}
    task = Experiment.of({**BASE, **skewed, "fleet": {"devices": 20, "held_out": 4}}).build_task()
    assert task == LabelSkew(digits(), devices=20, held_out=4, concentration=0.1)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"sine"', '"sinus"', r".*no task 'sinus'.*'sine'"),
        ("support =", "suport =", r".*'suport'; did you mean 'support'"),
        ("support = 32", "support = -32", r"support = -32.* not below 0"),
        ("support = 32", "support = 3.5", r".*support = 3.5 is of type float; .* of type int"),
        ("support = 32", "domain = 3", r".*domain = 3 is of type int; .*tuple\[float, float\]"),
        ('"sine"', '"no_module:task"', r".*'no_module:task' cannot be imported"),
    ],
)
def test_a_task_that_cannot_be_built_is_named_with_its_line(
    old: str, new: str, message: str
) -> None:
    text = TEXT.replace(old, new, 1)
    with pytest.raises(ExperimentError, match=rf"a\.toml, line {line_with(new, text)}: {message}"):
        Experiment.parse(text, "a.toml").build_task()


def test_an_error_that_names_no_key_is_blamed_on_its_section() -> None:
    text = TEXT.replace('"sine"', '"few-shot-digits"').replace("support = 32", "shots = 1000")
    with pytest.raises(DataError, match=rf"a\.toml, line {line_with('[data]', text)}: 1000 shots"):
        Experiment.parse(text, "a.toml").build_task()


def test_too_few_samples_stay_an_error_of_the_data() -> None:
    data = {"source": "few-shot-digits", "shots": 1000}
    with pytest.raises(DataError, match=r"the experiment: 1000 shots"):
        Experiment.of({**BASE, "data": data}).build_task()


def test_the_strategy_is_built_from_its_section() -> None:
    assert Experiment.parse(TEXT).build_strategy() == TinyReptile(alpha=0.5)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"tinyreptile"', '"tinyreptil"', r".*'tinyreptile'"),
        ("alpha =", "alhpa =", r".*'alpha'"),
        ("alpha = 0.5", "alpha = -1", r".*alpha = -1"),
        ("alpha = 0.5", "alpha = '1'", r".*alpha = '1'"),
    ],
)
def test_a_strategy_that_cannot_be_built_is_named_with_its_line(
    old: str, new: str, message: str
) -> None:
    text = TEXT.replace(old, new)
    with pytest.raises(StrategyError, match=rf"a\.toml, line {line_with(new, text)}: {message}"):
        Experiment.parse(text, "a.toml").build_strategy()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["strategy.cohort=901"], r"--set .*a cohort of 901 is more than the 900 devices"),
        (["strategy.cohort=5", "run.minimum=6"], r"--set .*minimum = 6 is more than the cohort, 5"),
    ],
)
def test_a_cohort_that_cannot_be_filled_is_refused(settings: list[str], message: str) -> None:
    experiment = Experiment.parse(TEXT).override(*settings)
    with pytest.raises(ExperimentError, match=message):
        experiment.build_strategy()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{}['width']", "KeyError in {file}, line 2: 'width'"),
        ("raise RuntimeError('no net today')", "RuntimeError in {file}, line 2: no net today"),
        ("raise ValueError('odd')", "ValueError in {file}, line 2: odd"),
    ],
)
def test_a_build_that_fails_is_told_with_both_lines(line: str, told: str, tmp_path: Path) -> None:
    name = f"a_net_that_fails_{abs(hash(line))}"
    file = tmp_path / f"{name}.py"
    file.write_text(f"def build():\n    {line}\n")
    given = '"mlp"\nwidths = [1, 8, 1]\nactivation = "tanh"'
    (tmp_path / "a.toml").write_text(TEXT.replace(given, f'"{name}:build"'))
    try:
        with pytest.raises(ExperimentError) as failed:
            Experiment.load(tmp_path / "a.toml").build_net()
    finally:
        sys.path.remove(str(tmp_path))
    assert re.search(r"a\.toml, line [34]: ", str(failed.value))
    assert str(failed.value).endswith(told.format(file=file))


def test_a_model_that_cannot_be_made_is_told_with_its_line() -> None:
    text = TEXT.replace("widths = [1, 8, 1]", "widths = [1]")
    with pytest.raises(CompileError, match=r"a\.toml, line \d: an mlp needs two or more"):
        Experiment.parse(text, "a.toml").build_net()


@pytest.mark.parametrize("value", ["1e400", "-inf", "nan", "[1.0, 1e400]", "{ a = inf }"])
def test_a_number_that_is_not_finite_is_refused_with_its_line(value: str) -> None:
    text = TEXT.replace("alpha = 0.5", f"alpha = {value}")
    line = line_with("alpha", text)
    with pytest.raises(ExperimentError, match=rf"a\.toml, line {line}: strategy\.alpha.* finite"):
        Experiment.parse(text, "a.toml")


def test_an_integer_too_large_for_a_float_is_refused_with_its_line() -> None:
    text = TEXT.replace("lr = 0.02", f"lr = 1{'0' * 400}")
    line = line_with("lr = ", text)
    with pytest.raises(ExperimentError, match=rf"a\.toml, line {line}: .*is not a number > 0"):
        Experiment.parse(text, "a.toml")
    with pytest.raises(ExperimentError, match=r"a\.toml: not a TOML file"):
        Experiment.parse(f"seed = 1{'0' * 5000}", "a.toml")


def test_files_are_found_beside_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(TEXT)
    experiment = Experiment.load(tmp_path / "a.toml")
    assert experiment.find_file("traces.json") == tmp_path.resolve() / "traces.json"
    assert experiment.find_file("/data/traces.json") == Path("/data/traces.json")


# ---- writing ---------------------------------------------------------------------------------


def test_what_is_written_is_read_back() -> None:
    experiment = Experiment.parse(TEXT)
    assert Experiment.parse(experiment.to_toml()).to_json() == experiment.to_json()
    assert Experiment.of(experiment.to_json()).to_json() == experiment.to_json()


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "seeded": st.booleans(),
        "run": st.fixed_dictionaries({
            "rounds": st.integers(0, 10**6),
            "deadline": st.floats(1e-6, 1e9),
            "over_selection": st.one_of(st.floats(1, 9), st.just("measured")),
        }),
        "strategy": st.dictionaries(
            st.text(min_size=1, max_size=5),
            st.one_of(
                st.text(max_size=8),
                st.booleans(),
                st.floats(allow_nan=False, allow_infinity=False),
                st.lists(st.integers(-5, 5), max_size=3),
            ),
            max_size=3,
        ).map(lambda fields: {**fields, "name": "none"} if "build" not in fields else fields),
        "device": st.integers(0, 9).map(lambda ram: {"pi-4": {"ram": ram}}),
        "fleet": st.fixed_dictionaries({"profiles": st.sampled_from([{n: 1} for n in BOARDS])}),
    },
)  # fmt: skip


@given(SETTINGS)
def test_every_experiment_survives_toml_and_json(tables: dict[str, Any]) -> None:
    experiment = Experiment.of({**BASE, **tables})
    assert Experiment.parse(experiment.to_toml()).digest == experiment.digest
    assert Experiment.of(experiment.to_json()).digest == experiment.digest


def test_the_text_is_the_file_as_written_until_a_setting_changes_it() -> None:
    experiment = Experiment.parse(TEXT)
    assert experiment.text == TEXT
    changed = experiment.override("seed=8")
    assert changed.text != TEXT
    assert Experiment.parse(changed.text).digest == changed.digest


def test_the_digest_is_of_what_can_change_a_result() -> None:
    experiment = Experiment.parse(TEXT)
    same = ["fleet.threads=2", "run.deadline=300s", "device.reserve=24576", "run.minimum=1"]
    assert {experiment.override(setting).digest for setting in same} == {experiment.digest}
    others = ["seed=8", "strategy.alpha=0.4", "device.pi-4.batch=9", "data.support=31"]
    digests = {experiment.override(setting).digest for setting in others}
    assert len(digests | {experiment.digest}) == 5


def test_setting_a_strategys_name_takes_its_build_back_and_the_other_way_round() -> None:
    tables = {"model": {"build": "sine_mlp"}, "data": {"source": "sine"}}
    named = Experiment.of({**tables, "strategy": {"name": "fedavg"}})
    built = named.override("strategy.build=mine:Own")
    assert built.strategy == {"build": "mine:Own"}
    assert built.override("strategy.name=reptile").strategy == {"name": "reptile"}
