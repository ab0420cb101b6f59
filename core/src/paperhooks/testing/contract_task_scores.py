"""The task contract's checks of what replies are worth: reading, scoring, settling, adding up."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from paperhooks.io import plain
from paperhooks.testing.contract_task_material import TaskMaterial

__all__ = ["ScoreChecks"]

#: Characters of a long reply, and to how many documents such replies are given.
_LONG: Final = 1000
_LONG_ONES: Final = 2
#: How many records are added up each alone.
_ALONE: Final = 4
#: Intervals that do not come from drawing.
_FIRM: Final = ("wilson", "normal")


class ScoreChecks(TaskMaterial):
    """What holds of replies, whatever a model writes."""

    def test_replies_are_read_and_scored(self, tmp_path: Path) -> None:
        """In every mode every reply, however odd, has a value that is plain JSON (or NaN) and a finite score."""
        task, documents = self.material(tmp_path)
        for document, reply, mode in self._cases(task, self.some(documents)):
            said = f"mode {mode!r}, document {document.id!r}, reply {reply[:40]!r}"
            try:
                parsed = task.parse(document, reply, mode)
                score = task.score(document, parsed)
            except Exception as error:
                pytest.fail(f"{said}: {type(error).__name__}: {error}")
            assert (type(parsed.rule), type(parsed.fallback)) == (str, bool), f"{said}: {parsed}"
            try:
                json.dumps(parsed.value)
            except (TypeError, ValueError) as error:
                pytest.fail(f"{said}: the value that was read is no JSON: {error}")
            assert math.isfinite(score), f"{said}: the score is {score}"

    def test_replies_are_read_alike_at_every_call(self, tmp_path: Path) -> None:
        """Reading and scoring depend on nothing but their arguments, and change none of them."""
        task, documents = self.material(tmp_path)
        cases = list(self._cases(task, self.some(documents)))
        before = copy.deepcopy([document for document, _, _ in cases])
        first = [_read(task, *case) for case in cases]
        assert [document for document, _, _ in cases] == before, "reading a reply changes its document"
        again, other = [_read(task, *case) for case in reversed(cases)][::-1], self.make()
        for case, one, two, three in zip(cases, first, again, (_read(other, *case) for case in cases), strict=True):
            said = f"mode {case[2]!r}, document {case[0].id!r}, reply {case[1][:40]!r}"
            assert one == two == three, f"{said}: read as {one}, then as {two}, by another task as {three}"

    def _cases(self, task: Any, documents: Sequence[Any]) -> Iterator[tuple[Any, str, str]]:
        for mode in task.modes:
            for number, document in enumerate(documents):
                # Long ones take their time.
                replies = (reply for reply in self.every_reply() if number < _LONG_ONES or len(reply) < _LONG)
                yield from ((document, reply, mode) for reply in replies)

    def test_settling_keeps_records(self, tmp_path: Path) -> None:
        """As many records come back, in their order, with the documents and replies they had; the same every time."""
        for task, mode, records in self._records(tmp_path):
            settled = task.settle(records, mode)
            kept = [(one.document, one.response, one.truncated) for one in records]
            found = [(one.document, one.response, one.truncated) for one in settled]
            assert found == kept, f"mode {mode!r}: settle leaves records out, or changes their order or their replies"
            again = self.make().settle(records, mode)
            assert list(map(repr, again)) == list(map(repr, settled)), f"mode {mode!r}: settle draws anew at every call"

    def test_figures_are_sound(self, tmp_path: Path) -> None:
        """All records, and each alone, give figures: of one name and part each, finite or None."""
        for task, mode, found in self._records(tmp_path):
            records = list(task.settle(found, mode))
            for some in (records, *([one] for one in records[:: -(-len(records) // _ALONE)])):
                try:
                    summary = task.aggregate(some, mode)
                except Exception as error:
                    pytest.fail(f"mode {mode!r}: {len(some)} records do not add up: {type(error).__name__}: {error}")
                keys = [(one.name, one.grouping, one.group) for one in summary.metrics]
                assert keys, f"mode {mode!r}: {len(some)} records give no figure"
                assert len(set(keys)) == len(keys), f"mode {mode!r}: several figures of one name and part"
                for one in summary.metrics:
                    numbers = [number for number in (one.value, one.low, one.high) if number is not None]
                    assert all(map(math.isfinite, numbers)), f"mode {mode!r}: {one.name} of {one.part or 'all'}: {one}"
                try:
                    json.dumps(plain(summary.extra), allow_nan=False)
                except ValueError as error:
                    pytest.fail(f"mode {mode!r}: extra is no JSON: {error}")

    def test_figures_do_not_depend_on_the_order(self, tmp_path: Path) -> None:
        """Records in another order give the same figures; bounds that are drawn may differ."""
        for task, mode, unsettled in self._records(tmp_path):
            records = list(task.settle(unsettled, mode))
            found = _figures(task.aggregate(records, mode))
            for other in (records[::-1], [*records[1::2], *records[::2]]):
                _assert_same(_figures(task.aggregate(other, mode)), found, f"mode {mode!r}, records in another order")

    def _records(self, folder: Path) -> Iterator[tuple[Any, str, list[Any]]]:
        """By mode a record of every document, not settled yet; the replies in turn."""
        task, documents = self.material(folder)
        made = self.run(task, self.written(folder / "again"), folder / "run", modes=task.modes[:1]).records[0]
        known = self.every_reply()
        for mode in task.modes:
            records = []
            for number, document in enumerate(self.as_run(documents)):
                reply = known[number % len(known)]
                parsed = task.parse(document, reply, mode)
                told = {"document": document, "response": reply, "parsed": parsed}
                records.append(dataclasses.replace(made, score=task.score(document, parsed), **told))
            yield task, mode, records


def _read(task: Any, document: Any, reply: str, mode: str) -> tuple[str, float]:
    parsed = task.parse(document, reply, mode)
    # As text, since NaN does not equal itself.
    return json.dumps(dataclasses.asdict(parsed), default=repr), task.score(document, parsed)


def _figures(summary: Any) -> dict[tuple[str, str, str], list[float | None]]:
    """Value, n and bounds by name and part; without bounds that come from drawing."""
    return {
        (one.name, one.grouping, one.group): [one.value, one.n, *([one.low, one.high] if one.interval in _FIRM else [])]
        for one in summary.metrics
    }


def _assert_same(
    found: Mapping[tuple[str, str, str], list[float | None]], expected: Mapping[tuple[str, str, str], Any], what: str
) -> None:
    assert found.keys() == expected.keys(), f"{what}: other figures"
    for key, values in expected.items():
        same = all(
            one == two or (one is not None and two is not None and math.isclose(one, two, rel_tol=1e-9, abs_tol=1e-12))
            for one, two in zip(found[key], values, strict=True)
        )
        assert same, f"{what}: {key} is {found[key]}, and was {values}"
