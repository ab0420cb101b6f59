"""What pairs of installed methods do together, tried on tiny models: ``python tests/composition.py --write``.

Every ordered pair of methods that act while a model runs is attached to a tiny LLaVA. Where their ``writes`` exclude
each other, attaching must be refused; elsewhere every check below must hold. The table goes into README.md and
docs/compose.md, between ``<!-- paperhooks-composition:... -->`` marks; a test holds it to what is installed.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from paperhooks import PluginConflict, attach
from paperhooks.hooks import CHAINED
from paperhooks.plugins import catalog, implemented_hooks, method_options, replace_between_markers
from paperhooks.testing import fingerprint, tiny_vlm, vlm_inputs

ROOT = Path(__file__).resolve().parent.parent
MARKER = "paperhooks-composition"
FILES = ("README.md", "docs/compose.md")
EXCLUSIVE = ("objective", "positions")
#: Options of the second method of a pair, where it has them: so that two that drop tokens do so at layers of their own.
SECOND = {"stages": {3: 0.4, 5: 0.2}}
PARTS = ((3, 16, 5), (2, 16, 2), (6,))


def runtime_methods() -> list[str]:
    """Addresses of the installed methods that act while a model runs: those with hooks inside its forward."""
    addresses = [f"{status.name}/{method}" for status in catalog().healthy for method in status.info.methods]
    return [name for name in addresses if CHAINED & set(implemented_hooks(catalog().method_class(name)))]


def make(name: str, second: bool = False) -> Any:
    """A method with its default options, or as the second of a pair."""
    known = method_options(catalog().method_class(name)) if second else ()
    return catalog().create_method(name, **{option: value for option, value in SECOND.items() if option in known})


def excluded(one: Any, two: Any) -> str:
    """Why the two exclude each other in this order; empty where they do not."""
    common = [write for write in EXCLUSIVE if write in one.traits.writes and write in two.traits.writes]
    if common:
        return f"both set {common[0]}"
    counts = {"tokens", "positions"} <= one.traits.writes
    return "drops where positions were counted" if counts and "tokens" in two.traits.writes else ""


def prompts(model: Any, rows: slice = slice(None), pad: str = "left") -> dict[str, Any]:
    """A ragged batch of two prompts with an image each and one of text, or some of its rows."""
    return vlm_inputs(model, PARTS, rows=rows, pad=pad)


def generate(model: Any, inputs: dict[str, Any], **options: Any) -> list[list[int]]:
    """Four greedy tokens after each prompt, no image tokens among them."""
    given = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "suppress_tokens": [95], **options}
    out = model.generate(**inputs, **given)
    return out[:, inputs["input_ids"].shape[1] :].tolist()


def model() -> Any:
    """The tiny LLaVA of all checks, in which every image has 16 tokens."""
    return tiny_vlm("llava", layers=8)


# -- checks: each returns whether it holds for two attached methods ---------------------------------------------------


def rows_are_independent(attached: Any, _: list[Any]) -> bool:
    """Every row of a batch generates what it generates alone."""
    alone = [generate(attached, prompts(attached, slice(r, r + 1)))[0] for r in range(len(PARTS))]
    return generate(attached, prompts(attached)) == alone


def decoding_uses_the_cache(attached: Any, _: list[Any]) -> bool:
    """Decoding over a cache gives the tokens of computing all anew at every step."""
    options = {"max_new_tokens": 8, "min_new_tokens": 8}
    return generate(attached, prompts(attached), **options) == generate(
        attached, prompts(attached), use_cache=False, **options
    )


def beams(attached: Any, methods: list[Any]) -> bool | None:
    """Beam search gives every row what it gives alone; None where a method does not declare it."""
    if not all(m.traits.beams for m in methods):
        return None
    alone = [generate(attached, prompts(attached, slice(r, r + 1)), num_beams=2)[0] for r in range(len(PARTS))]
    return generate(attached, prompts(attached), num_beams=2) == alone


def gradients(attached: Any, methods: list[Any]) -> bool | None:
    """Gradients reach the decoder and are finite; None where a method does not declare training."""
    if not all(m.traits.training for m in methods):
        return None
    inputs = prompts(attached, pad="right")
    labels = inputs["input_ids"].masked_fill((inputs["attention_mask"] == 0) | (inputs["input_ids"] == 95), -100)
    attached.train()
    attached(**inputs, labels=labels, use_cache=False).loss.backward()
    attached.eval()
    found = [p.grad for p in attached.get_decoder().parameters() if p.grad is not None]
    attached.zero_grad(set_to_none=True)
    return bool(found) and all(bool(torch.isfinite(g).all()) for g in found)


def repeats_itself(attached: Any) -> bool:
    """Whether the same forward gives the same logits twice; what draws at random does not."""
    with torch.no_grad():
        one, two = (attached(**prompts(attached)).logits for _ in range(2))
    return torch.equal(one, two)


CHECKS: dict[str, Callable[[Any, list[Any]], bool | None]] = {
    "batch = rows": rows_are_independent,
    "cached decoding": decoding_uses_the_cache,
    "beams": beams,
    "gradients": gradients,
}


def together(one: Any, two: Any) -> dict[str, bool | None]:
    """Every check with both attached, and whether detaching left the model as it was."""
    plain = model()
    tokens = generate(plain, prompts(plain))
    before = fingerprint(plain)  # transformers installs its own recorders at the first forward
    with attach(plain, one, two) as session:
        steady, methods = repeats_itself(plain), list(session.methods.values())
        held = {n: check(plain, methods) if steady or check is gradients else None for n, check in CHECKS.items()}
    same = fingerprint(plain).differences(before) == [] and generate(plain, prompts(plain)) == tokens
    return {**held, "undo exact": same}


def refused(one: Any, two: Any) -> bool:
    """Whether attaching both is refused and leaves nothing behind."""
    plain = model()
    before = fingerprint(plain)
    try:
        attach(plain, one, two)
    except PluginConflict:
        return fingerprint(plain).differences(before) == []
    return False


def table() -> str:
    """The Markdown table over all ordered pairs of installed methods."""
    names = runtime_methods()
    lines = [f"| first | second | {' | '.join([*CHECKS, 'undo exact'])} |", "| --- " * (len(CHECKS) + 3) + "|"]
    for first, second in itertools.permutations(names, 2):
        one, two = make(first), make(second, second=True)
        reason = excluded(one, two)
        if reason:
            cells = [f"refused: {reason}" if refused(one, two) else "NOT REFUSED"]
            cells += [""] * len(CHECKS)
        else:
            cells = [{True: "yes", False: "NO", None: "-"}[held] for held in together(one, two).values()]
        lines.append(f"| `{_short(first)}` | `{_short(second)}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _short(address: str) -> str:
    plugin, method = address.split("/")
    return plugin if plugin == method else address


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the table into README.md and docs/compose.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    text = table()
    if not options.write:
        print(text)
    for name in FILES if options.write else ():
        path = ROOT / name
        path.write_text(replace_between_markers(path.read_text(encoding="utf-8"), MARKER, text), encoding="utf-8")
    sys.exit(1 if "| NO" in text else 0)


if __name__ == "__main__":
    main()
