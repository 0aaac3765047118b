"""A torch module becomes a net, and its values the averaged vector and back.

torch.export records the module's operations; `torch_ops` says what each means here. This file and
the two that it builds on are the only ones that import torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from fedtiny.engine.autodiff import CLASS_WEIGHTS
from fedtiny.engine.builder import Net
from fedtiny.engine.ir import Graph
from fedtiny.engine.program import Program
from fedtiny.engine.torch_ops import carry_out
from fedtiny.engine.torch_values import BATCH, Conversion, Held, Placed, Weight, made
from fedtiny.errors import CompileError, GraphError
from fedtiny.layout import FROZEN

if TYPE_CHECKING:
    from fedtiny.tensors import Float32

Module = torch.nn.Module


@dataclass(frozen=True, eq=False)
class TorchNet:
    """A module as a net.

    Attributes:
        net: The same computation in the builder's terms; parameters start from the module's values.
        axes: Axis i of a sample as the device stores it is axis ``axes[i]`` of torch's; empty if
            the order is the same.
        sample_shape: Shape of one sample in torch.
        held: Where each parameter of the net comes from.
        folded: Whether batch normalisations are in the weights of the layers before them.
    """

    net: Net
    axes: tuple[int, ...]
    sample_shape: tuple[int, ...]
    held: Mapping[str, Held]
    folded: bool

    def graph(self, batch: int) -> Graph:
        """The forward graph at a batch size."""
        return self.net.graph(batch)


def convert(module: Module, example_input: object, fold: bool = False) -> TorchNet:
    """The net of a module in its present mode, training or evaluation.

    Raises CompileError, or GraphError naming the module inside and what to use instead.
    """
    example = _example(module, example_input)
    exported = _export(module, example)
    weights, nodes = _weights(module, exported), _nodes(exported)
    made: list[TorchNet] = []
    refused: list[GraphError] = []
    for axes in _stored_orders(example.dim() - 1):
        try:
            made.append(_convert(nodes, weights, tuple(example.shape[1:]), axes, fold))
        except GraphError as error:
            refused.append(error)
    if not made:
        raise refused[0]
    return min(made, key=lambda net: len(net.graph(1).ops))


def _stored_orders(rank: int) -> list[tuple[int, ...]]:
    """Orders of storing a sample, the better first: pictures are stored channels last as data sets
    give them; of two axes the first is taken for channels only where a layer does so."""
    given, last = tuple(range(rank)), (*range(1, rank), 0)
    if rank < 2:
        return [given]
    return [given, last] if rank == 2 else [last, given]


# ---- the export ------------------------------------------------------------------------------


def _example(module: Module, example_input: object) -> Tensor:
    """A batch of two samples like the example, in the module's own type and on its device."""
    if example_input is None:
        example_input = getattr(module, "example_input", None)
    if example_input is None:
        raise CompileError(
            "a torch module needs an example input: compile(module, torch.zeros(1, 1, 28, 28), "
            "...), a build that returns (module, example), or an attribute example_input of it"
        )
    if isinstance(example_input, tuple | list):
        if len(example_input) != 1:
            raise CompileError(
                f"the example has {len(example_input)} inputs; a device feeds one tensor: join "
                "them along the features"
            )
        (example_input,) = example_input
    example = _tensor(example_input)
    _check_float(example.dtype, "the example input")
    for name, parameter in module.named_parameters():
        _check_float(parameter.dtype, f"the parameter {name}")
    if example.dim() < 2 or 0 in example.shape:
        raise CompileError(
            f"the example input has shape {tuple(example.shape)}; give (batch, ...) with a sample"
        )
    like = next(module.parameters(), example)
    return example[:1].expand(BATCH, *example.shape[1:]).to(like.device, like.dtype)


def _tensor(values: object) -> Tensor:
    """What the example is; only a dense tensor with values will do."""
    try:
        example = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CompileError(f"the example input is no tensor: {error}") from error
    if example.layout != torch.strided or example.is_meta:
        raise CompileError("the example input is sparse or has no values; give a dense tensor")
    return example


def _check_float(dtype: torch.dtype, what: str) -> None:
    if not dtype.is_floating_point:
        raise CompileError(
            f"{what} is {dtype}; devices compute in float32: convert it by .float(), and give "
            "categories one-hot"
        )


def _export(module: Module, example: Tensor) -> ExportedProgram:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of how it records
            exported = torch.export.export(module, (example,))
    except Exception as error:
        told = str(error).strip().partition("\n")[0]
        raise CompileError(
            f"{type(module).__name__} cannot be recorded as a list of operations "
            f"({type(error).__name__}: {told}); its forward must take the example input, and may "
            "not branch or shape by the values of a sample"
        ) from error
    exported.graph.eliminate_dead_code()
    return exported


def _nodes(exported: ExportedProgram) -> tuple[Node, ...]:
    """The nodes of the graph, all of fixed shape."""
    nodes = tuple(exported.graph.nodes)
    for node in nodes:
        shape = getattr(node.meta.get("val"), "shape", ())
        if not all(isinstance(size, int) for size in shape):
            raise CompileError(
                f"{node.name} has the shape {tuple(map(str, shape))}, which depends on the values "
                "of a sample; devices need fixed shapes"
            )
    return nodes


def _weights(module: Module, exported: ExportedProgram) -> dict[str, Weight | None]:
    """The parameters and buffers by placeholder; None stands for the input. What is tied has the
    name of the first."""
    state: dict[str, Tensor] = dict(module.named_buffers(remove_duplicate=False))
    state |= module.named_parameters(remove_duplicate=False)
    first: dict[int, str] = {}
    for name, tensor in state.items():
        first.setdefault(id(tensor), name)
    tensors = {**exported.constants, **state}
    weights: dict[str, Weight | None] = {}
    for spec in exported.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            weights[spec.arg.name] = None
            continue
        tensor = tensors[str(spec.target)]
        group = "shared" if tensor.requires_grad else FROZEN
        name = first.get(id(tensor), str(spec.target))
        weights[spec.arg.name] = Weight(name, tensor.detach().cpu(), group)
    return weights


# ---- the net ---------------------------------------------------------------------------------


def _convert(
    nodes: tuple[Node, ...], weights: Mapping[str, Weight | None], sample: tuple[int, ...],
    axes: tuple[int, ...], fold: bool,
) -> TorchNet:  # fmt: skip
    net = Net(tuple(sample[a] for a in axes))
    c = Conversion(net, fold, {}, nodes[0])
    for node in nodes:
        if node.op == "placeholder":
            c.values[node] = weights[node.name] or made(net.input, axes)
        elif node.op == "call_function":
            carry_out(c, node)
        elif node.op == "get_attr":
            raise CompileError(
                f"{node.name} is a block of its own, as of torch.no_grad() or autocast; take it "
                "out of forward, and freeze parameters by requires_grad_(False)"
            )
        elif node.op == "output":
            c.node = node
            _finish(c, node.args[0])
    net.start |= {name: held.values.numpy() for name, held in c.held.items()}
    same = axes == tuple(range(len(axes)))
    return TorchNet(net, () if same else axes, sample, c.held, bool(c.folded))


def _finish(c: Conversion, outputs: Any) -> None:
    """Make the module's only output the net's."""
    result = c.values.get(outputs[0])
    if len(outputs) != 1 or not isinstance(result, Placed):
        raise c.refuse(f"has {len(outputs)} parts; a model gives one tensor [batch, features]")
    if result.places.dim() != 2:
        raise c.refuse(
            f"has the shape {('batch', *result.places.shape[1:])}; a model gives [batch, "
            "features]: end in Flatten or Linear"
        )
    if not torch.equal(result.places.flatten(), torch.arange(result.places.numel())):
        raise c.refuse(
            "is the flattened image that a device stores channels last; end in a Linear layer, or "
            "pool to one value a channel"
        )
    c.stored(result, (0,))


# ---- vectors ---------------------------------------------------------------------------------


def to_vector(module: Module, program: Program) -> Float32:
    """The module's values as the averaged vector of a Program that was compiled from it.

    Raises CompileError when the Program's parameters are not those of the module.
    """
    net = _matching(module, program)
    vector = np.array(program.initial(0))
    for parameter in program.layout.parameters:
        if parameter.name in net.held:
            stop = parameter.offset + parameter.size
            vector[parameter.offset : stop] = net.held[parameter.name].values.numpy().ravel()
    return vector


def load_vector(module: Module, program: Program, vector: Any) -> None:
    """Give the module the values of an averaged vector: `to_vector` turned around.

    Raises CompileError when the Program's parameters are not those of the module.
    """
    net = _matching(module, program)
    if net.folded:
        raise CompileError(
            "the Program has batch normalisations folded into its weights, from which they cannot "
            "be told apart again; compile with fold=False"
        )
    arrays = program.layout.unflatten(np.asarray(vector, np.float32))
    tensors = {**dict(module.named_buffers()), **dict(module.named_parameters())}
    for name, held in net.held.items():
        if held.fqn:
            _put(tensors[held.fqn], held.order, torch.from_numpy(arrays[name].copy()))


@torch.no_grad()
def _put(tensor: Tensor, order: Tensor, values: Tensor) -> None:
    flat = torch.empty(tensor.numel(), dtype=tensor.dtype)
    flat[order.flatten()] = values.flatten().to(tensor.dtype)
    tensor.copy_(flat.view(tensor.shape))


def _matching(module: Module, program: Program) -> TorchNet:
    """The module converted as it was for the Program."""
    example = torch.zeros(1, *program.sample_shape)
    wanted = {p.name: p.shape for p in program.layout.parameters}
    for fold in (False, True):
        net = convert(module, example, fold)
        shapes = {name: tuple(held.values.shape) for name, held in net.held.items()}
        if shapes == {name: shape for name, shape in wanted.items() if name != CLASS_WEIGHTS}:
            return net
    name = next(n for n in wanted | shapes if shapes.get(n) != wanted.get(n))
    raise CompileError(
        f"{name} has the shape {wanted.get(name)} in the Program and {shapes.get(name)} in the "
        "module; give the module that was compiled, in the same mode (.train() or .eval())"
    )


def seeded(build: Callable[[], Any], seed: int) -> Any:
    """What ``build`` makes under torch's generator of that seed, which is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()
