"""The reference kernels: NumPy, one function an op, slow and obvious.

They write into their last operands in place. In float32 they follow the canonical order of
summation of ``runtime/ft_runtime.h`` bit for bit; in float64 the same order with exact functions.
Operands come in the order of an image, absent ones as None, the attributes of an op behind them.
"""
