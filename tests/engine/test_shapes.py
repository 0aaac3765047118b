"""What fits together, and what comes out of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedtiny.engine.ir import F32, I32, Attributes, Scalars, Tensor, Window
from fedtiny.engine.ops import produce
from fedtiny.errors import GraphError

Shape = tuple[int, ...]


def made(
    kind: str, *shapes: Shape, attributes: Attributes = None, like: Shape = ()
) -> list[tuple[Shape, str]]:
    names = tuple(f"t{i}" if shape else "" for i, shape in enumerate(shapes))
    tensors = {name: Tensor(name, s) for name, s in zip(names, shapes, strict=True)}
    _, outputs = produce(kind, names, ("y", "aux"), tensors, attributes, like)
    return [(t.shape, t.dtype) for t in outputs]


CONV = Window(groups=1)
POOL = Window(stride=(2, 2), kernel=(2, 2))
MADE: list[tuple[str, list[Shape], Attributes, Shape, list[tuple[Shape, str]]]] = [
    ("linear", [(2, 3, 4, 5), (60, 7), (7,)], None, (), [((2, 7), F32)]),
    ("linear_dx", [(2, 7), (60, 7)], None, (2, 3, 4, 5), [((2, 3, 4, 5), F32)]),
    ("relu", [(2, 5, 13)], None, (), [((2, 5, 13), F32), ((2, 3), I32)]),
    ("concat", [(2, 4, 3), (2, 4, 5)], None, (), [((2, 4, 8), F32)]),
    ("slice", [(2, 4, 8)], Scalars(number=3), (2, 4, 5), [((2, 4, 5), F32)]),
    ("reshape", [(2, 4, 3)], None, (2, 12), [((2, 12), F32)]),
    ("conv", [(2, 9, 8, 3), (3, 2, 3, 5), (5,)], CONV, (), [((2, 7, 7, 5), F32)]),
    ("conv", [(2, 9, 6), (3, 2, 3), ()], Window(groups=3, stride=(1, 2)), (), [((2, 4, 3), F32)]),
    ("conv_pool", [(2, 9, 8, 3), (2, 1, 3, 5), ()], Window(groups=1, kernel=(2, 3)), (),
     [((2, 4, 2, 5), F32), ((2, 5), I32)]),
    ("max_pool", [(2, 7, 6, 3)], POOL, (), [((2, 3, 3, 3), F32), ((2, 2), I32)]),
    ("max_pool_dx", [(2, 3, 3, 3), (2, 2)], POOL, (2, 7, 6, 3), [((2, 7, 6, 3), F32)]),
    ("avg_pool", [(2, 40, 3)], Window(kernel=(1, 40)), (), [((2, 1, 3), F32)]),
    ("batch_normalize", [(2, 7, 6, 3)], Scalars(value=1), (), [((2, 7, 6, 3), F32), ((3,), F32)]),
    ("group_normalize", [(2, 7, 6)], Scalars(3, 1), (), [((2, 7, 6), F32), ((2, 3), F32)]),
    ("tracked_normalize", [(2, 7, 3), (3,), (3,)], Scalars(100, 1), (),
     [((2, 7, 3), F32), ((3,), F32)]),
    ("sparse_conv", [(2, 9, 8, 3), (3, 2, 3, 5), (5,)], CONV, (), [((2, 7, 7, 5), F32)]),
    ("sparse_conv", [(2, 3, 4, 5), (60, 7), ()], CONV, (), [((2, 7), F32)]),
    ("sparse_conv_dx", [(2, 7), (60, 7)], CONV, (2, 3, 4, 5), [((2, 3, 4, 5), F32)]),
    ("sparse_conv_dx", [(2, 7, 7, 5), (3, 2, 3, 5)], CONV, (2, 9, 8, 3), [((2, 9, 8, 3), F32)]),
    ("take", [(2, 7, 6, 5), (3,)], None, (), [((2, 7, 6, 3), F32)]),
    ("merge", [(3, 3, 4, 6), (3, 3, 2, 6), (2,)], Scalars(1), (), [((3, 3, 4, 6), F32)]),
    ("merge", [(4, 6), (4, 5), (5,)], Scalars(2), (), [((4, 6), F32)]),
    ("merge", [(6,), (1,), (1,)], Scalars(2), (), [((6,), F32)]),
    ("weighted_cross_entropy", [(4, 3), (4,), (3,)], None, (), [((4, 3), F32), ((1,), F32)]),
    ("zero", [], None, (3, 4), [((3, 4), F32)]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "shapes", "attributes", "like", "expected"), MADE)
def test_an_op_makes_tensors_of_these_shapes(
    kind: str,
    shapes: list[Shape],
    attributes: Attributes,
    like: Shape,
    expected: list[tuple[Shape, str]],
) -> None:
    assert made(kind, *shapes, attributes=attributes, like=like) == expected


REFUSED: list[tuple[str, list[Shape], Attributes, Shape, str]] = [
    ("linear", [(2, 5), (4, 3), ()], None, (), r"linear takes x\[batch, in\]"),
    ("linear", [(2, 5), (5, 3), (4,)], None, (), r"linear bias \(4,\) is not \(3,\)"),
    ("linear_dx", [(2, 3), (5, 3)], None, (2, 6), "no linear layer leads from"),
    ("add", [(2, 3), (2, 4)], None, (), "the operands differ in shape"),
    ("affine", [(2, 3), (3,), (2,)], None, (), "does not fit the last axis"),
    ("concat", [(2, 4, 3), (2, 5, 3)], None, (), "differ in the last axis alone"),
    ("slice", [(2, 8)], Scalars(number=4), (2, 5), "there are no channels 4 to 9"),
    ("reshape", [(2, 6)], None, (2, 5), "cannot become"),
    ("mask_dx", [(2, 33), (2, 1)], Scalars(), (), "a mask of shape"),
    ("leaky_relu", [(2, 3)], Scalars(), (), "a slope must be above 0; got 0.0"),
    ("conv", [(2, 4, 4, 3), (5, 1, 3, 2), ()], CONV, (), "take a smaller kernel"),
    ("conv", [(2, 4, 4, 3), (2, 2, 2, 2), ()], CONV, (), "cannot have the weight"),
    ("conv", [(2, 4, 4, 4), (2, 2, 2, 3), ()], Window(groups=2), (), "a convolution of 2 groups"),
    (
        "conv",
        [(2, 4, 4, 3), (2, 2, 3, 2), ()],
        Window(padding=(0, 2, 0, 0), groups=1),
        (),
        "pads must be smaller than the kernel",
    ),
    ("conv", [(2, 4, 4, 3), (2, 2, 3, 2), ()], Window(stride=(0, 1), groups=1), (), "no window"),
    ("conv", [(2, 4, 4, 3), (1, 1, 3, 2), (3,)], CONV, (), "convolution bias"),
    ("conv_dx", [(2, 3, 3, 2), (2, 2, 3, 2)], CONV, (2, 5, 4, 3), "no convolution leads from"),
    ("max_pool", [(2, 20, 20, 3)], Window(kernel=(17, 16)), (), "up to 256 taps; got 272"),
    ("max_pool_dx", [(2, 3, 3, 3), (2, 1)], POOL, (2, 7, 6, 3), "no max-pooling leads from"),
    ("avg_pool_dx", [(2, 3, 3, 3)], POOL, (2, 8, 6, 3), "no pooling leads from"),
    ("avg_pool", [(2, 3)], Window(), (), "is no kernel of a pooling"),
    ("batch_normalize", [(2, 3)], Scalars(), (), "eps must be above 0"),
    ("group_normalize", [(2, 4)], Scalars(3, 1e-5), (), "3 groups do not divide"),
    ("tracked_normalize", [(2, 3), (2,), (3,)], Scalars(100, 1), (), "does not fit the last axis"),
    ("tracked_normalize", [(2, 3), (3,), (3,)], Scalars(0, 1), (), "1 to 1000 thousandths; got 0"),
    ("tracked_normalize", [(2, 3), (3,), (3,)], Scalars(100), (), "eps must be above 0"),
    ("take", [(2, 5), (6,)], None, (), r"a list \(6,\) of channels does not fit"),
    ("take", [(2, 5), (2, 1)], None, (), "of channels does not fit"),
    ("merge", [(6,), (2,), (2,)], Scalars(1), (), r"\(6,\) has no axis 1 of channels"),
    ("merge", [(4, 6), (4, 2), (2,)], Scalars(3), (), "has no axis 3 of channels"),
    ("merge", [(4, 6), (4, 2), (2,)], Scalars(1), (), r"a part \(4, 2\) of the channels \(2,\)"),
    ("merge", [(4, 6), (4, 7), (7,)], Scalars(2), (), "does not fit axis 1"),
    ("sparse_conv", [(2, 5), (5, 3), ()], Window(groups=2), (), "has one group; got 2"),
    ("sparse_conv", [(2, 5), (5, 3), ()], Window((2, 1), groups=1), (), "has no window"),
    ("sparse_conv", [(2, 4, 4, 3), (5, 1, 3, 2), ()], CONV, (), "take a smaller kernel"),
    ("cross_entropy", [(2, 4), (3,)], None, (), "cross-entropy takes logits"),
    ("soft_cross_entropy", [(2, 4, 1), (2, 4, 1)], None, (), "cross-entropy takes logits"),
]


@pytest.mark.parametrize(("kind", "shapes", "attributes", "like", "message"), REFUSED)
def test_what_does_not_fit_is_refused(
    kind: str, shapes: list[Shape], attributes: Attributes, like: Shape, message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        made(kind, *shapes, attributes=attributes, like=like)


@given(st.data(), st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(1, 4))
def test_a_window_has_as_many_places_as_it_can_start_at(
    data: st.DataObject, height: int, width: int, stride_h: int, stride_w: int
) -> None:
    kernel = (data.draw(st.integers(1, height)), data.draw(st.integers(1, width)))
    top, left, bottom, right = (data.draw(st.integers(0, k - 1)) for k in (*kernel, *kernel))
    rows = range(-top, height + bottom - kernel[0] + 1, stride_h)
    columns = range(-left, width + right - kernel[1] + 1, stride_w)
    window = Window((stride_h, stride_w), (top, left, bottom, right), 0, kernel)
    ((y, _),) = made("avg_pool", (1, height, width, 2), attributes=window)
    assert y == (1, len(rows), len(columns), 2)
