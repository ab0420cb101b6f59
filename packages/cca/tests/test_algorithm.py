"""Schemes, positions and masks as pure functions, against definitions written out cell by cell."""

from __future__ import annotations

import random

import oracle_cca as oracle
import pytest
import torch
from paperhooks.errors import DataError
from paperhooks_cca import SCHEMES, allowed_mask, positions, ring_table
from paperhooks_cca.schemes import levels, order_table

IMAGE = 9


@pytest.mark.parametrize("scheme", sorted(SCHEMES))
@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (2, 2), (3, 5), (6, 6), (7, 4), (24, 24)], ids=str)
def test_tables_equal_their_definition(scheme, grid):
    height, width = grid
    table = order_table(scheme, height, width).view(height, width)
    expected = [[oracle.level(scheme, i, j, height, width) for j in range(width)] for i in range(height)]
    assert table.tolist() == expected
    assert levels(scheme, height, width) == oracle.taken(scheme, height, width) == max(map(max, expected)) + 1


@pytest.mark.parametrize("grid", [(0, 4), (3, 0), (-1, 2)], ids=str)
def test_an_empty_grid_is_refused(grid):
    with pytest.raises(ValueError, match="has no patch"):
        ring_table(*grid)


def test_a_scheme_of_ones_own():
    assert order_table(lambda h, w: torch.arange(h)[:, None].expand(h, w), 2, 3).tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="leaves levels of a 2 x 2 grid empty"):
        order_table(lambda h, w: torch.full((h, w), 3), 2, 2)
    with pytest.raises(ValueError, match=r"expected int64 \[2, 2\]"):
        order_table(lambda h, w: torch.zeros(h), 2, 2)


def random_layout(rng):
    """One row: tokens, grids, and how much padding stands on which side."""
    tokens, grids = [], []
    for _ in range(rng.randint(0, 3)):
        tokens += [rng.randint(1, 8) for _ in range(rng.randint(0, 4))]
        grid = (rng.randint(1, 5), rng.randint(1, 5))
        grids.append(grid)
        tokens += [IMAGE] * (grid[0] * grid[1])
    tokens += [rng.randint(1, 8) for _ in range(rng.randint(0 if tokens else 1, 4))]
    return tokens, grids


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("scheme", sorted(SCHEMES))
def test_two_hundred_random_batches(scheme, side):
    rng = random.Random(f"{scheme} {side}")
    for _ in range(25):
        rows = [random_layout(rng) for _ in range(2)]
        width = max(len(tokens) for tokens, _ in rows) + rng.randint(0, 3)
        ids, mask = torch.zeros(2, width, dtype=torch.int64), torch.zeros(2, width, dtype=torch.int64)
        spots = []
        for row, (tokens, _) in enumerate(rows):
            spot = slice(width - len(tokens), width) if side == "left" else slice(0, len(tokens))
            ids[row, spot], mask[row, spot] = torch.tensor(tokens), 1
            spots.append(spot)
        found = positions(ids, mask, IMAGE, [grid for _, grids in rows for grid in grids], scheme)
        seen = allowed_mask(found, mask)
        for row, (tokens, grids) in enumerate(rows):
            places, owner = oracle.walk(tokens, grids, IMAGE, scheme)
            assert found[row, spots[row]].tolist() == places
            assert torch.equal(seen[row, spots[row], spots[row]], oracle.may_see(places, owner))
            padding = mask[row] == 0
            assert not seen[row][:, padding].any()
            assert seen[row].any(1).all(), "a row that sees nothing has no softmax"


def test_distances_and_density_of_the_papers_setting():
    """Section 1 and 2 of the method: 24 x 24 patches, 35 tokens before, 40 after."""
    ids = torch.tensor([[1] * 35 + [IMAGE] * 576 + [1] * 40])
    rings, raster = positions(ids, None, IMAGE, (24, 24))[0], positions(ids, None, IMAGE, (24, 24), "raster")[0]
    image, text = slice(35, 611), slice(611, None)

    def distances(placed):
        return placed[text][:, None] - placed[image][None]

    assert raster.tolist() == list(range(651))
    assert (int(distances(raster).max()), int(distances(rings).max())) == (615, 51)
    assert (round(distances(raster).float().mean().item()), round(distances(rings).float().mean().item())) == (308, 28)
    assert int(rings[-1]) == 650 - 564
    inside = allowed_mask(rings[None])[0, image, image]
    assert int(inside.sum()) == 184_288


@pytest.mark.parametrize(
    ("ids", "grids", "message"),
    [
        ([[1, 9, 9, 9, 2]], (2, 2), r"sample 0: 3 image tokens from column 1, expected 2 x 2 = 4 tokens.*truncated"),
        ([[1, 9, 9, 9, 9]], [(2, 3)], r"sample 0: 4 image tokens from column 1, expected 2 x 3 = 6"),
        ([[9, 9, 1, 2]], [(1, 2), (1, 2)], r"1 grids are left over"),
        ([[9, 9, 1, 9]], [(1, 2)], r"sample 0: 1 image tokens from column 3"),
    ],
)
def test_wrong_runs_are_named(ids, grids, message):
    with pytest.raises(DataError, match=message) as caught:
        positions(torch.tensor(ids), None, IMAGE, grids)
    assert isinstance(caught.value, ValueError)
