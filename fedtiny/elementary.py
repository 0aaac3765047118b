"""The canonical float32 exp, log, tanh, sigmoid, sin and cos in NumPy, bit by bit those of the C.

`engine/runtime/ft_math_forms.h` is the other text of the same functions, line by line; each
operation here is one ufunc, so each result is rounded to float32. Which NaN comes out of a NaN is
not said. A float64 array gets NumPy's own function instead: exactness is what it is for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Float32 = npt.NDArray[np.float32]

_f = np.float32
_u = np.uint32
_ROUNDER = _f(12582912.0)  # 1.5 * 2^23: added to a small number it leaves an integer, ties to even

Function = Callable[[Any], Any]


def _polynomial(x: Float32, *coefficients: float) -> Float32:
    """Horner's rule, the highest power first."""
    p = x * _f(coefficients[0]) + _f(coefficients[1])
    for coefficient in coefficients[2:]:
        p = p * x + _f(coefficient)
    return p


def _clamp(x: Float32, limit: float) -> Float32:
    """x in [-limit, limit]; a NaN passes."""
    below = np.where(_f(limit) < x, _f(limit), x)
    return np.where(_f(-limit) > below, _f(-limit), below)


def _canonical(exact: Function) -> Callable[[Function], Function]:
    """Marks the float32 form of a function whose float64 form is ``exact``."""

    def mark(form: Function) -> Function:
        @wraps(form)
        def either(x: Any) -> Any:
            if np.asarray(x).dtype == np.float64:
                return exact(x)
            with np.errstate(all="ignore"):  # the unused side of a choice may overflow
                return form(np.asarray(x, np.float32))

        return either

    return mark


def _exact_sigmoid(x: Any) -> Any:
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-x))


@_canonical(np.exp)
def exp(x: Float32) -> Float32:
    """Within 2 ulp; 0 where the exact value is below the smallest normal float32."""
    shifted = x * _f(1.44269504) + _ROUNDER
    k = shifted - _ROUNDER
    r = (x - k * _f(0.693359375)) - k * _f(-2.12194440e-4)
    p = _polynomial(
        *(r, 1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3),
        *(4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
    )
    p = (p * (r * r) + r) + _f(1.0)
    y = (p.view(_u) + (shifted.view(_u) << _u(23))).view(_f)
    y = np.where(x < _f(-87.33654), _f(0.0), y)
    y = np.where(x > _f(88.72283), _f(np.inf), y)
    return np.where(x == x, y, x)


@_canonical(np.log)
def log(x: Float32) -> Float32:
    """Within 2 ulp; -inf at 0, NaN below."""
    small = x < _f(1.17549435e-38)
    scaled = np.where(small, x * _f(8388608.0), x)
    bits = scaled.view(_u) + _u(0x3F800000 - 0x3F3504F3)
    e = np.where(small, _f(-150.0), _f(-127.0)) + (bits >> _u(23)).astype(_f)
    z = ((bits & _u(0x7FFFFF)) + _u(0x3F3504F3)).view(_f) - _f(1.0)
    p = _polynomial(
        *(z, 7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1),
        *(1.4249322787e-1, -1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
    )
    zz = z * z
    y = (p * z * zz + e * _f(-2.12194440e-4)) - zz * _f(0.5)
    y = (z + y) + e * _f(0.693359375)
    y = np.where(x > 0, y, _f(np.nan))
    y = np.where(x == 0, _f(-np.inf), y)
    return np.where(x < np.inf, y, x)


@_canonical(np.tanh)
def tanh(x: Float32) -> Float32:
    """Within 4e-7, never beyond +-1."""
    x = _clamp(x, 9.1)
    t = x * x
    p = _polynomial(t, 1.33534121e-08, 2.06081841e-05, 0.00349553449, 0.133809811, 0.99999998)
    q = _polynomial(t, 7.77604676e-07, 0.000328554625, 0.0258767799, 0.467142968, 1.0)
    return _clamp((x * p) / q, 1.0)


@_canonical(_exact_sigmoid)
def sigmoid(x: Float32) -> Float32:
    """1 / (1 + exp(-x))."""
    y: Float32 = _f(1.0) / (_f(1.0) + exp(-x))
    return y


def _sin_of_quarters(x: Float32, quarter: int) -> Float32:
    """The sine of x + quarter * pi / 2."""
    shifted = x * _f(0.636619772) + _ROUNDER
    j = shifted - _ROUNDER
    turn = shifted.view(_u) + _u(quarter)
    r = ((x - j * _f(1.5703125)) - j * _f(4.83751297e-4)) - j * _f(7.54978995e-8)
    r = _clamp(r, 0.8)
    z = r * r
    s = _polynomial(z, -1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1) * z * r + r
    c = _polynomial(z, 2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
    c = (c * (z * z) - z * _f(0.5)) + _f(1.0)
    y = np.where(turn & _u(1), c, s)
    signed: Float32 = (y.view(_u) ^ ((turn & _u(2)) << _u(30))).view(_f)
    return signed


@_canonical(np.sin)
def sin(x: Float32) -> Float32:
    """Within 3e-7 for |x| <= 1e4; beyond it a number near [-1, 1] without meaning."""
    return _sin_of_quarters(x, 0)


@_canonical(np.cos)
def cos(x: Float32) -> Float32:
    """Within 3e-7 for |x| <= 1e4; beyond it a number near [-1, 1] without meaning."""
    return _sin_of_quarters(x, 1)
