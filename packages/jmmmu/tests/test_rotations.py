"""Runs of all rotations taken together."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from exam_runs import backend, quick
from paperhooks.errors import DataError
from paperhooks.generation import CallableBackend
from paperhooks_evaluation import Document
from paperhooks_jmmmu import Jmmmu, compare_rotations, make_sample
from paperhooks_jmmmu.answers import letters_of
from paperhooks_jmmmu.data import CHOICE

Model = Callable[[Document], str]


def runs_of(
    data: Path, out: Path, model: Model, rotations: range = range(4), groups: Sequence[str] = (), **options: Any
) -> list[Path]:
    """A run of each rotation, answered by a function of the rotated question."""
    folders = []
    for number in rotations:
        task = Jmmmu(rotation=number, **options)
        replies = {one.id: model(one) for one in task.documents(str(data))}
        folders.append(out / str(number))
        quick(backend(replies), None, task, data=data, out=folders[-1], modes=["robust-wrong"], groups=groups)
    return folders


@pytest.fixture(scope="module")
def known(japanese: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs of nine rotations of a model that knows everything."""
    return runs_of(japanese, tmp_path_factory.mktemp("known"), knows, range(9))


def likes_a(document: Document) -> str:
    return "A"


def knows(document: Document) -> str:
    return str(document.data["answer"])


def knows_unless_last(document: Document) -> str:
    """Right, but for the last letter, which it never says."""
    letters = letters_of(document.data["options"])
    answer = str(document.data["answer"])
    return "A" if answer == letters[-1:] else answer


def test_a_liking_for_a_letter_is_worth_one_in_k(japanese: Path, tmp_path: Path) -> None:
    found = compare_rotations(runs_of(japanese, tmp_path, likes_a))
    asked = [one for one in Jmmmu(rotation=1).documents(str(japanese)) if len(one.data["options"]) <= 4]
    every = Jmmmu().documents(str(japanese))
    mean, right = found.accuracy[0], found.all_right[0]
    assert (mean.n, found.left_out) == (len(asked), len(every) - len(asked))
    assert mean.value == pytest.approx(sum(1 / len(one.data["options"]) for one in asked) / len(asked), abs=1e-12)
    assert (right.value, right.interval) == (0, "wilson")
    assert found.options == 4
    assert [(one.letter, one.given, one.recall) for one in found.letters] == [
        ("A", 1, 1), ("B", 0, 0), ("C", 0, 0), ("D", 0, 0),
    ]  # fmt: skip
    assert found.bias == pytest.approx(3**0.5 / 4, abs=1e-12), "the most that is possible with four letters"


def test_who_knows_is_right_in_every_rotation(known: list[Path], tmp_path: Path) -> None:
    found = compare_rotations(known[3::-1], out=tmp_path / "report")
    assert (found.accuracy[0].value, found.all_right[0].value, found.bias) == (1, 1, 0)
    assert [one.given for one in found.letters] == [0.25] * 4, "every letter is right equally often"
    assert dict(found.by_rotation) == dict.fromkeys(range(4), 1.0)
    parts = {one.part: one.n for one in found.accuracy}
    assert parts["subset=CA"] + parts["subset=CS"] == found.accuracy[0].n
    report = (tmp_path / "report" / "report.md").read_text()
    assert "right in all rotations 100.0%" in report
    assert "subset=CS" in report
    told = json.loads((tmp_path / "report" / "result.json").read_text())["results"]["rotations"]
    assert (told["bias"], told["accuracy"][0]["value"]) == (0, 1)


def test_a_letter_that_is_never_said(japanese: Path, tmp_path: Path) -> None:
    found = compare_rotations(runs_of(japanese, tmp_path, knows_unless_last))
    assert found.all_right[0].value == 0
    by_letter = {one.letter: one for one in found.letters}
    assert (by_letter["D"].given, by_letter["D"].recall, by_letter["A"].recall) == (0, 0, 1)
    assert by_letter["A"].given == 0.5
    assert found.accuracy[0].value == pytest.approx(
        sum(1 - 1 / k for k in _options(japanese)) / len(_options(japanese)), abs=1e-12
    )


def _options(data: Path) -> list[int]:
    every = [len(one.data["options"]) for one in Jmmmu(rotation=1).documents(str(data))]
    return [k for k in every if k <= 4]


def test_questions_with_more_options_need_more_runs(japanese: Path, known: list[Path]) -> None:
    few, many = compare_rotations(known[:4]), compare_rotations(known)
    asked = Jmmmu(rotation=1).documents(str(japanese))
    assert max(len(one.data["options"]) for one in asked) == 9
    assert many.accuracy[0].n == len(asked) > few.accuracy[0].n
    assert list(many.by_rotation) == [*range(9)]
    assert all(one.data["question_type"] == CHOICE for one in asked)


def test_a_reply_that_cannot_be_read_is_no_letter(japanese: Path, tmp_path: Path) -> None:
    found = compare_rotations(runs_of(japanese, tmp_path, lambda one: "分かりません。", groups=["CS"]))
    assert found.accuracy[0].value == 0
    assert [one.given for one in found.letters] == [0] * 4


def test_what_does_not_go_together_is_refused(japanese: Path, known: list[Path], tmp_path: Path) -> None:
    runs = known[:4]
    with pytest.raises(DataError, match="runs of 1 rotations; expected those of 0 to k - 1"):
        compare_rotations(runs[:1])
    with pytest.raises(DataError, match="are both of rotation 2; give one of each"):
        compare_rotations([*runs, runs[2]])
    with pytest.raises(DataError, match=r"no question was asked in all its rotations: there are runs of 2, 3"):
        compare_rotations(runs[2:])
    (other,) = runs_of(japanese, tmp_path / "other", knows, range(1), ["CS"], max_new_tokens=7)
    with pytest.raises(DataError, match="max_new_tokens: 7 in a, 1024 in b"):
        compare_rotations([other, *runs[1:]])
    with pytest.raises(DataError, match="holds no"):
        compare_rotations([tmp_path, *runs[1:]])


def test_other_data_are_refused(known: list[Path], tmp_path: Path) -> None:
    make_sample(tmp_path / "data", 1, seed=5)
    (other,) = runs_of(tmp_path / "data", tmp_path / "other", knows, range(3, 4))
    with pytest.raises(DataError, match="is another question than in the other runs"):
        compare_rotations([*known[:3], other])


def test_another_model_is_refused(japanese: Path, known: list[Path], tmp_path: Path) -> None:
    quick(CallableBackend(lambda request: "A", name="another"), None, Jmmmu(rotation=1), data=japanese,
          out=tmp_path / "1", modes=["robust-wrong"], limit=9)  # fmt: skip
    with pytest.raises(DataError, match=r"differ in more than the rotation: name: .* ask all rotations of one model"):
        compare_rotations([known[0], tmp_path / "1"])
