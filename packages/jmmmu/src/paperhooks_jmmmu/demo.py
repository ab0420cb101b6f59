"""The demo: a synthetic data set, a small model that knows no Japanese, and replies of one that knows everything.

The first shows that the pipeline works and what luck alone is worth, the second what the published way of reading makes
of right answers.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import paperhooks
from paperhooks.authoring import DemoContext
from paperhooks.errors import require
from paperhooks.generation import ReplayBackend
from paperhooks.io import write_text
from paperhooks.plugins import catalog
from paperhooks.reports import Block, Heading, Paragraph, RunFolder, Table
from paperhooks_evaluation import Document

from paperhooks_jmmmu.answers import golds_of
from paperhooks_jmmmu.data import CHOICE, JAPANESE, make_sample, read_questions

if TYPE_CHECKING:
    from paperhooks import EvaluationResult
    from paperhooks_evaluation import Comparison

__all__ = ["FORMS", "known_replies", "run"]

#: How models put an answer that they know.
FORMS: Final = (
    "{}",
    "答えは「{}」です。",
    "**{}**",
    "正解は {} です。\n\n図から読み取れます。",
    "{}。",
    "\\boxed{{{}}}",
)
#: Methods that further runs attach, each where its plugin is installed.
METHODS: Final = ("pyramiddrop", "cca")
PIPELINE: Final = (
    "The pipeline works: that is all that these scores say. The questions are synthetic, and the model has a "
    "vocabulary of 62 tokens, none of them Japanese; it is made to say at least one word. What it scores are letters "
    "drawn in the place of replies without one, the same ones in every run."
)
_MODES: Final = ("official-per-question", "official-lmms-eval", "official-expected", "official-wrong", "robust-wrong")


def run(context: DemoContext) -> None:
    """Ask a small model with its own and with blank pictures, read replies of a model that knows all, report."""
    testbed = require("paperhooks_testbed", "paperhooks-jmmmu[demo]", "to run the demo")
    model, processor = testbed.load_vlm()
    model.generation_config.min_new_tokens = 1  # it has nothing to say to Japanese, and would end at once
    with RunFolder(context.out) as folder:
        _clear(context.out)
        folder.start("jmmmu-demo", inputs={"per_subject": 1 if context.quick else 3}, seed=context.seed)
        data = context.out / "data"
        make_sample(data, 1 if context.quick else 3, context.seed)
        with folder.timed("model"):
            found, compared = _asked(context, model, processor, data)
        with folder.timed("replies"):
            known = _known(context, data)
        folder.record(scores={name: _scores(one) for name, one in {**found, "knows all": known}.items()})
        html = folder.report("JMMMU on synthetic questions", _blocks(found, compared, known))
        folder.finish()
        context.echo(f"report: {html}")


def _clear(out: Path) -> None:
    """A demo is made anew every time."""
    for old in ("result.json", "report.html", "report.md", "replies.jsonl"):
        (out / old).unlink(missing_ok=True)
    for old in ("data", "own", "known", *(name for one in ("blank", *METHODS) for name in (one, f"own-{one}"))):
        shutil.rmtree(out / old, ignore_errors=True)


def _asked(
    context: DemoContext, model: Any, processor: Any, data: Path
) -> tuple[dict[str, EvaluationResult], dict[str, Comparison]]:
    short = {"max_new_tokens": 2}
    settings: dict[str, dict[str, Any]] = {
        "own": {"options": short},
        "blank": {"options": {**short, "pictures": "blank"}},
    }
    installed = catalog().method_names()
    settings |= {name: {"options": short, "methods": [name]} for name in METHODS if name in installed}
    found, compared = {}, {}
    for name, setting in settings.items():
        found[name] = paperhooks.evaluate(
            model, processor, "jmmmu", data=data, out=context.out / name, batch_size=8,
            limit=14 if context.quick else None, **setting,
        )  # fmt: skip
        context.echo(f"{name}: {found[name]}")
        if name != "own":
            compared[name] = paperhooks.compare(
                context.out / "own", context.out / name, allow=["pictures"], out=context.out / f"own-{name}"
            )
            context.echo(f"{name}: {_changed(found, name)} replies differ; {compared[name]}")
    context.echo(PIPELINE)
    return found, compared


# -- a model that knows all --------------------------------------------------------------------------------------------


def known_replies(documents: Sequence[Document]) -> list[dict[str, str]]:
    """Right answers to all questions, in :data:`FORMS`, as records with ``id`` and ``reply``."""
    replies = []
    for number, document in enumerate(documents):
        answer = document.data["answer"]
        told = answer if document.data["question_type"] == CHOICE else golds_of(answer)[0]
        replies.append({"id": document.id, "reply": FORMS[number % len(FORMS)].format(told)})
    return replies


def _known(context: DemoContext, data: Path) -> EvaluationResult:
    replies = known_replies(read_questions(str(data), JAPANESE).documents)
    file = context.out / "replies.jsonl"
    write_text(file, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in replies))
    backend = ReplayBackend(file, model="knows all")
    result = paperhooks.evaluate(backend, None, "jmmmu", data=data, out=context.out / "known")
    official, robust = (result.metric(mode=mode).value or 0.0 for mode in ("official-wrong", "robust-wrong"))
    context.echo(
        f"right answers in {len(FORMS)} forms: the official parser reads {official:.0%}, the robust {robust:.0%}"
    )
    return result


# -- the page ----------------------------------------------------------------------------------------------------------


def _scores(result: EvaluationResult) -> dict[str, float | None]:
    return {mode: result.metric(mode=mode).value for mode in _MODES}


def _told(result: EvaluationResult, mode: str) -> str:
    """A score with its interval."""
    metric = result.metric(mode=mode)
    low, high = metric.bounds
    return f"{metric.value or 0.0:.3f} [{low:.2f}, {high:.2f}]"


def _blocks(
    found: Mapping[str, EvaluationResult], compared: Mapping[str, Comparison], known: EvaluationResult
) -> list[Block]:
    n = found["own"].documents
    chance = found["own"].metric("chance").value
    rows = [
        (name, *(_told(one, mode) for mode in _MODES)) for name, one in {**found, "knows all": known}.items()
    ]  # fmt: skip
    forms = ", ".join(form.format("B").replace("\n", "⏎") for form in FORMS)
    return [
        Paragraph(f"{n} questions. Random letters score {chance:.3f}, as open questions cannot be guessed."),
        Heading("The same replies, read in five ways"),
        Paragraph(PIPELINE, "note"),
        Table(("replies of", *_MODES), rows, "With 95 % intervals. per-question, lmms-eval: letters drawn."),
        Heading("A model that knows all"),
        Paragraph(
            f"The last row are right answers to all questions, put in turn as {forms}. What the official parser does "
            "not read is scored as wrong under official-wrong, and by luck in the columns before it."
        ),
        Heading("What pictures and methods change"),
        *(
            Paragraph(f"{name}: {_changed(found, name)} replies differ from those of the run own, scores: {one}.")
            for name, one in compared.items()
        ),
        Table(
            ("run", "part", "n", "own", "with it", "difference", "low", "high", "p", "corrected p"),
            [
                (
                    name,
                    line.group or "all",
                    line.n,
                    line.a,
                    line.b,
                    line.delta,
                    line.low,
                    line.high,
                    line.p,
                    line.corrected_p,
                )
                for name, one in compared.items()
                for line in (one.overall, *(line for line in one.groups if line.grouping == "subset"))
            ],
            "Paired by question, by subset. Replies of this model are luck: the table shows what a comparison tells.",
        ),
        Paragraph("Every folder beside this page has a report of its own."),
    ]


def _changed(found: Mapping[str, EvaluationResult], name: str) -> str:
    own = {record.document.id: record.response for record in found["own"].records}
    changed = sum(record.response != own[record.document.id] for record in found[name].records)
    return f"{changed} of {len(own)}"
