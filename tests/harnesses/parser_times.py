"""lmms-eval's own parser of JMMMU and both of ours on the same replies: where letters differ, and seconds of a pass.

Run by the Python of lmms-eval's environment: ``parser_times.py CASES.json``; prints JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.tasks.jmmmu.utils import parse_multi_choice_response
from paperhooks_jmmmu.answers import parse_choice, parse_choice_robust

Case = tuple[str, Sequence[str]]


def official(response: str, options: Sequence[str]) -> Any:
    """Their letter; None where they would draw one."""
    letters = [chr(ord("A") + number) for number in range(len(options))]
    return parse_multi_choice_response(response, letters, dict(zip(letters, options, strict=True)))


def both(response: str, options: Sequence[str]) -> Any:
    """The letter of the parser that agrees with theirs, after that of the other one."""
    parse_choice_robust(response, options)
    return parse_choice(response, options).letter


def seconds(parse: Callable[[str, Sequence[str]], Any], cases: Sequence[Case]) -> float:
    begin = time.perf_counter()
    for response, options in cases:
        parse(response, options)
    return time.perf_counter() - begin


def main(file: str) -> None:
    stored = json.loads(Path(file).read_text(encoding="utf-8"))
    cases = [(case["response"], stored["docs"][case["doc"]]["options"]) for case in stored["cases"]]
    random.choice = lambda letters: None  # type: ignore[assignment, misc]
    differ = [response for response, options in cases if official(response, options) != both(response, options)]
    times = [(seconds(official, cases), seconds(both, cases)) for _ in range(9)]
    theirs, ours = (min(each) for each in zip(*times, strict=True))
    print(json.dumps({"cases": len(cases), "differ": differ, "official": theirs, "ours": ours, "ratio": ours / theirs}))


main(*sys.argv[1:])
