"""Conjugate gradient (Hestenes and Stiefel 1952), from products with a matrix that is never written out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], b: Tensor, steps: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """(x, b − A·x) with A·x ≈ b, from products A·v; it ends early once ‖b − A·x‖² is within the tolerance."""
    x, residual = torch.zeros_like(b), b.clone()
    direction, squared = b, b @ b
    for _ in range(steps):
        if squared <= tolerance:
            break
        a = product(direction)
        alpha = squared / (direction @ a)
        x, residual = x + alpha * direction, residual - alpha * a
        before, squared = squared, residual @ residual
        direction = residual + squared / before * direction
    return x, residual
