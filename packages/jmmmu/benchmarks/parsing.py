"""Both parsers of multiple-choice replies against the one that lmms-eval installs, on the same replies.

The replies are those of a model that was asked for the letter alone: of 100, 70 are a bare letter, 14 a letter in other
clothes or with its option, 9 a sentence that states it, 4 a reply that explains itself, 3 a refusal. The sides run in
turn; lmms-eval's is there where its Python runs this script, and left out elsewhere.

    python packages/jmmmu/benchmarks/parsing.py [--quick] [--rounds N]

Microseconds are of the processor, the fewest of all rounds. The last line is one JSON object with every figure.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from paperhooks_jmmmu.answers import parse_choice, parse_choice_robust

#: Kind of reply to how many of 100, and its forms.
MIXTURE: Final[dict[str, tuple[int, tuple[str, ...]]]] = {
    "bare": (70, ("{x}",)),
    "clothed": (14, ("{x}.", "({x})", "**{x}**", "{x}. {option}", "{x}) {option}", "「{x}」", "{x}です。")),
    "sentence": (9, (
        "答えは{x}です。", "正解は「{x}」です。", "The answer is {x}.", "選択肢{x}が正しい。",
        "正解は({x}) {option}です。", "画像から判断すると{x}が最も適切です。",
    )),
    "explained": (4, (
        "図を見ると、{option}の特徴があることがわかります。他の選択肢は当てはまりません。\n\nしたがって、正解は{x}です。",
        "The picture shows what is typical of {option}. The others do not fit.\n\n**Answer: {x}**",
    )),
    "refused": (3, ("申し訳ありませんが、お答えできません。", "画像を確認できません。", "I'm sorry, I cannot tell.")),
}  # fmt: skip
OPTIONS: Final = (
    ("能面", "浮世絵", "枯山水", "漆器"), ("12", "24", "36", "48"), ("増加する", "減少する", "変わらない"),
    ("Photosynthesis", "Osmosis", "Diffusion", "Respiration", "Fermentation"), ("図1", "図2", "図3", "図4"),
)  # fmt: skip

Case = tuple[str, tuple[str, ...]]
Parser = Callable[[str, Sequence[str]], Any]


def replies(count: int) -> dict[str, list[Case]]:
    """Replies with their options by kind, as many of each as the mixture says."""
    generator = random.Random(0)
    made: dict[str, list[Case]] = {}
    for kind, (share, forms) in MIXTURE.items():
        made[kind] = []
        for _ in range(count * share // 100):
            options = generator.choice(OPTIONS)
            number = generator.randrange(len(options))
            told = {"x": "ABCDE"[number], "option": options[number]}
            made[kind].append((generator.choice(forms).format(**told), options))
    return made


def both(response: str, options: Sequence[str]) -> None:
    """As a run with all modes reads a reply."""
    parse_choice(response, options)
    parse_choice_robust(response, options)


def installed() -> Parser | None:
    """lmms-eval's parser, with what its task gives it; None where it is not installed."""
    try:
        from lmms_eval.tasks.jmmmu.utils import parse_multi_choice_response
    except ImportError:
        return None

    def parse(response: str, options: Sequence[str]) -> Any:
        letters = [chr(ord("A") + number) for number in range(len(options))]
        return parse_multi_choice_response(response, letters, dict(zip(letters, options, strict=True)))

    return parse


def microseconds(parse: Parser, cases: Sequence[Case]) -> float:
    begin = time.process_time()
    for response, options in cases:
        parse(response, options)
    return (time.process_time() - begin) / len(cases) * 1e6


def measure(sides: dict[str, Parser], cases: Sequence[Case], rounds: int) -> dict[str, float]:
    """The fewest microseconds a reply, by side; the sides in turn."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, parse in sides.items():
            times[name].append(microseconds(parse, cases))
    return {name: min(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer replies and rounds")
    parser.add_argument("--rounds", type=int, help="rounds (default: 15, quick: 3)")
    options = parser.parse_args()
    count, rounds = (1000, 3) if options.quick else (10_000, 15)
    rounds = options.rounds or rounds
    theirs = installed()
    sides: dict[str, Parser] = {"official": parse_choice, "robust": parse_choice_robust, "both": both}
    sides |= {"lmms_eval": theirs} if theirs else {}
    figures: dict[str, Any] = {"quick": options.quick, "rounds": rounds, "replies": count}
    made = replies(count)
    print(f"microseconds a reply\n{'':<10} {'share':>6}" + "".join(f"{name:>11}" for name in sides))
    for kind, cases in {**made, "all": [case for each in made.values() for case in each]}.items():
        found = measure(sides, cases, rounds)
        print(f"{kind:<10} {len(cases) / count:>6.0%}" + "".join(f"{found[name]:>11.2f}" for name in sides), flush=True)
        figures |= {f"{name}_us_{kind}": round(value, 2) for name, value in found.items()}
    if theirs:
        figures["ratio"] = round(figures["both_us_all"] / figures["lmms_eval_us_all"], 3)
    else:
        print("lmms-eval is not installed beside this Python: no ratio")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
