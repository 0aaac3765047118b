"""Devices that vanish, networks that break, answers that are lost: the rounds go on."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from fedtiny.experiment import Experiment
from fedtiny.simulator.run import simulate
from fedtiny.values import ACCEPTED, DUPLICATE, Lease
from tests.harness.coordinator_process import CoordinatorProcess
from tests.harness.fault_proxy import FaultProxy, Partition, Strike, Weather
from tests.harness.history_check import OK, SUBMIT
from tests.harness.story import Story, Told, experiment
from tests.harness.swarm import Conduct, Swarm

DEVICES, ROUNDS = 6, 4


@pytest.fixture
def proxy() -> Iterator[FaultProxy]:
    with FaultProxy(0, seed=3) as proxy:
        yield proxy


def all_devices(folder: Path, **story: object) -> tuple[Told, str]:
    """A run in which every device counts in every round, and the model that it must publish."""
    path = experiment(folder, DEVICES, rounds=ROUNDS)
    with CoordinatorProcess(path, folder / "fleet") as process:
        told = Story(process, DEVICES, **story).told()  # type: ignore[arg-type]
    return told, str(simulate(Experiment.load(path)).summary["model_digest"])


# ---- devices that vanish


def test_rounds_complete_when_a_third_of_the_devices_drops_out(tmp_path: Path) -> None:
    # Three of ten leases come to nothing, another three in each round.
    conduct = partial(Conduct, answers=lambda lease: (lease.device + 3 * lease.round) % 10 >= 3)
    path = experiment(
        tmp_path, 30, cohort=10, rounds=5, deadline=0.8, over_selection='"measured"',
        seeded=False,
    )  # fmt: skip
    with CoordinatorProcess(path, tmp_path / "fleet") as process:
        told = Story(process, 30, conduct=conduct, pace=1.0).told()
    assert told.flaws == []
    assert [row["accepted"] for row in told.rows] == [10] * 5
    assert told.failed_rounds == 0


def test_rounds_complete_in_degraded_form_when_four_of_five_devices_are_silent(
    tmp_path: Path,
) -> None:
    conduct = partial(Conduct, answers=lambda lease: lease.device % 5 == 0)
    path = experiment(tmp_path, 20, rounds=3, deadline=0.5, minimum=4, seeded=False)
    with CoordinatorProcess(path, tmp_path / "fleet") as process:
        told = Story(process, 20, conduct=conduct, pace=1.0).told()
    assert told.flaws == []
    assert [row["accepted"] for row in told.rows] == [4] * 3
    assert told.failed_rounds == 0


def test_a_revoked_device_contributes_nothing_from_then_on(tmp_path: Path) -> None:
    revoked = 2

    async def trouble(process: CoordinatorProcess, swarm: Swarm) -> None:
        while swarm.figures.delivered < DEVICES:
            await asyncio.sleep(0.005)
        await asyncio.to_thread(process.revoke, revoked)
        before[:] = [device.session.lease for device in swarm.devices]

    before: list[Lease | None] = []
    path = experiment(tmp_path, DEVICES, rounds=8, deadline=0.6, minimum=DEVICES - 1, seeded=False)
    with CoordinatorProcess(path, tmp_path / "fleet") as process:
        told = Story(process, DEVICES, trouble=trouble, pace=1.0).told()
    assert told.flaws == []
    assert [row["accepted"] for row in told.rows][-4:] == [DEVICES - 1] * 4
    counted = [e.lease for e in told.entries if (e.device, e.status) == (revoked, ACCEPTED)]
    assert max(lease >> 32 for lease in counted) <= 4


# ---- networks that break


def test_an_update_whose_acknowledgement_was_lost_counts_once(
    tmp_path: Path, proxy: FaultProxy
) -> None:
    async def trouble(process: CoordinatorProcess, swarm: Swarm) -> None:
        for _ in range(4):
            proxy.meet(Strike("lost answer", after_bytes=4000))  # a model has 4,612 bytes
            while proxy.waiting:
                await asyncio.sleep(0.01)

    told, model = all_devices(tmp_path, trouble=trouble, proxy=proxy)
    assert told.flaws == []
    assert told.receipts[DUPLICATE] >= 1
    assert told.model == model


def test_an_update_that_is_delivered_twice_counts_once(tmp_path: Path) -> None:
    told, model = all_devices(tmp_path, conduct=partial(Conduct, twice=True))
    assert told.flaws == []
    assert told.receipts == {ACCEPTED: DEVICES * ROUNDS, DUPLICATE: DEVICES * ROUNDS}
    assert told.model == model


def test_resets_in_the_middle_of_anything_lose_nothing(tmp_path: Path, proxy: FaultProxy) -> None:
    async def trouble(process: CoordinatorProcess, swarm: Swarm) -> None:
        for after in (1, 300, 700, 1500, 2500, 5000, 7000):
            proxy.meet(Strike("reset", after_bytes=after))
            while proxy.waiting:
                await asyncio.sleep(0.01)

    told, model = all_devices(tmp_path, trouble=trouble, proxy=proxy)
    assert told.flaws == []
    assert told.model == model


def test_bytes_that_change_on_the_way_are_noticed_by_tls(tmp_path: Path, proxy: FaultProxy) -> None:
    # 24 visits carry some 300 KB: about ten of them meet a flipped bit.
    proxy.meet(Weather(corrupt_every_bytes=30_000))
    # In the length of a record a flipped bit makes its reader wait for bytes that never come.
    conduct = partial(Conduct, wait_s=2.0, call_s=2.0)
    told, model = all_devices(tmp_path, proxy=proxy, conduct=conduct)
    assert told.flaws == []
    assert told.figures.lost >= 1
    assert told.figures.refused == []
    assert told.model == model


def test_without_tls_damaged_bytes_end_no_run_and_break_no_count(
    tmp_path: Path, proxy: FaultProxy
) -> None:
    async def trouble(process: CoordinatorProcess, swarm: Swarm) -> None:
        # A device that reads a damaged time may sleep for ever.
        while (await asyncio.to_thread(process.status))["runs"][0]["phase"] != "done":
            await asyncio.sleep(0.1)
        swarm.stop()

    proxy.meet(Weather(corrupt_every_bytes=15_000))
    conduct = partial(Conduct, wait_s=0.5, call_s=0.5)  # HTTP/2 may wait for ever for a lost frame
    path = experiment(tmp_path, DEVICES, rounds=ROUNDS, minimum=1, deadline=1.0)
    with CoordinatorProcess(path, tmp_path / "fleet", "--insecure") as process:
        told = Story(process, DEVICES, trouble=trouble, proxy=proxy, conduct=conduct).told()
    # A number that was damaged is a number: client and coordinator may tell different stories.
    own = ("times", "counts nowhere", "goes from", "follows", "rebuilt")
    assert [flaw for flaw in told.flaws if any(words in flaw for words in own)] == []
    assert len(told.rows) == ROUNDS
    assert told.figures.damaged or told.figures.lost or told.figures.refused


def test_a_slow_and_distant_network_changes_nothing(tmp_path: Path, proxy: FaultProxy) -> None:
    proxy.meet(Weather(delay_s=0.02, jitter_s=0.02, bytes_per_s=250_000))
    told, model = all_devices(tmp_path, proxy=proxy)
    assert told.flaws == []
    assert told.receipts == {ACCEPTED: DEVICES * ROUNDS}
    assert told.model == model


@pytest.mark.slow
def test_a_partition_of_ten_seconds_costs_at_most_one_round(
    tmp_path: Path, proxy: FaultProxy
) -> None:
    async def trouble(process: CoordinatorProcess, swarm: Swarm) -> None:
        while swarm.figures.delivered < 2 * DEVICES:
            await asyncio.sleep(0.005)
        proxy.meet(Partition(10.0))

    path = experiment(tmp_path, DEVICES, rounds=8, deadline=3.0)
    with CoordinatorProcess(path, tmp_path / "fleet") as process:
        told = Story(process, DEVICES, trouble=trouble, proxy=proxy, pace=1.0).told()
    assert told.flaws == []
    assert len(told.rows) == 8
    assert told.failed_rounds <= 1
    longest = max(b["time_s"] - a["time_s"] for a, b in zip(told.rows, told.rows[1:], strict=False))
    assert 9 <= longest <= 10 + 2 * 3.0


# ---- agents of another version


def test_an_agent_of_a_newer_protocol_is_served(tmp_path: Path) -> None:
    told, model = all_devices(tmp_path, conduct=partial(Conduct, protocol=2))
    assert told.model == model


def test_an_agent_of_an_older_protocol_is_told_to_be_updated(tmp_path: Path) -> None:
    path = experiment(tmp_path, DEVICES)
    with CoordinatorProcess(path, tmp_path / "fleet") as process:
        told = Story(process, DEVICES, conduct=partial(Conduct, protocol=0)).told()
    assert told.rows == []
    assert not any(entry.op == SUBMIT for entry in told.entries)
    refusals = {entry.detail for entry in told.entries if entry.kind != OK and entry.detail}
    assert len(refusals) == 1
    assert "update the agent" in refusals.pop()
