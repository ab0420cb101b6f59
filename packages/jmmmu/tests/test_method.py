"""The tasks: what a mode makes of a reply, what stands in for an unread letter, what options change."""

from __future__ import annotations

import json
import pickle
import random
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from exam_runs import FALLBACKS, backend, canned, choice, open_question, quick, record, reference, untimed
from paperhooks.errors import DataError
from paperhooks.generation import Request, arrange
from paperhooks.plugins import import_target
from paperhooks.testing import run_python
from paperhooks_evaluation import Document, Task, evaluate, rescore
from paperhooks_jmmmu import Jmmmu, JmmmuPro, JmmmuVerified, MmmuPaired
from paperhooks_jmmmu.answers import letters_of
from paperhooks_jmmmu.data import JAPANESE, parse_options, read_questions
from paperhooks_jmmmu.plugin import TASKS
from PIL import Image
from prompt_data import CASES as PROMPTS
from prompt_data import row_of, write_rows

CHOICES = reference("mc_cases")
EVERY_MODE = [f"{parser}-{fallback}" for parser in ("official", "robust") for fallback in FALLBACKS]


def test_the_list_of_tasks_leads_to_the_classes() -> None:
    assert [import_target(one.task) for one in TASKS] == [Jmmmu, JmmmuVerified, JmmmuPro, MmmuPaired]
    for one in TASKS:
        task = import_target(one.task)()
        assert (task.name, one.needs) == (one.name, ("text", "image"))
        assert pickle.loads(pickle.dumps(task)) == task
        assert sorted(task.modes) == sorted(EVERY_MODE), "all modes, whichever is first"


# -- one reply ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", reference("process_results"), ids=lambda case: f"{case['doc']}-{case['response']}")
def test_replies_end_as_in_the_published_code(case: dict[str, Any]) -> None:
    """Which took the first letter in the place of one that it could not read."""
    row = next(one for one in PROMPTS["docs"] if one["id"] == case["doc"])
    if row["question_type"] == "open":
        document = open_question(row["id"], row["answer"])
    else:
        document = choice(row["id"], parse_options(row["options"]), row["answer"])
    task = Jmmmu()
    parsed = task.parse(document, case["response"], "official-wrong")
    if document.data["question_type"] == "open":
        coded = [["s", one] if isinstance(one, str) else ["f", repr(one)] for one in parsed.value]
        assert sorted(coded) == sorted(case["parsed"])
    else:
        assert parsed.fallback == case["fallback"]
        assert parsed.value == (None if parsed.fallback else case["parsed"])
        assert task.score(document, parsed) <= case["correct"]
        parsed = replace(parsed, value=case["parsed"])
    assert task.score(document, parsed) == case["correct"]


@pytest.mark.parametrize(
    ("mode", "value", "rule", "score"),
    [
        ("official-per-question", "C", "per-question", 0.0),
        ("official-lmms-eval", None, "lmms-eval", 0.0),
        ("official-expected", None, "expected", 0.25),
        ("official-wrong", None, "wrong", 0.0),
        ("robust-per-question", "C", "per-question", 0.0),
    ],
)
def test_what_stands_in_for_a_letter(mode: str, value: str | None, rule: str, score: float) -> None:
    task = Jmmmu()
    found = record(task, choice(answer="A"), "分かりません。", mode)
    assert (found.parsed.value, found.parsed.rule, found.parsed.fallback, found.score) == (value, rule, True, score)
    assert record(task, choice(answer="C"), "", "robust-per-question").score == 1.0
    assert (
        record(task, choice("validation_Design_1", [*"甲乙丙丁戊己庚辛壬"], "I"), "", "robust-expected").score == 1 / 9
    )


def test_a_letter_that_is_read_counts_alike_whatever_the_fallback() -> None:
    for mode in EVERY_MODE:
        found = record(Jmmmu(), choice(answer="B"), "B", mode)
        assert (found.parsed.value, found.parsed.fallback, found.score) == ("B", False, 1.0)


def test_the_two_parsers_differ_where_they_should() -> None:
    document = choice(answer="B")
    assert record(Jmmmu(), document, "答えは「B」です", "official-wrong").parsed.fallback
    assert record(Jmmmu(), document, "答えは「B」です", "robust-wrong").score == 1.0
    english = "The answer is B because I say so"  # a letter with a space behind it, also in "I"
    assert MmmuPaired().parse(document, english, "official-wrong").value == "B"


@pytest.mark.parametrize("mode", EVERY_MODE)
@pytest.mark.parametrize("reply", ["", " \n", "分かりません。", "B", "x" * 30_000])
def test_an_open_question_never_falls_back_to_a_letter(mode: str, reply: str) -> None:
    document = open_question(answer="3")
    before = record(Jmmmu(), document, reply, mode)
    (after,) = Jmmmu().settle([before], mode)
    assert after == before
    assert before.score == 0.0
    assert before.parsed.rule == mode.partition("-")[0]
    assert isinstance(before.parsed.value, list)
    if not reply.strip():
        assert before.parsed.fallback, "an empty reply was not read"
    assert record(Jmmmu(), document, "答えは3", mode).score == 1.0


@pytest.mark.parametrize("parser", ["official", "robust"])
def test_any_of_several_answers_is_right(parser: str) -> None:
    mode = f"{parser}-per-question"
    document = choice(answer=["B", "D"])
    assert [record(Jmmmu(), document, letter, mode).score for letter in "ABCD"] == [0, 1, 0, 1]
    assert record(Jmmmu(), replace(document, data={**document.data, "answer": ["A", "C"]}), "", mode).score == 1.0
    several = open_question("validation_Math_15", ["24/7", "3.429"])
    assert [record(Jmmmu(), several, reply, mode).score for reply in ("3.43", "24/7", "4")] == [1, 1, 0]


def test_nine_options() -> None:
    document = choice(options=[*"甲乙丙丁戊己庚辛壬"], answer="I")
    for mode in ("official-wrong", "robust-wrong"):
        assert [record(Jmmmu(), document, letter, mode).parsed.value for letter in "AIJ"] == ["A", "I", None]
    drawn = {Jmmmu(seed=n).parse(document, "", "official-per-question").value for n in range(200)}
    assert sorted(drawn) == [*"ABCDEFGHI"]


def test_a_reply_counts_up_to_its_limit() -> None:
    for reply, value in (("。" * 19_998 + "B ", "B"), ("。" * 20_000 + "B ", None)):
        assert Jmmmu().parse(choice(), reply, "official-wrong").value == value


def test_jmmmu_pro_has_its_own_parser_and_no_luck() -> None:
    for kind in (JmmmuVerified, JmmmuPro):
        task = kind()
        assert task.modes[0] == "official-wrong"
        assert task.parse(choice(), "Ｃ", task.modes[0]).value == "C", "full width, which JMMMU's parser does not read"
        assert Jmmmu().parse(choice(), "Ｃ", "official-wrong").value is None
        assert (task.max_new_tokens, kind(answer="cot").max_new_tokens) == (256, 4096)


# -- fallbacks ---------------------------------------------------------------------------------------------------------


def cases() -> list[tuple[Document, str, str | None]]:
    """Question, reply and official letter of every case of the reference file, in order."""
    found = []
    for number, case in enumerate(CHOICES["cases"], 1):
        doc = CHOICES["docs"][case["doc"]]
        document = choice(f"validation_Design_{number}", doc["options"], doc["gold"])
        found.append((document, case["response"], case["jmmmu"]))
    return found


@pytest.mark.parametrize("seed", [0, 42, 1234])
def test_the_fallback_of_lmms_eval_is_one_generator_over_all(seed: int) -> None:
    """In the order of the questions, one draw an unread reply; the letters are read by rule as before."""
    task = Jmmmu(seed=seed)
    records = [record(task, document, reply, "official-lmms-eval") for document, reply, _ in cases()]
    generator = random.Random(seed)
    expected = [letter or generator.choice([*letters_of(one.data["options"])]) for one, _, letter in cases()]
    settled = task.settle(records, "official-lmms-eval")
    assert [one.parsed.value for one in settled] == expected
    assert [one.score for one in settled] == [
        float(one.data["answer"] == letter) for (one, _, _), letter in zip(cases(), expected, strict=True)
    ]
    assert sum(one.parsed.fallback for one in settled) == sum(letter is None for *_, letter in cases()) > 100
    # A part of a run draws from the beginning: its letters are not those of the whole.
    part = task.settle(records[300:], "official-lmms-eval")
    generator = random.Random(seed)
    assert [one.parsed.value for one in part] == [
        letter or generator.choice([*letters_of(one.data["options"])]) for one, _, letter in cases()[300:]
    ]


def test_an_open_question_draws_nothing() -> None:
    task = Jmmmu()
    records = [record(task, one, "", "official-lmms-eval") for one in (choice(), open_question(), choice())]
    generator = random.Random(0)
    expected = [generator.choice("ABCD"), [""], generator.choice("ABCD")]
    assert [one.parsed.value for one in task.settle(records, "official-lmms-eval")] == expected


@pytest.mark.parametrize("mode", [one for one in EVERY_MODE if not one.endswith("lmms-eval")])
def test_other_fallbacks_settle_nothing(mode: str) -> None:
    records = [record(Jmmmu(), document, reply, mode) for document, reply, _ in cases()[:50]]
    assert Jmmmu().settle(records, mode) is records


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replies(japanese: Path) -> dict[str, str]:
    return canned(read_questions(str(japanese), JAPANESE).documents)


@pytest.fixture(scope="module")
def run(japanese: Path, replies: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp("run") / "run"
    quick(backend(replies), None, Jmmmu(), data=japanese, out=out)
    return out


@pytest.mark.parametrize("batch_size", [2, 5])
def test_the_batch_size_makes_no_difference(
    japanese: Path, replies: dict[str, str], run: Path, tmp_path: Path, batch_size: int
) -> None:
    quick(backend(replies), None, Jmmmu(), data=japanese, out=tmp_path, batch_size=batch_size)
    assert untimed(tmp_path) == untimed(run)
    assert (tmp_path / "scores.csv").read_bytes() == (run / "scores.csv").read_bytes()


def test_shards_make_no_difference(japanese: Path, replies: dict[str, str], run: Path, tmp_path: Path) -> None:
    asked: list[list[str]] = [[], []]
    for number in (1, 0):
        quick(backend(replies, asked[number]), None, Jmmmu(), data=japanese, out=tmp_path, shard=(number, 2))
    assert all(asked)
    assert sorted(asked[0] + asked[1]) == sorted(replies)
    assert untimed(tmp_path) == untimed(run)


class Shuffled(Jmmmu):
    """The questions in another order."""

    def documents(self, source: str) -> Sequence[Document]:
        found = list(super().documents(source))
        random.Random(3).shuffle(found)
        return found


def test_the_order_makes_no_difference(japanese: Path, replies: dict[str, str], run: Path, tmp_path: Path) -> None:
    """But for the letters of one generator, which are drawn in order."""
    result = quick(backend(replies), None, Shuffled(), data=japanese, out=tmp_path)
    expected = untimed(run)["paperhooks"]["modes"]
    for mode, found in untimed(tmp_path)["paperhooks"]["modes"].items():
        by_part = {(one["name"], one["grouping"], one["group"]): one for one in found["metrics"]}
        before = {(one["name"], one["grouping"], one["group"]): one for one in expected[mode]["metrics"]}
        assert by_part.keys() == before.keys()
        if "lmms-eval" not in mode:
            assert by_part == before, mode
            assert found["extra"] == expected[mode]["extra"]
    letters = {one.document.id: one.parsed.value for one in result.records}
    again = rescore(run, Jmmmu(), report=False)
    assert [letters[one.document.id] for one in again.records] == [one.parsed.value for one in again.records]
    assert [one.document.id for one in result.records] != [one.document.id for one in again.records]


PROGRAM = """
import json, sys
from pathlib import Path
from exam_runs import backend, quick
from paperhooks_jmmmu import Jmmmu
data, out, replies = sys.argv[1:]
quick(backend(json.loads(Path(replies).read_text())), None, Jmmmu(), data=data, out=out, batch_size=3)
"""


def test_the_hash_seed_makes_no_difference(japanese: Path, replies: dict[str, str], run: Path, tmp_path: Path) -> None:
    (tmp_path / "replies.json").write_text(json.dumps(replies))
    words = (japanese, tmp_path / "run", tmp_path / "replies.json")
    # This process has another one, drawn at its start.
    run_python("-c", PROGRAM, *words, environment={"PYTHONHASHSEED": "77"}, cwd=Path(__file__).parent)
    text = (tmp_path / "run" / "results.json").read_text()
    lines = [line for line in text.splitlines() if '"date"' not in line and '"total_evaluation_time' not in line]
    before = (run / "results.json").read_text().splitlines()
    assert lines == [line for line in before if '"date"' not in line and '"total_evaluation_time' not in line]


# -- options -----------------------------------------------------------------------------------------------------------


def test_the_options_name_the_first_mode() -> None:
    assert Jmmmu().modes[0] == "official-per-question"
    assert Jmmmu(parser="robust", fallback="wrong").modes[0] == "robust-wrong"
    assert len(set(Jmmmu(parser="robust", fallback="expected").modes)) == 8


def test_scoring_options_change_by_rescore_and_refuse_nothing(japanese: Path, run: Path, tmp_path: Path) -> None:
    out = shutil.copytree(run, tmp_path / "run")
    before = rescore(out, Jmmmu(), report=False)
    robust = rescore(out, Jmmmu(parser="robust", fallback="expected"), report=False)
    assert next(iter(robust.modes)) == "robust-expected"
    assert robust.headline.value == before.metric(mode="robust-expected").value != before.headline.value
    other = rescore(out, Jmmmu(seed=5), report=False)
    for mode, found in before.modes.items():
        if mode.endswith(("expected", "wrong")):
            assert found.records == other.modes[mode].records, "nothing is drawn"
    letters = [
        [one.parsed.value for one in result.modes["official-per-question"].records] for result in (before, other)
    ]
    assert letters[0] != letters[1]
    scoring = untimed(out)["paperhooks"]["modes"]
    assert scoring["official-per-question"]["scoring"] == {"seed": 5} == scoring["robust-lmms-eval"]["scoring"]
    assert scoring["official-wrong"]["scoring"] == {} == scoring["robust-expected"]["scoring"]
    asked: list[str] = []
    task = Jmmmu(parser="robust", fallback="lmms-eval", seed=9)
    again = quick(backend({}, asked), None, task, data=japanese, out=out)
    assert (asked, again.headline.n) == ([], 56), "it goes on, and asks nothing again"


@pytest.mark.parametrize(
    ("option", "said"),
    [({"rotation": 1}, "rotation"), ({"stop": "lmms-eval"}, "stop"), ({"pictures": "blank"}, "pictures"),
     ({"max_new_tokens": 5}, "max_new_tokens")],
)  # fmt: skip
def test_options_that_ask_otherwise_are_another_run(
    japanese: Path, run: Path, option: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=rf"inputs\.options\.{said}"):
        quick(backend({}), None, Jmmmu(**option), data=japanese, out=run)
    with pytest.raises(DataError, match=f"the run was made with {said}"):
        rescore(run, Jmmmu(**option), report=False)
    assert Jmmmu(**option).fingerprint() != Jmmmu().fingerprint() == Jmmmu(parser="robust", seed=3).fingerprint()


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (Jmmmu, {"parser": "robst"}, "parser = 'robst' is none of 'official', 'robust'"),
        (Jmmmu, {"stop": "\n\n"}, "is none of '', 'lmms-eval'"),
        (Jmmmu, {"fallback": "random"}, "there is no fallback 'random'"),
        (Jmmmu, {"pictures": "white"}, "pictures = 'white' is no control"),
        (Jmmmu, {"max_new_tokens": 0}, "max_new_tokens is 0; expected a whole number of at least 1"),
        (Jmmmu, {"rotation": -1}, "rotation is -1; expected a whole number of at least 0"),
        (Jmmmu, {"seed": True}, "seed is True"),
        (Jmmmu, {"seed": 1.0}, "seed is 1.0"),
        (JmmmuPro, {"rotation": 1}, "rotation moves options, which stand inside the pictures"),
        (JmmmuVerified, {"answer": "think"}, "answer = 'think' is no way to answer"),
        (JmmmuVerified, {"max_new_tokens": -1}, "max_new_tokens is -1"),
    ],
)
def test_options_are_checked(kind: type[Task], options: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        kind(**options)


# -- what is asked -----------------------------------------------------------------------------------------------------


def asked(task: Task, source: Path, layout: str = "prepend") -> list[Request]:
    return [arrange(task.request(one), layout) for one in task.documents(str(source))]


def text_of(request: Request) -> str:
    return "".join(part.get("text", "[]") for message in request.messages for part in message["content"])


def test_every_task_asks_as_published(japanese: Path, english: Path, pro: Path) -> None:
    letter = "与えられた選択肢の中から最も適切な回答のアルファベットを直接記入してください。"
    role = "あなたの役割は画像で与えられた問題を解くことです。"
    found = asked(Jmmmu(), japanese)
    assert len(found) == 56
    assert {text_of(one).rpartition("\n\n")[2] for one in found} == {
        letter, "質問に対する回答を単語や短いフレーズで記入してください。",
    }  # fmt: skip
    assert {(one.max_new_tokens, one.stop) for one in found} == {(1024, ())}
    assert {one.stop for one in asked(Jmmmu(stop="lmms-eval"), japanese)} == {("\n\n",)}
    assert {text_of(one) for one in asked(JmmmuPro(), pro)} == {f"[]{role}{letter}"}
    assert all(text_of(one).endswith(f"\n\n{letter}") for one in asked(JmmmuVerified(), pro))
    for kind in (JmmmuPro, JmmmuVerified):
        (end,) = {text_of(one)[-24:] for one in asked(kind(answer="cot", stop="lmms-eval"), pro)}
        assert end == "答える前に step by step で考えてください。"[-24:]
    ends = {text_of(one).rpartition("\n\n")[2] for one in asked(MmmuPaired(), english)}
    assert ends == {
        "Answer with the option's letter from the given choices directly.",
        "Answer the question using a single word or phrase.",
    }


def test_the_twins_share_ids_and_groups(japanese: Path, english: Path) -> None:
    ours = {one.id: one for one in Jmmmu().documents(str(japanese))}
    theirs = {one.id: one for one in MmmuPaired().documents(str(english))}
    assert set(theirs) == {name for name, one in ours.items() if one.groups["subset"] == "CA"}
    for name, one in theirs.items():
        assert one.groups["subject"] == ours[name].groups["subject"]


def test_bad_rows_are_left_out_where_that_is_asked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = row_of(next(one for one in PROMPTS["docs"] if one["question_type"] == "multiple-choice"))
    folder = write_rows(tmp_path / "data", [good, {**good, "id": "validation_Design_30", "answer": "Z"}])
    with pytest.raises(DataError, match="validation_Design_30: the answer is 'Z'"):
        quick(backend({}), None, Jmmmu(), data=folder, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    asked: dict[str, Any] = {"data": folder, "out": tmp_path / "run", "report": True}
    result = evaluate(backend({good["id"]: "A"}), None, Jmmmu(skip_bad=True), **asked)
    assert result.headline.n == 1
    note = "Rows with faults that were left out: 1. validation_Design_30: the answer is 'Z'"
    (told,) = result.notes
    assert told.startswith(note)
    assert rescore(tmp_path / "run").notes == result.notes
    assert json.loads((tmp_path / "run" / "results.json").read_text())["paperhooks"]["data"]["notes"] == [told]
    assert note in (tmp_path / "run" / "report.md").read_text()
    assert "rows with faults left out: 1; validation_Design_30: the answer is 'Z'" in caplog.text
    with pytest.raises(DataError, match="skip_bad is 'no'; expected true or false"):
        Jmmmu(skip_bad="no")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="revision is 5; expected the name"):
        Jmmmu(revision=5)  # type: ignore[arg-type]


def test_a_picture_that_changes_during_a_run_fails(tmp_path: Path) -> None:
    row = row_of(next(one for one in PROMPTS["docs"] if one["present"] == ["image_1"]))
    folder = write_rows(tmp_path, [row])
    (document,) = Jmmmu().documents(str(folder))
    assert len(Jmmmu().request(document).images) == 1
    Image.new("RGB", (9, 9)).save(folder / "1.png")
    with pytest.raises(DataError, match=r"1\.png is another picture than when the data were read"):
        Jmmmu().request(document)
