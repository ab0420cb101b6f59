"""Set algebra over the tops of several sides, written as one would on paper: ``maths - (prose | code)``."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable, Mapping

from paperhooks import DataError
from paperhooks.errors import did_you_mean
from torch import Tensor

from paperhooks_mathneuro.algorithm import isolate

__all__ = ["evaluate_sets", "set_names", "sides_of"]


def set_names(expression: str, sides: Collection[str] | None = None) -> list[str]:
    """The names that an expression uses, in the order of their first use.

    >>> set_names("maths - (prose | code)")
    ['maths', 'prose', 'code']

    Raises DataError for anything but names, ``-``, ``|``, ``&``, ``^`` and brackets, and for one that is not among
    ``sides``.
    """
    found = list(dict.fromkeys(_names(_parsed(expression), expression)))
    unknown = [] if sides is None else [name for name in found if name not in sides]
    if sides is not None and unknown:
        raise DataError(f"{expression!r} names {unknown[0]!r}; the sides are {', '.join(sides)}")
    return found


def evaluate_sets(expression: str, sets: Mapping[str, Tensor]) -> Tensor:
    """The expression's value on bool tensors of one shape. Raises DataError for a name that is not in ``sets``."""
    return _value(_parsed(expression), sets, expression)


def sides_of(expression: str) -> tuple[str, str]:
    """What is kept and what is taken away: the two sides of the outermost difference; nothing taken away without one.

    >>> sides_of("maths - (prose | code)")
    ('maths', 'prose | code')
    >>> sides_of("a & b")
    ('a & b', '')
    """
    node = _parsed(expression)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
        return ast.unparse(node.left), ast.unparse(node.right)
    return ast.unparse(node), ""


def _parsed(expression: str) -> ast.expr:
    try:
        return ast.parse(expression.strip(), mode="eval").body
    except SyntaxError as error:
        raise DataError(f"{expression!r} is no set expression; write one such as 'target - (a | b)'") from error


def _names(node: ast.expr, expression: str) -> Iterable[str]:
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub | ast.BitOr | ast.BitAnd | ast.BitXor):
        return [*_names(node.left, expression), *_names(node.right, expression)]
    raise DataError(
        f"{ast.unparse(node)!r} in the set expression {expression!r} is none of names, -, |, & and ^ with brackets"
    )


def _value(node: ast.expr, sets: Mapping[str, Tensor], expression: str) -> Tensor:
    if isinstance(node, ast.Name):
        if node.id not in sets:
            raise DataError(f"the set {node.id!r} in {expression!r} is not known; {did_you_mean(node.id, sets)}")
        return sets[node.id]
    if not isinstance(node, ast.BinOp):
        raise DataError(f"{ast.unparse(node)!r} in {expression!r} is no operation on sets")
    left, right = (_value(side, sets, expression) for side in (node.left, node.right))
    if isinstance(node.op, ast.Sub):
        return isolate(left, right)
    if isinstance(node.op, ast.BitOr):
        return left | right
    return left & right if isinstance(node.op, ast.BitAnd) else left ^ right
