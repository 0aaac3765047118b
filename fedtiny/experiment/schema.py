"""What an experiment file may say: one frozen dataclass for each section."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fedtiny.data import recordings
from fedtiny.data.domains import Change
from fedtiny.errors import ExperimentError
from fedtiny.experiment.reading import (
    Arguments,
    BitsPerSecond,
    Bytes,
    Density,
    DeviceCount,
    Duration,
    Flag,
    Kind,
    Natural,
    NonNegative,
    Patches,
    Plan,
    Positive,
    Probability,
    Rate,
    Seconds,
    Section,
    Shares,
    Text,
    exactly,
    number,
)  # fmt: skip

if TYPE_CHECKING:
    from fedtiny.data.recordings import Preparation


@dataclass(frozen=True, slots=True)
class Model(Section):
    """``[model]``: the net.

    Attributes:
        build: A model of the zoo ("sine_mlp") or "module:function" that returns a builder net.
        start: The model to start from, before ``[pretrain]``: an .npz file with an array for each
            parameter, such as a run has left. Not given: initial values of the seed.
        arguments: Every other key of the section; its keyword arguments.
    """

    build: Text
    start: Text | None = None
    arguments: Arguments = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FrontEnd(Section):
    """``frontend`` of ``[data]``: what a net hears of a recording.

    Attributes:
        kind: "log-mel": the logarithm of the energy in each band; "mfcc": the first coefficients
            of its cosine transform.
        window: Seconds of a frame.
        hop: Seconds between the beginnings of two frames.
        clip: Seconds of a recording; a longer one is cut, a shorter one goes on in silence.
        mels: Bands, even on the mel scale.
        coefficients: Of an MFCC; not given: 10.
        low_hz: Where the first band begins.
        high_hz: Where the last one ends.
    """

    kind: Literal["mfcc", "log-mel"]
    window: Duration = 0.04
    hop: Duration = 0.02
    clip: Duration = 1.0
    mels: Positive = 40
    coefficients: Positive | None = None
    low_hz: NonNegative = 20.0
    high_hz: Rate = 4000.0


@dataclass(frozen=True, slots=True)
class Window(Section):
    """``window`` of ``[data]``: how a series is cut.

    Attributes:
        length: Samples of a window.
        hop: Samples between the beginnings of two windows.
    """

    length: Positive
    hop: Positive


@dataclass(frozen=True, slots=True)
class Data(Section):
    """``[data]``: where the devices' samples come from.

    Attributes:
        source: A task ("sine", "few-shot-digits", "label-skew-digits") or "module:object".
        frontend: For sound, such as "spoken-digits"; not given: the samples themselves.
        window: For series, such as "uci-har"; not given: as the data set is cut already.
        sample_period: Seconds between two samples of a device; it waits for those that it trains
            on. 0: they are there already.
        arguments: Every other key of the section; fields of the task.
    """

    source: Text
    frontend: FrontEnd | None = None
    window: Window | None = None
    sample_period: Seconds = 0.0
    arguments: Arguments = field(default_factory=dict)

    @property
    def preparation(self) -> Preparation | None:
        """How rows are made of recordings, if this is said."""
        if self.frontend and self.window:
            raise ExperimentError("'frontend' and 'window' exclude each other; take one out")
        if self.window:
            return recordings.Windows(self.window.length, self.window.hop)
        return _front_end(self.frontend) if self.frontend else None


def _front_end(said: FrontEnd) -> recordings.FrontEnd:
    if said.kind == "log-mel" and said.coefficients:
        raise ExperimentError(
            f"coefficients = {said.coefficients} are for a 'frontend' of kind 'mfcc'; log-mel has "
            "none"
        )
    return recordings.FrontEnd(
        window_s=said.window,
        hop_s=said.hop,
        clip_s=said.clip,
        mels=said.mels,
        coefficients=0 if said.kind == "log-mel" else said.coefficients or 10,
        low_hz=said.low_hz,
        high_hz=said.high_hz,
    )


@dataclass(frozen=True, slots=True)
class Device(Section):
    """``[device]``: the budget that a Program is compiled for, on every profile that says no other.

    Attributes:
        ram: Bytes of the whole device, the reserve included. Not given: all that the board has.
        flash: Bytes for the Program and the runtime. Not given: all that the board has.
        reserve: RAM for the rest of the firmware or the operating system.
        batch: Samples in a training step.
        plan: What is trained: "all", "last:2", "biases" or "named:fc.*"; rules are joined by "+".
            "auto": what adds most within the budget, by the ``public`` samples of the data.
        dtype: "float32"; or "int8": of activations, and of the weights in layers. The ranges of the
            activations are those of ``model.start``, or are observed on the ``public`` samples of
            the data; without either by the float32 devices, in a first round that trains nothing.
        head: The same of the weights of the last layer, where dtype is "int8".
        density: The share of the weights of linear and convolutional layers that are live at once;
            below 1 the others take neither memory nor time, and the strategy must be one that
            prunes.
        patches: Run the first layers of an image net for so many patches along each side, one after
            the other; the same results, in less RAM and more time. "auto": as many as lower the
            peak.
    """

    ram: Bytes | None = None
    flash: Bytes | None = None
    reserve: Bytes = 0
    batch: Positive = 1
    plan: Plan = "all"
    dtype: Literal["float32", "int8"] = "float32"
    head: Literal["float32", "int8"] = "float32"
    density: Density = 1.0
    patches: Patches = 1


@dataclass(frozen=True, slots=True)
class Board(Section):
    """The keys of ``[device.NAME]`` beside those of ``[device]``: figures of the board itself.

    With ``like`` a board of your own takes the figures that it does not name, its RAM and flash
    among them, from a board that fedtiny knows.
    """

    like: Text | None = None
    macs_per_s: Rate | None = None
    downlink: BitsPerSecond | None = None
    uplink: BitsPerSecond | None = None
    latency: Seconds | None = None
    active_w: NonNegative | None = None
    idle_w: NonNegative | None = None
    radio_w: NonNegative | None = None


@dataclass(frozen=True, slots=True)
class Fleet(Section):
    """``[fleet]``: who takes part.

    Attributes:
        devices: How many, held-out ones included.
        held_out: How many of them, the last ones, never train: evaluation adapts and judges on
            them. Not given: a tenth of the devices.
        profiles: The share of each board profile.
        availability: When a device can be reached: "always"; "diurnal", each night for some hours
            in its time zone; or "traces", as recorded from phones.
        traces: The file of the traces. Not given: device_traces.json in FEDTINY_DATA.
        drop_out: The probability that a device never comes back from a visit.
        threads: Threads of the simulator; 0: one for each core. They change no result.
    """

    devices: DeviceCount = 100
    held_out: Natural | None = None
    profiles: Shares = field(default_factory=lambda: {"cortex-m4": 1.0})
    availability: Literal["always", "diurnal", "traces"] = "always"
    traces: Text | None = None
    drop_out: Probability = 0.0
    threads: Natural = 0


MEASURED = "measured"


def _over_selection(value: Any) -> float | str:
    return exactly(str, value) if value == MEASURED else number(1)(value)


OverSelection = Annotated[float | str, Kind("a number >= 1 or 'measured'", _over_selection)]


def _drift(value: Any) -> str:
    Change.parse(exactly(str, value))
    return str(value)


def _weights(value: Any) -> list[float]:
    weights = [number(0)(weight) for weight in exactly(list, value)]
    if not any(weights):
        raise ValueError
    return weights


Drift = Annotated[str, Kind("a change of the inputs", _drift)]
Weights = Annotated[list[float], Kind("a list of weights >= 0, one above", _weights)]


@dataclass(frozen=True, slots=True)
class Run(Section):
    """``[run]``: how long, and how patient.

    Attributes:
        rounds: Rounds to run.
        evaluate_every: Rounds between two evaluations; 0: only before the first and after the last.
        deadline: Seconds that a device has for a visit.
        over_selection: Devices asked for each one that the round needs; "measured": as many as the
            drop-out of the rounds before calls for.
        minimum: Updates with which a round may close at its deadline.
        save_every: Rounds between two models that are kept; 0: only the last.
        checkpoint_every: Rounds between two points from which an interrupted run goes on.
        gate: A model is only published if its loss on the ``public`` samples of the data is at
            most so many times that of the model before; 0: every model is.
    """

    rounds: Natural = 100
    evaluate_every: Natural = 0
    deadline: Duration = 600.0
    over_selection: OverSelection = 1.0
    minimum: Positive = 1
    save_every: Natural = 0
    checkpoint_every: Positive = 100
    gate: NonNegative = 0.0

    @property
    def leases_per_update(self) -> float:
        """``over_selection`` as the rules of the rounds have it: 0 means measured."""
        return 0.0 if self.over_selection == MEASURED else float(self.over_selection)


@dataclass(frozen=True, slots=True)
class Pretrain(Section):
    """``[pretrain]``: what the coordinator trains on the public samples, before the first round.

    The samples are the ``public`` ones of a partition in ``[data]``; the net is dense.

    Attributes:
        steps: Training steps.
        lr: Learning rate.
        batch: Samples in a step.
    """

    steps: Positive = 200
    lr: Rate = 0.05
    batch: Positive = 16


@dataclass(frozen=True, slots=True)
class Attack(Section):
    """``[attack]``: devices that lie, to see what becomes of the model; simulated fleets alone.

    Attributes:
        kind: "sign-flip": the delta the other way round; "scale": the delta, larger;
            "label-flip": honest training on wrong labels; "collude": the same delta from all.
        share: Of the devices that train, those that attack; which ones is drawn.
        scale: What the delta is multiplied by; for "collude" the norm of the delta. Not given: 1.
    """

    kind: Literal["sign-flip", "scale", "label-flip", "collude"]
    share: Probability
    scale: Rate | None = None


@dataclass(frozen=True, slots=True)
class Evaluation(Section):
    """``[evaluate.NAME]``: how devices adapt before they are judged.

    Attributes:
        lr: Learning rate of the adaptation.
        devices: Who is judged: "held-out", those that never train; "training", those that do, with
            what they have kept (simulated fleets alone).
        support: Samples to adapt on; 0: as many as the task gives.
        steps: Training steps; 0: one pass over the support.
        batch: Samples in a step; 0: as many as in training.
        shuffle: Take the samples in a new order each epoch.
        clip: The norm that a gradient is clipped to; 0: it is not.
        query: Samples to be judged on; 0: as many as the task gives.
    """

    lr: Rate
    support: Natural = 0
    steps: Natural = 0
    batch: Natural = 0
    shuffle: Flag = False
    clip: NonNegative = 0.0
    query: Natural = 0
    devices: Literal["held-out", "training"] = "held-out"

    @property
    def trained(self) -> bool:
        """Whether it is about the devices that train."""
        return self.devices == "training"


@dataclass(frozen=True, slots=True)
class Online(Section):
    """``[online]``: after the last round devices meet a stream that drifts, and learn from it.

    Each sample is predicted first. Then the gate says whether the device takes a step on it.
    ``[online.NAME]`` overrides keys, each name for a stream, or a gate, of its own.

    Attributes:
        samples: Samples of the stream.
        lr: Learning rate of a step on one sample; not for the gate "never".
        gate: When to take a step: "always"; "never"; "confidence", when 1 - the largest class
            probability is above the threshold; "error", when the share of wrong predictions is.
        threshold: From 0 to 1; of "confidence" and "error".
        window: Of these two, the last samples over which the mean is taken.
        drift: What becomes of the inputs: "rotate:DEGREES", "invert", "noise:DEVIATION" or
            "contrast:FACTOR".
        mix: What becomes of the labels: one weight a class.
        drift_begins: Samples before the drift.
        drift_ends: From this sample on all are of the new domain; between the two ever more. Not
            given: from ``drift_begins`` on, a sudden drift.
        repeats: Whether samples come again when a device has too few of its own.
        support: Samples that the stream is drawn from; 0: as many as the task gives.
        query: Samples to be judged on before and after the stream; 0: as many as the task gives.
        clip: The norm that a gradient is clipped to; 0: it is not.
        devices: Who meets a stream: "held-out", those that never train; or "all".
    """

    samples: Positive
    lr: Rate | None = None
    gate: Literal["always", "never", "confidence", "error"] = "always"
    threshold: Probability | None = None
    window: Positive = 1
    drift: Drift | None = None
    mix: Weights | None = None
    drift_begins: Natural = 0
    drift_ends: Natural | None = None
    repeats: Flag = False
    support: Natural = 0
    query: Natural = 0
    clip: NonNegative = 0.0
    devices: Literal["held-out", "all"] = "held-out"


@dataclass(frozen=True, slots=True)
class Budget:
    """`Device` as it holds for one profile: what `compile` is called with."""

    ram_bytes: int
    flash_bytes: int
    reserve_bytes: int
    batch: int
    plan: str
    dtype: str
    head: str
    density: float
    patches: int | str
