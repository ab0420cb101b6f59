"""What a run comes to: the published figures to the digit, and what stands behind them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from exam_runs import FALLBACKS, backend, canned, choice, open_question, quick, record, reference
from paperhooks_evaluation import Metric, Parsed, Record, Summary, evaluate
from paperhooks_jmmmu import Jmmmu, JmmmuVerified, MmmuPaired
from paperhooks_jmmmu.algorithm import luck
from paperhooks_jmmmu.data import DOMAINS, JAPANESE, SUBJECTS, read_questions

RUNS = reference("aggregation")
PUBLISHED = reference("published_results")
#: Of the published table, and the parts that our metrics call so.
COLUMNS = {
    "overall": ("", "", "Overall"), "cs": ("subset", "CS", "CS"), "ca": ("subset", "CA", "CA"),
    "japanese_art": ("subject", "Japanese_Art", "Japanese Art"),
    "japanese_heritage": ("subject", "Japanese_Heritage", "Japanese Heritage"),
    "japanese_history": ("subject", "Japanese_History", "Japanese History"),
    "world_history": ("subject", "World_History", "World History"),
    "art_psychology": ("domain", "Art and Psychology", "Art & Psychology"),
    "business": ("domain", "Business", "Business"), "science": ("domain", "Science", "Science"),
    "medicine": ("domain", "Health and Medicine", "Health & Medicine"),
    "tech_eng": ("domain", "Tech and Engineering", "Tech & Engineering"),
}  # fmt: skip


def found_in(summary: Summary, name: str = "jmmmu_acc") -> dict[tuple[str, str], Metric]:
    """The metrics of a name by grouping and group."""
    return {(one.grouping, one.group): one for one in summary.metrics if one.name == name}


def records_of(samples: Sequence[Any], mode: str) -> list[Record]:
    """A run of the reference file, each reply being what was read from it."""
    task, found = Jmmmu(), []
    for name, kind, answer, parsed in samples:
        document = choice(name, [*"甲乙丙丁戊己庚辛壬"], answer) if kind == "m" else open_question(name, answer)
        found.append(record(task, document, parsed if kind == "m" else f"{parsed[0]:g}", mode))
    return found


# -- as published ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("reverse", [False, True])
def test_aggregation_is_the_published_one(name: str, reverse: bool) -> None:
    run = RUNS[name]
    records = records_of(run["samples"], "official-wrong")
    assert "".join(f"{one.score:.0f}" for one in records) == run["judge"]
    summary = Jmmmu().aggregate(records[::-1] if reverse else records, "official-wrong")
    found = found_in(summary)
    near = {"abs": 1e-12, "rel": 0}
    for subject, told in run["per_subject"].items():
        assert (found["subject", subject].value, found["subject", subject].n) == (told["acc"], told["n"])
    assert {group for grouping, group in found if grouping == "subject"} == set(run["per_subject"])
    groups = run["lmms_eval_groups"]
    for part, key in ((("subset", "CA"), "culture_agnostic"), (("subset", "CS"), "culture_specific")):
        if groups[key] is None:
            assert part not in found
        else:
            assert found[part].value == pytest.approx(groups[key], **near)
    assert summary.metrics[0] == found["", ""]
    assert found["", ""].value == pytest.approx(groups["jmmmu_all"], **near)
    assert round(found["", ""].value, 5) == run["jmmmu_aggregate_results"]
    for line, told in run["printable_results"].items():
        domain = line.removeprefix("Overall-")
        if line == "Overall":
            assert (round(found["", ""].value, 5), found["", ""].n) == (told["acc"], told["num"])
        elif line == domain:
            assert found["subject", line].value == told["acc"]
        elif told["num"]:
            assert (found["domain", domain].value, found["domain", domain].n) == (told["acc"], told["num"])
        else:
            assert ("domain", domain) not in found, "an empty group has no value"
    pro = [one for one in records if one.document.data["question_type"] != "open"]
    whole = JmmmuVerified().aggregate(pro, "official-wrong").metrics[0]
    assert (round(whole.value or 0, 5), whole.n) == (run["pro"]["overall"], run["pro"]["n"])


def with_counts(counts: dict[str, int]) -> list[Record]:
    """A run of 1,320 questions with so many right ones in each part."""
    found: list[Record] = []
    for column, (grouping, group, _) in COLUMNS.items():
        if grouping not in ("subject", "domain"):
            continue
        left = counts[column]
        for subject in [group] if grouping == "subject" else DOMAINS[group]:
            prefix = "test" if SUBJECTS[subject].subset == "CS" else "validation"
            for number in range(1, SUBJECTS[subject].n + 1):
                right, left = left > 0, left - 1
                document = choice(f"{prefix}_{subject}_{number}")
                found.append(Record(document, "A", Parsed("A" if right else "B", "space"), float(right)))
    return found


@pytest.mark.parametrize(
    "row", [one for one in PUBLISHED["rows"] if one["correct_counts"]], ids=lambda row: row["model"].replace(" ", "-")
)
def test_published_rows_are_consistent_and_come_out_again(row: dict[str, Any]) -> None:
    counts = {name: told if isinstance(told, int) else told[0] for name, told in row["correct_counts"].items()}
    summary = Jmmmu().aggregate(with_counts(counts), "official-wrong")
    found = found_in(summary)
    table = Jmmmu().leaderboard(summary)
    assert table is not None
    assert [*table] == [title for *_, title in COLUMNS.values()]
    for column, (grouping, group, title) in COLUMNS.items():
        one = found[grouping, group]
        assert one.n == PUBLISHED["n"][column]
        assert one.value is not None
        assert 100 * one.value == pytest.approx(row["percent"][column], abs=0.06), column
        assert table[title] == pytest.approx(100 * one.value, abs=0.0501)
        assert table[title] == round(table[title], 1)
    assert summary.extra["notes"] == [], "all 1,320 questions"


def test_the_row_of_a_part_lacks_columns() -> None:
    records = [record(Jmmmu(), choice("test_World_History_1"), "A", "official-wrong")]
    table = Jmmmu().leaderboard(Jmmmu().aggregate(records, "official-wrong"))
    assert table is not None
    assert {title: value for title, value in table.items() if value is not None} == {
        "Overall": 100.0, "CS": 100.0, "World History": 100.0, "Partial": "1 of 1320 questions",
    }  # fmt: skip


def test_other_questions_give_no_row_of_the_table() -> None:
    records = [record(Jmmmu(), choice("validation_Design_1"), "A", "official-wrong")]
    for task in (Jmmmu(rotation=1), Jmmmu(pictures="blank"), Jmmmu(pictures="shuffled")):
        assert task.leaderboard(task.aggregate(records, "official-wrong")) is None
    assert MmmuPaired().leaderboard(MmmuPaired().aggregate(records, "official-wrong")) == {
        "CA (EN)": 100.0, "Partial": "1 of 720 questions",
    }  # fmt: skip


# -- behind the score --------------------------------------------------------------------------------------------------


REPLIES = [  # reply, what the parity parser reads, whether it is right
    ("A", "A", 1), ("B", "B", 0), ("「A」", None, 0), ("", None, 0), ("分かりません。", None, 0),
    ("「A」と「B」", None, 0), ("Zです", None, 0), ("申し訳ありませんが、画像を認識できません。", None, 0),
]  # fmt: skip


@pytest.mark.parametrize("fallback", FALLBACKS)
def test_the_score_is_shown_with_other_letters_in_the_place_of_unread_ones(fallback: str) -> None:
    """Whatever the fallback: what is under ``wrong`` and ``expected`` stands beside it."""
    mode, task = f"official-{fallback}", Jmmmu()
    records = [
        record(task, choice(f"validation_Design_{n}", answer="A"), reply, mode)
        for n, (reply, *_) in enumerate(REPLIES, 1)
    ]
    records += [record(task, choice("validation_Music_1", ["甲", "乙"], "B"), "", mode)]
    records += [record(task, open_question("validation_Math_1", "3"), reply, mode) for reply in ("3",)]
    records += [record(task, open_question("validation_Math_2", "3"), "", mode)]
    assert [one.parsed.fallback for one in records[:8]] == [letter is None for _, letter, _ in REPLIES]
    settled = list(task.settle(records, mode))
    summary = task.aggregate(settled, mode)
    whole, extra = {one.name: one for one in summary.metrics if not one.grouping}, summary.extra
    assert whole["unread"].value == 8 / 11
    assert not whole["unread"].higher_is_better
    assert whole["acc_if_wrong"].value == pytest.approx((8 * 0.125 + 1 * 0 + 2 * 0.5) / 11, abs=1e-12)
    expected = (8 * round((1 + 6 * 0.25) / 8, 5) + 1 * 0.5 + 2 * 0.5) / 11
    assert whole["acc_if_expected"].value == pytest.approx(expected, abs=1e-12)
    assert whole["chance"].value == pytest.approx((8 * 0.25 + 0.5) / 11, abs=1e-12)
    if fallback in ("wrong", "expected"):
        assert whole["jmmmu_acc"].value == whole[f"acc_if_{fallback}"].value
        assert whole["jmmmu_acc"].interval == "wilson"
    design = found_in(summary, "acc_if_wrong")["subject", "Design"]
    assert (design.value, design.n) == (0.125, 8)
    assert found_in(summary, "unread")["subset", "CA"].value == 8 / 11
    assert extra["rules"] == {"space": 2, fallback: 7, "official": 2}
    assert extra["flags"] == {
        "empty": 3, "refusal": 2, "several": 1, "outside": 1, "looping": 0, "too_long": 0, "no letter": 4,
        "robust reads it": 1,
    }  # fmt: skip
    assert extra["letters"] == {
        "given": {"A": 1, "B": 1, "C": 0, "D": 0}, "right": {"A": 8, "B": 1, "C": 0, "D": 0},
    }, "letters that stand in for others were not given"  # fmt: skip
    assert extra["baselines"]["most_frequent"] == {"letter": "A", "accuracy": 8 / 11}
    assert extra["baselines"]["always_A"] == 8 / 11
    assert extra["notes"][0] == "Partial: 11 of 1320 questions."
    points = 100 * luck([4] * 6 + [2], 11)
    assert extra["notes"][1].startswith(
        f"7 letters could not be read; drawing random ones for them moves the score by {points:.2f} points"
    )


def test_flags_of_long_and_looping_replies() -> None:
    replies = ("図を見ると形が特徴的です。" * 8, "x" * 3 + "y " * 11_000 + "end", "A")
    records = [
        record(Jmmmu(), choice(f"validation_Design_{n}"), one, "official-wrong") for n, one in enumerate(replies)
    ]
    flags = Jmmmu().aggregate(records, "official-wrong").extra["flags"]
    assert (flags["looping"], flags["too_long"]) == (1, 1)


def test_intervals_are_those_of_wilson() -> None:
    records = [record(Jmmmu(), choice(f"test_Japanese_Art_{n}"), "AB"[n % 3 > 0], "official-wrong") for n in range(30)]
    one = found_in(Jmmmu().aggregate(records, "official-wrong"))["subject", "Japanese_Art"]
    assert (one.value, one.interval) == (0.33333, "wilson")
    assert (one.low, one.high) == (pytest.approx(0.19231, abs=1e-5), pytest.approx(0.51220, abs=1e-5))


def test_a_run_is_whole_by_what_its_edition_asks() -> None:
    english = [
        record(MmmuPaired(), choice(f"validation_{name}_{n}"), "A", "official-wrong")
        for name, one in SUBJECTS.items() if one.subset == "CA" for n in range(30)
    ]  # fmt: skip
    assert MmmuPaired().aggregate(english, "official-wrong").extra["notes"] == []
    assert MmmuPaired().aggregate(english[1:], "official-wrong").extra["notes"] == ["Partial: 719 of 720 questions."]
    assert Jmmmu().aggregate(english, "official-wrong").extra["notes"] == ["Partial: 720 of 1320 questions."]


# -- the files of a run ------------------------------------------------------------------------------------------------


def test_the_report_has_every_subject_with_its_interval(japanese: Path, tmp_path: Path) -> None:
    documents = read_questions(str(japanese), JAPANESE).documents
    result = evaluate(backend(canned(documents)), None, Jmmmu(), data=japanese, out=tmp_path, modes=["official-wrong"])
    (table, *_) = result.summary.tables
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert [*rows] == ["all", "CA", "CS", *sorted(DOMAINS), *sorted(SUBJECTS)]
    right = Counter(one.document.groups["subject"] for one in result.records if one.score)
    for name in SUBJECTS:
        row = rows[name]
        assert (row["n"], row["correct"], row["accuracy"]) == (2, right[name], right[name] / 2)
        assert row["low"] - 1e-9 <= row["accuracy"] <= row["high"] + 1e-9
        assert {"random", "unread", "cut"} <= row.keys()
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert all(name in text for name in SUBJECTS)
    assert "Partial: 56 of 1320 questions." in text
    assert {file.stem for file in tmp_path.glob("*.svg")} >= {"subjects", "letters"}
    for file in tmp_path.glob("*.svg"):
        from xml.etree import ElementTree

        assert ElementTree.parse(file).getroot().tag.endswith("svg")
    groupings = {one.grouping for one in result.summary.metrics}
    assert groupings == {"", "subject", "domain", "subset", "question_type", "pictures", "difficulty", "translated"}
    assert all(one.group for one in result.summary.metrics if one.grouping)


def test_the_leaderboard_is_written_of_whole_runs_alone(japanese: Path, tmp_path: Path) -> None:
    documents = read_questions(str(japanese), JAPANESE).documents
    quick(backend(canned(documents)), None, Jmmmu(), data=japanese, out=tmp_path, limit=5)
    assert not [*tmp_path.glob("leaderboard.*")]
    result = quick(backend(canned(documents)), None, Jmmmu(), data=japanese, out=tmp_path)
    table = json.loads((tmp_path / "leaderboard.json").read_text())
    assert table == Jmmmu().leaderboard(result.summary)
    assert table["CS"] == round(100 * (result.metric(grouping="subset", group="CS").value or 0), 1)
    assert (tmp_path / "leaderboard.csv").read_text().startswith("Overall,CS,CA,Japanese Art,")
