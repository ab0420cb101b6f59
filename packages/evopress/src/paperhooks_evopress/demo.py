"""The demo: which attentions and MLPs a small language model can do without, found, exported and read back."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

import paperhooks
import torch
from paperhooks import Artefact
from paperhooks.authoring import DemoContext
from paperhooks.errors import require

from paperhooks_evopress.export import load_skipped, skip_list, zeroed
from paperhooks_evopress.method import EvoPress
from paperhooks_evopress.report import level_strip

__all__ = ["load_demo", "run"]

#: Attentions that are left out, and as many MLPs, of 30.
_DEPTH: Final = 3
_TEXTS: Final = 6
_TOKENS: Final = 128
_PROMPT: Final = "The capital of France is"


def load_demo() -> tuple[Any, Any, list[str]]:
    """SmolLM2-135M-Instruct, its tokenizer, and some long paragraphs.

    Raises MissingExtra when paperhooks-testbed is not installed, or what it needs for these.
    """
    testbed = require("paperhooks_testbed", "paperhooks-evopress[demo]", "to run the demo")
    model, tokenizer = testbed.load_smollm2()
    found: list[str] = []
    for document in testbed.documents(min_chars=2000, domain="topics"):
        ids = tokenizer(document.text)["input_ids"][:_TOKENS]
        if len(ids) == _TOKENS:
            found.append(tokenizer.decode(ids))
        if len(found) == _TEXTS:
            break
    return model, tokenizer, found


def run(context: DemoContext) -> None:
    """Search, show the levels, write two exports, read them back, and leave report.html."""
    model, tokenizer, texts = load_demo()
    context.echo(f"SmolLM2-135M without {_DEPTH} of its 30 attentions and {_DEPTH} of its 30 MLPs: which ones?")
    _clear(context.out)
    before = _answer(model, tokenizer)
    search = EvoPress(
        schedule="quick", generations=1 if context.quick else 3, offspring=4 if context.quick else 8,
        max_length=_TOKENS,
    )  # fmt: skip
    artefact = paperhooks.compress(
        model, search, data=texts, tokenizer=tokenizer, target=f"depth={_DEPTH}", out=context.out, seed=context.seed,
        progress=False,
    )  # fmt: skip
    for line in level_strip(artefact.data["levels"]):
        context.echo(line)
    context.echo(
        f"KL to the model itself: {artefact.data['final']:.3f} nats a token; of the first choice "
        f"{artefact.data['first']:.3f}"
    )
    context.echo(f"before: {before}\nafter:  {_answer(model, tokenizer)}")
    _export(context, model, artefact)
    artefact.undo()
    context.echo(f"undone: {'the same answer' if _answer(model, tokenizer) == before else 'another answer'}")
    context.echo("So short a search only shows how it looks; compare with: paperhooks evopress baselines")
    context.echo(f"report: {context.out / 'report.html'}")


def _export(context: DemoContext, model: Any, artefact: Artefact) -> None:
    """Two exports of the model, read back by their readers; the folders are not kept, at half a gigabyte each."""
    ids = torch.arange(100, 124)[None]
    readers = {"zeroed": (zeroed, type(model).from_pretrained), "skip list": (skip_list, load_skipped)}
    with tempfile.TemporaryDirectory(dir=context.out) as temporary, torch.no_grad():
        wanted = model(ids).logits
        for name, (write, read) in readers.items():
            # What writes would read it too, and compares; once is enough here.
            folder = write(model, artefact, Path(temporary) / name.replace(" ", "-"), verify=False)
            size = sum(file.stat().st_size for file in folder.iterdir())
            far = float((read(folder).eval()(ids).logits - wanted).abs().max())
            context.echo(f"exported {name}: {size / 1e6:.0f} MB; logits read back differ by {far:.1g} at most")
            shutil.rmtree(folder)


def _answer(model: Any, tokenizer: Any) -> str:
    """A few greedy tokens on one line."""
    inputs = tokenizer(_PROMPT, return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=16, do_sample=False)
    return " ".join(str(tokenizer.decode(out[0], skip_special_tokens=True)).split())


def _clear(out: Path) -> None:
    """A demo is made anew every time: take away what an earlier one left, and nothing else."""
    for name in ("result.json", "search.json", "artefact.safetensors", "artefact.json"):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / "database", ignore_errors=True)
