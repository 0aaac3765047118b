"""The command line: what it prints, what it leaves behind, and with which exit code it ends."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

import fedtiny
from fedtiny.cli import INTERRUPTED, USAGE, app
from fedtiny.engine import native
from fedtiny.errors import FedtinyError
from fedtiny.experiment import Experiment
from fedtiny.runs import RunFolder
from tests.synthetic_run import synthetic_run

TINY = """\
seed = 7

[model]
build = "sine_mlp"

[data]
source = "sine"

[device]
reserve = "24KiB"

[device.thimble]
like = "cortex-m4"
ram = "16KiB"

[strategy]
name = "tinyreptile"
cohort = 4

[fleet]
devices = 40
held_out = 10
profiles = { cortex-m4 = 0.5, pi-4 = 0.3, thimble = 0.2 }
drop_out = 0.1

[run]
rounds = 12
evaluate_every = 6
checkpoint_every = 100

[evaluate.stream]
lr = 0.02
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a tiny experiment; its folder is where we are."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY)
    return Path("tiny.toml")


def _fedtiny(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _json(*arguments: object) -> dict[str, Any]:
    result = _fedtiny(*arguments)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


# ---- simulate --------------------------------------------------------------------------------


def test_simulate_prints_the_results_and_where_the_report_is(tiny: Path) -> None:
    result = _fedtiny("simulate", tiny)
    assert result.exit_code == 0, result.output
    assert re.search(r"stream +12 +\d+ +[\d.]+ ± [\d.]+ +[\d.]+ ± [\d.]+\n", result.stdout)
    assert re.search(r"rounds +12 of 12 *\n", result.stdout)
    assert re.search(r"do not fit +8 devices: thimble: needs 31,632 B of 16,384 B", result.stdout)
    assert re.search(r"speed +[\d,]+ updates/s", result.stdout)
    assert result.stdout.endswith("report: runs/tiny-1/report.html\n")
    assert "<h1>tinyreptile on sine</h1>" in Path("runs/tiny-1/report.html").read_text()


def test_each_run_gets_a_folder_of_its_own(tiny: Path) -> None:
    for number in (1, 2):
        assert _json("simulate", tiny, "--json")["folder"] == f"runs/tiny-{number}"


def test_json_is_the_summary_and_nothing_else_on_stdout(tiny: Path) -> None:
    told = _json("simulate", tiny, "--out", "here", "--json")
    assert told.pop("wall_s") > 0
    assert told.pop("folder") == "here"
    assert told.pop("interrupted") is False
    assert told == RunFolder.open("here").summary()


def test_a_setting_changes_the_experiment(tiny: Path) -> None:
    told = _json("simulate", tiny, "--set", "run.rounds=3", "--set", "seed=8", "--json")
    assert told["rounds"] == 3
    assert RunFolder.open(told["folder"]).experiment["seed"] == 8


def test_without_a_terminal_progress_is_plain_lines(tiny: Path) -> None:
    result = _fedtiny("simulate", tiny)
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("round ")]
    assert re.fullmatch(
        r"round 12/12 · [\d,]+ updates/s · virtual time [\d:. s]+ · loss [\d.]+", line
    )


# ---- going on --------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_to_the_bits_of_an_undisturbed_one(tiny: Path) -> None:
    tiny.write_text(
        TINY.replace("rounds = 12\nevaluate_every = 6", "rounds = 1500\nevaluate_every = 300")
    )
    whole = _json("simulate", tiny, "--out", "whole", "--json")
    command = [sys.executable, "-c", "from fedtiny.cli import main; main()", "simulate"]
    process = subprocess.Popen(
        [*command, tiny, "--out", "cut"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    history = Path("cut/history.jsonl")
    while process.poll() is None and (not history.exists() or history.stat().st_size < 5000):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=30)
    assert process.returncode == INTERRUPTED, said
    assert said == "interrupted; go on with: fedtiny simulate --resume cut\n"
    assert re.search(r"rounds +[\d,]+ of 1,500", printed)
    stopped = Path("cut/report.html").read_text()
    assert "The run stopped after" in stopped
    assert "<h2>Memory</h2>" in stopped

    resumed = _json("simulate", "--resume", "cut", "--json")
    assert resumed["model_digest"] == whole["model_digest"]
    histories = [RunFolder.open(name).history() for name in ("cut", "whole")]
    assert histories[0] == histories[1]
    pages = [Path(name, "report.html").read_bytes() for name in ("cut", "whole")]
    assert pages[0] == pages[1]


def test_a_second_interruption_ends_at_once(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedtiny.simulator.run.simulate", interrupted)
    result = _fedtiny("simulate", tiny)
    assert result.exit_code == INTERRUPTED
    assert result.stderr == "fedtiny: interrupted\n"


def test_a_second_interruption_says_how_to_go_on_where_a_run_was_begun(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedtiny.simulator.simulation.Simulation.step", interrupted)
    result = _fedtiny("simulate", tiny, "--out", "here")
    assert result.exit_code == INTERRUPTED
    assert result.stderr == "interrupted; go on with: fedtiny simulate --resume here\n"


def test_a_run_goes_on_with_its_own_experiment_only(tiny: Path) -> None:
    _json("simulate", tiny, "--out", "here", "--json")
    result = _fedtiny("simulate", tiny, "--set", "seed=8", "--resume", "here")
    assert result.exit_code == 9
    assert "seed (was 7, is 8)" in result.stderr


def test_a_resume_says_what_it_dropped(tiny: Path) -> None:
    _json("simulate", tiny, "--out", "here", "--set", "run.rounds=3", "--json")
    with Path("here/history.jsonl").open("a") as history:
        history.write('{"kind": "ro')
    result = _fedtiny("simulate", "--resume", "here")
    assert result.stderr == (
        "here: dropped 1 rows of history (12 B) past the checkpoint, the last of them cut short\n"
    )


def test_a_run_whose_adaptation_diverges_has_results_and_a_report(tiny: Path) -> None:
    wild = ["--set", "evaluate.wild.lr=1e6", "--set", "run.rounds=2"]
    result = _fedtiny("simulate", tiny, *wild, "--out", "here")
    assert result.exit_code == 0, result.output
    told = r"wild +2 +\d+ +[\d.]+ ± [\d.]+ +diverged"
    assert re.search(told, result.stdout)
    assert re.search(told, _fedtiny("report", "here").stdout)
    assert '<td class="after">diverged</td>' in Path("here/report.html").read_text()
    row = _json("simulate", tiny, *wild, "--json")["evaluations"]["wild"]
    assert row["loss_before"] > 0
    assert (row["loss_after"], row["loss_after_ci"]) == (None, None)
    printed = str(fedtiny.simulate(Experiment.load(tiny).override(*wild[1::2])))
    assert re.search(r"wild: diverged on \d+ \(\d+ devices\)$", printed)


def test_a_run_that_judges_on_no_sample_has_results_and_a_report(tiny: Path) -> None:
    result = _fedtiny("simulate", tiny, "--set", "data.query=0", "--out", "here")
    assert result.exit_code == 0, result.output
    assert re.search(r"stream +12 +0 +nobody judged +nobody judged", result.stdout)
    assert "nobody judged" in Path("here/report.html").read_text()


def test_budgets_far_beyond_the_need_have_a_report(tiny: Path) -> None:
    tiny.write_text(re.sub(r"profiles = .*", "profiles = { cortex-m4 = 1.0 }", TINY))
    # 262,144 B are more than 4 times the 31,632 B that the model needs.
    result = _fedtiny("simulate", tiny, "--set", "device.ram=256KiB", "--out", "here")
    assert result.exit_code == 0, result.output
    assert 'class="budget open"' in Path("here/report.html").read_text()


def test_without_the_runtime_one_plain_line_says_that_it_is_slow(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDTINY_RUNTIME", raising=False)
    monkeypatch.setattr(native, "LIBRARIES", Path("nowhere"))
    native.library.cache_clear()
    native.available.cache_clear()
    try:
        result = _fedtiny("simulate", tiny, "--set", "run.rounds=1")
    finally:
        native.library.cache_clear()
        native.available.cache_clear()
    assert result.exit_code == 0, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith("fedtiny: no C runtime: running on the reference executor")
    assert line.endswith(native.REBUILD)


@pytest.mark.parametrize("lost", ["history.jsonl", "experiment.toml"])
def test_a_folder_that_lost_a_file_is_told_with_the_path(tiny: Path, lost: str) -> None:
    _json("simulate", tiny, "--out", "here", "--set", "run.rounds=1", "--json")
    Path("here", lost).unlink()
    for arguments in (["report", "here"], ["simulate", "--resume", "here"]):
        result = _fedtiny(*arguments)
        assert result.exit_code == 9
        told = f"fedtiny: here/{lost}: No such file or directory; restore it"
        assert result.stderr.startswith(told)


def test_explain_fits_a_terminal_of_80_columns(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    boards = ["cortex-m4", "esp32-s3", "pi-zero-2w", "pi-4"]
    shares = ", ".join(f"{name} = 0.25" for name in boards)
    result = _fedtiny("explain", tiny, "--set", f"fleet.profiles={{ {shares} }}")
    assert re.search(r"RAM given +262,144 B +524,288 B +512 MiB +4 GiB\n", result.stdout)
    assert re.search(r"flash given +1 MiB +8 MiB +16 GiB +32 GiB\n", result.stdout)


# ---- explain, report, export -----------------------------------------------------------------


def test_explain_says_what_fits_and_the_least_budget(tiny: Path) -> None:
    result = _fedtiny("explain", tiny)
    assert result.exit_code == 0, result.output
    assert re.search(r"RAM needed +31,632 B +31,632 B +31,632 B", result.stdout)
    assert re.search(r"RAM given +262,144 B +4 GiB +16,384 B", result.stdout)
    assert re.search(r"fits +yes +yes +no", result.stdout)
    # 1,153 floats each way, and what is around them
    assert re.search(r"bytes a visit +9,818 B +9,818 B +-", result.stdout)
    assert 'thimble: ram = "31632B", flash = "68' in result.stdout
    assert "does not fit: thimble: needs 31,632 B of 16,384 B RAM" in result.stdout
    assert not Path("runs").exists()


def test_the_least_budget_is_enough_and_one_byte_less_is_not(tiny: Path) -> None:
    least = _json("explain", tiny, "--json")["profiles"][2]["report"]["ram_bytes"]
    for ram, fits in ((least, True), (least - 1, False)):
        told = _json("explain", tiny, "--set", f"device.thimble.ram={ram}", "--json")
        assert told["profiles"][2]["fits"] is fits


def test_explain_as_json_adds_up(tiny: Path) -> None:
    for profile in _json("explain", tiny, "--json")["profiles"]:
        report = profile["report"]
        parts = ("parameters", "arena", "state", "sample", "stack", "reserve")
        assert sum(report[f"{part}_bytes"] for part in parts) == report["ram_bytes"]
        assert profile["fits"] is (report["ram_bytes"] <= profile["ram_given_bytes"])


def test_report_says_why_updates_were_refused(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run")
    reasons = {"device N [sic]": {"count": 12, "example": "device 3 [sic]"}}
    run.save_summary({**(run.summary() or {}), "reasons": reasons})
    printed = _fedtiny("report", run.path).stdout
    assert re.search(r"40 refused *\n +12 refused, such as for: device 3 \[sic\] *\n", printed)


def test_report_writes_the_page_anew(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run")
    result = _fedtiny("report", run.path)
    assert result.exit_code == 0, result.output
    assert re.search(r"stream +40 +100 +3.50 ± 0.40 +0.170 ± 0.062", result.stdout)
    assert result.stdout.endswith(f"report: {run.path / 'report.html'}\n")
    assert (run.path / "report.html").exists()


def test_export_says_where_the_model_is(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run")
    made = tmp_path / "model.npz"
    result = _fedtiny("export", run.path, "--to", "npz", "--out", made)
    assert result.stdout == f"exported: {made}\n"
    with np.load(made) as arrays:
        assert sum(arrays[name].size for name in arrays.files) == 1153
    result = _fedtiny("export", run.path, "--to", "c", "--profile", "pi-4")
    assert result.stdout == f"exported: {run.path / 'export' / 'round-000040-pi-4'}\n"


# ---- combinations ----------------------------------------------------------------------------

_WARN = pytest.mark.filterwarnings("default::fedtiny.experiment.rules.RuleWarning")
_NOISE, _TOPK = 'strategy.transforms=["noise:0.001"]', 'strategy.transforms=["topk:0.1"]'


@_WARN
@pytest.mark.parametrize("command", ["simulate", "explain"])
def test_a_doubtful_combination_is_one_plain_line(tiny: Path, command: str) -> None:
    result = _fedtiny(command, tiny, "--set", "run.rounds=1", "--set", _NOISE)
    assert result.exit_code == 0, result.output
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"fedtiny: --set {_NOISE}: noise with no clip: ")


@pytest.mark.parametrize("command", ["simulate", "explain"])
def test_a_combination_that_cannot_work_runs_nothing(tiny: Path, command: str) -> None:
    result = _fedtiny(command, tiny, "--set", "strategy.name=median", "--set", _TOPK)
    assert (result.exit_code, result.stdout) == (3, "")
    assert "a robust rule with topk" in result.stderr
    assert not Path("runs").exists()


# ---- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["simulate"], USAGE, "give the FILE of an experiment, or --resume DIR"),
        (["simulate", "--resume", "a", "--out", "b"], USAGE, "leave --out away"),
        (["export", "a", "--to", "onnx"], USAGE, "'onnx' is not one of"),
        (["simulate", "nowhere.toml"], 3, "nowhere.toml cannot be read"),
        (["explain", "tiny.toml", "--set", "run.round=1"], 3, "did you mean 'rounds'"),
        (["explain", "tiny.toml", "--set", "device.plan=named:fc9.*"], 4, "named:fc9"),
        (["simulate", "tiny.toml", "--set", "strategy.name=tinyreptil"], 8, "'tinyreptile'"),
        (["simulate", "--resume", "nowhere"], 9, "nowhere is not the folder of a run"),
        (["simulate", "tiny.toml", "--out", "/proc/x"], 9, "/proc/x: No such file or directory"),
        (["simulate", "tiny.toml", "--out", "tiny.toml/x"], 9, "choose a folder that can be"),
        (["explain", "tiny.toml", "--set", "strategy.alpha=1e400"], 3, "is not a finite number"),
        (["report", "nowhere"], 9, "nowhere is not the folder of a run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_a_message_and_an_exit_code(
    arguments: list[str], code: int, said: str, tiny: Path
) -> None:
    result = _fedtiny(*arguments)
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr


def test_help_lists_every_exit_code() -> None:
    printed = _fedtiny("--help").stdout
    listed = {int(code) for code in re.findall(r"^ +(\d+)  [A-Z]", printed, re.MULTILINE)}
    errors: list[type[FedtinyError]] = [FedtinyError, *FedtinyError.__subclasses__()]
    assert listed == {0, USAGE, INTERRUPTED, *(error.exit_code for error in errors)}
    assert "``" not in printed  # each is told in one sentence, without the details for authors


def test_the_version_is_that_of_the_package() -> None:
    assert _fedtiny("--version").stdout == f"fedtiny {fedtiny.__version__}\n"


def test_help_loads_neither_numpy_nor_matplotlib() -> None:
    code = "import sys, fedtiny.cli; sys.exit(bool({'numpy', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
