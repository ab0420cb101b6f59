"""What Japanese and English sentences say of a letter: the words before it and the clause behind it.

Patterns are matched at one place, or searched in a few dozen characters around a letter; none can blow up.
"""

from __future__ import annotations

import re
from typing import Final

from paperhooks_jmmmu.answers.turns import is_conceded, is_of_others

__all__ = [
    "DENIED",
    "DOUBTED",
    "MORE",
    "NO",
    "REFUSAL",
    "STRONG",
    "UNSURE",
    "WEAK",
    "YES",
    "cue_before",
    "refuses",
    "said_behind",
]

#: Strength of a cue before a letter, and what else may stand there.
STRONG: Final = 2
WEAK: Final = 1
DENIED: Final = -1
DOUBTED: Final = -2
#: What is said of a letter: it is the answer, it is not, or that is only supposed, or doubted.
YES: Final = "yes"
NO: Final = "no"
UNSURE: Final = "unsure"


_FILLER: Final = 0
#: Words directly before a letter; "_" stands for a space.
_CUES: Final = {
    STRONG: """
        答え 答 回答 解答 正解 正答 結論 正しくは 訂正 訂正します いや 失礼 正しいのは 適切なのは 最適なのは 妥当なのは
        当てはまるのは 該当するのは 正しいものは 適切なものは 正しい選択肢は 適切な選択肢は 最適な選択肢は
        answer answers ans ans. correct best appropriate accurate right_option right_choice right_letter
        right_one correct_one best_one correction wait actually sorry on_reflection on_second_thought
        """,
    WEAK: """
        のは したがって よって ゆえに 故に 従って 以上より 以上から これより そのため つまり すなわち 結局 最終的に
        ので おそらく 恐らく たぶん 多分 やはり きっと 消去法で 消去法により
        choose chose chosen pick select selected selecting go_with going_with think believe guess say so thus hence
        therefore conclude conclusion finally final solution leaving leaves must nothing_but none_but none_other_than
        no_other_than no_other_answer_than no_other_option_than no_other_choice_than cannot_be_anything_but
        can't_be_anything_but it_should_be it_has_to_be it_is it's this_is that's that_is ✅ ✓ ✔ ◯ ○
        """,
    _FILLER: """
        は が を も こそ として 選択肢 記号 番号 アルファベット 肢 option choice letter the a an is be are would should
        will was most likely probably clearly definitely it to indeed as only of not_only no_doubt no_question also
        """,
    DENIED: """
        not n't except neither nor than without eliminate eliminated eliminating exclude excluding ruled_out rule_out
        wrong_answer incorrect_answer wrong_choice incorrect_choice wrong_option incorrect_option second_best_answer
        second-best_answer would_have_been used_to_be 不正解 誤答
        cannot no unlike rather_than instead_of anything_but everything_but all_but never ❌ ✗ ✘
        """,
}
_MEANING: Final = {word.replace("_", " "): kind for kind, words in _CUES.items() for word in words.split()}
#: The last character of a word to the lengths of the words that end with it, the longest first.
_LENGTHS: Final = {
    end: sorted({len(word) for word in _MEANING if word[-1] == end}, reverse=True)
    for end in {word[-1] for word in _MEANING}
}
#: What may stand between a cue and its letter.
_OPENERS: Final = " \t\n\"'“‘「『(【】[<{〈《〔:=→、,-–—~>…_"
#: A denial reaches no further than its line, and "no" stands right before what it denies: "no, A" is none.
_LINE: Final = frozenset("\n")
_BREAKS: Final = frozenset("\n,:、-–—")
#: The letter is supposed, or its answer doubted: it stands in the same part of the sentence.
_DOUBT: Final = re.compile(
    r"(?:\b(?:if|suppose|supposing|assum(?:e|ing)|whether|unless|"
    r"(?<!no )(?<!without )(?<!without a )(?<!beyond )doubts?|doubtful|unsure|uncertain|unclear|"
    r"(?:not|\w{2,6}n't) (?:\w+ )?(?:sure|certain|clear|convinced|confident|possible to (?:say|tell))|"
    r"no way|no one|nobody|impossible that|(?:false|unlikely|improbable) that|(?:wrong|incorrect|mistake) to|refuse to|"
    r"hardly|little (?:evidence|reason|sign)|avoid|by no means|"
    r"(?:can't|cannot|can not|couldn't|could not|don't|do not|unable to|impossible to) (?:\w+ )?"
    r"(?:say|tell|know|think|believe|determine|decide|confirm|verify|judge|see (?:if|whether|that|why)))\b"
    r"(?:(?!\b(?:but|so)\b)[^,.;\n])*|(?<!か)もし(?!く)も?[^。、\n]*)$"
)
#: A denial a few words before: "does not show a", "no sign of". Words that begin something new end its reach.
_NEW: Final = (
    "but|so|because|since|therefore|thus|hence|it|this|that|which|and|then|answer|correct|only|just|is|are|if|doubt|"
    "question|whether|option|problem|wrong|other"
)
_FAR_DENIAL: Final = re.compile(
    r"\b(?:(?:not|never|no|without|nothing|none|isn't|aren't|wasn't|doesn't|don't|didn't|can't|cannot|hardly)"
    rf"(?: (?!(?:{_NEW})\b)[a-z]+(?:'s)?){{1,5}}|"
    r"(?:lack(?:s|ed|ing)?|absence of|absent|devoid of|free of|far from|different from|differs? from|contrary to|"
    r"fails? to|before|predat(?:es?|ed|ing)|prior to|(?:earlier|later|older|newer) than)"
    rf"(?: (?!(?:{_NEW})\b)[a-z]+(?:'s)?){{0,5}})$"
)
#: Before a letter that is right beside others.
MORE: Final = re.compile(
    r"\b(?:also|another (?:correct|right|answer|possible)\b.*)[\s(\"'*]*$|もう一つの?[^。\n]{0,8}$", re.IGNORECASE
)


def cue_before(text: str) -> int:
    """How strongly the words at the end of ``text`` announce an answer: STRONG, WEAK, 0; DENIED or DOUBTED.

    >>> cue_before("よって、正解は「"), cue_before("したがって"), cue_before("図の"), cue_before("it is not a ")
    (2, 1, 0, -1)
    >>> cue_before("I am not sure that "), cue_before("there is no sign of a ")
    (-2, -1)
    """
    text = text.lower().replace("’", "'")
    whole, strength = text.rstrip(_OPENERS), 0
    text, gap = whole, text[len(whole) :]
    while word := _last_word(text):
        kind = _MEANING[word]
        if kind == DENIED and not (_BREAKS if word == "no" else _LINE) & set(gap):
            return DENIED
        if kind == DENIED:
            break
        before = text[: -len(word)]
        text = before.rstrip(_OPENERS)
        gap = before[len(text) :]
        strength = max(strength, kind)
        if kind == STRONG:
            break
    if not whole:
        return 0
    if _DOUBT.search(text if strength else whole) or is_of_others(whole):
        return DOUBTED
    return DENIED if not strength and _FAR_DENIAL.search(whole) else strength


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
#: A question that means yes: ではないでしょうか.
_RHETORICAL: Final = "(?:い(?:でしょうか|だろうか|か)|かろうか)"
_DENIAL: Final = re.compile(
    rf"{_CLOSERS}(?:(?:(?:[のにをと])[^。、\nはがで間違誤]{{0,12}})?で\s?は\s?(?:な(?!{_RHETORICAL})|あり(?!ませんか|ませんでしょうか)|ござ)|じゃな(?!{_RHETORICAL})|"
    rf"でも?な[いく](?!でしょうか|だろうか|か)|でもあり|以外|を除|より(?!明)|とは?\s?(?:異な|違[いうっ])|"
    r"(?:isn['’]t|is not|cannot|can['’]t|does(?:n['’]t| not))"
    r"(?! (?:only|just|be (?:ruled|excluded|wrong)|wrong|incorrect|false|in doubt)))",
    re.IGNORECASE,
)
#: What is not there of an option, or not likely: の特徴がありません, らしさがない.
_ABSENT: Final = re.compile(
    rf"{_CLOSERS}(?:[^。、\n]{{0,10}}?(?:(?:わけ|はず|筈)(?:で?は|が|も)|こと(?:は|も))\s?(?:な[いくか]|あり(?:え)?ませ)|"
    r"[^。、\n]{0,8}?可能性(?:は|が|も)\s?(?:極めて|かなり)?(?:低|な[いくか]|ありませ|少な|考えにく|否定(?!でき(?:な|ませ)))|"
    r"と(?:は)?\s?(?:無関係|関係(?:が|は)?(?:な|ありませ))|の影響(?:は|を)\s?(?:受けてい(?:な|ませ)|な)|"
    r"(?:は|が|も)\s?(?:どこにも|全く)?(?:写って|描かれて|見えて)い?(?:な|ませ)|(?:だ)?とするには\s?(?:無理|難))|"
    rf"{_CLOSERS}(?:らしさ|の\s?(?:特徴|要素|性質|可能性|所見|痕跡|証拠|兆候|形跡|様子|気配|条件))(?:は|が|も)\s?(?:全く|まったく|ほとんど)?"
    r"(?:な[いくか]|ありませ|低|見当たら|見られな|見られませ|認めな|認められな|認められませ|乏し|少な|欠|満たさ)"
)
_SUPPOSITION: Final = re.compile(
    rf"{_CLOSERS}(?:(?:が(?:正しい|正解|答え))?(?:な\s?ら(?!な)|だ?と\s?(?:すると|すれば|したら|仮定)|の場合|だった(?:場合|ら))|"
    r"(?:cannot|can['’]t) be (?:ruled out|excluded))"
)
#: か with a word for not knowing: かどうか, か分かりません.
_QUESTION: Final = re.compile(
    r"か(?:どうか|否か|[はもが]?\s?(?:(?:分か|わか)(?:ら|りませ|りかね|りにく)|判(?:断|別)(?:でき|しかね|が|は)|不明|定かで))"
)
#: A denial that affirms: Bに間違いありません, Bしか考えられない, Bを選ばざるを得ない.
_EMPHASIS: Final = re.compile(
    r"(?:(?:で|に|と(?:考え|見|み|言|い)っ?て(?:も)?|は|も)?\s?(?:間違い|違い|相違|問題|差し支え|疑い)(?:[はも]|の余地[はが])?|"
    r"(?:しか|(?:より)?ほか(?:に|は|には)?|以外に?は?)[^。、\n]{0,6}?|ざるを得|まで(?:も|は))"
    r"(?:な[いくかし](?:です|だろう|でしょう)?|ありえ?ませ\s?ん|ませ\s?ん|られ?な[いく])"
)
_STATEMENT: Final = re.compile(
    rf"{_CLOSERS}(?:です(?!か)|であ(?:る|り)|でし(?:た|ょう)|だ(?!か|け)|ではな{_RHETORICAL}|"
    r"に\s?(?:な[るり]|該当|当て|当た|相当|決|す[るべ]|し(?:ます|た|よう)|変更|訂正|修正)|"
    r"と\s?(?:な[るり]|考え|思|判断|言え|いえ|わか|分か|推|す|結論|答え|回答|特定)|"
    r"を\s?(?:選|回答|答え|推)|が\s?(?:選|残)|(?:does|remains)[\s.!]*$)"
)
#: A statement that its own verb takes back: を選ぶことはできません, とは言えない, にはならない.
_TAKEN_BACK: Final = re.compile(
    rf"{_CLOSERS}(?:を\s?(?:選|回答|答え|正解|正答)|が\s?選|"
    r"(?:だ|である)?\s?と\s?[はもまで]{0,2}\s?(?:言|い[えいうっ]|断|判|確|決|思|考え|限|結論|特定|な[らりる]|見え|一致)|"
    r"に\s?[はも]?\s?(?:な[らりる]|該当|当|あ[てた]|相当|決|見え))"
    r"(?:(?!ので|から|ため|わけ)[^、。\n]){0,16}?(?:な[いくか](?!でしょうか|だろうか|か)|ませ\s?[んぬ]|にく[いく]|がた[いく]|難し|困難|不可能|かね|"
    r"無理|不適|誤り|間違)"
)
_SUBJECT: Final = re.compile(
    rf"{_CLOSERS}(?:の(?:特徴|説明|条件|定義|内容|記述|要素|性質|様子|方|ほう)|に(?=は|も))?"
    r"(?:は|が|も|の(?:方|ほう)|こそ|のみ|だけ|と(?=は)|[:.、,→=(–—-]|(?<=\)\s)|(?=[最正適案○◯×✓✔✅✗✘❌])|"
    r"(?<=\s)(?=(?:is|are|was|would|should|seems|appears|looks|might|may|could|can|fits|matches|best)\b))"
)
_NOT_A_TOPIC: Final = r"(?!\s?(?:の[はが]|選択肢[はを]|答え[はを]|もの[はを]|とは|なのは|な選択肢|なもの))"
#: "A: no. B: yes."
_MARKED: Final = re.compile(r"[\s=(–—-]*(?:(?P<yes>yes|y)|(?P<no>no|n))(?=\s*(?:[).,;|\n–—-]|$))", re.IGNORECASE)
_JUDGEMENT: Final = re.compile(
    rf"(?P<yes>(?:誤り|間違い)で\s?は\s?な|正し\s?い{_NOT_A_TOPIC}|正解(?!\s*[はが:]|で\s?は\s?な)|"
    rf"(?<!不)(?:適切|適当|最適|妥当)(?!で\s?は?\s?な){_NOT_A_TOPIC}|[当あ](?:て|)はま(?:る|り(?!ませ))|"
    r"ふさわしい|最も\w{0,4}(?:考えら|疑わ)れ(?!な|ませ)|(?:該当|一致|合致)(?:す|し(?!な|ませ|て(?:いな|いませ|おら|おりませ)))|"
    r"答え(?![はが:]|で\s?は?\s?な)|[○✓✔✅◯]|選[びぶ択]|"
    r"\bnot (?:be )?(?:wrong|incorrect|false)\b|\b(?:more|most) (?:likely|plausible|suitable|appropriate|fitting|"
    r"accurate|reasonable|consistent|convincing|probable)\b|\bbetter\b(?! known)|"
    r"\b(?:correct|right|best|answer|true|appropriate|accurate|matches|fits|consistent|preferable)\b)|"
    r"(?P<no>誤|間違|違[いうっ]|不(?:適|正解|十分|可能|一致)|除外|正し\s?く\s?(?:な|あり)|"
    r"(?:適切|適当|最適|妥当|正解|正答|答え)で\s?は?\s?(?:な|あり)|(?:該当|一致|合致|関係|存在)(?:し(?:な|ませ|て(?:いな|いませ|おら|おりませ))|な)|"
    r"[当あ]て?はまら|[当あ]て?はまりませ|ふさわしく|[×✗✘❌]|否定的|あり(?:得|え)な|考えにく|異な|ではありま|ではない|"
    r"(?:見られ|見え|含まれ|選べ|選ば|選び|選択でき|選択し)(?:な|ませ)|"
    r"と(?:は|も)?(?:言え|いえ|言い切れ|言いきれ|いい切れ|限ら|限り|思え|思わ|思い|断定でき|断言でき|判断でき|考えられ)(?:な|ませ)|とは言え|"
    r"\b(?:incorrect|wrong|false|not|cannot|eliminated?|exclude[ds]?|unlikely|inaccurate|irrelevant|nor|hardly|never|"
    r"unclear|uncertain|doubtful|questionable|"
    r"rul(?:e|es|ed|ing) (?:it )?out)\b|n['’]t\b)",
    re.IGNORECASE,
)
#: English words that deny what is near them, and so a letter only where it is near.
_BARE: Final = frozenset(("not", "n't", "n’t", "cannot", "never", "hardly"))
_REACH: Final = 25
#: Behind "not": what it then denies is the letter, even after a comma.
_OF_IT: Final = re.compile(
    r" (?:a |the |really |quite )?(?:correct|right|answer|true|possible|likely|suitable|match|fit)"
)
#: Words in brackets between a letter and what is said of it: "A (noh mask): no".
_ASIDE: Final = re.compile(r"\s?\([^()\n]{1,40}\)(?=\s?[:はがもでじをとに以だの]| (?:is|was|can|does|seems)\b)")
#: Behind an English verdict: what it is about to be taken back with.
_HOWEVER: Final = re.compile(r"\b(?:but|however|yet|although)\b.*", re.IGNORECASE | re.DOTALL)
#: Where a clause ends, or turns to something else than its letter.
_CLAUSE_END: Final = re.compile(
    r"[。\n;!?]|\.(?:\s|$)|しかし|一方|なお|なぜなら|理由|他|ほか|残り|それ以外|\b(?:others?|because|since|while|whereas|rest)\b",
    re.IGNORECASE,
)

#: "not" at the end of what stands between two letters is said of the second: "C, not A".
_OF_THE_NEXT: Final = re.compile(r"\b(?:not|nor|no|never)(?: an?| the)?\s*[(\"'“]?$", re.IGNORECASE)


def said_behind(text: str) -> str | None:
    """What the clause at the beginning of ``text``, behind a letter, says of it: YES, NO, UNSURE or None.

    In Japanese the last word decides, in English the first: "is not correct" is a denial, "is correct, the others are
    not" none.

    >>> [said_behind(text) for text in ("が正しい。", ")は誤り", "ではなく", " is wrong", "です。", "なら", "の")]
    ['yes', 'no', 'no', 'no', 'yes', 'unsure', None]
    >>> [said_behind(text) for text in ("かどうか不明", "を選ぶことはできません", "しか考えられません", "とは限らない")]
    ['unsure', 'no', 'yes', 'no']
    """
    if not text or text.isspace():
        return None
    if aside := _ASIDE.match(text):
        text = text[aside.end() :]
    if not text.isascii():
        text = _EMPHASIS.sub("です", text)
    if _DENIAL.match(text) or _ABSENT.match(text):
        return NO
    clause = _CLAUSE_END.split(text, maxsplit=1)[0]
    if _SUPPOSITION.match(text) or _QUESTION.search(clause) or is_conceded(text):
        return UNSURE
    if _TAKEN_BACK.match(clause):
        return NO
    if _STATEMENT.match(text):
        return YES
    subject = _SUBJECT.match(text)
    if not subject:
        return None
    if marked := _MARKED.match(text, subject.end()):
        return YES if marked["yes"] else NO
    rest = text[subject.end() :]
    clause = _CLAUSE_END.split(rest, maxsplit=1)[0]
    if len(clause) == len(rest):
        clause = _OF_THE_NEXT.sub("", clause)
    return _judgement(clause, subject[0][-1:])


def _judgement(clause: str, mark: str) -> str | None:
    """What a clause says; ``mark`` is the character before it."""
    verdict = None
    for each in _JUDGEMENT.finditer(clause):
        if each[0].lower() in _BARE and not _denies(clause, each, mark):
            continue
        verdict = YES if each["yes"] else NO
        if each[0].isascii():
            turn = _HOWEVER.search(clause, each.end()) if verdict == YES else None
            return NO if turn and _judgement_of(turn[0]) == NO else verdict
    return verdict


def _denies(clause: str, found: re.Match[str], mark: str) -> bool:
    """Whether a bare "not" is said of the letter before the clause: "B is printed, not carved" denies nothing of B."""
    before = (mark + clause[: found.start()]).rstrip()
    contrast = before.endswith((",", "(", "–", "—", "-", "and")) and not _OF_IT.match(clause, found.end())
    return found.start() <= _REACH and not contrast


def _judgement_of(clause: str) -> str | None:
    found = _JUDGEMENT.search(clause)
    return found and (YES if found["yes"] else NO)


#: A reply, or a sentence, that says that it has no answer.
REFUSAL: Final = (
    r"お答え(?:する(?:こと)?は?)?(?:でき|致しかね|いたしかね|しかね)|答えられ(?:ません|ない)|"
    r"(?:回答|解答|判断|特定|認識|確認|判別|分析|提供|支援|お手伝い|答える(?:こと)?)(?:する)?(?:こと)?[はがを]?"
    r"(?:でき(?:ません|ない|かね)|不可能|困難|難しい)|"
    r"(?:画像|図|写真)が(?:見え|表示され|添付され|提供され|あり)(?:ません|ていません|ない)|"
    r"\bas an ai\b|\b(?:i (?:can(?:no|')t|cannot|can not|could not|couldn't)|(?:i'?m|i am) unable to) "
    r"(?:assist|help|answer|determine|provide|identify|process|comply|(?:see|view|access)"
    r"(?= (?:the |any |an? |this |that |your )?(?:image|picture|photo|figure|graph|attachment|file|it\b)|"
    r"\s*(?:[.,!]|$)))"
)
_REFUSAL: Final = re.compile(REFUSAL, re.IGNORECASE)
#: Words that go on to an answer for all that.
_STILL: Final = re.compile(
    r"が、|けれど|けど|しかし|ただ|もの[の、]|とはいえ|推測|一般|"
    r"\b(?:but|however|still|nevertheless|based on|although|if i|guess)\b",
    re.IGNORECASE,
)


def refuses(text: str) -> bool:
    """Whether a text says that it has no answer, and nothing in it goes on for all that.

    >>> refuses("画像を認識できません。"), refuses("I cannot see it clearly, but"), refuses("能面")
    (True, False, False)
    """
    ends = [found.end() for found in _REFUSAL.finditer(text.replace("’", "'"))]
    return bool(ends) and not _STILL.search(text, ends[-1])
