"""Board profiles: what a class of devices can do, each figure with its source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from fedtiny.errors import ExperimentError, did_you_mean
from fedtiny.values import DeviceCard

FIGURES = (
    "ram_bytes", "flash_bytes", "macs_per_s", "downlink_bps", "uplink_bps", "latency_s",
    "active_w", "idle_w", "radio_w",
)  # fmt: skip
"""The numbers of a profile, in the order of `BoardProfile`."""


@dataclass(frozen=True)
class BoardProfile:
    """One class of devices.

    RAM and flash are those of the whole board; what the rest of the firmware or the operating
    system takes is the experiment's ``reserve``, which a Program's footprint counts.
    ``macs_per_s`` is what float32 training sustains on one core with separate multiply and add.
    Link rates are bits a second as an application sees them, ``latency_s`` is paid once a transfer.
    Power: ``active_w`` while computing, ``radio_w`` while the link carries data, ``idle_w`` while
    waiting for samples. ``sources`` says for every figure where it is from; a source that starts
    with "estimate" gives the reasoning instead.
    """

    name: str
    title: str
    link: str
    ram_bytes: int
    flash_bytes: int
    macs_per_s: float
    downlink_bps: float
    uplink_bps: float
    latency_s: float
    active_w: float
    idle_w: float
    radio_w: float
    sources: Mapping[str, str]

    def card(self) -> DeviceCard:
        """A device of this class as the rest of fedtiny knows it."""
        return DeviceCard(
            profile=self.name,
            ram_bytes=self.ram_bytes,
            flash_bytes=self.flash_bytes,
            macs_per_s=self.macs_per_s,
            downlink_bps=self.downlink_bps,
            uplink_bps=self.uplink_bps,
        )

    def changed(self, source: str, **figures: float) -> BoardProfile:
        """The same board with some figures replaced, and ``source`` as the source of each."""
        return replace(self, **figures, sources={**self.sources, **dict.fromkeys(figures, source)})  # type: ignore[arg-type]


_Sourced = tuple[float, str]


def _board(name: str, title: str, link: str, **figures: _Sourced) -> BoardProfile:
    values = {figure: figures[figure][0] for figure in FIGURES}
    sources = MappingProxyType({figure: figures[figure][1] for figure in FIGURES})
    return BoardProfile(name, title, link, **values, sources=sources)  # type: ignore[arg-type]


_KIB, _MIB, _GIB = 2**10, 2**20, 2**30

# The one measurement behind the microcontrollers: the runtime's small kernels take about 6.4
# instructions a multiply-accumulate on a Cortex-M4F (counted under emulation, no fused add).
_INSTRUCTIONS = "6.4 instructions a MAC (counted under emulation)"
# The one measurement behind the Linux boards: on x86-64 the runtime sustains about a quarter of
# the peak of one multiply and one add a lane on nets of a thousand parameters.
_QUARTER = (
    "a quarter of the peak of NEON with separate multiply and add (x86-64 reaches that share)"
)

BOARDS: Mapping[str, BoardProfile] = MappingProxyType(
    {
        board.name: board
        for board in (
            _board(
                "cortex-m4",
                "Cortex-M4F 64 MHz, nRF52840 (Arduino Nano 33 BLE)",
                "Bluetooth LE 5 to a gateway",
                ram_bytes=(256 * _KIB, "nRF52840 product specification: 256 KB RAM"),
                flash_bytes=(1 * _MIB, "nRF52840 product specification: 1 MB flash"),
                macs_per_s=(8e6, f"estimate: 64 MHz / {_INSTRUCTIONS} / 1.25 cycles each"),
                downlink_bps=(250e3, "estimate: a quarter of the 1 Mbit/s PHY"),
                uplink_bps=(250e3, "estimate: a quarter of the 1 Mbit/s PHY"),
                latency_s=(0.1, "estimate: two connection intervals of 50 ms"),
                active_w=(0.015, "estimate: 5 mA at 3 V, CPU and FPU from flash with DC/DC"),
                idle_w=(
                    10e-6,
                    "estimate: 3 uA at 3 V; embedwise.pages.dev gives 1.5 uA, all asleep",
                ),
                radio_w=(0.0144, "embedwise.pages.dev, nRF52840: 4.8 mA at 0 dBm, DC/DC, 3 V"),
            ),
            _board(
                "cortex-m7",
                "Cortex-M7 480 MHz, STM32H743 (Nucleo-H743ZI)",
                "Ethernet",
                ram_bytes=(1 * _MIB, "STM32H743 data sheet (DS12110): 1 MB RAM in all banks"),
                flash_bytes=(2 * _MIB, "STM32H743 data sheet (DS12110): 2 MB flash"),
                macs_per_s=(
                    90e6,
                    f"estimate: 480 MHz / {_INSTRUCTIONS} / 0.83 cycles each (dual issue, caches)",
                ),
                downlink_bps=(10e6, "estimate: TCP on 100 Mbit/s Ethernet without an OS"),
                uplink_bps=(10e6, "estimate: TCP on 100 Mbit/s Ethernet without an OS"),
                latency_s=(0.02, "estimate: one round trip to a server in the same country"),
                active_w=(0.5, "estimate: 150 mA at 3.3 V at 480 MHz from cache"),
                idle_w=(0.1, "estimate: sleep mode with RAM kept and the link up"),
                radio_w=(0.75, "estimate: CPU and an Ethernet transceiver of 75 mA at 3.3 V"),
            ),
            _board(
                "esp32-s3",
                "ESP32-S3 240 MHz (DevKit, 8 MB flash)",
                "Wi-Fi 802.11n, 2.4 GHz",
                ram_bytes=(512 * _KIB, "ESP32-S3-WROOM-1 data sheet v1.3: 512 KB SRAM, no PSRAM"),
                flash_bytes=(8 * _MIB, "ESP32-S3-WROOM-1 data sheet v1.3: N8 variant"),
                macs_per_s=(
                    30e6,
                    f"estimate: 240 MHz / {_INSTRUCTIONS} / 1.25 cycles each, one core",
                ),
                downlink_bps=(10e6, "estimate: TCP over Wi-Fi with TLS"),
                uplink_bps=(10e6, "estimate: TCP over Wi-Fi with TLS"),
                latency_s=(0.05, "estimate: Wi-Fi wake-up and one round trip"),
                active_w=(0.165, "estimate: 50 mA at 3.3 V, one core at 240 MHz, radio off"),
                idle_w=(0.0026, "ComNets-Bremen/WUSN, MoleNet V6: light sleep 780 uA at 3.3 V"),
                radio_w=(0.5, "estimate: 150 mA at 3.3 V, between receiving and sending bursts"),
            ),
            _board(
                "pi-zero-2w",
                "Raspberry Pi Zero 2 W (4 x Cortex-A53 1 GHz)",
                "Wi-Fi 802.11n, 2.4 GHz",
                ram_bytes=(512 * _MIB, "Raspberry Pi Zero 2 W product brief: 512 MB"),
                flash_bytes=(16 * _GIB, "estimate: a 16 GB card"),
                macs_per_s=(250e6, f"estimate: {_QUARTER}, 1 GHz x 1 MAC a cycle, one core"),
                downlink_bps=(30e6, "estimate: TCP over Wi-Fi, one antenna"),
                uplink_bps=(20e6, "estimate: TCP over Wi-Fi, one antenna"),
                latency_s=(0.03, "estimate: Wi-Fi and one round trip"),
                active_w=(1.1, "estimate: idle and one busy core"),
                idle_w=(0.6, "cnx-software.com, 2021-12-09: 120 mA at 5 V, idle"),
                radio_w=(1.2, "estimate: idle and 120 mA at 5 V of Wi-Fi"),
            ),
            _board(
                "pi-4",
                "Raspberry Pi 4 Model B (4 x Cortex-A72 1.5 GHz, 4 GB)",
                "Wi-Fi 802.11ac",
                ram_bytes=(4 * _GIB, "Raspberry Pi 4 product brief: 1, 2, 4 or 8 GB"),
                flash_bytes=(32 * _GIB, "estimate: a 32 GB card"),
                macs_per_s=(750e6, f"estimate: {_QUARTER}, 1.5 GHz x 2 MAC a cycle, one core"),
                downlink_bps=(80e6, "estimate: TCP over 5 GHz Wi-Fi"),
                uplink_bps=(60e6, "estimate: TCP over 5 GHz Wi-Fi"),
                latency_s=(0.02, "estimate: Wi-Fi and one round trip"),
                active_w=(3.2, "estimate: idle and a third of the way to four busy cores (5.4 W)"),
                idle_w=(2.2, "chipwired.com/raspberry-pi-power-use: idle load 2.2 W"),
                radio_w=(2.9, "estimate: idle and 140 mA at 5 V of Wi-Fi"),
            ),
            _board(
                "pi-5",
                "Raspberry Pi 5 (4 x Cortex-A76 2.4 GHz, 8 GB)",
                "Wi-Fi 802.11ac",
                ram_bytes=(8 * _GIB, "Raspberry Pi 5 product brief: 2, 4, 8 or 16 GB"),
                flash_bytes=(32 * _GIB, "estimate: a 32 GB card"),
                macs_per_s=(2.4e9, f"estimate: {_QUARTER}, 2.4 GHz x 4 MAC a cycle, one core"),
                downlink_bps=(100e6, "estimate: TCP over 5 GHz Wi-Fi"),
                uplink_bps=(80e6, "estimate: TCP over 5 GHz Wi-Fi"),
                latency_s=(0.02, "estimate: Wi-Fi and one round trip"),
                active_w=(4.5, "estimate: idle and one busy core of about 1.8 W"),
                idle_w=(2.7, "estimate: a little above the Raspberry Pi 4"),
                radio_w=(3.4, "estimate: idle and 140 mA at 5 V of Wi-Fi"),
            ),
        )
    }
)
"""The boards that fedtiny knows, by name."""


def board(name: str) -> BoardProfile:
    """The profile of that name. Raises ExperimentError with the nearest name."""
    if name in BOARDS:
        return BOARDS[name]
    hint = did_you_mean(name, BOARDS)
    raise ExperimentError(f"unknown board {name!r}; {hint}there are {', '.join(BOARDS)}")
