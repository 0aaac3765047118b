"""The state folder: whole or not at all, one process at a time, damage told and set aside."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedtiny.agent.blobs import Blobs
from fedtiny.agent.store import Held, Origin, Store, Trained, locate
from fedtiny.errors import RunError
from fedtiny.masks import Mask
from fedtiny.values import CONTROL, LOCAL_VALUES, OWN_MODEL, Quantised, Update

UPDATE = Update(3 << 32, 5, 3, 2, 80, b"\0\0\x80?" * 2, ((1, 3),), {"loss_sum": 0.5})
KEPT = {LOCAL_VALUES: b"abcd", OWN_MODEL: b"12345678"}
HELD = Held(UPDATE, Origin(b"run-of-8", b"\7" * 32, 9), KEPT)


MASK = Mask(9, b"\x05\x01")
MASKED = Held(replace(UPDATE, mask=MASK), Origin(b"run-of-8", b"\7" * 32, 9, b"8 bytes."), KEPT)
GROWN = Held(replace(UPDATE, ranges=((0, 9),), places=bytes(4) + b"\2\0\0\0"), HELD.origin)
SMALL = Held(replace(UPDATE, quantised=Quantised("int8", 64, bytes(4), b"\1\2")), HELD.origin, KEPT)


@pytest.mark.parametrize("held", [HELD, MASKED, GROWN, SMALL, replace(GROWN, kept=KEPT)])
def test_a_held_update_comes_back_as_it_was(tmp_path: Path, held: Held) -> None:
    Store(tmp_path).hold(held)
    assert Store(tmp_path).held() == held
    Store(tmp_path).drop_held()
    assert Store(tmp_path).held() is None


def test_what_an_agent_of_an_earlier_release_has_kept_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    held, late = replace(HELD, kept={LOCAL_VALUES: b"abcd"}), ("mask", "places", "given", "kept")
    store.hold(held)
    head, body = store.read("held") or ({}, b"")
    store.write("held", {k: v for k, v in head.items() if k not in (*late, "quantised")}, body)
    assert store.held() == held
    store.write(f"personal-{b'run-of-8'.hex()}", {}, b"own.")
    assert store.kept(b"run-of-8") == {LOCAL_VALUES: b"own."}
    trained = Trained(b"\1" * 32, b"run-of-8", 3, bytes(36))
    store.keep_trained(trained)
    head, body = store.read("trained") or ({}, b"")
    store.write("trained", {k: v for k, v in head.items() if k != "mask"}, body)
    assert store.trained() == trained


def test_a_trained_model_is_kept_with_its_mask(tmp_path: Path) -> None:
    trained = Trained(b"\1" * 32, b"run-of-8", 3, bytes(12), MASK.blob)
    Store(tmp_path).keep_trained(trained)
    assert Store(tmp_path).trained() == trained


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_damaged_update_is_told_and_set_aside(
    tmp_path_factory: pytest.TempPathFactory, at: int, bit: int
) -> None:
    told: list[str] = []
    store = Store(tmp_path_factory.mktemp("agent"), told.append)
    store.hold(HELD)
    path = store.folder / "held"
    body = bytearray(path.read_bytes())
    body[at % len(body)] ^= 1 << bit
    path.write_bytes(body)
    assert store.held() is None
    assert len(told) == 1
    assert "held is damaged" in told[0]
    assert sorted(p.name for p in store.folder.iterdir()) == ["held.damaged"]


def test_a_torn_document_is_set_aside(tmp_path: Path) -> None:
    told: list[str] = []
    store = Store(tmp_path, told.append)
    store.write_document("limits", {"cpu_percent": 50.0})
    (tmp_path / "limits.json").write_text('{"cpu_per')
    assert store.document("limits") == {}
    assert "limits.json is damaged" in told[0]


def test_nobody_else_can_read_the_folder(tmp_path: Path) -> None:
    store = Store(tmp_path / "agent")
    store.hold(HELD)
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert (store.folder / "held").stat().st_mode & 0o777 == 0o600


def test_a_folder_that_is_only_read_is_not_made(tmp_path: Path) -> None:
    store = Store(tmp_path / "agent")
    assert (store.held(), store.document("limits"), store.running) == (None, {}, 0)
    assert not store.folder.exists()


def test_a_folder_that_was_open_to_others_is_shut_and_that_is_told_once(tmp_path: Path) -> None:
    told: list[str] = []
    folder = tmp_path / "agent"
    folder.mkdir()
    folder.chmod(0o777)
    for _ in range(2):
        with Store(folder, told.append).locked():
            assert folder.stat().st_mode & 0o777 == 0o700
    assert told == [f"{folder} was open to others (mode 0777); now it is not"]


def test_a_folder_of_others_is_not_shut_to_them(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    (folder / "theirs").write_text("")
    with pytest.raises(RunError, match=r"mode 1777\).* folder of the agent's own with --dir"):
        Store(folder).make()
    assert folder.stat().st_mode & 0o7777 == 0o1777


def test_one_folder_serves_one_process_at_a_time(tmp_path: Path) -> None:
    store = Store(tmp_path)
    second = "import sys; from pathlib import Path; from fedtiny.agent.store import Store\n"
    second += "with Store(Path(sys.argv[1])).locked(): pass"
    command = [sys.executable, "-c", second, str(tmp_path)]
    with store.locked():
        assert store.running == os.getpid()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert f"an agent (process {os.getpid()}) already runs in {tmp_path}" in done.stderr
    assert store.running == 0
    assert subprocess.run(command, check=False).returncode == 0


def test_a_folder_that_cannot_be_written_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"Not a directory; .*--dir"):
        Store(tmp_path / "file" / "agent").write_document("limits", {})


def test_the_folder_is_the_one_named_then_that_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FEDTINY_AGENT_DIR", raising=False)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    assert locate() == Path.home() / ".local/share/fedtiny-agent"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/fedtiny-agent")
    assert locate() == Path("/var/lib/fedtiny-agent")
    monkeypatch.setenv("FEDTINY_AGENT_DIR", "/srv/agent")
    assert locate() == Path("/srv/agent")
    assert locate("here") == Path("here")


def test_the_trained_model_and_what_visits_leave_are_kept(tmp_path: Path) -> None:
    store, trained = Store(tmp_path), Trained(b"\1" * 32, b"run-of-8", 4, b"\0" * 8)
    store.keep_trained(trained)
    store.keep(b"run-of-8", {LOCAL_VALUES: b"head", CONTROL: b"c_k."})
    store.keep(b"run-of-8", {CONTROL: b"next"})
    store.keep(b"run-of-8", {})
    assert Store(tmp_path).trained() == trained
    assert Store(tmp_path).kept(b"run-of-8") == {LOCAL_VALUES: b"head", CONTROL: b"next"}
    assert Store(tmp_path).kept(b"another!") == {}


# --- blobs


def digest(body: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(body).digest()


def test_blobs_used_longest_ago_go_first_but_never_the_pinned(tmp_path: Path) -> None:
    blobs = Blobs(Store(tmp_path), most_bytes=3000)
    bodies = [bytes([n]) * 1000 for n in range(4)]
    for n, body in enumerate(bodies[:3]):
        blobs.keep(digest(body), body)
        os.utime(blobs.folder / digest(body).hex(), (n, n))
    blobs.pinned = digest(bodies[0])
    assert blobs.get(digest(bodies[1])) == bodies[1]  # now the one used last
    blobs.keep(digest(bodies[3]), bodies[3])
    assert [blobs.get(digest(body)) is not None for body in bodies] == [True, True, False, True]


def test_a_damaged_blob_is_set_aside(tmp_path: Path) -> None:
    told: list[str] = []
    blobs = Blobs(Store(tmp_path, told.append))
    blobs.keep(digest(b"model"), b"model")
    (blobs.folder / digest(b"model").hex()).write_bytes(b"medal")
    assert blobs.get(digest(b"model")) is None
    assert "checksum" in told[0]


def test_a_blob_that_broke_off_is_kept_until_it_is_whole(tmp_path: Path) -> None:
    name = digest(b"a model")
    Blobs(Store(tmp_path)).go_on(name, b"a mo")
    blobs = Blobs(Store(tmp_path))
    assert blobs.begun(name) == b"a mo"
    assert blobs.get(name) is None
    blobs.keep(name, b"a model")
    assert (blobs.begun(name), blobs.get(name)) == (b"", b"a model")
