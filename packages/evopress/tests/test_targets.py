"""Targets as users write them."""

from __future__ import annotations

import pytest
from paperhooks import DataError
from paperhooks_evopress import Target


@pytest.mark.parametrize(
    ("given", "kind", "value"),
    [
        ("depth=0.25", "depth", 0.25),
        ("Depth = 6", "depth", 6),
        ("sparsity=.5", "sparsity", 0.5),
        ("bits=3", "bits", 3),
        ("3.0bit", "bits", 3),
        ("2.5 bits", "bits", 2.5),
        ("bytes=90MB", "bytes", 90e6),
        ("bytes=1.5 GiB", "bytes", 1.5 * 2**30),
        ("bytes=1e6", "bytes", 1e6),
        ("parameters=0.8", "parameters", 0.8),
        ("flops=1", "flops", 1),
    ],
)
def test_targets_are_read(given: str, kind: str, value: float) -> None:
    found = Target.of(given)
    assert (found.kind, found.value) == (kind, value)
    assert Target.of(found) is found
    assert Target.of(str(found)) == found


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "expected one of: depth="),
        (0.5, "expected one of: depth="),
        ("width=3", "expected one of: depth="),
        ("bits=", "expected one of"),
        ("bits=three", "bits takes a number"),
        ("bits=3MB", "bits takes a number"),
        ("bytes=3XB", "with kB, MB, GB"),
        ("bits=nan", "a finite number of 0 or more"),
        ("bits=0", "has to be above 0"),
        ("sparsity=1", "the share of zeros"),
        ("sparsity=1.5", "the share of zeros"),
        ("sparsity=-0.1", "a finite number of 0 or more"),
        ("depth=1.5", "a whole number"),
        ("flops=2", "the share of the layers' operations"),
    ],
)
def test_targets_that_cannot_be_meant_are_refused(given: object, said: str) -> None:
    with pytest.raises(DataError, match=said):
        Target.of(given)


def test_shares_of_depth_are_cut_without_rounding_errors() -> None:
    """0.29 of 100 is 29 and 0.57 of 100 is 57, where floats say 28 and 56; 0.25 of 30 is 7."""
    assert [Target.of(f"depth={s}").count(n) for s, n in ((0.29, 100), (0.57, 100), (0.25, 30), (0, 30), (6, 30))] == [
        29, 57, 7, 0, 6,
    ]  # fmt: skip
