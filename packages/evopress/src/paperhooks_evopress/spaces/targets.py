"""What a search has to reach, as users write it: ``depth=0.25``, ``sparsity=0.5``, ``bits=3.0``, ``bytes=90MB``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from paperhooks import DataError

__all__ = ["COUNTED", "KINDS", "Target", "amount"]

#: Kinds of targets, and what their number says.
KINDS: Final = {
    "depth": "the share of attentions, and of MLPs, to leave out (0 to 1), or how many of each",
    "sparsity": "the share of zeros among the weights of the matrices (0 to 1)",
    "bits": "bits of a weight on average, codes alone",
    "bytes": "what the whole model may take",
    "parameters": "the share of the layers' parameters that stays (0 to 1)",
    "flops": "the share of the layers' operations for a token that stays (0 to 1)",
}
#: What is counted, by the kind of cost.
COUNTED: Final = {
    "count": "sublayers that stay",
    "codes": "bytes of codes",
    "parameters": "parameters that are not zero",
    "flops": "operations for a token",
}
_SHARES: Final = ("sparsity", "parameters", "flops")
_UNITS: Final = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Target:
    """A kind of :data:`KINDS` and its number."""

    kind: str
    value: float

    @classmethod
    def of(cls, given: Any) -> Target:
        """Read a target: one itself, ``"KIND=NUMBER"``, or ``"3.0bit"`` for bits.

        :raises DataError: another form, an unknown kind, or a number that cannot be meant; says what is expected.
        """
        if isinstance(given, cls):
            return given
        text = str(given).strip().lower()
        if bits := re.fullmatch(r"(\d+(?:\.\d+)?)\s*bits?", text):
            return cls("bits", _checked("bits", float(bits[1]), given))
        kind, _, number = (part.strip() for part in text.partition("="))
        if kind not in KINDS or not number:
            told = "; ".join(f"{name}=... is {what}" for name, what in KINDS.items())
            raise DataError(f"the target is {given!r}; expected one of: {told}")
        found = re.fullmatch(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?|nan|inf)\s*([a-z]*)", number)
        unit = _UNITS.get(found[2]) if found is not None else None
        if found is None or unit is None or (found[2] and kind != "bytes"):
            raise DataError(f"the target is {given!r}; {kind} takes a number{_sizes(kind)}")
        return cls(kind, _checked(kind, float(found[1]) * unit, given))

    def __str__(self) -> str:
        return f"{self.kind}={self.value:g}" if self.kind != "bytes" else f"bytes={self.value:.0f}"

    def count(self, n: int) -> int:
        """How many of ``n`` sublayers of a kind a depth leaves out: a share is cut, as 0.25 of 30 is 7.

        A share that is a hair below a whole number by rounding counts as that: 0.29 of 100 is 29.
        """
        return int(self.value) if self.value >= 1 else math.floor(self.value * n + 1e-9)


def amount(cost: float | Mapping[str, float], kind: str) -> str:
    """A cost, or a budget of several, in words.

    :param kind: of the cost, as levels tell it.

    >>> amount(331776.0, "codes")
    '331,776 bytes of codes'
    >>> amount({"attention": 5.0, "mlp": 5.0}, "count")
    '5 attention and 5 mlp sublayers that stay'
    """
    own = [f"{value:,.0f} {name}" for name, value in cost.items()] if isinstance(cost, Mapping) else [f"{cost:,.0f}"]
    return f"{' and '.join(own)} {COUNTED.get(kind, kind)}"


def _sizes(kind: str) -> str:
    return ", with kB, MB, GB, KiB, MiB or GiB behind it where wanted" if kind == "bytes" else ""


def _checked(kind: str, value: float, given: Any) -> float:
    """The number, or DataError for one that cannot be meant."""
    if not math.isfinite(value) or value < 0:
        raise DataError(f"the target is {given!r}; {kind} is {KINDS[kind]}, a finite number of 0 or more")
    if kind in _SHARES and (value > 1 or (kind == "sparsity" and value == 1)):
        raise DataError(f"the target is {given!r}; {kind} is {KINDS[kind]}")
    if kind == "depth" and value >= 1 and value != int(value):
        raise DataError(f"the target is {given!r}; a depth of 1 or more is how many of each, a whole number")
    if kind in ("bits", "bytes") and value == 0:
        raise DataError(f"the target is {given!r}; {kind} has to be above 0")
    return value
