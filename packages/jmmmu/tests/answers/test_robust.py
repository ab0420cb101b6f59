"""The robust parsers and flags: clear-cut replies, replies of our own, and what must never be read."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from paperhooks_jmmmu.answers import (
    golds_of,
    is_empty,
    is_looping,
    is_outside,
    is_refusal,
    is_several,
    judge_open_robust,
    parse_choice,
    parse_choice_mmmu,
    parse_choice_pro,
    parse_choice_robust,
    parse_open,
    parse_open_mmmu,
    parse_open_robust,
    reply_flags,
)

REFERENCE = Path(__file__).parents[1] / "reference"
CLEAR = json.loads((REFERENCE / "robust_expectations.json").read_text(encoding="utf-8"))
OWN = json.loads((REFERENCE / "own_replies.json").read_text(encoding="utf-8"))
THIRD = json.loads((REFERENCE / "third_replies.json").read_text(encoding="utf-8"))
FOURTH = json.loads((REFERENCE / "fourth_replies.json").read_text(encoding="utf-8"))
GOLDS = json.loads((REFERENCE / "open_cases.json").read_text(encoding="utf-8"))["golds"]
ART = ["能面", "浮世絵", "枯山水", "漆器"]


def read(table: dict, case: dict) -> str | None:
    return parse_choice_robust(case["response"], table["docs"][case["doc"]]).letter


def published_letter(table: dict, case: dict) -> str | None:
    return parse_choice(case["response"], table["docs"][case["doc"]]).letter


def test_clear_replies_are_read_as_a_human_reads_them() -> None:
    right = sum(read(CLEAR, case) == case["expected"] for case in CLEAR["cases"])
    assert right >= 0.98 * len(CLEAR["cases"]) == 0.98 * 592


def test_nothing_is_read_where_a_human_reads_nothing() -> None:
    wrong = [
        case
        for table in (CLEAR, OWN, THIRD, FOURTH)
        for case in table["cases"]
        if case["expected"] is None and read(table, case)
    ]
    assert not wrong


def test_where_the_published_parser_is_right_so_is_the_robust_one() -> None:
    for table in (CLEAR, OWN, THIRD, FOURTH):
        for case in table["cases"]:
            if case["expected"] and published_letter(table, case) == case["expected"]:
                assert read(table, case) == case["expected"], case


def test_our_own_replies_are_read() -> None:
    right = sum(read(OWN, case) == case["expected"] for case in OWN["cases"])
    published = sum(published_letter(OWN, case) == case["expected"] for case in OWN["cases"])
    assert (len(OWN["cases"]), published) == (150, 80)
    assert right >= 146


def test_replies_that_deny_doubt_and_compare_are_read() -> None:
    """136 when the parser first saw them, 140 since the kinds of the four others were mended."""
    right = sum(read(THIRD, case) == case["expected"] for case in THIRD["cases"])
    published = sum(published_letter(THIRD, case) == case["expected"] for case in THIRD["cases"])
    assert (len(THIRD["cases"]), published) == (140, 76)
    assert right >= 137


def test_replies_that_correct_themselves_and_quote_others_are_read() -> None:
    """73 when the parser first saw them, 80 since the kinds of the seven others were mended."""
    right = sum(read(FOURTH, case) == case["expected"] for case in FOURTH["cases"])
    published = sum(published_letter(FOURTH, case) == case["expected"] for case in FOURTH["cases"])
    assert (len(FOURTH["cases"]), published) == (80, 38)
    assert right >= 78


def test_options_that_are_letters_stand_behind_their_own() -> None:
    letters = ["B", "A", "D", "C"]
    assert [parse_choice_robust(reply, letters).letter for reply in ("D. C", "（D）C", "A、C")] == ["D", "D", None]
    assert parse_choice_robust("E. 水墨画", ART) == (None, "outside")


IN_ENGLISH = ["noh mask", "woodblock print", "rock garden", "lacquerware"]
#: Replies by what makes them hard, with the letter that a human reads; None where there is none.
HARD = {
    "denied option": [
        (IN_ENGLISH, "It is a woodblock print, not a rock garden.", "B"),
        (IN_ENGLISH, "The picture shows a woodblock print. It is not a noh mask.", "B"),
        (IN_ENGLISH, "There is no rock garden here. It must be a woodblock print.", "B"),
        (IN_ENGLISH, "Unlike a noh mask, this is a woodblock print.", "B"),
        (IN_ENGLISH, "It is not a noh mask.", None),
        (ART, "能面でも浮世絵でもない", None),
        (ART, "浮世絵（能面ではない）", "B"),
        (ART, "能面の特徴は見られません。浮世絵です。", "B"),
    ],
    "several": [
        (ART, "AもBも正しい", None),
        (ART, "A及びB", None),
        (ART, "AだけでなくCも正しい", None),
        (IN_ENGLISH, "A as well as B", None),
        (IN_ENGLISH, "The answer is A. The answer is also C.", None),
        (IN_ENGLISH, "The answer is B, A and C are wrong.", "B"),
        (IN_ENGLISH, "Option A\nOption B\nOption C\nOption D", None),
    ],
    "range": [
        *((ART, reply, None) for reply in ("A–D", "A—C", "A…D", "A..D", "AからCのいずれか")),
        *((IN_ENGLISH, reply, None) for reply in ("A to C", "B through D")),
        (ART, "AからBに訂正します。", "B"),
        (IN_ENGLISH, "I change my answer from A to B.", "B"),
    ],
    "denial": [
        *((ART, f"C{behind}", None) for behind in (
            "でもありません", "とは言えません", "を選ぶことはできません", "を選ぶのは適切ではない", "は選べません",
            "を正解とは言えません", "にはならない",
        )),
        (IN_ENGLISH, "Anything but A", None),
        (ART, "Bに間違いありません。", "B"),
        (ART, "Bしか考えられません。", "B"),
        (ART, "Bではないでしょうか。", "B"),
        (IN_ENGLISH, "B is not wrong, it is correct", "B"),
        (IN_ENGLISH, "B is printed, not carved.", "B"),
        (IN_ENGLISH, "The answer is B, not the others.", "B"),
        (IN_ENGLISH, "B. It is not a face.", "B"),
    ],
    "doubt": [
        (ART, "Cが正解とは限らない", None),
        (ART, "Cであるとは断言できません。", None),
        (ART, "Cが正解かどうか分かりません", None),
        (IN_ENGLISH, "I can't determine whether A is correct.", None),
        (IN_ENGLISH, "I am not sure that B is correct", None),
        (IN_ENGLISH, "I'm not sure, but B.", "B"),
        (ART, "Aかどうか迷いましたが、Bです。", "B"),
    ],
    "refusal": [
        (IN_ENGLISH, "As an AI, I cannot see. A", None),
        (ART, "申し訳ありませんが、能面については答えられません", None),
        (ART, "画像を確認できませんが、浮世絵だと思います。", "B"),
        (IN_ENGLISH, "I can't see a face.\n\n**B**\n\nNote that I can't verify the date.", "B"),
    ],
    "comparison": [
        (IN_ENGLISH, "A is tempting, but B is better.", "B"),
        (IN_ENGLISH, "A: no. B: yes. C: no. D: no.", "B"),
        (ART, "A× B○ C× D×", "B"),
    ],
    "denied beside another": [
        (ART, "答えはAでもBでもなくCです。", "C"),
        (ART, "正解はA・Bではなく、Cとなる。", "C"),
        (ART, "正解はB（浮世絵）ではなくC（枯山水）です。", "C"),
        (ART, "答えは「B. 浮世絵」ではなく「C. 枯山水」です。", "C"),
        (ART, "答えは、Bの浮世絵ではなくCの枯山水。", "C"),
        (ART, "正解はBの浮世絵ではありません。", None),
        (ART, "正解はA、BではなくCだ。", "C"),
    ],
    "withdrawn": [
        (IN_ENGLISH, "The answer is B. Wait, no. It must be C.", "C"),
        (IN_ENGLISH, "The answer is B. Wait, no.", None),
        (IN_ENGLISH, "B. On second thought, I am not sure.", None),
        (IN_ENGLISH, "I'd say B. Actually, it is C.", "C"),
        (IN_ENGLISH, "The answer is C. Actually, this is a famous garden.", "C"),
        (ART, "答えはB。いや、よく見ると庭なのでC。", "C"),
        (ART, "答えはAだと思ったが、砂紋があるのでCに変更する。", "C"),
        (ART, "一見Bが正解に見えるが、実はC。", "C"),
        (ART, "一見してBとわかります。", "B"),
        (ART, "Aだと思いましたが、違いました。", None),
    ],
    "others": [
        (IN_ENGLISH, "Most people would answer B, but the correct one is C.", "C"),
        (IN_ENGLISH, "A common mistake is choosing B. The correct one is C.", "C"),
        (IN_ENGLISH, "Some might say the answer is B, but it's C.", "C"),
        (IN_ENGLISH, "Some might say the answer is B.", None),
        (IN_ENGLISH, "I would answer B.", "B"),
        (ART, "友人はBだと言うが、私はCだと思う。", "C"),
    ],
    "verdicts": [
        (ART, "A) 違う\nB) 違う\nC) これが正解\nD) 違う", "C"),
        (ART, "A 能面\nB 浮世絵\nC 枯山水\nD 漆器\n\nこの中で画像に合うのは C です。", "C"),
        (ART, "Aは能面、Bは浮世絵、Cは枯山水、Dは漆器である。画像は枯山水。", "C"),
        (ART, "Aは能面、Bは浮世絵、Cは枯山水、Dは漆器である。", None),
    ],
    "option that is not there": [
        (ART, "これは浮世絵の作品ではありません。", None),
        (ART, "浮世絵らしさがない。", None),
        (IN_ENGLISH, "It lacks the features of a rock garden.", None),
        (["鎌倉時代", "江戸時代"], "この作品は江戸時代に描かれたもので、鎌倉時代のものではありません。", "B"),
    ],
    "letter of a thing": [
        *((ART, reply, None) for reply in ("図Bを参照。", "電流Aが流れる。", "Aさんは歩く。", "試料Aと試料Bを見る")),
        *((IN_ENGLISH, reply, None) for reply in ("Plan B would be to ask.", "Let me start with option A.")),
        (ART, "まず選択肢Aから検討する。能面は", None),
        (ART, "正解は図Bです。", "B"),
    ],
    "denied from afar": [
        (ART, "正解はBであるはずがない。", None),
        (ART, "答えがBである可能性は低い。", None),
        (ART, "浮世絵は写っていません。", None),
        (ART, "不正解：B", None),
        (ART, "答えはBでしょうか。いいえ、Cです。", "C"),
        (IN_ENGLISH, "There is no way the answer is B.", None),
        (IN_ENGLISH, "It isn't clear that it is a rock garden.", None),
        (IN_ENGLISH, "If it were a print, the answer would be B.", None),
        (IN_ENGLISH, "B seems correct but is not.", None),
        (ART, "図B", "B"),
        (ART, "多くの人が描かれているのでBです。", "B"),
    ],
    "small letter": [(IN_ENGLISH, "b is correct", "B"), (IN_ENGLISH, "option b is correct", "B")],
    "letter of a name": [
        (["ビタミンD", "ビタミンA"], "ビタミンAが適切です", "B"),
        (IN_ENGLISH, "Vitamin C is important here.", None),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", HARD)
def test_hard_replies_are_read_as_a_human_reads_them(kind: str) -> None:
    for options, reply, letter in HARD[kind]:
        assert parse_choice_robust(reply, options).letter == letter, reply


@pytest.mark.parametrize("form", ["答えは{}です。", "{}です", "{}", "**{}**", "The answer is {}.", "\\boxed{{{}}}"])
def test_perfect_open_answers_are_right_in_every_form(form: str) -> None:
    for gold in GOLDS:
        for answer in golds_of(gold):
            assert judge_open_robust(parse_open_robust(form.format(answer)), gold), (gold, form)


RIGHT = [
    ("2,000,000", "約200万円です"),
    ("320000000", "3億2000万"),
    ("-120", "−120"),
    ("-120", "マイナス120"),
    ("1/64", "64分の1"),
    ("1/64", "$\\frac{1}{64}$"),
    ("0.286", "28.6％"),
    ("0.286", "2/7"),
    ("4", "四つ"),
    ("360", "３６０度"),
    ("50%", "0.5"),
    ("['24/7', '3.429']", "3.43"),
    ("C", "(C)"),
    ("形質転換", "「形質 転換」です"),
    ("$MgS$", "硫化マグネシウム (MgS)"),
    ("1e-5", "1×10⁻⁵"),
    ("13", "12ではなく13です"),
    ("13", "答えは12ではありません。13です。"),
    ("13", "The answer is not 12 but 13."),
    ("東京", "12ではなく東京"),
    ("男性ではない", "男性ではない"),
    ("12", "12ではないかと思います"),
    ("0", "ゼロ"),
    ("0", "zero"),
    ("0.5", "半分"),
    ("0.5", "one half"),
    ("12", "twelve"),
    ("25", "Twenty-five."),
    ("200", "two hundred"),
    ("5000", "5kΩ"),
    ("5", "5kΩ"),
    ("8時30分", "8時30分です"),
    ("13", "The answer isn't 12, it's 13."),
    ("13", "The answer is 12. Wait, no, 13."),
    ("13", "答えは12だと思ったが、13です"),
    ("12.8", "約13、正確には12.8"),
    ("25", "25 m²"),
    ("1024", "2^10"),
    ("1000", "10の3乗"),
    ("2.5", "2 1/2"),
    ("0.1", "1割"),
    ("0.25", "2割5分"),
    ("1.414", "√2"),
    ("0.866", "$\\sqrt{3}/2$"),
    ("6.28", "2π"),
    ("-5", "零下5度"),
]
WRONG = [
    ("0.9965", "1"),
    ("1e-5", "0"),
    ("4", "4.3"),
    ("4", "3, 4, 5"),
    ("4", "4/5"),
    ("-120", "5-120"),
    ("C", "the cat"),
    ("", "x"),
    ("形質転換", "形質転換ではなく接合"),
    ("胚", "胚性"),
    ("1", "1/64"),
    ("0", "10,000人"),
    ("1000", "1_000"),
    ("0", "1e400"),
    ("4", "trans-4-yl"),
    *(
        ("12", reply)
        for reply in ("12ではなく13です", "12ではありません", "not 12", "The answer is not 12 but 13", "12以外")
    ),
    ("12", "答えは12ではありません。13です。"),
    ("0", "ゼロではない"),
    ("8", "8時30分"),
    ("8", "8時半"),
    ("5", "5m30cm"),
    ("2", "2対1"),
    ("3", "第3四半期"),
    ("1", "The first one"),
    ("0.5", "半分以下"),
    ("5kΩ", "5MΩ"),
    *(
        ("12", reply)
        for reply in ("The answer isn't 12.", "The answer isn’t 12.", "The result isn't 12 but 13", "12 isn't right")
    ),
    ("12", "The answer is 12. Wait, no."),
    ("12", "答えは12だと思ったが13"),
    ("13", "約13、正確には12.8"),
    *(("2", reply) for reply in ("10 cm^2", "10 m²", "9.8 m/s²", "10 cm^{2}", "\\frac{\\sqrt{3}}{2}")),
    ("10", "2^10"),
    *(("15", reply) for reply in ("12 to 15", "12–15", "12~15", "12から15")),
    ("2024", "2024/03/05"),
    ("2024", "2024.03.05"),
]


@pytest.mark.parametrize(("gold", "reply"), RIGHT)
def test_right_open_answers(gold: str, reply: str) -> None:
    assert judge_open_robust(parse_open_robust(reply), gold)


@pytest.mark.parametrize(("gold", "reply"), WRONG)
def test_wrong_open_answers(gold: str, reply: str) -> None:
    assert not judge_open_robust(parse_open_robust(reply), gold)


def test_flags() -> None:
    assert is_empty(" \u200b\n")
    assert not is_empty(".")
    assert is_refusal("申し訳ありませんが、画像を認識できません。")
    assert is_refusal("I’m sorry, I can’t help with that.")
    assert is_refusal("I cannot see a picture.")
    assert not is_refusal("答えは B です。")
    assert is_several("BとC", ART)
    assert not is_several("B", ART)
    assert is_outside("(E)", ART)
    assert not is_outside("(D)", ART)
    assert is_looping("はじめに。" + "図を見る。" * 40)
    assert not is_looping("図を見ると木版画です。答えは B です。" * 2)
    assert reply_flags("A" * 20_001) == ("looping", "too_long")
    assert reply_flags("") == ("empty",)


AWKWARD = [
    *[
        "A ",
        "B\n",
        "(",
        "((A",
        "*",
        "\\boxed{",
        "\\text{",
        "{",
        "<",
        "<think>",
        "</think>",
        " ",
        "\u3000",
        "。",
        ".",
        "1,",
    ],
    *[
        "1.",
        "-1",
        "1e",
        "=",
        "答え",
        "答えは ",
        "answer ",
        "ans ",
        "AとB",
        "A/",
        "浮世絵、",
        "A. 能面\n",
        "\u0301\u0323",
    ],
    *[
        "\ufdfa",
        "\ue001",
        "#",
        "万",
        "1万",
        "一",
        "1/",
        "\\frac{",
        "²",
        "マイナス",
        "×10",
        "if A ",
        "と考え",
        "<br>",
        "12",
    ],
    *[
        "AもBも",
        "A to ",
        "no sign of a ",
        "AをA",
        "not 12 ",
        "12ではなく",
        "第3",
        "twelve ",
        "a half ",
        "言え",
        "B\n答えはA",
        "申し訳",
    ],
]


@pytest.mark.parametrize("piece", AWKWARD)
def test_time_is_linear_in_the_length_of_a_reply(piece: str) -> None:
    reply = (piece * 20_000)[:20_000]
    parsers = [parse_choice, parse_choice_mmmu, parse_choice_pro, parse_choice_robust]
    checks = [
        *(lambda text, parse=parse: parse(text, ART) for parse in parsers),
        parse_open, parse_open_mmmu, lambda text: judge_open_robust(parse_open_robust(text), "1.06"), reply_flags,
    ]  # fmt: skip
    for check in checks:
        times = []
        for ending in (",", ",", "x"):
            start = time.perf_counter()
            check(reply + ending)
            times.append(time.perf_counter() - start)
        assert min(times) < 0.2, (check, times)
