"""A board without NumPy writes the same bytes, reads the same values and refuses the same flaws."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

# Vectors in all forms with subnormal, huge and equal values, differences of models, a whole update,
# and messages that are wrong.
BOARD = """
import json, sys
if sys.argv[1] == "without":
    sys.modules["numpy"] = None
from array import array
from fedtiny import rng
from fedtiny.errors import WireError
from fedtiny.masks import Mask
from fedtiny.device.learner import Key
from fedtiny.transforms import quantisers
from fedtiny.transforms.arithmetic import arithmetic
from fedtiny.layout import Layout, Parameter
from fedtiny.values import Transform, Update
from fedtiny.wire import codec
from fedtiny.wire.pb import tensors_pb2 as pb

words = rng.words(7, 0, 0, rng.Purpose.TASK, 3000)
scales = (0.0, 1e-44, 1e-40, 1e-3, 1.0, 2.5e38)
values = array("f", [rng.uniform(w, -1.0, 1.0) * scales[w % 6] for w in words[:1000]])
ranges, size = ((0, 10), (500, 1490)), 2000
told = {}
for form in ("", "int8", "qsgd", "sign"):
    step = Transform(form, 7) if form else None
    small = quantisers.quantised(step, arithmetic().vector(values), Key(1, 2, 3))
    sent = quantisers.values_of(small, len(values)) if small else bytes(values)
    rounded = Update(1, 2, 0, 3, 4, sent, ranges, {}, quantised=small)
    data = codec.write_values(rounded, size)
    told[form] = [data.hex(), codec.read_vector(data, codec.Due(size, 10**5)).values.hex()]
layout = Layout.of([Parameter("weight", (1900,)), Parameter("bias", (100,))])
drawn = Mask.draw(layout, {"weight": 300}, 11)
for mask in (drawn, Mask(size, drawn.bits), drawn.moved(range(50), range(700, 750))):
    live = values[: mask.length(ranges)]
    masked = Update(1, 2, 0, 3, 4, bytes(live), ranges, {}, mask)
    data = codec.write_values(masked, size)
    found = codec.read_vector(data, codec.Due(size, 10**5, layout=layout))
    told[f"mask {len(told)}"] = [data.hex(), found.values.hex(), found.mask.bits.hex()]
places = array("I", sorted({word % size for word in words[2000:2040]}))
for value in (1.0, 0.5):
    values_there = bytes(array("f", [value]) * len(places))
    grown = Update(1, 2, 0, 3, 4, values_there, ((0, size),), {}, None, bytes(places))
    data = codec.write_values(grown, size)
    found = codec.read_vector(data, codec.Due(size, 10**5))
    told[f"places {value}"] = [data.hex(), found.values.hex(), found.places.hex()]
changed = array("f", values)
for word in words[1000:1060]:
    changed[word % 900] = rng.uniform(word, -1.0, 1.0)
delta = codec.write_delta(values, changed)
told["delta"] = [delta.hex(), codec.lay_over(values, delta).hex(), bytes(changed).hex()]
update = Update(1, 2, 0, 3, 4, bytes(values), ranges, {"loss_sum": 1.5})
payload = codec.write_values(update, size)
requests = list(codec.submit_requests(update, bytes(8), bytes(32), payload, 30.0))
told["requests"] = [r.SerializeToString(deterministic=True).hex() for r in requests]
three = dict(size=3)
wrong = {
    "not finite": pb.Vector(**three, float32=array("f", [0.0, float("nan"), 1.0]).tobytes()),
    "too large": pb.Vector(**three, int8=pb.Int8(
        block=4, scales=array("f", [3e38]).tobytes(), q=bytes([1, 2, 3]))),
    "infinite scale": pb.Vector(**three, int8=pb.Int8(
        block=4, scales=array("f", [float("inf")]).tobytes(), q=bytes(3))),
    "cut off": pb.Vector(**three, sparse=pb.Sparse(places=bytes([1, 128]), float32=bytes(8))),
    "beyond": pb.Vector(**three, sparse=pb.Sparse(places=bytes([3]), float32=bytes(4))),
    "no mask": pb.Vector(**three, own_mask=bytes(3), float32=bytes(4)),
}
for name, message in wrong.items():
    try:
        due = codec.Due(3, 100, layout=Layout.of([Parameter("w", (3,))]))
        codec.read_vector(message.SerializeToString(), due)
    except WireError as error:
        told[name] = [error.reason, str(error)]
told["loaded"] = "numpy" in sys.modules and sys.modules["numpy"] is not None
print(json.dumps(told))
"""


def board(numpy: str, protobuf: str = "upb") -> dict[str, Any]:
    """What the board prints, with NumPy or without, and with protobuf in C or in plain Python."""
    command = [sys.executable, "-c", BOARD, numpy]
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": protobuf,
    }  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_the_codec_gives_the_same_bytes_without_numpy() -> None:
    found, expected = board("without"), board("with")
    # NumPy is loaded when it is first needed, and only where there is one
    assert (found.pop("loaded"), expected.pop("loaded")) == (False, True)
    assert found == expected
    # 32-bit Arm has neither NumPy nor protobuf in C
    assert board("without", "python") == found | {"loaded": False}
    assert found["delta"][1] == found["delta"][2]
    reasons = {name: pair[0] for name, pair in found.items() if len(pair) == 2 and " " in pair[1]}
    assert reasons == {
        "not finite": "not-finite", "too large": "not-finite", "infinite scale": "scales",
        "cut off": "varint", "beyond": "places", "no mask": "mask",
    }  # fmt: skip
