"""A calculator for sums in words."""

from __future__ import annotations

import ast
import operator

_DOES = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
}
LONGEST = 200


def calculate(expression: str) -> float:
    """Work out a sum of numbers with + - * / and brackets, such as (3 + 4) * 2."""
    if len(expression) > LONGEST:
        raise ValueError(f"a sum may have {LONGEST} characters")
    return float(f"{_value(ast.parse(expression, mode='eval').body):.10g}")


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in _DOES:
        return float(_DOES[type(node.op)](_value(node.left), _value(node.right)))
    if isinstance(node, ast.UnaryOp) and type(node.op) in _DOES:
        return float(_DOES[type(node.op)](_value(node.operand)))
    raise ValueError("only numbers, + - * / and brackets")
