"""Methods of different plugins on one model: every ordered pair of what is installed, and of two foreign methods."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import composition
import pytest
import torch
from composition import prompts, runtime_methods
from paperhooks import PluginConflict, Traits, attach, hookimpl
from paperhooks.testing import tiny_vlm

pytestmark = pytest.mark.filterwarnings("ignore:cca. this model was not trained with CCA:UserWarning")

EVERYTHING = dict.fromkeys(("training", "compile", "beams", "assisted", "static_cache", "chunked_prefill"), True)


@dataclass(eq=False)
class Scale:
    """A third party's method: scales what every layer returns."""

    factor: float = 0.9
    traits = Traits(**EVERYTHING)

    @hookimpl
    def post_layer(self, hidden_states):
        return hidden_states * self.factor


@dataclass(eq=False)
class Lengths:
    """A third party's method: notes how many tokens every layer receives in the prefill."""

    traits = Traits(**EVERYTHING)

    def __post_init__(self) -> None:
        self.seen: dict[int, int] = {}

    @hookimpl
    def pre_attention(self, site, call, inputs):
        if call.past_length == 0:
            self.seen[site.index] = inputs.hidden_states.shape[1]


class LengthsAfter(Lengths):
    """The same under another name: a session takes each method once."""


MAKERS: dict[str, Any] = {name: (lambda name=name: composition.make(name)) for name in runtime_methods()}
MAKERS |= {"scale": Scale, "lengths": Lengths}
SECONDS = MAKERS | {name: (lambda name=name: composition.make(name, second=True)) for name in runtime_methods()}
PAIRS = list(itertools.permutations(MAKERS, 2))


def test_there_is_something_to_compose() -> None:
    assert set(MAKERS) > {"scale", "lengths"}, "no plugin with a runtime method is installed"


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=["+".join(pair) for pair in PAIRS])
def test_pairs_compose_or_are_refused_and_leave_no_trace(first: str, second: str) -> None:
    one, two = MAKERS[first](), SECONDS[second]()
    if composition.excluded(one, two):
        with pytest.raises(PluginConflict, match=r"positions|objective"):
            attach(tiny_vlm("llava", layers=8), one, two)
        assert composition.refused(one, two)
        return
    found = composition.together(one, two)
    assert {name for name, held in found.items() if held is False} == set()


def test_the_table_in_the_readme_and_the_docs_is_that_of_the_installed_methods() -> None:
    """Written by ``python tests/composition.py --write``; pairs and refusals are compared, the checks ran above."""
    lines = []
    for first, second in itertools.permutations(runtime_methods(), 2):
        reason = composition.excluded(MAKERS[first](), SECONDS[second]())
        start = f"| `{composition._short(first)}` | `{composition._short(second)}` | "
        lines.append(start + (f"refused: {reason}" if reason else ""))
    for name in composition.FILES:
        text = (composition.ROOT / name).read_text(encoding="utf-8")
        shown = text.split(f"<!-- {composition.MARKER}:start -->")[1].split(f"<!-- {composition.MARKER}:end -->")[0]
        rows = shown.strip().splitlines()[2:]
        assert len(rows) == len(lines), f"{name}: run python tests/composition.py --write"
        assert all(row.startswith(line) for row, line in zip(rows, lines, strict=True)), name
        assert sum("refused" in row for row in rows) == sum("refused" in line for line in lines)
        assert "| NO" not in shown


@pytest.mark.parametrize("name", runtime_methods())
def test_a_method_that_changes_nothing_changes_nothing_beside_another(name: str) -> None:
    model = tiny_vlm("llava", layers=8)

    def logits(*methods: Any) -> torch.Tensor:
        with attach(model, *methods), torch.no_grad():
            return model(**prompts(model)).logits

    alone = logits(MAKERS[name]())
    assert torch.equal(logits(Scale(1.0), MAKERS[name]()), alone)
    assert torch.equal(logits(MAKERS[name](), Scale(1.0)), alone)


@pytest.mark.parametrize("name", [name for name in runtime_methods() if "tokens" in MAKERS[name]().traits.writes])
def test_the_order_decides_what_the_other_method_sees(name: str) -> None:
    """At one layer the methods run left to right: a method after a selecting one sees what is left."""
    model = tiny_vlm("llava", layers=8)
    after, before = LengthsAfter(), Lengths()
    with attach(model, before, MAKERS[name](), after), torch.no_grad():
        model(**prompts(model))
    assert min(after.seen.values()) < max(after.seen.values())
    assert any(after.seen[layer] < before.seen[layer] for layer in after.seen)
    assert all(after.seen[layer] <= before.seen[layer] for layer in after.seen)
