"""The demo: what makes a small language model follow worked solutions, found with sixteen texts and removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from paperhooks.authoring import DemoContext
from paperhooks.errors import require

from paperhooks_mathneuro.experiment.effects import Effects
from paperhooks_mathneuro.experiment.protocol import study
from paperhooks_mathneuro.experiment.results import ISOLATED
from paperhooks_mathneuro.surgery import apply

__all__ = ["load_demo", "run"]

_RATIO = 0.05
_LONGEST = 420
_CONTROLS = ("reversed", "random")
_SIDES = ("maths", "prose")


def load_demo(n: int, seed: int = 0) -> tuple[Any, Any, list[Any], list[Any]]:
    """SmolLM2-135M-Instruct, its tokenizer, ``n`` word problems and ``n`` paragraphs of prose.

    Raises MissingExtra when paperhooks-testbed is not installed, or what it needs for these.
    """
    testbed = require("paperhooks_testbed", "paperhooks-mathneuro[demo]", "to run the demo")
    maths = [{"question": p.question, "answer": p.solution} for p in testbed.problems(20 * n, seed=seed)]
    maths = [one for one in maths if len(one["question"] + one["answer"]) <= _LONGEST][:n]
    prose: list[Any] = []
    for document in testbed.documents(domain="topics"):
        blocks = (" ".join(block.split()) for block in document.text.split("\n\n"))
        prose += [block for block in blocks if 150 <= len(block) <= _LONGEST and block[0].isalpha()]
    model, tokenizer = testbed.load_smollm2()
    return model, tokenizer, maths, prose[:: max(1, len(prose) // n)][:n]


def run(context: DemoContext) -> None:
    """Identify, prune with two controls, and write report.html."""
    samples, items = (4, 4) if context.quick else (8, 8)
    model, tokenizer, maths, prose = load_demo(samples + items, context.seed)
    context.echo(f"{samples} word problems against {samples} paragraphs, measured on {items} others a side")
    _clear(context.out)
    found = study(
        model, maths, prose, context.out, tokenizer=tokenizer, names=_SIDES, ratios=[_RATIO],
        samples=samples, items=items, control_names=_CONTROLS, splits=1, seed=context.seed, progress=False,
    )  # fmt: skip
    effects = found.effects[_RATIO]
    context.echo(f"{'set at zero':<12} {'entries':>9} {'maths':>8} {'prose':>8}   (change of the NLL, nats a token)")
    for one in effects.edited:
        changes = " ".join(f"{_mean(effects, one.selection, side):>+8.3f}" for side in found.sides)
        context.echo(f"{one.selection:<12} {one.share:>9.2%} {changes}")
    _show(context, model, tokenizer, maths[0]["question"], found.selections[_RATIO, 0])
    context.echo("So few texts only show how it looks; paperhooks claims mathneuro has the measured figures.")
    context.echo(f"report: {context.out / 'report.html'}")


def _clear(out: Path) -> None:
    """A demo is made anew every time: take away what an earlier one left, and nothing else."""
    for pattern in ("result.json", "effects-*.json", "selection-*.safetensors"):
        for file in out.glob(pattern):
            file.unlink()
    for side in _SIDES:
        for file in [*(out / side).glob("**/*.safetensors"), out / side / "manifest.json"]:
            file.unlink(missing_ok=True)


def _mean(effects: Effects, selection: str, side: str) -> float:
    return float(effects.deltas(effects.find(selection, 0.0), side).mean())


def _show(context: DemoContext, model: Any, tokenizer: Any, question: str, selection: Any) -> None:
    """One answer before, with the entries at zero, and after."""
    inputs = tokenizer(f"Question: {question}\n\nAnswer: Let's think step by step.", return_tensors="pt")

    def answer() -> str:
        out = model.generate(**inputs, max_new_tokens=32, do_sample=False)
        return " ".join(tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).split())

    before = answer()
    with apply(model, selection, 0.0):
        pruned = answer()
    context.echo(
        f"before: {before}\n{ISOLATED} at zero: {pruned}\nundone: {'the same' if answer() == before else 'other'}"
    )
