"""How far apart two right ways to compute one number may be, from the dtype and the lengths of its sums alone."""

import torch


def rounding(*lengths: int, dtype: torch.dtype = torch.float32) -> float:
    """The relative error of a number behind sums of these lengths, one after the other, in whatever order.

    Each of n additions rounds by a unit at most (Higham 2002, Accuracy and Stability of Numerical Algorithms, section
    4.2). Processors differ in the order, so a test that asks for less holds on one of them by chance.
    """
    return sum(lengths) * torch.finfo(dtype).eps / 2


def assert_same_but_for_rounding(found: torch.Tensor, expected: torch.Tensor, *lengths: int) -> None:
    """Within `rounding` of the largest value, for a small one may be the difference of two that are large."""
    largest = float(expected.detach().abs().max()) if expected.numel() else 0.0
    torch.testing.assert_close(found, expected, rtol=0, atol=rounding(*lengths, dtype=expected.dtype) * largest)
