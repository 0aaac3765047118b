"""Checking the coordinator's signature under what a device fetches: Ed25519 (RFC 8032).

In Python, because the library that signs would cost an agent 8 MB of its 50, and a check takes a
few milliseconds once a round. A check knows no secret, so how long it takes tells nothing.
"""

from __future__ import annotations

import hashlib

_Point = tuple[int, int, int, int]  # (X, Y, Z, T) with x = X / Z, y = Y / Z, x y = T / Z

_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_ROOT_OF_MINUS_ONE = pow(2, (_P - 1) // 4, _P)
_NEUTRAL: _Point = (0, 1, 1, 0)


def verify(public: bytes, text: bytes, signature: bytes) -> bool:
    """Whether the ``signature`` (64 bytes) of ``text`` was made with the key of ``public`` (32)."""
    if len(public) != 32 or len(signature) != 64:
        return False
    key = _decompress(public)
    scalar = int.from_bytes(signature[32:], "little")
    if key is None or scalar >= _ORDER:
        return False
    digest = hashlib.sha512(signature[:32] + public + text).digest()
    challenge = int.from_bytes(digest, "little") % _ORDER
    return _compress(_sum_of_products(scalar, _BASE, challenge, _negative(key))) == signature[:32]


def _sum_of_products(s: int, p: _Point, t: int, q: _Point) -> _Point:
    """s p + t q, both at once: one doubling a bit."""
    both = _add(p, q)
    total = _NEUTRAL
    for bit in reversed(range(253)):
        total = _add(total, total)
        place = (s >> bit & 1) + 2 * (t >> bit & 1)
        if place:
            total = _add(total, (p, q, both)[place - 1])
    return total


def _add(p: _Point, q: _Point) -> _Point:
    a = (p[1] - p[0]) * (q[1] - q[0]) % _P
    b = (p[1] + p[0]) * (q[1] + q[0]) % _P
    c = 2 * p[3] * q[3] * _D % _P
    d = 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _negative(p: _Point) -> _Point:
    return _P - p[0], p[1], p[2], _P - p[3]


def _compress(p: _Point) -> bytes:
    inverse = pow(p[2], -1, _P)
    x, y = p[0] * inverse % _P, p[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _decompress(data: bytes) -> _Point | None:
    """The point with that y and the sign of x in the last bit; None when there is none."""
    number = int.from_bytes(data, "little")
    y, sign = number & ((1 << 255) - 1), number >> 255
    if y >= _P:
        return None
    square = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    x = pow(square, (_P + 3) // 8, _P)
    if (x * x - square) % _P:
        x = x * _ROOT_OF_MINUS_ONE % _P
    if (x * x - square) % _P or (x == 0 and sign):
        return None
    if x & 1 != sign:
        x = _P - x
    return x, y, 1, x * y % _P


def _generator() -> _Point:
    point = _decompress((4 * pow(5, -1, _P) % _P).to_bytes(32, "little"))
    assert point is not None
    return point


_BASE = _generator()
