"""int8: a training graph whose forward half, and whose weights, are eight-bit integers.

`with_ranges` gives a forward graph the ranges of its input and of every output that int8 stores:
parameters that no step trains. `quantise` re-types the training graph: what has a range becomes
int8, and so do the weights. The backward ops stay what they are: they read int8 operands as the
real values that these stand for, and every gradient is float32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from fedtiny.engine.ir import F32, FROZEN_HOME, I8, PARAMETER, Graph, Op, Tensor, Window, verify
from fedtiny.engine.ops import REAL, SCALED, TABLE, produce
from fedtiny.errors import CompileError, GraphError
from fedtiny.layout import FROZEN, RANGE, Layout, Parameter

FLOAT32, INT8 = DTYPES = ("float32", "int8")
STEPS = ".steps"

_INTEGER = {
    "conv": "conv8", "linear": "conv8", "add": "add8", "avg_pool": "avg_pool8",
    "max_pool": "max_pool8",
}  # fmt: skip
_CLIPS = ("relu", "relu6")
_CLIPPED = ("conv", "linear", "add")
"""Whose range can end where the activation clips."""
_KEEPS = ("max_pool", "reshape", "take", "crop", "paste")
"""Whose output has the scale of the operand."""
_WEIGHTED = ("conv", "linear")


# ---- what int8 stores ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Layer:
    """A forward op, and the activation, if any, that clips what it makes and that nobody else
    reads. The ``head`` makes the net's output."""

    op: Op
    clip: Op | None
    is_head: bool

    @property
    def output(self) -> str:
        """What is stored."""
        return (self.clip or self.op).outputs[0]


def _layers(graph: Graph) -> Iterator[_Layer]:
    forward = graph.ops[: graph.n_forward]
    readers = Counter(name for op in forward for name in op.inputs)
    clips = {op.inputs[0]: op for op in forward if op.kind in _CLIPS}
    joined: set[Op] = set()
    for op in forward:
        made = op.outputs[0]
        clip = clips.get(made) if op.kind in _CLIPPED and readers[made] == 1 else None
        if clip:
            joined.add(clip)
        if op not in joined:
            yield _Layer(op, clip, graph.output in (made, *(clip.outputs if clip else ())))


def _check_layers(graph: Graph) -> None:
    """CompileError unless int8 has all of them."""
    for layer in _layers(graph):
        op = layer.op
        if layer.is_head and (op.kind != "linear" or layer.clip):
            raise CompileError(
                f"an int8 net ends in a linear layer, which makes floats; {graph.output} is made "
                f"by {(layer.clip or op).kind}: end in net.linear, or compile with dtype='float32'"
            )
        if op.kind not in (*_INTEGER, *_KEEPS, "merge"):
            raise CompileError(f"int8 has no {op.kind} ({op.outputs[0]}): {_remedy(op)}")


def _remedy(op: Op) -> str:
    if op.kind in ("frozen_normalize", "tracked_normalize"):
        advice = "fold it into the layer before it (fold=True for torch modules), or leave it out"
    elif "normalize" in op.kind or op.kind == "affine":
        advice = "build the net without normalisation (norm='none' in the zoo)"
    elif op.kind in _CLIPS:
        advice = "put it right behind a convolution, a linear layer or a sum"
    else:
        advice = f"it has {', '.join((*_INTEGER, *_CLIPS))} and reshape"
    return f"{advice}; or compile with dtype='float32'"


# ---- ranges ----------------------------------------------------------------------------------


def with_ranges(graph: Graph) -> Graph:
    """The forward graph with a range for its input and for each output that int8 stores; itself, if
    it has them.

    They are the last parameters of the Layout; each tensor names its own as its ``scale``.

    Raises CompileError, naming the op, for what int8 does not have.
    """
    if graph.tensors[graph.input].scale:
        return graph
    _check_layers(graph)
    scales = {graph.input: graph.input + RANGE}
    for layer in _layers(graph):
        if not layer.is_head:
            keeps = layer.op.kind in _KEEPS
            made = layer.output + RANGE
            scales[layer.output] = scales[layer.op.inputs[0]] if keeps else made
    ranges = tuple(dict.fromkeys(scales.values()))
    layout = Layout.of(
        (*graph.layout.parameters, *(Parameter(name, (2,), FROZEN) for name in ranges))
    )
    scaled = {n: replace(graph.tensors[n], scale=scale) for n, scale in scales.items()}
    tensors = {**graph.tensors, **scaled, **{n: Tensor(n, (2,), home=PARAMETER) for n in ranges}}
    initial = {**graph.initial, **dict.fromkeys(ranges, ("constant", 0.0))}
    return replace(graph, tensors=tensors, layout=layout, initial=initial)


# ---- the pass --------------------------------------------------------------------------------


def quantise(graph: Graph, head: str = FLOAT32) -> Graph:
    """The training graph of a forward graph with ranges, in int8.

    Args:
        graph: The training graph.
        head: ``float32`` or ``int8``: the weights of the last layer.

    Raises CompileError for layers that int8 does not have.
    """
    _check_layers(graph)
    writing = _Writing(graph, dict(graph.tensors))
    _write_weights(writing, head)
    writing.store(graph.input, graph.tensors[graph.input].scale)
    for layer in _layers(graph):
        writing.write(layer)
    backward = graph.ops[graph.n_forward :]
    for op in backward:
        writing.follow(op)
    used = {name for op in (*writing.ops, *backward) for name in op.operands}
    tensors = {n: t for n, t in writing.tensors.items() if t.home != "arena" or n in used}
    ops = (*writing.ops, *backward)
    made = replace(graph, tensors=tensors, ops=ops, n_forward=len(writing.ops))
    return check_integers(verify(made))


@dataclass
class _Writing:
    """The tensors and the forward ops as far as they are written."""

    graph: Graph
    tensors: dict[str, Tensor]
    ops: list[Op] = field(default_factory=list)

    def store(self, name: str, scale: str) -> None:
        """Make a tensor one of int8."""
        self.tensors[name] = replace(self.tensors[name], dtype=I8, scale=scale)

    def follow(self, op: Op) -> None:
        """Of a backward op that moves int8 values: weights merged again, channels of samples."""
        moved = self.tensors[op.inputs[0]] if op.kind in ("merge", "take") else None
        if moved and moved.dtype == I8:
            self.store(op.outputs[0], moved.scale)

    def write(self, layer: _Layer) -> None:
        """The op of a layer, and the type of what it makes."""
        op = layer.op
        if op.kind == "merge" or layer.is_head:
            self.ops.append(op)
            return
        output = layer.output
        operand = next(filter(None, op.inputs))
        kept = self.tensors[operand].scale if op.kind in _KEEPS else ""
        self.store(output, kept or self.tensors[output].scale)
        if op.kind not in _INTEGER:
            self.ops.append(op)
            return
        window = Window(groups=1) if op.kind == "linear" else op.attributes
        outputs = (output, *op.outputs[1:])
        made, _ = produce(_INTEGER[op.kind], op.inputs, outputs, self.tensors, window)
        self.ops.append(made)


# ---- weights ---------------------------------------------------------------------------------


def _write_weights(writing: _Writing, head: str) -> None:
    """The weights of layers as int8, whole, merged and overlaid, and their steps."""
    graph = writing.graph
    weighted = [layer for layer in _layers(graph) if layer.op.kind in _WEIGHTED]
    merges = {op.outputs[0]: op for op in graph.ops[: graph.n_forward] if op.kind == "merge"}
    floats = {_whole(one.op, merges) for one in weighted if one.is_head and head == FLOAT32}
    for layer in weighted:
        whole, weight = _whole(layer.op, merges), layer.op.inputs[1]
        if layer.is_head and head == FLOAT32:
            continue
        if whole in floats:
            raise CompileError(
                f"{whole} is the weight of the head, which is float32, and of another layer; "
                "compile with head='int8', or give each a weight of its own"
            )
        steps = _with_steps(writing, whole)
        if weight in merges:
            part = merges[weight].inputs[1]
            by_output = graph.overlays[part].axis == "out"
            writing.store(weight, steps)
            writing.store(part, _with_steps(writing, part) if by_output else steps)


def _whole(op: Op, merges: Mapping[str, Op]) -> str:
    """The parameter that is a layer's weight, or that its weight is merged of."""
    weight = op.inputs[1]
    return merges[weight].inputs[0] if weight in merges else weight


def _with_steps(writing: _Writing, weight: str) -> str:
    """Store a weight as int8 with steps of its own; their name."""
    steps = weight + STEPS
    channels = writing.tensors[weight].shape[-1:]
    writing.tensors[steps] = Tensor(steps, channels, home=FROZEN_HOME)
    writing.store(weight, steps)
    return steps


# ---- the checker -----------------------------------------------------------------------------

_READS_REAL: Mapping[str, tuple[int, ...]] = {
    "linear": (0, 1), "linear_dx": (1,), "conv_dx": (1,), "relu_dx": (1,), "relu6_dx": (1,),
    "linear_update": (0, 2), "linear_norm": (0,), "linear_gradient": (0,),
    "conv_update": (0, 2), "conv_norm": (0, 3), "conv_gradient": (0,),
    "gradient_update": (2,),
}  # fmt: skip
"""The inputs of float ops that may be int8."""
_FLOATS = {"conv8": (2,)}
"""The inputs of int8 ops that are float32."""


def check_integers(graph: Graph) -> Graph:
    """The graph itself, if every int8 tensor has its scale and every op takes it; else GraphError
    naming the tensor or the op."""
    for tensor in graph.tensors.values():
        if tensor.dtype == I8:
            _check_scale(graph, tensor)
    for op in graph.ops:
        _check_operands(graph, op)
    return graph


def _check_scale(graph: Graph, tensor: Tensor) -> None:
    scale = graph.tensors.get(tensor.scale)
    if scale is None or scale.dtype != F32 or scale.shape not in ((2,), tensor.shape[-1:]):
        raise GraphError(f"{tensor.name} is int8, and {tensor.scale!r} is no scale for it")


def _check_operands(graph: Graph, op: Op) -> None:
    row, tensors = TABLE[op.kind], graph.tensors
    integers = {i for i, n in enumerate(op.inputs) if n and tensors[n].dtype == I8}
    if row.takes == REAL:
        wrong = integers.difference(_READS_REAL.get(op.kind, ()))
    elif row.takes == SCALED:
        given = {i for i, n in enumerate(op.inputs) if n}
        wrong = integers ^ given.difference(_FLOATS.get(op.kind, ()))
    else:
        wrong = set()
        _check_moved(graph, op)
    if wrong:
        named = ", ".join(op.inputs[i] for i in sorted(wrong))
        raise GraphError(f"{op.kind} does not take {named} as int8 or as float32")


def _check_moved(graph: Graph, op: Op) -> None:
    """What is moved keeps its type and its scale."""
    first, made = (graph.tensors[n] for n in (next(filter(None, op.inputs)), op.outputs[0]))
    if (first.dtype, first.scale) != (made.dtype, made.scale) and I8 in (first.dtype, made.dtype):
        raise GraphError(f"{op.kind} makes {made.name} of {first.name}, which differs in scale")
