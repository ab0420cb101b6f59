"""All faults of a data set in one error."""

from __future__ import annotations

from collections.abc import Sequence

from paperhooks.errors import DataError

__all__ = ["raise_faults"]


def raise_faults(where: str, faults: Sequence[str], *, listed: int = 20) -> None:
    """Raise one DataError that lists all faults of a data set; do nothing when there is none.

    :param listed: how many are listed before the others are only counted.
    """
    if not faults:
        return
    more = f"\n  ... and {len(faults) - listed} more" if len(faults) > listed else ""
    lines = "\n  ".join(faults[:listed])
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    raise DataError(f"{where} cannot be used, it has {count}:\n  {lines}{more}")
