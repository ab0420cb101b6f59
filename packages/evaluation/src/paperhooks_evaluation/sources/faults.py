"""All faults of a data set in one error."""

from __future__ import annotations

from collections.abc import Sequence

from paperhooks.errors import DataError, counted

__all__ = ["raise_faults"]


def raise_faults(where: str, faults: Sequence[str], *, listed: int = 20) -> None:
    """Raise one DataError that lists all faults of a data set; do nothing when there is none.

    :param listed: how many are listed before the others are only counted.
    """
    if not faults:
        return
    more = f"\n  ... and {len(faults) - listed} more" if len(faults) > listed else ""
    lines = "\n  ".join(faults[:listed])
    raise DataError(f"{where} cannot be used, it has {counted(len(faults), 'fault')}:\n  {lines}{more}")
