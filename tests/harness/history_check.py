"""Whether what the clients saw and what the coordinator kept tell one story, as Jepsen asks it.

Every client writes down each operation twice: when it asks (`INVOKE`) and when it knows: `OK` with
what it was told, `FAIL` when the coordinator refused the request itself, `UNKNOWN` when no answer
came. `check` compares these logs with the coordinator's `Ledger` and names all that does not fit.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from fedtiny.values import ACCEPTED, DUPLICATE, round_of

INVOKE, OK, FAIL, UNKNOWN = "invoke", "ok", "fail", "unknown"
CHECK_IN, SUBMIT = "check-in", "submit"
DELIVERED = (ACCEPTED, DUPLICATE)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a client's log. ``call`` joins an invocation to its end."""

    client: str
    call: int
    op: str
    kind: str
    device: int
    run: str = ""
    lease: int = -1
    version: int = -1
    digest: str = ""
    """SHA-256 of the model that the visit starts from, in hex."""
    status: str = ""
    detail: str = ""


class Log:
    """The log of one client; a line is with the operating system before the call goes out."""

    def __init__(self, path: Path) -> None:
        self._client = path.stem
        self._file = path.open("a", buffering=1)
        self._calls = 0

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def invoke(self, op: str, device: int, **facts: str | int) -> int:
        """The number of the call, for `end`."""
        self._calls += 1
        self.end(self._calls, op, INVOKE, device, **facts)
        return self._calls

    def end(self, call: int, op: str, kind: str, device: int, **facts: str | int) -> None:
        """What became of it."""
        entry = {"client": self._client, "call": call, "op": op, "kind": kind, "device": device}
        self._file.write(json.dumps(entry | facts) + "\n")


def read_logs(folder: Path) -> list[Entry]:
    """All logs of the folder; a last line that a kill cut short is left out."""
    return [
        Entry(**json.loads(line))
        for path in sorted(folder.glob("*.jsonl"))
        for line in path.read_text().split("\n")[:-1]
    ]


@dataclass(frozen=True, slots=True)
class Commit:
    """A committed round, as the coordinator keeps it."""

    round: int
    version: int
    digest: str
    leases: tuple[int, ...]
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Ledger:
    """What a coordinator's database says of one run."""

    run: str
    commits: tuple[Commit, ...]
    accepted: tuple[int, ...] = ()
    """Every lease whose update was ever accepted, in whatever became of its round."""
    first_digest: str = ""
    """Of the initial model, version 0."""
    replayed: tuple[str, ...] | None = None
    """The digest after each commit, rebuilt from the records; None: not rebuilt."""
    compact: Mapping[int, Collection[str]] = field(default_factory=dict)
    """By version, the digests of what of the model is sent under its masks, or as int8."""
    max_staleness: int = 0
    """How many versions late an update may count; 0: in its own round alone."""
    later: Mapping[int, int] = field(default_factory=dict)
    """By lease, the round that its update was accepted in, where it was given in another."""

    def round_of(self, lease: int) -> int:
        """The round that the update was accepted in."""
        return self.later.get(lease, round_of(lease))


def check(entries: Iterable[Entry], ledger: Ledger) -> list[str]:
    """All that does not fit; empty when the history holds."""
    ours = [entry for entry in entries if entry.run in ("", ledger.run)]
    return [
        *_calls(ours),
        *_counted(ours, ledger),
        *_invented(ours, ledger),
        *_rounds(ledger),
        *_late(ours, ledger),
        *_models(ours, ledger),
        *_devices(ours),
    ]


def _calls(entries: list[Entry]) -> Iterator[str]:
    """A call is begun once and ends at most once."""
    kinds: dict[tuple[str, int], list[str]] = defaultdict(list)
    for entry in entries:
        kinds[entry.client, entry.call].append(entry.kind)
    for (client, call), seen in kinds.items():
        if seen[0] != INVOKE or len(seen) > 2 or INVOKE in seen[1:]:
            yield f"the log of {client} is damaged: call {call} went {seen}"


def _counted(entries: list[Entry], ledger: Ledger) -> Iterator[str]:
    """What was acknowledged counts once, what was refused never; nothing counts twice."""
    counts = Counter(lease for commit in ledger.commits for lease in commit.leases)
    counts.update(
        lease for lease in ledger.accepted if ledger.round_of(lease) >= len(ledger.commits)
    )
    failed = {commit.round for commit in ledger.commits if commit.failed}
    kept = {lease for lease in ledger.accepted if ledger.round_of(lease) not in failed}
    yield from (
        f"lease {lease:#x} is accepted and counts nowhere" for lease in kept - counts.keys()
    )
    yield from (f"lease {lease:#x} counts, it was not accepted" for lease in counts.keys() - kept)
    yield from (f"lease {lease:#x} counts {n} times" for lease, n in counts.items() if n > 1)
    for lease, told in _receipts(entries).items():
        delivered = told & set(DELIVERED)
        if delivered and told - delivered:
            yield f"lease {lease:#x} was told {sorted(told)}"
        if delivered and not counts[lease] and ledger.round_of(lease) not in failed:
            yield f"lease {lease:#x} was told {sorted(told)} and counts nowhere: it is lost"
        if not delivered and counts[lease]:
            yield f"lease {lease:#x} was told {sorted(told)} and counts"


def _receipts(entries: list[Entry]) -> Mapping[int, set[str]]:
    """By lease, what its device was ever told; "failed" if nothing else than refused requests."""
    told: dict[int, set[str]] = defaultdict(set)
    open_calls: dict[tuple[str, int], int] = {}
    for entry in (e for e in entries if e.op == SUBMIT):
        if entry.kind == INVOKE:
            open_calls[entry.client, entry.call] = entry.lease
        elif entry.kind == OK:
            told[entry.lease].add(entry.status)
        if entry.kind in (OK, FAIL):
            open_calls.pop((entry.client, entry.call), None)
    unsure = set(open_calls.values())
    refused = {e.lease for e in entries if e.op == SUBMIT and e.kind == FAIL}
    for lease in refused - unsure - told.keys():
        told[lease].add("failed")
    return told


def _invented(entries: list[Entry], ledger: Ledger) -> Iterator[str]:
    """What counts was handed in, by a device that hands in once a round."""
    handed_in = {e.lease: e.device for e in entries if e.op == SUBMIT and e.kind == INVOKE}
    for commit in ledger.commits:
        unknown = [lease for lease in commit.leases if lease not in handed_in]
        yield from (f"lease {lease:#x} counts, nobody handed it in" for lease in unknown)
        owners = Counter(handed_in[lease] for lease in commit.leases if lease in handed_in)
        yield from (
            f"device {device} counts {n} times in round {commit.round}"
            for device, n in owners.items()
            if n > 1
        )


def _rounds(ledger: Ledger) -> Iterator[str]:
    """Rounds follow each other, versions rise with each model, a lease counts where it was due."""
    first = Commit(-1, 0, ledger.first_digest, ())
    for before, commit in pairwise((first, *ledger.commits)):
        if commit.round != before.round + 1:
            yield f"round {commit.round} follows round {before.round}"
        if commit.version < before.version or (
            commit.version == before.version and commit.digest != before.digest != ""
        ):
            yield f"round {commit.round} goes from version {before.version} to {commit.version}"
        if commit.failed and commit.leases:
            yield f"round {commit.round} has failed, and counts {len(commit.leases)} updates"
        strangers = [lease for lease in commit.leases if ledger.round_of(lease) != commit.round]
        yield from (f"lease {lease:#x} counts in round {commit.round}" for lease in strangers)


def _late(entries: list[Entry], ledger: Ledger) -> Iterator[str]:
    """A lease counts in the round that gave it, or not too many versions later."""
    starts = {e.lease: e.version for e in entries if e.op == SUBMIT and e.kind == INVOKE}
    version = 0
    for commit in ledger.commits:
        for lease in commit.leases:
            late = version - starts.get(lease, version)
            in_time = 0 <= late <= ledger.max_staleness and commit.round >= round_of(lease)
            own = commit.round == round_of(lease)
            if not in_time or not (own or ledger.max_staleness):
                yield f"lease {lease:#x} counts in round {commit.round}, {late} versions late"
        version = commit.version


def _models(entries: list[Entry], ledger: Ledger) -> Iterator[str]:
    """A version is one model, for every device and in every rebuilding."""
    published = {commit.version: commit.digest for commit in ledger.commits}
    if ledger.first_digest:
        published.setdefault(0, ledger.first_digest)
    for entry in entries:
        wanted = {
            published.get(entry.version, entry.digest),
            *ledger.compact.get(entry.version, ()),
        }
        if entry.kind == INVOKE and entry.digest and entry.digest not in wanted:
            yield f"device {entry.device} had another model {entry.version}: {entry.digest[:12]}"
    if ledger.replayed is None:
        return
    digests = tuple(commit.digest for commit in ledger.commits)
    if len(ledger.replayed) != len(digests):
        yield f"{len(ledger.replayed)} rounds were rebuilt, {len(digests)} are committed"
    for commit, rebuilt in zip(ledger.commits, ledger.replayed, strict=False):
        if commit.digest != rebuilt:
            yield f"round {commit.round} published {commit.digest[:12]}, rebuilt {rebuilt[:12]}"


def _devices(entries: list[Entry]) -> Iterator[str]:
    """No device is ever sent back to an older model."""
    newest: dict[tuple[str, int], int] = {}
    for entry in entries:
        if entry.op != CHECK_IN or entry.version < 0:
            continue
        key = entry.client, entry.device
        if entry.version < newest.get(key, 0):
            yield f"device {entry.device} got version {entry.version} after {newest[key]}"
        newest[key] = max(newest.get(key, 0), entry.version)
