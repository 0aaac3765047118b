"""The models that ship, in builder form."""

from __future__ import annotations

from collections.abc import Sequence

from fedtiny.engine.builder import Net
from fedtiny.errors import CompileError

ACTIVATIONS = ("relu", "tanh", "sigmoid")


def mlp(widths: Sequence[int], activation: str = "relu", head: str = "shared") -> Net:
    """A multi-layer perceptron.

    Args:
        widths: Features of the input, of each hidden layer, and of the output.
        activation: ``relu``, ``tanh`` or ``sigmoid``, between the layers.
        head: The group of the last layer's parameters.
    """
    if activation not in ACTIVATIONS:
        raise CompileError(f"no activation {activation!r}; there are {list(ACTIVATIONS)}")
    if len(widths) < 2 or min(widths) < 1:
        raise CompileError(f"an mlp needs two or more positive widths; got {list(widths)}")
    net = Net(inputs=widths[0])
    value = net.input
    for width in widths[1:-1]:
        value = getattr(net, activation)(net.linear(value, width))
    net.group = head
    net.linear(value, widths[-1])
    return net


def sine_mlp(activation: str = "relu") -> Net:
    """1-32-32-1: the regression net of the sine task; 1,153 parameters."""
    return mlp((1, 32, 32, 1), activation)


def digits_mlp(classes: int = 10, hidden: int = 32) -> Net:
    """64-hidden-classes over 8 x 8 pixels."""
    return mlp((64, hidden, classes))
