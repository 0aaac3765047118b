from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from fedtiny.errors import RunError
from fedtiny.server.sealing import BLOCK_BYTES, NONCE_BYTES, RoundKeys

RUN, OTHER = b"01234567", b"89abcdef"
BODY = b"an update that nobody else is to see"


@pytest.fixture
def keys(tmp_path: Path) -> RoundKeys:
    return RoundKeys(tmp_path / "round-keys")


def key_file(keys: RoundKeys) -> Path:
    (path,) = keys.folder.iterdir()
    return path


def test_what_is_sealed_can_be_opened_also_after_a_restart(keys: RoundKeys) -> None:
    sealed = keys.seal(RUN, 3, 0, BODY)
    assert keys.open(RUN, 3, 0, sealed) == BODY
    assert RoundKeys(keys.folder).open(RUN, 3, 0, sealed) == BODY


def test_what_is_sealed_shows_nothing_and_never_looks_the_same(keys: RoundKeys) -> None:
    first, second = (keys.seal(RUN, 3, 0, BODY) for _ in range(2))
    assert BODY[:8] not in first
    assert first[:NONCE_BYTES] != second[:NONCE_BYTES]  # a place may be taken twice: see a crash


def test_a_body_is_bound_to_its_run_round_and_place(keys: RoundKeys) -> None:
    sealed = keys.seal(RUN, 3, 0, BODY)
    keys.seal(RUN, 4, 0, BODY)
    keys.seal(OTHER, 3, 0, BODY)
    for run, round, seq in ((OTHER, 3, 0), (RUN, 4, 0), (RUN, 3, 1)):
        with pytest.raises(RunError, match=f"the key of round {round} in .* does not fit"):
            keys.open(run, round, seq, sealed)


def test_the_keys_of_one_run_are_shredded_together(keys: RoundKeys) -> None:
    for run, round in ((RUN, 3), (RUN, 4), (OTHER, 3)):
        keys.seal(run, round, 0, BODY)
    keys.shred_all(RUN)
    again = RoundKeys(keys.folder)
    assert (again.rounds(RUN), again.rounds(OTHER)) == ([], [3])


@pytest.mark.parametrize("at", [0, NONCE_BYTES, -1])
def test_a_body_that_was_changed_is_not_opened(keys: RoundKeys, at: int) -> None:
    sealed = bytearray(keys.seal(RUN, 3, 0, BODY))
    sealed[at] ^= 1
    with pytest.raises(RunError, match="does not fit; restore the whole folder from one backup"):
        keys.open(RUN, 3, 0, bytes(sealed))


@pytest.mark.parametrize("length", [0, 5, NONCE_BYTES, NONCE_BYTES + 5])
def test_a_body_that_was_cut_is_not_opened(keys: RoundKeys, length: int) -> None:
    sealed = keys.seal(RUN, 3, 0, BODY)
    with pytest.raises(RunError, match="does not fit"):
        keys.open(RUN, 3, 0, sealed[:length])


def test_a_key_that_is_shredded_opens_nothing_any_more(keys: RoundKeys) -> None:
    sealed = keys.seal(RUN, 3, 0, BODY)
    before = key_file(keys).read_bytes()
    keys.shred(RUN, 3)
    assert key_file(keys).read_bytes()[8:40] != before[8:40]  # where the key was
    for opener in (keys, RoundKeys(keys.folder)):
        assert opener.rounds(RUN) == []
        with pytest.raises(RunError, match="has no key of round 3; restore the whole folder"):
            opener.open(RUN, 3, 0, sealed)


def test_each_round_has_a_key_of_its_own(keys: RoundKeys) -> None:
    sealed = {round: keys.seal(RUN, round, 0, BODY) for round in range(3)}
    assert keys.rounds(RUN) == [0, 1, 2]
    keys.shred(RUN, 1)
    again = RoundKeys(keys.folder)
    assert again.rounds(RUN) == [0, 2]
    assert [again.open(RUN, round, 0, sealed[round]) for round in (0, 2)] == [BODY, BODY]


def test_the_file_does_not_grow_with_the_rounds(keys: RoundKeys) -> None:
    for round in range(20):
        keys.seal(RUN, round, 0, BODY)
        if round:
            keys.shred(RUN, round - 1)
    assert key_file(keys).stat().st_size <= 2 * BLOCK_BYTES


def test_a_key_that_a_power_cut_has_torn_is_none(keys: RoundKeys) -> None:
    keys.seal(RUN, 3, 0, BODY)
    path = key_file(keys)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        again = RoundKeys(keys.folder)
        assert again.rounds(RUN) == []
        if length % 8 == 0:  # and a new one takes its place
            assert again.open(RUN, 4, 0, again.seal(RUN, 4, 0, BODY)) == BODY


def test_keys_are_for_their_owner_alone(keys: RoundKeys) -> None:
    keys.seal(RUN, 3, 0, BODY)
    assert stat.S_IMODE(keys.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(key_file(keys).stat().st_mode) == 0o600


def test_a_folder_that_is_gone_is_told_with_the_remedy(keys: RoundKeys) -> None:
    shutil.rmtree(keys.folder)
    with pytest.raises(RunError, match=f"{RUN.hex()}.keys: .*; make room there"):
        keys.seal(RUN, 3, 0, BODY)


def test_a_disk_without_room_for_a_key_is_told_and_the_next_try_makes_one(
    keys: RoundKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=f"{RUN.hex()}.keys: No space left on device; make room"):
            keys.seal(RUN, 3, 0, BODY)
    assert keys.rounds(RUN) == []
    assert RoundKeys(keys.folder).open(RUN, 3, 0, keys.seal(RUN, 3, 0, BODY)) == BODY


def test_a_key_is_on_the_disk_before_anything_is_sealed(
    keys: RoundKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    keys.seal(RUN, 3, 0, BODY)
    assert len(synced) == 2  # the file and, as it is new, its folder
    keys.seal(RUN, 3, 1, BODY)
    assert len(synced) == 2
    keys.shred(RUN, 3)
    assert len(synced) == 3
