"""Exports: the named arrays, and a C program that computes the bits of a Learner."""

import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

import fedtiny
from fedtiny.engine.program import Program
from fedtiny.engine.zoo import digits_bn, sine_mlp, small_conv
from fedtiny.errors import RunError
from fedtiny.export import export_c, export_npz, live_weights, write_c
from tests.synthetic_run import synthetic_run

Words = npt.NDArray[np.uint32]
LEARNING_RATE = 0.01  # of main.c


def _expected(program: Program, vector: npt.NDArray[np.float32]) -> dict[str, Words]:
    """What main.c prints, computed by a Learner on the samples that main.c makes up."""
    learner = fedtiny.Learner(program, executor="reference")
    if program.density < 1:
        learner.load_mask(live_weights(program, vector))
    learner.load(vector)
    shape, outputs = (program.batch, *program.sample_shape), program.output_shape[0]
    x = (np.arange(np.prod(shape)) % 8 / 8).astype(np.float32).reshape(shape)
    targets = (np.arange(program.batch * outputs) % 4 / 4).astype(np.float32)
    labels = np.arange(program.batch, dtype=np.int32) % outputs
    y = labels if program.loss == "cross_entropy" else targets.reshape(-1, outputs)
    prediction = np.asarray(learner.predict(x)).reshape(-1)
    loss = learner.step(x, y, LEARNING_RATE, fedtiny.Sgd())
    found = {"prediction": prediction, "loss": [loss], "trained": learner.vector()}
    return {name: np.asarray(v, np.float32).view(np.uint32) for name, v in found.items()}


def _printed(folder: Path, *options: str) -> dict[str, Words]:
    # To optimise takes longer than all else here, and changes no bit.
    strict = "CFLAGS=-O0 -Dalways_inline=unused -Werror -Wpedantic"
    subprocess.run(["make", "-s", "-B", "-C", folder, strict, *options], check=True)
    run = subprocess.run([folder / "model"], capture_output=True, text=True, check=True)
    lines = [line.split() for line in run.stdout.splitlines()]
    return {
        name: np.array([int(word, 16) for kind, word in lines if kind == name], np.uint32)
        for name in ("prediction", "loss", "trained")
    }


PROGRAMS = {
    "regression": fedtiny.compile(sine_mlp("tanh"), loss="mse", ram="64KiB"),
    "classes": fedtiny.compile(
        small_conv(8, 1, 5, (3, 4)), loss="cross_entropy", ram="1MiB", batch=3, plan="last:1",
        sgd=fedtiny.Sgd(momentum=0.9),
    ),
    "pruned": fedtiny.compile(
        digits_bn(5, (3, 4, 4)), loss="cross_entropy", ram="1MiB", batch=3, density=0.25,
    ),
    "int8": fedtiny.compile(
        small_conv(8, 1, 5, (3, 4)), loss="cross_entropy", ram="1MiB", batch=3, dtype="int8",
        plan="last:1+named:conv2.weight{in=0+2}",
    ),
}  # fmt: skip


@pytest.mark.parametrize("options", [(), ("SMALL=1",)], ids=["lanes", "small"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_the_c_program_computes_the_bits_of_a_learner(
    name: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    program = PROGRAMS[name]
    vector = np.array(program.initial(seed=3))
    for activation in program.layout.activations:
        vector[activation.offset + 1] = 2.0  # from 0
    write_c(program, vector, tmp_path / "model")
    expected, printed = _expected(program, vector), _printed(tmp_path / "model", *options)
    for what, bits in expected.items():
        np.testing.assert_array_equal(printed[what], bits, err_msg=what)
    assert (expected["trained"] != vector.view(np.uint32)).any()


def test_the_weights_that_are_not_0_live_or_the_largest_of_each_layer() -> None:
    program = PROGRAMS["pruned"]  # 3 x 3 x (1 x 3 + 3 x 4 + 4 x 4) and 64 x 5 weights, or 599
    assert program.capacity == 149
    vector = np.asarray(program.initial(seed=3)).copy()
    arrays = program.layout.unflatten(vector)
    for name in program.prunable:
        arrays[name].reshape(-1)[5:] = 0  # views
    mask = live_weights(program, program.layout.flatten(arrays))
    assert mask.length(program.layout.ranges(program.prunable)) == 5 * 4
    full = live_weights(program, np.ones_like(vector))
    # of 149 in proportion 27 : 108 : 144 : 320, rounded down
    ranges = (program.layout.ranges([name]) for name in program.prunable)
    assert [full.length(own) for own in ranges] == [6, 26, 35, 79]


def test_the_same_model_gives_the_same_files(tmp_path: Path) -> None:
    vector = np.asarray(PROGRAMS["regression"].initial(seed=3))
    for name in ("one", "another"):
        write_c(PROGRAMS["regression"], vector, tmp_path / name)
    texts = [
        {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*.*")}
        for name in ("one", "another")
    ]
    assert texts[0] == texts[1]
    assert {path.parts[0] for path in texts[0]} >= {"main.c", "model.c", "model.h", "runtime"}
    assert all("host" not in path.parts for path in texts[0])


def test_a_run_exports_the_program_of_its_first_profile_that_fits(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run")
    made = export_c(run)
    assert made == run.path / "export" / "round-000040-cortex-m4"
    floats = [line for line in (made / "model.c").read_text().split() if line.startswith("0x1.")]
    first = float.fromhex(floats[0].rstrip("f,"))
    assert first == run.model()["linear1.weight"].reshape(-1)[0]


def test_a_profile_that_does_not_fit_or_does_not_exist_is_refused(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run")
    with pytest.raises(RunError, match=r"thimble.*4,096 B"):
        export_c(run, profile="thimble")
    with pytest.raises(RunError, match=r"no profile 'pi-9'; it has cortex-m4, pi-4, thimble"):
        export_c(run, profile="pi-9")


def test_the_npz_holds_the_arrays_of_the_model(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run")
    made = export_npz(run)
    assert made == run.path / "export" / "round-000040.npz"
    with np.load(made, allow_pickle=False) as arrays:
        assert set(arrays.files) == {
            f"linear{i}.{p}" for i in (1, 2, 3) for p in ("weight", "bias")
        }
        for name, array in run.model(40).items():
            np.testing.assert_array_equal(arrays[name], array)
    assert export_npz(run, tmp_path / "again.npz").read_bytes() == made.read_bytes()


def test_nothing_is_overwritten_and_a_round_that_was_not_kept_is_named(tmp_path: Path) -> None:
    run = synthetic_run(tmp_path / "run")
    export_npz(run, tmp_path / "model.npz")
    with pytest.raises(RunError, match="is there already"):
        export_npz(run, tmp_path / "model.npz")
    with pytest.raises(RunError, match=r"no model of round 7; it has those of rounds \[40\]"):
        export_npz(run, round=7)
