"""The commands of a fleet, against a coordinator in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from fedtiny.cli import INTERRUPTED, USAGE, app
from fedtiny.errors import FedtinyError
from fedtiny.experiment import Experiment
from fedtiny.experiment.workload import Workload
from fedtiny.runs import RunFolder
from fedtiny.wire import codec, services
from fedtiny.wire.joining import JoinString
from fedtiny.wire.pb import fleet_pb2 as pb
from tests.harness import story
from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.history_check import Log
from tests.harness.members import CARD, Applicant, Member, enlist
from tests.harness.swarm import Conduct, RealVisits, Swarm

ROUNDS = 3
DOCS = Path(__file__).resolve().parents[1] / "docs"


def _fedtiny(*arguments: object) -> Result:
    wide = {"COLUMNS": "160", "NO_COLOR": "1"}
    return CliRunner(env=wide).invoke(app, [str(argument) for argument in arguments])


class Served:
    """A coordinator with two runs: `sine`, whose rounds are over, and `wide`, which waits.

    Two devices have joined; each round of `wide` needs three.
    """

    def __init__(self, folder: Path) -> None:
        experiments = folder / "experiments"
        story.experiment(experiments, 3, rounds=ROUNDS).rename(experiments / "wide.toml")
        sine = story.experiment(experiments, 2, rounds=ROUNDS)
        self.process = CoordinatorProcess(sine, folder / "fleet", str(experiments / "wide.toml"))
        self.folder = self.process.folder

    def begin(self) -> None:
        self.process.start()
        self.members = asyncio.run(story.join(self.process, 2))
        asyncio.run(self._live())

    async def _live(self) -> None:
        task = Workload.of(Experiment.load(self.process.experiment)).task
        with Log(self.folder / "swarm.jsonl") as log:
            conduct = Conduct(RealVisits(task), wait_s=1.0)
            swarm = Swarm(self.members, self.process.port, conduct, log)
            lives = asyncio.create_task(swarm.live(20))
            while not (self.run("sine")["phase"] == "done" and self.run("wide")["accepted"] == 2):
                assert not lives.done()
                await asyncio.sleep(0.05)
            swarm.stop()
            with suppress(asyncio.CancelledError):
                await lives

    def run(self, name: str) -> dict[str, Any]:
        """The run's part of the status."""
        return next(dict(run) for run in self.process.status()["runs"] if run["name"] == name)

    def fedtiny(self, *arguments: object) -> Result:
        """What the command does to the coordinator's folder."""
        return _fedtiny(*arguments, "--dir", self.folder)

    def text(self, *arguments: object) -> str:
        result = self.fedtiny(*arguments)
        assert result.exit_code == 0, result.output
        return str(result.stdout)

    def json(self, *arguments: object) -> dict[str, Any]:
        return dict(json.loads(self.text(*arguments, "--json")))

    def apply(self, name: str) -> Member:
        """One more device."""
        return asyncio.run(Applicant.of(name).join(self.text("token", "create").strip()))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = Served(tmp_path_factory.mktemp("served"))
    with served.process:
        served.begin()
        yield served


# ---- tokens ----------------------------------------------------------------------------------


def test_a_token_is_one_string_on_stdout_and_advice_beside_it(served: Served) -> None:
    result = served.fedtiny("token", "create", "--label", "lab", "--expires", "2h", "--uses", "3")
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    joined = JoinString.parse(line)
    assert joined.port == served.process.enrol_port
    assert abs(joined.expires_s - time.time() - 2 * 3600) < 60
    assert "within 2h: fedtiny-agent join 'STRING'" in result.stderr
    assert "only this machine reaches 127.0.0.1" in result.stderr
    (token,) = [t for t in served.json("token", "list")["tokens"] if t["label"] == "lab"]
    assert token["uses_left"] == 3
    assert joined.token not in served.text("token", "list", "--json")


def test_twenty_minutes_are_written_as_the_world_writes_them(served: Served) -> None:
    for expires in ("20m", "20min"):
        joined = JoinString.parse(served.text("token", "create", "--expires", expires).strip())
        assert abs(joined.expires_s - time.time() - 20 * 60) < 60


def test_a_token_names_the_host_that_devices_reach(served: Served) -> None:
    line = served.text("token", "create", "--host", "fleet.example.org")
    assert JoinString.parse(line).host == "fleet.example.org"


def test_nobody_joins_with_a_revoked_token(served: Served) -> None:
    line = served.text("token", "create", "--label", "lost")
    row = next(r for r in served.text("token", "list").splitlines() if "lost" in r)
    assert "is no longer good" in served.text("token", "revoke", row.split()[0])
    with pytest.raises(Exception, match="the token is not known here"):
        asyncio.run(Applicant.of("late").join(line))
    again = served.fedtiny("token", "revoke", "lost")
    assert again.exit_code == 3
    assert "no token is called 'lost'" in again.stderr


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--expires=soon", "--expires 'soon' is not a duration > 0 such as '100ms', '10s'"),
        ("--expires=400d", "a token lives up to 366 days"),
        ("--host=bad/host", "'bad/host' names no machine"),
    ],
)
def test_a_wrong_token_is_refused(served: Served, option: str, told: str) -> None:
    result = served.fedtiny("token", "create", option)
    assert result.exit_code == 3
    assert told in result.stderr
    assert result.stdout == ""


# ---- looking ---------------------------------------------------------------------------------


def test_the_status_says_what_each_run_waits_for(served: Served) -> None:
    told = served.text("status")
    assert re.search(r"devices at +127\.0\.0\.1:\d+ *\n", told)
    assert re.search(r"devices +\d joined, 0 connected, 0 at work, \d revoked", told)
    sine, wide = told.split("\nrun ")[1:]
    assert re.search(r"waits for +nothing: the run is over", sine)
    assert re.search(rf"round +{ROUNDS} of {ROUNDS}; model \d", sine)
    assert re.search(r"waits for +1 update: 0 being made, 1 to be asked for", wide)
    assert "2 accepted, 0 refused, 0 late" in wide
    assert "\x1b" not in told


def test_the_status_as_json_has_stable_keys(served: Served) -> None:
    told = served.json("status")
    assert told["folder"] == str(served.folder)
    assert told["devices"].keys() == {"joined", "revoked", "connected", "working"}
    wide = next(run for run in told["runs"] if run["name"] == "wide")
    # A round of `wide` needs three updates; two devices have given theirs.
    assert (wide["accepted"], wide["cohort"], wide["demand"], wide["leases"]) == (2, 3, 1, 0)
    assert (wide["round"], wide["rounds"], wide["version"]) == (0, ROUNDS, 0)
    assert wide["bytes_up"] > 2 * 4 * 1000  # two models of more than a thousand floats


def test_the_list_of_devices_says_what_they_are_and_do(served: Served) -> None:
    told = served.text("devices")
    assert re.search(r"0 +device-0 +away +pi-4 +256 MiB +swarm +[\d.:]+( s)? ago", told)
    row = served.json("devices")["devices"][1]
    assert (row["index"], row["name"], row["state"], row["misfits"]) == (1, "device-1", "away", {})


def test_a_revoked_device_is_told_apart(served: Served) -> None:
    member = served.apply("stolen")
    told = served.text("devices", "revoke", "stolen")
    assert told == f"device {member.device} (stolen) is shut out\n"
    assert served.json("devices")["devices"][member.device]["state"] == "revoked"
    again = served.text("devices", "revoke", "stolen")
    assert re.fullmatch(rf"device {member.device} \(stolen\) was shut out already, .* ago\n", again)
    wrong = served.fedtiny("devices", "revoke", "stolem")
    assert wrong.exit_code == 3
    assert "no device is called 'stolem'" in wrong.stderr


def test_who_means_the_device_that_came_after_a_revoked_one_is_told_its_name(
    served: Served,
) -> None:
    served.apply("pi")
    served.text("devices", "revoke", "pi")
    served.apply("pi")
    again = served.text("devices", "revoke", "pi")
    assert again.endswith(" ago; pi-2 is another device\n")
    states = {row["name"]: row["state"] for row in served.json("devices")["devices"]}
    assert (states["pi"], states["pi-2"]) == ("revoked", "away")


def test_what_stands_before_a_command_of_devices_holds_for_it_too(served: Served) -> None:
    index = served.apply("early").device
    options = "--json", "--dir", served.folder
    result = _fedtiny("devices", *options, "revoke", "early")
    assert result.exit_code == 0, result.output
    done = json.loads(result.stdout)
    assert (done["index"], done["already"], done["namesakes"]) == (index, False, [])


def test_runs_lists_what_the_folder_has(served: Served) -> None:
    rows = {row["name"]: row for row in served.json("runs")["runs"]}
    assert rows["sine"]["rounds_committed"] >= ROUNDS  # a rollback is one more
    assert rows["wide"]["rounds_committed"] == 0
    assert len(RunFolder.open(rows["sine"]["folder"]).history()) >= ROUNDS
    assert re.search(r"sine +yes +3 +\d", served.text("runs"))


def test_models_lists_what_was_published(served: Served) -> None:
    told = served.json("models", "sine")
    rows = told["models"][: ROUNDS + 1]
    assert [(row["version"], row["round"]) for row in rows] == [(0, None), (1, 0), (2, 1), (3, 2)]
    assert [row["current"] for row in told["models"]].count(True) == 1
    assert re.search(r"3 +2 +.* ago +[0-9a-f]{16}", served.text("models", "sine"))


def test_a_run_must_be_named_where_there_are_several(served: Served) -> None:
    result = served.fedtiny("models")
    assert result.exit_code == 3
    assert "name the run; there are sine, wide" in result.stderr
    assert "did you mean 'sine'?" in served.fedtiny("models", "sin").stderr


# ---- going back ------------------------------------------------------------------------------


def test_a_rollback_publishes_an_older_model_as_the_newest(served: Served) -> None:
    before = served.json("models", "sine")["models"]
    newest = before[-1]["version"]
    done = served.json("rollback", "sine", 1, "--yes")
    assert done == {"run": "sine", "from": 1, "version": newest + 1}
    after = served.json("models", "sine")["models"]
    assert after[-1]["digest"] == before[1]["digest"]
    assert after[-1]["current"]
    replayed = served.json("replay", "sine")["models"]
    assert [row["digest"] for row in replayed] == [row["digest"] for row in after]


def test_a_rollback_asks_first(served: Served) -> None:
    newest = served.json("models", "sine")["models"][-1]["version"]
    for run, question in (
        ("sine", "publish version 1 of sine again? [y/N] "),
        ("wide", "publish version 1 of wide again, and give up the open round? [y/N] "),
    ):
        command = ["rollback", run, "1", "--dir", str(served.folder)]
        result = CliRunner().invoke(app, command, input="n\n")
        assert result.exit_code == 3
        assert result.stderr == (
            f"{question}fedtiny: nothing was changed; answer y, or add --yes\n"
        )
    assert served.json("models", "sine")["models"][-1]["version"] == newest


def test_a_rollback_is_done_when_the_answer_is_yes(served: Served) -> None:
    newest = served.json("models", "sine")["models"][-1]["version"]
    command = ["rollback", "sine", "2", "--dir", str(served.folder)]
    result = CliRunner().invoke(app, command, input="y\n")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"sine: version 2 is now version {newest + 1}\n"


def test_there_is_no_way_forward_in_a_rollback(served: Served) -> None:
    result = served.fedtiny("rollback", "wide", 0, "--yes")
    assert result.exit_code == 3
    assert "version 0 is no older model of wide: the newest is 0" in result.stderr


def test_a_replay_writes_the_model_that_is_asked_for(served: Served, tmp_path: Path) -> None:
    told = served.text("replay", "sine", "--out", tmp_path / "one.npz", "--version", 1)
    assert re.fullmatch(
        r"sine: \d models rebuilt, each the one that was published; the last is version \d, "
        r"[0-9a-f]{64}\n",
        told,
    )
    with np.load(tmp_path / "one.npz") as arrays:
        layout = Workload.of(Experiment.load(served.process.experiment)).layout
        assert set(arrays.files) == {parameter.name for parameter in layout.parameters}
    again = served.fedtiny("replay", "sine", "--out", tmp_path / "one.npz")
    assert again.exit_code == 9
    assert "is there already" in again.stderr
    missing = served.fedtiny("replay", "sine", "--version", 99)
    assert missing.exit_code == 9
    assert "sine has no version 99" in missing.stderr


# ---- its folders -----------------------------------------------------------------------------


def test_the_report_of_a_deployed_run_speaks_of_real_devices(served: Served) -> None:
    result = _fedtiny("report", served.folder / "runs/sine")
    assert result.exit_code == 0, result.output
    assert re.search(r"served +\d", result.stdout)
    assert re.search("energy|virtual", result.stdout) is None
    page = (served.folder / "runs/sine/report.html").read_text()
    assert "2 real devices, 0 of them held out" in page
    assert re.search(r"<b>pi-4</b><span>[2-9] devices", page)
    assert re.search("simulated|[Vv]irtual|[Ee]nergy", page.partition("<pre>")[0]) is None


def test_the_report_of_a_deployed_run_under_way_does_so_too(served: Served) -> None:
    assert _fedtiny("report", served.folder / "runs/wide").exit_code == 0
    page = (served.folder / "runs/wide/report.html").read_text()
    assert "3 real devices" in page
    assert f"The run stopped after 0 of {ROUNDS} rounds." in page


def test_who_asks_for_the_report_of_a_fleet_is_told_the_runs(served: Served) -> None:
    result = _fedtiny("report", served.folder)
    assert result.exit_code == 9
    runs = ", ".join(str(served.folder / "runs" / name) for name in ("sine", "wide"))
    assert f"is the folder of a coordinator; name one of its runs: {runs}" in result.stderr


# ---- without a coordinator -------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [["status"], ["devices"], ["runs"], ["models"], ["token", "list"], ["rollback", "sine", "1"]],
)
def test_who_asks_nobody_is_told_how_to_start_one(command: list[str], tmp_path: Path) -> None:
    result = _fedtiny(*command, "--dir", tmp_path)
    assert result.exit_code == 9
    assert result.stderr == (
        f"fedtiny: no coordinator serves {tmp_path}; start one with: "
        f"fedtiny coordinator EXPERIMENT --dir {tmp_path}\n"
    )


def test_a_socket_that_a_crash_has_left_is_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind("operator.sock")
    result = _fedtiny("status", "--dir", ".")
    assert result.exit_code == 9
    assert "no coordinator serves ." in result.stderr


# ---- the coordinator's own life --------------------------------------------------------------


class Started:
    """`fedtiny coordinator`, as somebody sees it who has started it by hand."""

    processes: ClassVar[list[subprocess.Popen[str]]] = []

    def __init__(self, experiment: Path, folder: Path, *options: str) -> None:
        command = Path(sys.executable).with_name("fedtiny"), "coordinator", experiment
        self.process = subprocess.Popen(
            [*command, "--dir", folder, "--listen", "127.0.0.1:0", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.processes.append(self.process)

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def end(self, *signals: signal.Signals) -> tuple[int, str, str]:
        """Exit code, and what it still printed."""
        for number in signals:
            self.process.send_signal(number)
        printed, said = self.process.communicate(timeout=30)
        return self.process.returncode, printed, said


@pytest.fixture(autouse=True)
def _no_coordinator_outlives_its_test() -> Iterator[None]:
    yield
    while Started.processes:
        with Started.processes.pop() as process:
            process.kill()


def test_a_coordinator_says_where_it_is_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    started = Started(story.experiment(tmp_path, 2), tmp_path / "fleet")
    lines = [started.line() for _ in range(5)]
    assert re.fullmatch(
        r"serving devices at 127\.0\.0\.1:\d+ \(with certificates\), enrolment at "
        r"127\.0\.0\.1:\d+\n",
        lines[0],
    )
    assert lines[1] == f"folder: {tmp_path}/fleet\n"
    assert lines[2] == "run sine: round 0 of 4\n"
    assert lines[3] == f"let a device join: fedtiny token create --dir {tmp_path}/fleet\n"
    assert lines[4] == (
        "sine · round 0/4 · 0 updates · 0 devices connected · waits for 2 updates: 0 being made, "
        "2 to be asked for of the devices 0, 1\n"
    )
    assert started.end(signal.SIGINT) == (0, "stopped; everything accepted is kept\n", "")
    assert not (tmp_path / "fleet/operator.sock").exists()


def test_ctrl_c_waits_for_devices_at_work_and_a_second_one_does_not(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    (member,) = enlist(folder, 1)
    started = Started(story.experiment(tmp_path, 1), folder, "--json")
    port = int(json.loads(started.line())["listen"].rpartition(":")[2])

    async def take_work() -> None:
        async with member.connect(port) as channel:
            request = pb.CheckInRequest(protocol=1, wait_s=5.0, card=codec.write_card(CARD))
            reply = await services.stubs(services.FLEET, channel).check_in(request)
            assert reply.answer.HasField("work")

    asyncio.run(take_work())
    started.process.send_signal(signal.SIGINT)
    while not json.loads(started.line())["draining"]:
        pass
    code, _, said = started.end(signal.SIGINT)
    assert code == INTERRUPTED
    assert re.fullmatch(
        r"stopping: waits for 1 device, at most 30 s; Ctrl-C again ends at once\n"
        r"fedtiny: interrupted\n",
        said,
    )


def test_ctrl_c_while_it_starts_leaves_no_traceback(tmp_path: Path) -> None:
    folder = tmp_path / "fleet"
    started = Started(story.experiment(tmp_path, 1), folder)
    while not (folder / "fleet.lock").exists():  # from then on it makes its servers
        time.sleep(0.001)
    code, printed, said = started.end(signal.SIGINT)
    assert (code, said) == (0, "")
    assert printed.endswith("stopped; everything accepted is kept\n")


def test_a_second_coordinator_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    experiment = story.experiment(tmp_path, 2)
    first = Started(experiment, tmp_path / "fleet", "--json")
    assert json.loads(first.line())["runs"][0]["name"] == "sine"
    code, _, said = Started(experiment, tmp_path / "fleet").end()
    assert code == 9
    assert f"is in use by the process {first.process.pid}" in said
    assert first.end(signal.SIGTERM)[0] == 0


def test_a_changed_experiment_needs_a_new_run(tmp_path: Path) -> None:
    folder, experiment = tmp_path / "fleet", story.experiment(tmp_path, 2)
    first = Started(experiment, folder, "--json")
    first.line()
    assert first.end(signal.SIGTERM)[0] == 0
    code, _, said = Started(experiment, folder, "--set", "run.rounds=9").end()
    assert code == 9
    assert "--new-run" in said
    anew = Started(experiment, folder, "--set", "run.rounds=9", "--new-run", "--json")
    (run,) = json.loads(anew.line())["runs"]
    assert (run["name"], run["rounds"]) == ("sine-2", 9)
    assert anew.end(signal.SIGTERM)[0] == 0


def test_without_certificates_only_this_machine_is_served(tmp_path: Path) -> None:
    experiment = story.experiment(tmp_path, 2)
    result = _fedtiny(
        "coordinator", experiment, "--dir", tmp_path / "fleet", "--insecure",
        "--listen", "0.0.0.0:0",
    )  # fmt: skip
    assert result.exit_code == 3
    assert "listen on 127.0.0.1, or leave --insecure away" in result.stderr


# ---- what the documentation says -------------------------------------------------------------


def test_every_exit_code_is_documented_and_no_other() -> None:
    text = (DOCS / "exit-codes.md").read_text()
    documented = [int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)]
    branches = {error.exit_code for error in FedtinyError.__subclasses__()}
    assert documented == sorted({0, FedtinyError.exit_code, USAGE, INTERRUPTED} | branches)


@pytest.mark.parametrize("source", ["fedtiny --help", "fedtiny-agent --help"])
def test_the_help_lists_no_code_that_is_not_documented(source: str) -> None:
    command, option = source.split()
    module = {"fedtiny": "fedtiny.cli", "fedtiny-agent": "fedtiny.agent.cli"}[command]
    script = f"import sys; sys.argv[0] = {command!r}; from {module} import main; main()"
    told = subprocess.run(
        [sys.executable, "-c", script, option],
        env=os.environ | {"COLUMNS": "100"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    codes = told.partition("codes:")[2]
    listed = set(re.findall(r"(?:^ *| {2})(\d+) {2,}\w", codes, re.MULTILINE))
    assert len(listed) > 5
    text = (DOCS / "exit-codes.md").read_text()
    assert [code for code in listed if f"\n| {code} |" not in text] == []


@pytest.mark.parametrize(
    "command",
    ["status", "devices", "runs", "models sine", "replay sine", "token list", "doctor"],
)
def test_every_key_of_a_document_is_documented(served: Served, command: str) -> None:
    served.text("token", "create")
    result = served.fedtiny(*command.split(), "--json")
    keys = set(_keys(json.loads(result.stdout)))
    text = (DOCS / "operating.md").read_text()
    assert len(keys) > 3
    assert [key for key in sorted(keys) if f"`{key}`" not in text] == []


def _keys(document: Any) -> Iterator[str]:
    """The names in a document, but those that are data: reasons, evaluations, misfits."""
    if isinstance(document, list):
        for entry in document:
            yield from _keys(entry)
    elif isinstance(document, dict):
        yield from document
        for key, value in document.items():
            yield from () if key in ("reasons", "evaluations", "misfits") else _keys(value)
