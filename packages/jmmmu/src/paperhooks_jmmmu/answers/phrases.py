"""What Japanese and English sentences say of a letter: the words before it and the clause behind it.

Patterns are matched at one place, or searched in a few dozen characters around a letter; none can blow up.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["NO", "STRONG", "UNSURE", "WEAK", "YES", "cue_before", "said_behind"]

#: Strength of a cue before a letter.
STRONG: Final = 2
WEAK: Final = 1
#: What is said of a letter: it is the answer, it is not, or that is only supposed.
YES: Final = "yes"
NO: Final = "no"
UNSURE: Final = "unsure"


_FILLER: Final = 0
_DENIED: Final = -1
#: Words directly before a letter; "_" stands for a space.
_CUES: Final = {
    STRONG: """
        答え 答 回答 解答 正解 正答 結論 正しくは 訂正 訂正します いや 失礼 正しいのは 適切なのは 最適なのは 妥当なのは
        当てはまるのは 該当するのは 正しいものは 適切なものは 正しい選択肢は 適切な選択肢は 最適な選択肢は
        answer answers ans ans. correct best appropriate accurate right_option right_choice right_letter right_one
        wait actually sorry
        """,
    WEAK: """
        のは したがって よって ゆえに 故に 従って 以上より 以上から これより そのため つまり すなわち 結局 最終的に
        おそらく 恐らく たぶん 多分 やはり きっと 消去法で 消去法により
        choose chose chosen pick select selected selecting go_with going_with think believe guess say so thus hence
        therefore conclude conclusion finally final solution leaving leaves must
        """,
    _FILLER: """
        は が を も こそ として 選択肢 記号 番号 アルファベット 肢 option choice letter the is be are would should will
        was most likely probably clearly definitely it it's that that's to indeed as only of
        """,
    _DENIED: """
        not n't except neither nor than without eliminate eliminated eliminating exclude excluding ruled_out rule_out
        cannot
        """,
}
_MEANING: Final = {word.replace("_", " "): kind for kind, words in _CUES.items() for word in words.split()}
#: The last character of a word to the lengths of the words that end with it, the longest first.
_LENGTHS: Final = {
    end: sorted({len(word) for word in _MEANING if word[-1] == end}, reverse=True)
    for end in {word[-1] for word in _MEANING}
}
#: What may stand between a cue and its letter.
_OPENERS: Final = " \t\n\"'“‘「『(【[<{〈《〔:=→、,-–—~>…_"
_SUPPOSED: Final = re.compile(r"\b(?:if|suppose|assum(?:e|ing)|whether|unless)\b[^.\n]*$|もし[^。\n]*$")


def cue_before(text: str) -> int:
    """How strongly the words at the end of ``text`` announce an answer: STRONG, WEAK, 0, or -1 where they deny it.

    >>> cue_before("よって、正解は「"), cue_before("したがって"), cue_before("図の"), cue_before("it is not ")
    (2, 1, 0, -1)
    """
    text = text.lower().rstrip(_OPENERS)
    strength = 0
    while word := _last_word(text):
        kind = _MEANING[word]
        if kind == _DENIED:
            return -1
        text = text[: -len(word)].rstrip(_OPENERS)
        strength = max(strength, kind)
        if kind == STRONG:
            break
    return 0 if strength and _SUPPOSED.search(text) else strength


def _last_word(text: str) -> str:
    """The longest known word that the text ends with; an English one begins there too."""
    for length in _LENGTHS.get(text[-1:], ()):
        word = text[-length:]
        if word in _MEANING and not (word[0].isascii() and word != "n't" and _goes_on(text[:-length])):
            return word
    return ""


def _goes_on(text: str) -> bool:
    return text[-1:].isascii() and text[-1:].isalpha()


_CLOSERS: Final = "[\\s\"'”’」』)】\\]>}〉》〕_]*"
_DENIAL: Final = re.compile(
    rf"{_CLOSERS}(?:で\s?は\s?(?:な|あり|ござ)|じゃな|でも?な[いく]|以外|を除|より(?!明)|"
    r"isn't|is not|cannot|can't|does)",
    re.IGNORECASE,
)
_SUPPOSITION: Final = re.compile(
    rf"{_CLOSERS}(?:が(?:正しい|正解|答え))?(?:な\s?ら(?!な)|だ?と\s?(?:すると|すれば|したら|仮定)|の場合|だった場合)"
)
_STATEMENT: Final = re.compile(
    rf"{_CLOSERS}(?:です(?!か)|であ(?:る|り)|でし(?:た|ょう)|だ(?!か|け)|"
    r"に\s?(?:な[るり]|該当|当て|当た|相当|違いな|決|し(?:ます|た))|"
    r"と\s?(?:な[るり]|考え|思|判断|言え|いえ|わか|分か|推|す|結論|答え|回答|特定)|"
    r"を\s?(?:選|回答|答え|推)|が\s?選)"
)
_SUBJECT: Final = re.compile(
    rf"{_CLOSERS}(?:は|が|も|の(?:方|ほう)|こそ|のみ|だけ|[:.、,→=(–—-]|(?=最|正|適|案)|"
    r"(?<=\s)(?=(?:is|are|was|would|should|seems|appears|can|fits|matches|best)\b))"
)
_NOT_A_TOPIC: Final = r"(?!\s?(?:の[はが]|選択肢[はを]|答え[はを]|もの[はを]|とは|なのは|な選択肢|なもの))"
_JUDGEMENT: Final = re.compile(
    rf"(?P<yes>(?:誤り|間違い)で\s?は\s?な|正し\s?い{_NOT_A_TOPIC}|正解(?!\s*[はが:]|で\s?は\s?な)|"
    rf"(?<!不)(?:適切|適当|最適|妥当)(?!で\s?は?\s?な){_NOT_A_TOPIC}|[当あ](?:て|)はま(?:る|り(?!ませ))|"
    r"ふさわしい|(?:該当|一致|合致)(?:す|し(?!な|ませ|て(?:いな|いませ|おら|おりませ)))|"
    r"答え(?![はが:]|で\s?は?\s?な)|[○✓✔✅◯]|選[びぶ択]|"
    r"\b(?:correct|right|best|answer|true|appropriate|accurate|matches|fits|consistent)\b)|"
    r"(?P<no>誤|間違|違[いうっ]|不(?:適|正解|十分|可能|一致)|除外|正し\s?く\s?(?:な|あり)|"
    r"(?:適切|適当|最適|妥当|正解|正答|答え)で\s?は?\s?(?:な|あり)|(?:該当|一致|合致|関係|存在)(?:し(?:な|ませ|て(?:いな|いませ|おら|おりませ))|な)|"
    r"[当あ]て?はまら|ふさわしく|[×✗✘❌]|あり(?:得|え)な|考えにく|異な|とは言え|ではありま|ではない|見られな|含まれな|"
    r"\b(?:incorrect|wrong|false|not|cannot|eliminated?|exclude[ds]?|unlikely|inaccurate|irrelevant|nor)\b|n't\b)",
    re.IGNORECASE,
)
#: Where a clause ends, or turns to something else than its letter.
_CLAUSE_END: Final = re.compile(
    r"[。\n;!?]|\.(?:\s|$)|しかし|一方|なお|なぜなら|理由|他|ほか|残り|それ以外|\b(?:others?|because|since|while|whereas|rest)\b",
    re.IGNORECASE,
)

#: "not" at the end of what stands between two letters is said of the second: "C, not A".
_OF_THE_NEXT: Final = re.compile(r"\b(?:not|nor)\s*[(\"'“]?$", re.IGNORECASE)


def said_behind(text: str) -> str | None:
    """What the clause at the beginning of ``text``, behind a letter, says of it: YES, NO, UNSURE or None.

    In Japanese the last word decides, in English the first: "is not correct" is a denial, "is correct, the others are
    not" none.

    >>> [said_behind(text) for text in ("が正しい。", ")は誤り", "ではなく", " is wrong", "です。", "なら", "の")]
    ['yes', 'no', 'no', 'no', 'yes', 'unsure', None]
    """
    if _DENIAL.match(text):
        return NO
    if _SUPPOSITION.match(text):
        return UNSURE
    if _STATEMENT.match(text):
        return YES
    subject = _SUBJECT.match(text)
    if not subject:
        return None
    return _judgement(_OF_THE_NEXT.sub("", _CLAUSE_END.split(text[subject.end() :], maxsplit=1)[0]))


def _judgement(clause: str) -> str | None:
    verdict = None
    for each in _JUDGEMENT.finditer(clause):
        verdict = YES if each["yes"] else NO
        if each[0].isascii():
            break
    return verdict
