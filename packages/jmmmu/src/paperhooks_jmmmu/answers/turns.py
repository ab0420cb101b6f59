"""What a reply does not say for itself, or takes back: opinions of others, first impressions, corrections.

A letter that others would choose, or that an answer seemed to be, is doubted; what stands before a correction is
withdrawn. Patterns are matched at one place, or searched in a few dozen characters around a letter; the search for
corrections is linear in the length of the reply.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

__all__ = ["CONCEDED", "is_conceded", "is_of_others", "reconsidered", "withdrawn"]

#: Where something begins that may be a correction.
_START: Final = r"(?:(?<=[。、…!?\n—–(「 ])|(?<=[.,;])|^)"
_CORRECTED: Final = re.compile(
    rf"{_START}(?:い(?:え|や(?:いや)?)(?=[、,。…!—–\s待違])|違(?:う|います)(?=[、。…!])|訂正(?=し|す|い|[:、。,])|前言|"
    r"(?:答え|回答|解答)を(?:撤回|変更|訂正|修正)|(?:考え|見)直す?(?:と|した)|再考すると|"
    r"(?:やはり|やっぱり|すみません[、。]?|失礼(?:しました)?[、。]?|あ[、。])\s?(?:間違|違[いう]|訂正)|"
    r"間違え(?:た|まし)|間違いでした|違いました|"
    r"(?:wait|hmm+|oh|sorry|hold on)[\s,.!…—–-]{1,4}(?:no\b|that(?:'s| is| was| can't| isn't)|this (?:is|isn't)|"
    r"i (?:made|misread|was|mis)|actually\b|it(?:'s| is) not|it isn't|not )|no[,.]? wait\b|on second thoughts?\b|"
    r"scratch that\b|(?:strike|ignore|disregard) that\b|i take (?:that|it) back|i stand corrected|"
    r"i (?:was|am) (?:wrong|mistaken)|i (?:made|have made) an? (?:mistake|error)|let me correct|correction[:,]|edit:|"
    r"my mistake|i (?:\w+ )?changed? my mind)|"
    r"(?<=か[。、])いいえ|(?<=[?])\s*(?:no(?:pe)?(?=[.,!;—–\n]|\s[^a-z])|i (?:doubt|don't)|いいえ|いや|違)",
    re.IGNORECASE,
)
#: Before all of these, and a second look; most replies end without.
_GOES_ON: Final = re.compile(r"[。、…!?\n—–(「 .,;]\s*\w")
#: A second look, which corrects an answer only where it comes to another.
_RECONSIDERED: Final = re.compile(
    r"(?:(?<=[。…!?\n])|(?<=[.;!?—–-]\s)|(?<=なお、))"
    r"(?:やはり|やっぱり|実は|実際に?は|よく見ると|改めて|しかし|"
    r"(?:but |however,? )?(?:actually|in fact|on (?:closer|further|reflection)|after (?:closer|further))\b)",
    re.IGNORECASE,
)

#: What others say, what is a common mistake, what seems so at first: in the same part of the sentence as the letter.
_SAYING: Final = (
    "answer|say|says|said|think|thinks|thought|argue|argues|believe|believes|choose|chooses|chose|pick|picks|picked|select|"
    "guess|assume|claim|claims|suggest|suggests|consider|mistake|go (?:with|for)|be (?:tempted|inclined)|confuse|expect"
)
_PEOPLE: Final = (
    r"(?:most|many|some|several|few)(?: of)?(?: (?:the |my )?[a-z]+)?|people|others|students|someone|somebody|they|"
    r"(?:my|his|her|our|the|a) (?:friend|teacher|colleague|classmate|brother|sister|mother|father|professor|tutor|"
    r"doctor|boss|son|daughter|neighbou?r|partner|student|author|internet)s?|(?:the |some )?textbooks?|"
    r"(?:one|you) (?:might|may|could)"
)
_OF_OTHERS: Final = re.compile(
    rf"(?:\b(?:(?:{_PEOPLE})(?: [a-z]+){{0,2}}? (?:{_SAYING})|"
    r"(?:common|typical|frequent|popular|easy|classic|usual) (?:[a-z]+ )?"
    r"(?:mistakes?|misconceptions?|errors?|traps?|distractors?|confusions?)|(?:tempting|easy) to "
    r"(?:choose|pick|select|say|answer|go|mistake|confuse|think|assume|be)|"
    r"(?:i|we) (?:had )?thought (?:it|that|the|this)|"
    r"according to (?!the (?:image|picture|figure|graph|photo|table|chart|diagram|data|text))|"
    r"at first (?:glance|sight)|(?:i|we) (?:had )?(?:initially|first|originally|almost|nearly|at first) [a-z]+)\b"
    r"(?:(?!\b(?:but|so|yet)\b)[^.;\n])*|\bothers(?: say| chose)?|"
    r"\b(?:if [^.;\n]*\b(?:were|was|had|did)|were|had) [^.;\n]*\bwould (?:be|have been)|"
    r"(?:(?:多く|大半|ほとんど|大抵|一部)の(?:人|方|受験|学生|生徒|回答)|人によっては|"
    r"(?:よくある|ありがちな|典型的な)(?:間違|誤|ミス)|(?:友人|友達|先生|教科書|同僚)[はがでに]|一見(?!して)|最初は|初めは|当初は)"
    r"(?:[はがもに]?[、,])?(?:(?!が[、,]|けれど|けど|ものの|ので|から|いて)[^。、\n]){0,16})$"
)
#: Letters before these words are none of others; most texts before a letter have none of them.
_MAY_BE_OF_OTHERS: Final = re.compile(
    r"[a-z]{3}|よくある|ありがち|典型|の[人方受学生回]|人に|友|先生|教科書|同僚|一見|最初|初め|当初"
)

_THOUGHT: Final = (
    r"思(?:った|って(?:い|しま)|いま(?:した))|考え(?:た|まし|てい(?:た|まし))|見え(?:る|ます|た|まし|なくもな)|"
    r"思え(?:る|ます|た)|思われ(?:る|ます)|言いた[いく]|(?:答え|選び|し)た[いく]|され(?:る|て(?:い|お)|ます)|"
    r"(?:答え|言|いわ|言わ)(?:る|う|い|え|れ)"
)
#: What was only thought, or seems so: up to the word that turns against it.
CONCEDED: Final = (
    r"(?:だ|か|である|です|なの)?か?[、,…]{0,2}(?:(?:の(?:よう)?)?に|と|く)[もは]?\s?(?:最初は|一瞬|つい)?"
    rf"(?:{_THOUGHT})[^。、\n]{{0,10}}?(?:が|けれど|けど|ものの|のに|しかし)(?![一-龥])"
)
_CLOSERS: Final = "[\\s\"'”’」』)】\\]>}〉》〕_]*"
_IS_CONCEDED: Final = re.compile(
    rf"{_CLOSERS}(?:(?:[がはを]|の(?:方|ほう)が)?\s?(?:一見)?(?:最も)?(?:正解|正し|正答|答え|適切|妥当|もっともらし)?い?"
    rf"(?:{CONCEDED}|(?:の(?:よう)|っぽい|らしい|そう)(?:だ|です|な)?の?(?:が|けれど|けど)|"
    r"だ?[とをに]\s?(?:思われ|思い|考え|見られ|され|答え|選び)(?:がち|やす)|[がをと]\s?疑(?:われ|っ|い)[^。、\n]{0,6}?(?:が|けれど|けど)|だ?[とにを]\s?(?:誤解|勘違い|混同|間違え)|"
    r"だ?[」』]?[とを]\s?(?:答え|言|選|思|考え|主張|回答|解答|述べ|推|挙げ|信じ)(?:る|う|ぶ|す|んだ|った|た|える|する|した)"
    r"(?:人|方|受験|学生|生徒|声|意見|説)|に\s?(?:惑わさ|騙さ|だまさ|引っ?かか|ひっかか)|"
    r"[^。\n「」]{0,12}[」』]\s?と\s?(?:述べ|言|い[いう]|主張|答え|語|書|発言|説明))|"
    r"(?:から|を|について)\s?(?:順に)?(?:検討|考え|見て|確認|検証|分析))"
)


def is_conceded(text: str) -> bool:
    """Whether the clause behind a letter says that it only seemed to be the answer, to the reply or to others.

    >>> [is_conceded(text) for text in ("だと思ったが、", "が正解に見えるが", "を選ぶ人が多い", "だと思いますが")]
    [True, True, True, False]
    """
    return _IS_CONCEDED.match(text) is not None


def is_of_others(text: str) -> bool:
    """Whether the words before a letter, in lower case, tell what others answer, or what is a common mistake.

    >>> [is_of_others(text) for text in ("most people would answer", "a common mistake is choosing", "i would answer")]
    [True, True, False]
    """
    return _MAY_BE_OF_OTHERS.search(text) is not None and _OF_OTHERS.search(text) is not None


def withdrawn(text: str, start: int = 0) -> int:
    """Where the last correction behind ``start`` begins: what stands before it states nothing. 0 without.

    >>> withdrawn("B. Wait, no. C"), withdrawn("答えはB。いや、C"), withdrawn("B is right.")
    (3, 5, 0)
    """
    if not _GOES_ON.search(text, start):
        return 0
    return max((found.start() for found in _CORRECTED.finditer(text.replace("’", "'"), start)), default=0)


def reconsidered(text: str, start: int = 0) -> Iterator[int]:
    """Where each second look behind ``start`` begins: "actually", よく見ると."""
    return (found.start() for found in _RECONSIDERED.finditer(text, start))
