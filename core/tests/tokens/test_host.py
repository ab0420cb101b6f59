"""What the host must know, in one copy."""

from __future__ import annotations

import torch
from paperhooks.models import image_runs
from paperhooks.testing import host_waits
from paperhooks.tokens import on_host

pytest_plugins = ["paperhooks.testing.fixtures"]


def test_what_is_on_the_cpu_is_given_back() -> None:
    mask, number = torch.tensor([[True, False]]), torch.tensor(3)
    found = on_host(mask, None, number)
    assert found[0] is mask
    assert found[1] is None
    assert found[2] is number


def test_all_comes_in_one_copy(emulated) -> None:
    given = [torch.tensor([[True, False]]), torch.tensor(3), torch.tensor([[1], [2]], dtype=torch.int32), None]
    away = [None if t is None else t.to(emulated) for t in given]
    with host_waits() as waits:
        found = on_host(*away, given[0])
    assert waits.total == 1, str(waits)
    for one, two in zip(found, [*given, given[0]], strict=True):
        assert (one is None) == (two is None)
        assert one is None or (one.dtype == two.dtype and torch.equal(one, two))
    with host_waits() as waits:
        masks = on_host(away[0], torch.ones(2, dtype=torch.bool, device="emulated:1"))
    assert [mask.tolist() for mask in masks] == [[[True, False]], [True, True]]
    assert waits.total == 1, str(waits)


def test_runs_of_images_are_found_after_one_wait(emulated) -> None:
    mask = torch.tensor([[True, True, False, True]])
    with host_waits() as waits:
        assert image_runs(mask.to(emulated)) == image_runs(mask) == [(0, 0, 2), (0, 3, 4)]
    assert waits.total == 2, "one for the copy here, one for the copy back"
