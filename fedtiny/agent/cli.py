"""The device's command, ``fedtiny-agent``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from itertools import tee
from typing import Any, NoReturn

from fedtiny.agent.store import FOLDER_VARIABLE, Store, locate, told
from fedtiny.errors import DataError, ExperimentError, FedtinyError, RunError

DATA_VARIABLE = "FEDTINY_AGENT_DATA"
INTERRUPTED = 130
_STOPPED = "stopped; what is finished is kept"
_AGAIN_S = 2.0

_DESCRIPTION = "Trains on this device for a fleet. First join, then run."
_EPILOG = f"""\
environment: {FOLDER_VARIABLE} is the state folder, {DATA_VARIABLE} the source of samples.

exit codes:
  0    done, or the run is over             6   samples are missing or wrong
  2    the command line is wrong            9   cannot go on: folder, disk, another agent
  3    a value is wrong                    10   the coordinator's answers are damaged
  5    a Program image is damaged          11   revoked, or not known to the coordinator
  130  interrupted (Ctrl-C)                12   no common protocol: update fedtiny
  1    an error that fedtiny does not know: please report it
"""


class _Terminated(BaseException):
    """SIGTERM has come."""


class _Version(argparse.Action):
    """Prints what `fedtiny devices` shows of this agent, and what it speaks."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from fedtiny.version import __version__
        from fedtiny.wire.codec import PROTOCOL

        _write(f"fedtiny-agent {__version__}, protocol {PROTOCOL}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code says how it ended."""
    options = _parser().parse_args(arguments)
    try:
        options.act(options)
    except FedtinyError as error:
        _tell(f"fedtiny-agent: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        _stopped()
        return INTERRUPTED
    except _Terminated:
        _stopped()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _stopped() -> None:
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.SIG_IGN)
    _tell(_STOPPED)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fedtiny-agent", description=_DESCRIPTION, epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, act: Callable[[Any], None], meaning: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=meaning, description=meaning)
        made.add_argument("--dir", default="", help="the state folder of this agent")
        made.set_defaults(act=act)
        return made

    join = command("join", _join, "Join a fleet with the string of `fedtiny token create`.")
    join.add_argument("string", metavar="STRING")
    join.add_argument("--name", default=os.uname().nodename, help="what operators call the device")
    join.add_argument("--again", action="store_true", help="give up the present identity")
    run = command("run", _run, "Train on this device's samples until the run is over.")
    run.add_argument(
        "--data", default=os.environ.get(DATA_VARIABLE, ""), metavar="SOURCE",
        help="a .npz, a .csv, a folder of them, or module:object",
    )  # fmt: skip
    run.add_argument("--once", type=_count, default=0, metavar="N", help="end after N visits")
    run.add_argument("--stay", action="store_true", help="wait for the next run when one is over")
    run.add_argument("--json", action="store_true", help="progress as JSON lines on stdout")
    status = command("status", _status, "Say who this device is and what it has done.")
    status.add_argument("--json", action="store_true", help="as a JSON document")
    predict = command("predict", _predict, "Predict with the model that this device has trained.")
    predict.add_argument(
        "file", metavar="FILE", help="a .npz or .csv; - reads one JSON list a line from stdin"
    )
    limits = command("limits", _limits, "Show the owner's limits, or set them ('none' lifts one).")
    for option, meaning in _LIMITS.items():
        limits.add_argument(f"--{option}", help=meaning)
    limits.add_argument("--yes", action="store_true", help="do not ask about odd values")
    limits.add_argument("--json", action="store_true", help="as a JSON document")
    leave = command("leave", _leave, "Delete this device's identity and everything it has kept.")
    leave.add_argument("--yes", action="store_true", help="do not ask")
    return parser


_LIMITS = {
    "ram": "memory for training, such as 64MiB",
    "cpu": "share of one processor, such as 50%%",
    "battery": "no work below this charge, such as 30%%",
    "bytes": "bytes of messages a day, such as 20MB",
}


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of visits")
    return int(text)


def _store(options: Any) -> Store:
    return Store(locate(options.dir), _tell)


# ---- join, leave -----------------------------------------------------------------------------


def _join(options: Any) -> None:
    from fedtiny.agent.card import device_card
    from fedtiny.agent.identity import enrol
    from fedtiny.agent.limits import Limits
    from fedtiny.wire.joining import JoinString

    joined, store = JoinString.parse(options.string), _store(options)
    with store.locked():
        card = device_card(store, Limits.load(store))
        identity = enrol(joined, options.name, card, store.folder, options.again)
    _tell(
        f"joined as device {identity.index} of {identity.address}"
        f"{_called(options.name, identity.name)}; next: fedtiny-agent run --data SOURCE"
    )


def _called(asked: str, given: str) -> str:
    taken = f", for another device has the name {asked}" if given != asked else ""
    return f", called {given}{taken}" if given else ""


def _leave(options: Any) -> None:
    store = _store(options)
    if not store.is_agents:
        raise RunError(f"{store.folder} has nothing of an agent's; name its folder with --dir")
    if not options.yes and not _agreed(f"delete everything in {store.folder}? [y/N] "):
        raise ExperimentError("nothing was deleted; say yes, or add --yes")
    with store.locked(), told(store.folder):
        shutil.rmtree(store.folder)
    _tell(f"{store.folder} is gone; the coordinator still lists the device until it is revoked")


def _agreed(question: str) -> bool:
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


# ---- run -------------------------------------------------------------------------------------


def _run(options: Any) -> None:
    from fedtiny.agent.serving import serving
    from fedtiny.agent.starting import open_agent, status_of

    if not options.data:
        raise ExperimentError(f"no samples are named: add --data SOURCE, or set {DATA_VARIABLE}")
    store = _store(options)
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, _end)
    sys.path.insert(0, os.getcwd())  # for module:object beside the caller
    with store.locked():
        agent = open_agent(store, options.data, _show_json if options.json else _show)
        agent.stay = options.stay
        with serving(store, lambda: status_of(store, agent.doing)):
            agent.run(options.once)


def _end(number: int, _: object) -> NoReturn:
    """What is finished is on the disk, and what is not is done again: ending is safe anywhere.

    What a handler raises inside a library's callback is swallowed there, so the signal comes again
    until the process has ended.
    """
    again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()
    raise KeyboardInterrupt if number == signal.SIGINT else _Terminated


def _show(report: Any) -> None:
    _tell(report if isinstance(report, str) else report.line())


def _show_json(report: Any) -> None:
    _print({"note": report} if isinstance(report, str) else asdict(report))


# ---- status, predict, limits -----------------------------------------------------------------


def _status(options: Any) -> None:
    from fedtiny.agent.telling import status_lines

    document = _status_of(_store(options))
    if options.json:
        _print(document)
        return
    for line in status_lines(document):
        _write(line)


def _status_of(store: Store) -> dict[str, Any]:
    """What the running agent says, else what its folder says."""
    from fedtiny.agent.serving import ask
    from fedtiny.agent.starting import status_of

    if store.running:
        with suppress(RunError, OSError):  # it ends, or has only begun
            (document,) = ask(store.folder, iter([{"status": True}]))
            if "error" not in document:
                return document
    return status_of(store)


def _predict(options: Any) -> None:
    from fedtiny.agent.personal import samples_of
    from fedtiny.agent.serving import SOCKET

    store = _store(options)
    samples = samples_of(options.file, sys.stdin)
    is_asked = options.file == "-" and (store.folder / SOCKET).exists() and store.running
    for row in _by_agent(store, samples) if is_asked else _by_folder(store, samples):
        _print(row)


def _by_agent(store: Store, samples: Iterator[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    from fedtiny.agent.serving import ask

    told, asked = tee(samples)
    answers = ask(store.folder, ({"x": sample} for _, sample in asked))
    for (where, _), answer in zip(told, answers, strict=True):
        if "error" in answer:
            raise DataError(f"{where}: {answer['error']}")
        yield answer


def _by_folder(store: Store, samples: Iterator[tuple[str, Any]]) -> Iterator[dict[str, Any]]:
    from fedtiny.agent.personal import Predictor

    predictor = Predictor(store)
    for where, sample in samples:
        try:
            yield from predictor.predict(sample)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None


def _limits(options: Any) -> None:
    from fedtiny.agent.limits import Limits, parse_percent, parse_size
    from fedtiny.agent.telling import limit_lines

    store = _store(options)
    parsers: dict[str, tuple[str, Callable[[str], Any], Any]] = {
        "ram": ("ram_bytes", parse_size, None),
        "cpu": ("cpu_percent", parse_percent, 100.0),
        "battery": ("battery_percent", parse_percent, 0.0),
        "bytes": ("bytes_a_day", parse_size, None),
    }
    given = {
        field: lifted if text == "none" else parse(text)
        for option, (field, parse, lifted) in parsers.items()
        if (text := getattr(options, option)) is not None
    }
    before = Limits.load(store)
    limits = replace(before, **given)
    doubts = [doubt for doubt in limits.doubts() if doubt not in before.doubts()]
    if doubts and not options.yes and not _agreed(f"{' and '.join(doubts)}: really? [y/N] "):
        raise ExperimentError("no limit was changed; say yes, or add --yes")
    if given:
        limits.save(store)
        _tell("kept; a running agent takes them at its next start")
    if options.json:
        _print(asdict(limits))
        return
    for line in limit_lines(limits):
        _write(line)


# ---- printing --------------------------------------------------------------------------------


def _print(document: dict[str, Any]) -> None:
    _write(json.dumps(document))


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _tell(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
