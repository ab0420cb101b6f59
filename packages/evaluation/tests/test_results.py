"""What runs leave behind, scoring it again, comparing two runs, and the intervals."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import pytest
from evaluation_tasks import Echo, untimed
from paperhooks.errors import DataError, PluginNotFound
from paperhooks.generation import CallableBackend, Request
from paperhooks.reports import Table, bar_figure, bootstrap_interval, mcnemar, mean_interval, wilson_interval
from paperhooks_evaluation import Document, FigureSpec, Metric, Parsed, Record, Summary, compare, evaluate, rescore

quick = partial(evaluate, report=False)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve questions in three groups, asked for by their own id; two on an image."""
    rows = [{"id": f"q{i:02d}", "prompt": f"q{i:02d}", "answer": "w", "group": "abc"[i % 3]} for i in range(12)]
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(rows))
    return file


def right_on(*right: int, words: str = "w1 w2 w3") -> CallableBackend:
    """Answers these questions right and with many words, the others wrong and with few."""
    wanted = {f"q{i:02d}" for i in right}
    return CallableBackend(lambda request: words if request.prompt in wanted else "no")


@dataclass(frozen=True)
class Paired(Echo):
    """Reports more than a mean: a count, a table and a figure; two questions share an image."""

    def unit(self, document: Document) -> str:
        return str(int(document.id[1:]) // 2)

    def aggregate(self, records: Sequence[Record], mode: str) -> Summary:
        plain = super().aggregate(records, mode)
        right = sum(record.score for record in records)
        metrics = [*plain.metrics, Metric("right", right, len(records), scale=12.0, higher_is_better=False)]
        table = Table(("question", "response"), [(one.document.id, one.response) for one in records], "All responses")
        figure = FigureSpec("extra", "How many", "A bar.", lambda: bar_figure(["right"], [right]))
        return Summary(metrics, [table], [figure], {"mode": mode})


def test_results_have_the_shape_of_the_harnesses_and_our_block(data: Path, tmp_path: Path) -> None:
    evaluate(right_on(0, 1, 2, 3), None, Paired(), data=data, out=tmp_path / "run", limit=9)
    found = json.loads((tmp_path / "run" / "results.json").read_text())
    whole = found["results"]["echo"]
    assert (whole["alias"], whole["samples"]) == ("echo", 9)
    assert whole["accuracy,official"] == pytest.approx(4 / 9)
    assert whole["accuracy_stderr,official"] == pytest.approx(math.sqrt(4 / 9 * 5 / 9 / 8))
    assert (whole["right,official"], whole["right_stderr,official"]) == (4.0, "N/A")
    assert found["results"]["echo_a"]["accuracy,strict"] == pytest.approx(2 / 3)
    assert found["group_subtasks"] == {"echo": ["echo_a", "echo_b", "echo_c"]}
    assert found["groups"]["echo"] == whole
    assert found["n-samples"] == {"echo": {"original": 12, "effective": 9}}
    assert (found["versions"], found["n-shot"]) == ({"echo": "1"}, {"echo": 0})
    assert found["higher_is_better"]["echo"] == {"accuracy": True, "right": False}
    assert found["configs"]["echo"]["generation_kwargs"]["do_sample"] is False
    assert found["config"]["model"] == "callable"
    strict = found["paperhooks"]["modes"]["strict"]
    assert strict["counts"] == {"scored": 9, "unparsable": 5, "truncated": 0, "empty": 0, "failed": 0}
    assert strict["extra"] == {"mode": "strict"}
    low, high = wilson_interval(4, 9)
    expected = {"name": "accuracy", "n": 9, "low": low, "high": high, "group": "", "interval": "wilson"}
    assert expected.items() <= strict["metrics"][0].items()


def test_scores_and_the_report_show_everything(data: Path, tmp_path: Path) -> None:
    evaluate(right_on(0, words="w"), None, Paired(), data=data, out=tmp_path / "run")
    with (tmp_path / "run" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["mode"], row["id"], row["unit"], row["score"], row["value"]) for row in rows[:3]] == [
        ("official", "q00", "0", "1.0", '"w"'),
        ("official", "q01", "0", "0.0", '"no"'),
        ("official", "q02", "1", "0.0", '"no"'),
    ]
    assert (rows[12]["mode"], rows[12]["fallback"], rows[12]["value"]) == ("strict", "1", "null")
    report = (tmp_path / "run" / "report.md").read_text()
    for text in (
        "Scores in mode strict",
        "All responses",
        "![How many](extra.svg)",
        "![accuracy of all",
        "| strict | 12 |",
    ):
        assert text in report
    assert "Documents whose score depends on the mode: 1" in report
    for name in ("groups", "extra"):
        assert ElementTree.parse(tmp_path / "run" / f"{name}.svg").getroot().tag.endswith("svg")
        assert (tmp_path / "run" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_the_report_says_so(data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    evaluate(right_on(0), None, Paired(), data=data, out=tmp_path / "run")
    assert "paperhooks[plots]" in (tmp_path / "run" / "report.md").read_text()
    evaluate(right_on(0), None, Paired(), data=data, out=tmp_path / "bare", report=False)
    assert not (tmp_path / "bare" / "report.html").exists()
    assert (tmp_path / "bare" / "results.json").exists()


def test_what_is_no_number_spoils_no_file(data: Path, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Undefined(Echo):
        def score(self, document: Document, parsed: Parsed) -> float:
            return math.nan if document.id == "q01" else 1.0

        def aggregate(self, records: Sequence[Record], mode: str) -> Summary:
            return Summary([Metric("ratio", math.nan, 0), Metric("none", None, 0)], extra={"bound": math.inf})

    result = quick(right_on(), None, Undefined(), data=data, out=tmp_path / "run")
    assert dict(result.first.failures) == {"q01": "score: ValueError: Undefined.score returned nan"}
    mode = json.loads((tmp_path / "run" / "results.json").read_text())["paperhooks"]["modes"]["official"]
    assert (mode["metrics"][0]["value"], mode["extra"]) == (None, {"bound": None})


# -- scoring again -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Repaired(Echo):
    """Finds the answer anywhere in a response, in any case; must be told nothing but the stored responses."""

    version: ClassVar[str] = "2"
    modes: ClassVar[tuple[str, ...]] = ("official", "last")

    def documents(self, source: str) -> Sequence[Document]:
        raise AssertionError("the data are not read again")

    def request(self, document: Document) -> Request:
        raise AssertionError("nothing is asked")

    def parse(self, document: Document, response: str, mode: str) -> Parsed:
        return Parsed(response.split()[-1] if mode == "last" else response)

    def score(self, document: Document, parsed: Parsed) -> float:
        return float(document.data["answer"] in parsed.value)


def test_stored_responses_are_scored_again_without_model_and_data(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = quick(right_on(0, 1, words="yes w"), None, Echo(), data=data, out=run)
    assert first.headline.value == 0.0
    samples, inputs = (run / "samples.jsonl").read_bytes(), json.loads((run / "result.json").read_text())["inputs"]
    data.unlink()
    result = rescore(run, Repaired(), modes=["last"], report=False)
    assert (list(result.modes), result.headline.value) == (["last"], 2 / 12)
    assert (run / "samples.jsonl").read_bytes() == samples
    assert json.loads((run / "result.json").read_text())["inputs"] == inputs
    saved = json.loads((run / "results.json").read_text())
    assert (saved["versions"], list(saved["paperhooks"]["modes"])) == ({"echo": "2"}, ["last"])
    assert list(rescore(run, Repaired(), report=False).modes) == ["official", "last"]


def test_scoring_again_with_the_same_task_changes_nothing(data: Path, tmp_path: Path) -> None:
    quick(right_on(0, 5), None, Paired(), data=data, out=tmp_path / "run")
    before = untimed(tmp_path / "run")
    rescore(tmp_path / "run", Paired(), report=False)
    assert untimed(tmp_path / "run") == before


def test_what_cannot_be_scored_again_says_why(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run"):
        rescore(tmp_path / "nothing", Echo())
    quick(right_on(0), None, Echo(), data=data, out=tmp_path / "run")
    with pytest.raises(PluginNotFound, match="give the task itself"):
        rescore(tmp_path / "run")

    class Other(Echo):
        name: ClassVar[str] = "other"

    with pytest.raises(DataError, match="a run of the task 'echo', not 'other'"):
        rescore(tmp_path / "run", Other())


@dataclass(frozen=True)
class Settles(Echo):
    """Every second unreadable response counts as right: an answer that depends on the ones before it."""

    wrong_order: bool = False

    def settle(self, records: Sequence[Record], mode: str) -> Sequence[Record]:
        settled, seen = [], 0
        for record in records:
            seen += record.parsed.fallback
            lucky = record.parsed.fallback and seen % 2 == 0
            settled.append(replace(record, score=1.0) if lucky else record)
        return settled[::-1] if self.wrong_order else settled


def test_records_may_be_settled_together(data: Path, tmp_path: Path) -> None:
    result = quick(right_on(), None, Settles(), data=data, out=tmp_path / "run", batch_size=5)
    assert (result.headline.value, result.metric(mode="strict").value) == (0.0, 0.5)
    with pytest.raises(DataError, match="settle must return its records in their order"):
        quick(right_on(), None, Settles(wrong_order=True), data=data, out=tmp_path / "other")


# -- comparing ---------------------------------------------------------------------------------------------------------


def test_two_runs_are_paired_by_document(data: Path, tmp_path: Path) -> None:
    quick(right_on(0, 1, 2, 3), None, Paired(), data=data, out=tmp_path / "a")
    rows = json.loads(data.read_text())
    data.write_text(json.dumps(rows[::-1]))
    quick(right_on(0, 4, 5, 6, 7, 8, 9), None, Paired(), data=data, out=tmp_path / "b")
    result = compare(tmp_path / "a", tmp_path / "b", out=tmp_path / "report", resamples=500)
    one = result.overall
    assert (one.n, one.better, one.worse) == (12, 6, 3)
    assert (one.a, one.b, one.delta) == pytest.approx((4 / 12, 7 / 12, 3 / 12))
    # By hand: 2 * (C(9,0) + C(9,1) + C(9,2) + C(9,3)) / 2**9 = 2 * 130 / 512.
    assert one.p == pytest.approx(260 / 512)
    by_group = {line.group: (line.better, line.worse) for line in result.groups}
    assert by_group == {"a": (2, 1), "b": (2, 1), "c": (2, 1)}
    assert ("right", "", 4.0, 7.0) in result.metrics
    saved = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert saved["overall"]["better"] == 6
    assert "exact McNemar" in (tmp_path / "report" / "report.md").read_text()
    assert compare(tmp_path / "a", tmp_path / "b", out=tmp_path / "report", resamples=500) == result
    assert "difference +0.25" in str(result)


def test_the_interval_of_a_difference_resamples_images_not_questions(data: Path, tmp_path: Path) -> None:
    quick(right_on(0, 1, 2, 3), None, Paired(), data=data, out=tmp_path / "a")
    quick(right_on(*range(12)), None, Paired(), data=data, out=tmp_path / "b")
    one = compare(tmp_path / "a", tmp_path / "b", seed=3, resamples=400).overall
    images = np.array([0, 0, 2, 2, 2, 2])  # gains an image
    draws = np.random.default_rng(3)
    means = [images[draws.integers(6, size=6)].sum() / 12 for _ in range(400)]
    assert (one.low, one.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])))


def test_runs_that_do_not_belong_together_are_refused(data: Path, tmp_path: Path) -> None:
    quick(right_on(0), None, Echo(), data=data, out=tmp_path / "a", limit=4)
    quick(right_on(0), None, Echo(), data=data, out=tmp_path / "c", limit=2, modes=["strict"])

    @dataclass(frozen=True)
    class Newer(Echo):
        version: ClassVar[str] = "2"

    quick(right_on(0), None, Newer(), data=data, out=tmp_path / "newer")
    with pytest.raises(DataError, match=r"version: 1 in a, 2 in b"):
        compare(tmp_path / "a", tmp_path / "newer")
    with pytest.raises(DataError, match="holds no run; expected one of 'evaluate'"):
        compare(tmp_path / "a", tmp_path / "none")
    with pytest.raises(DataError, match="not both scored in the mode 'official'"):
        compare(tmp_path / "a", tmp_path / "c", mode="official")
    with pytest.raises(DataError, match="no metric 'f1'"):
        compare(tmp_path / "a", tmp_path / "c", "f1")
    part = compare(tmp_path / "a", tmp_path / "c")
    assert (part.mode, part.overall.n, part.only_a, part.only_b, part.changed) == ("strict", 2, 2, 0, 0)
    rows = json.loads(data.read_text())
    rows[0]["extra"] = "in another language"
    data.write_text(json.dumps(rows))
    quick(right_on(0), None, Echo(), data=data, out=tmp_path / "d", limit=4)
    with pytest.raises(DataError, match="documents: 1 of the common ids in a, say something else in b"):
        compare(tmp_path / "a", tmp_path / "d")
    assert compare(tmp_path / "a", tmp_path / "d", allow=["documents"]).changed == 1


LIKE = {"layout": "interleave", "max_new_tokens": 9, "stop": ["."], "max_pixels": 100}


@pytest.mark.parametrize("name", LIKE)
def test_runs_that_were_asked_otherwise_are_refused_unless_that_is_meant(data: Path, tmp_path: Path, name: str) -> None:
    quick(right_on(0), None, Echo(), data=data, out=tmp_path / "a")
    quick(right_on(0), None, Echo(), data=data, out=tmp_path / "b", **{name: LIKE[name]})
    with pytest.raises(DataError, match=rf"\n  {name}: .* in a, .* in b\nmake both runs alike.*: {name}$"):
        compare(tmp_path / "a", tmp_path / "b")
    found = compare(tmp_path / "a", tmp_path / "b", allow=[name], resamples=50)
    assert [(one.name, one.comparable) for one in found.differences] == [(name, False)]


def test_runs_of_other_documents_and_seeds_are_told(data: Path, tmp_path: Path) -> None:
    quick(right_on(0), None, Echo(), data=data, out=tmp_path / "a")
    quick(right_on(0), None, Echo(), data=data, out=tmp_path / "b", limit=2, seed=3)
    drawn = FigureSpec("n", "a figure", "", lambda: bar_figure(["x"], [1.0]))
    found = compare(tmp_path / "a", tmp_path / "b", resamples=50, out=tmp_path / "c", labels=("all", "few"),
                    figures=lambda one: [drawn])  # fmt: skip
    told = {one.name: (one.a, one.b, one.comparable) for one in found.differences}
    more = found.only_a
    assert told == {
        "asked": (f"{more + 2} documents, {more} of them alone", "2 documents", True), "run_seed": ("0", "3", True),
    }  # fmt: skip
    assert f"left out {more} that one run alone has" in str(found)
    page = (tmp_path / "c" / "report.md").read_text()
    assert "few - all" in page
    assert "a figure" in page
    assert (tmp_path / "c" / "n.svg").is_file()


def test_runs_of_other_groups_are_told_apart(data: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        quick(right_on(0), None, Echo(), data=data, out=tmp_path / name, groups=[f"kind={name}"])
    with pytest.raises(DataError, match="no scored document in common: kind is a in the one and b in the other"):
        compare(tmp_path / "a", tmp_path / "b")


@dataclass(frozen=True)
class Limited(Echo):
    """With an option of the name that the caller's limit has."""

    max_new_tokens: int = 8


@pytest.mark.parametrize(("option", "limit", "said"), [(8, 9, "nothing in a, 9 in b"), (9, None, "8 in a, 9 in b")])
def test_an_option_does_not_hide_what_the_caller_asked_for(
    data: Path, tmp_path: Path, option: int, limit: int | None, said: str
) -> None:
    quick(right_on(0), None, Limited(), data=data, out=tmp_path / "a")
    quick(right_on(0), None, Limited(max_new_tokens=option), data=data, out=tmp_path / "b", max_new_tokens=limit)
    with pytest.raises(DataError, match=f"max_new_tokens: {said}"):
        compare(tmp_path / "a", tmp_path / "b")


def test_what_answers_may_differ_and_is_told(data: Path, tmp_path: Path) -> None:
    quick(CallableBackend(lambda request: "w", name="one"), None, Echo(), data=data, out=tmp_path / "a")
    quick(CallableBackend(lambda request: "v", name="two"), None, Echo(), data=data, out=tmp_path / "b")
    found = compare(tmp_path / "a", tmp_path / "b", out=tmp_path / "report", resamples=50)
    assert list(map(str, found.differences)) == ["name: one in a, two in b"]
    assert "| name | one | two |" in (tmp_path / "report" / "report.md").read_text()
    with pytest.raises(DataError, match="allow names 'nam', which is no input of the runs; did you mean 'name'"):
        compare(tmp_path / "a", tmp_path / "b", allow=["nam"])
    assert compare(tmp_path / "a", tmp_path / "b", allow="layout", resamples=50) == found  # in which they do not differ


@pytest.mark.parametrize(
    ("only_a", "only_b", "p"),
    [(0, 0, 1.0), (1, 1, 1.0), (0, 5, 2 / 32), (5, 0, 2 / 32), (1, 8, 2 * 10 / 512), (3, 3, 1.0), (2, 10, 158 / 4096)],
)
def test_mcnemar_by_hand(only_a: int, only_b: int, p: float) -> None:
    assert mcnemar(only_a, only_b) == pytest.approx(p)


def test_mcnemar_of_large_counts_neither_overflows_nor_vanishes() -> None:
    # The normal approximation with continuity correction, good to a few percent here.
    z = (abs(900 - 1100) - 1) / math.sqrt(2000)
    assert mcnemar(900, 1100) == pytest.approx(math.erfc(z / math.sqrt(2)), rel=0.05)


# -- intervals ---------------------------------------------------------------------------------------------------------


def test_wilson_agrees_with_published_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, n), bounds in published.items():
        assert wilson_interval(successes, n) == pytest.approx(bounds, abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1.0
    for bad in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no proportion"):
            wilson_interval(*bad)


def test_means_of_other_scores_get_a_normal_interval() -> None:
    low, high = mean_interval([0.2, 0.4, 0.6])
    assert (low + high) / 2 == pytest.approx(0.4)
    assert high - low == pytest.approx(2 * 1.959964 * 0.2 / 3**0.5)
    assert mean_interval([0.3]) == (0.3, 0.3)
    assert mean_interval([1.0, 0.0]) == wilson_interval(1, 2)


def mean(values: Any) -> float:
    return float(sum(values) / len(values))


def test_the_bootstrap_agrees_with_theory_and_repeats_itself() -> None:
    values = np.random.default_rng(5).normal(size=400)
    low, high = bootstrap_interval(mean, values, seed=1)
    half = 1.959964 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert bootstrap_interval(mean, values, seed=1) == (low, high)
    assert bootstrap_interval(mean, values.tolist(), seed=1) == pytest.approx((low, high))
    assert bootstrap_interval(mean, values, seed=2) != (low, high)
    state = np.random.get_state()[1].copy()
    bootstrap_interval(mean, values, resamples=3)
    assert (np.random.get_state()[1] == state).all()


def test_clusters_widen_the_bootstrap() -> None:
    single = [float(i % 2) for i in range(40)]
    grouped = [[value] * 10 for value in (0.0, 1.0, 0.0, 1.0)]
    narrow = bootstrap_interval(mean, single)
    wide = bootstrap_interval(lambda units: mean([v for unit in units for v in unit]), grouped)
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_undefined_resamples_are_left_out() -> None:
    assert bootstrap_interval(lambda units: units[0] if units[0] else math.nan, [0.0, 1.0]) == (1.0, 1.0)
    assert all(math.isnan(bound) for bound in bootstrap_interval(lambda units: math.nan, [1.0]))
    for units, resamples in (([], 5), ([1.0], 0)):
        with pytest.raises(ValueError, match="make no interval"):
            bootstrap_interval(mean, units, resamples=resamples)
