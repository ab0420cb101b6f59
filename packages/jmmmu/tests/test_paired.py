"""Japanese against English, question by question."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from math import comb
from pathlib import Path
from typing import Any

import pytest
from exam_runs import backend, quick
from paperhooks.errors import DataError
from paperhooks_evaluation import Document, rescore
from paperhooks_jmmmu import Jmmmu, JmmmuVerified, MmmuPaired, compare_languages
from paperhooks_jmmmu.answers import letters_of
from paperhooks_jmmmu.data import CHOICE

compare = partial(compare_languages, resamples=50)
MODES = ("official-per-question", "official-wrong", "robust-wrong")
#: Of the questions that both have: how many are right in English alone, in Japanese alone, in both.
ENGLISH_ALONE, JAPANESE_ALONE, BOTH = 9, 2, 20


def reply(document: Document, right: bool) -> str:
    """An answer that both parsers read, in either language."""
    answer = document.data["answer"]
    if document.data["question_type"] != CHOICE:
        return answer if right else "-17"
    letters = letters_of(document.data["options"])
    return answer if right else letters[letters.index(answer) - 1]


def replies(documents: list[Document], right: Mapping[str, bool]) -> dict[str, str]:
    return {one.id: reply(one, right.get(one.id, True)) for one in documents}


@pytest.fixture(scope="module")
def languages(japanese: Path, english: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two runs that are made by hand; all 8 Japanese questions that English lacks are right."""
    folder = tmp_path_factory.mktemp("languages")
    for task, data in ((MmmuPaired(), english), (Jmmmu(), japanese)):
        documents = list(task.documents(str(data)))
        shared = sorted(one.id for one in documents if one.groups["subset"] == "CA")
        assert len(shared) == 48
        borders = {"mmmu-paired": (ENGLISH_ALONE, 0), "jmmmu": (0, JAPANESE_ALONE)}[task.name]
        right = dict.fromkeys(shared, False)
        right |= dict.fromkeys(shared[: borders[0]], True)
        right |= dict.fromkeys(shared[ENGLISH_ALONE : ENGLISH_ALONE + borders[1]], True)
        right |= dict.fromkeys(shared[20 : 20 + BOTH], True)
        quick(backend(replies(documents, right)), None, task, data=data, out=folder / task.name, modes=MODES)
    return folder / "mmmu-paired", folder / "jmmmu"


def test_what_the_language_costs(languages: tuple[Path, Path], tmp_path: Path) -> None:
    """Known by hand: the difference, what changed, and the exact test."""
    found = compare(*languages, out=tmp_path)
    one = found.overall
    assert (one.n, one.better, one.worse) == (48, JAPANESE_ALONE, ENGLISH_ALONE)
    assert (one.a, one.b) == ((ENGLISH_ALONE + BOTH) / 48, (JAPANESE_ALONE + BOTH) / 48)
    assert one.delta == pytest.approx((JAPANESE_ALONE - ENGLISH_ALONE) / 48, abs=1e-12)
    n = ENGLISH_ALONE + JAPANESE_ALONE
    assert one.p == pytest.approx(2 * sum(comb(n, k) for k in range(JAPANESE_ALONE + 1)) / 2**n, abs=1e-12)
    assert one.low < one.delta < one.high
    assert (found.only_a, found.only_b, found.mode) == (0, 8, "robust-wrong"), "what English lacks is left out"
    domains = [line for line in found.groups if line.grouping == "domain"]
    assert sum(line.n for line in domains) == 48
    assert sum(line.better for line in domains) == JAPANESE_ALONE
    assert sum(line.worse for line in domains) == ENGLISH_ALONE
    translated = {line.group: line for line in found.groups if line.grouping == "translated"}
    assert set(translated) == {"original", "translated"}, "the English data do not tell; the Japanese ones do"
    told = json.loads((tmp_path / "comparison.json").read_text())
    assert (told["overall"]["better"], told["overall"]["worse"]) == (JAPANESE_ALONE, ENGLISH_ALONE)
    assert (tmp_path / "report.html").exists()


def test_the_interval_follows_from_the_seed(languages: tuple[Path, Path]) -> None:
    bounds = [(one.low, one.high) for one in (compare(*languages, seed=seed).overall for seed in (0, 0, 1))]
    assert bounds[0] == bounds[1] != bounds[2]


def test_any_mode_that_both_have(languages: tuple[Path, Path]) -> None:
    assert compare(*languages, mode="official-wrong").overall.delta == compare(*languages).overall.delta
    with pytest.raises(DataError, match="not both scored in the mode 'robust-rong'; did you mean 'robust-wrong'"):
        compare(*languages, mode="robust-rong")


@pytest.mark.parametrize(
    ("task", "arguments", "said"),
    [
        (Jmmmu(), {"layout": "interleave"}, "layout: prepend in a, interleave in b"),
        (Jmmmu(), {"layout": "text-only"}, "layout: prepend in a, text-only in b"),
        (Jmmmu(max_new_tokens=16), {}, "max_new_tokens: 1024 in a, 16 in b"),
        (Jmmmu(), {"max_new_tokens": 16}, "max_new_tokens: "),
        (Jmmmu(stop="lmms-eval"), {}, "stop: "),
        (Jmmmu(), {"stop": ["\n\n"]}, "stop: "),
        (Jmmmu(pictures="blank"), {}, "pictures: own in a, blank in b"),
        (Jmmmu(rotation=1), {}, "rotation: 0 in a, 1 in b"),
    ],
    ids=["interleave", "text-only", "limit", "limit of the call", "stop", "stop of the call", "pictures", "rotation"],
)
def test_runs_that_were_asked_otherwise_are_refused(
    languages: tuple[Path, Path], japanese: Path, tmp_path: Path, task: Jmmmu, arguments: dict[str, Any], said: str
) -> None:
    quick(backend(replies(list(task.documents(str(japanese))), {})), None, task, data=japanese, out=tmp_path,
          modes=["robust-wrong"], limit=3, **arguments)  # fmt: skip
    with pytest.raises(DataError, match=said):
        compare(languages[0], tmp_path, out=tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_letters_of_another_seed_are_refused(languages: tuple[Path, Path]) -> None:
    english, japanese = languages
    rescore(japanese, Jmmmu(seed=1), modes=MODES, report=False)
    try:
        assert compare(english, japanese).overall.n == 48, "which that mode does not draw"
        with pytest.raises(DataError, match="seed: 0 in a, 1 in b"):
            compare(english, japanese, mode="official-per-question")
    finally:
        rescore(japanese, Jmmmu(), modes=MODES, report=False)


def test_a_parser_that_one_run_was_not_read_by_is_refused(
    languages: tuple[Path, Path], japanese: Path, tmp_path: Path
) -> None:
    task = Jmmmu()
    answers = replies(list(task.documents(str(japanese))), {})
    quick(backend(answers), None, task, data=japanese, out=tmp_path, modes=["official-wrong"], limit=3)
    with pytest.raises(DataError, match="not both scored in the mode 'robust-wrong'"):
        compare(languages[0], tmp_path)


def test_the_english_run_comes_first_and_the_japanese_one_is_of_jmmmu(
    languages: tuple[Path, Path], pro: Path, tmp_path: Path
) -> None:
    english, japanese = languages
    for pair in ((japanese, english), (english, english), (japanese, japanese)):
        with pytest.raises(DataError, match="give a run of 'mmmu-paired', then one of 'jmmmu'"):
            compare(*pair, out=tmp_path / "report")
        assert not (tmp_path / "report").exists()
    task = JmmmuVerified(max_new_tokens=1024)
    answers = replies(list(task.documents(str(pro))), {})
    quick(backend(answers), None, task, data=pro, out=tmp_path / "pro", modes=["robust-wrong"], limit=9)
    with pytest.raises(DataError, match="pro one of 'jmmmu-verified'; give a run of"):
        compare(english, tmp_path / "pro")
