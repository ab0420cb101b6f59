"""Running evaluation tasks on a model, with or without methods attached, and scoring their responses again.

A run folder holds ``result.json`` (what determines the responses), ``samples.jsonl`` (one line a response),
``documents.jsonl``, ``results.json`` (the figures; a superset of what lm-eval and lmms-eval write), ``scores.csv`` and
a report. Killing the process loses at most the batch that was being answered; calling again with the same arguments
goes on, also where the data were moved. ``limit``, ``groups``, ``modes``, ``batch_size`` and a task's options that
change scores only may change from call to call.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from paperhooks.errors import DataError, PluginNotFound
from paperhooks.generation import BATCH_TOKENS, Asker, Backend, check_shard, replicas
from paperhooks.info import TaskInfo
from paperhooks.io import FolderLock, Ranks, hash_json, plain
from paperhooks.plugins import catalog
from paperhooks.reports import RunFolder

from paperhooks_evaluation.answers import TaskLedger, notify
from paperhooks_evaluation.plan import AskOptions, Plan, ask_options, check_numbers, share
from paperhooks_evaluation.report import write_report
from paperhooks_evaluation.result_files import (
    CHECKED_FILES,
    checked_file,
    content_digest,
    is_whole,
    open_evaluation,
    write_results,
)
from paperhooks_evaluation.results import EvaluationResult, EvaluationRun
from paperhooks_evaluation.samples import SampleFile, read_documents, total_cost, write_documents
from paperhooks_evaluation.scoring import check_modes, score_mode
from paperhooks_evaluation.stored_replies import check_answering
from paperhooks_evaluation.task import Document, Task, available_tasks, load_task

__all__ = ["ModelLoader", "evaluate", "rescore"]

log = logging.getLogger("paperhooks.evaluation")

#: What a run leaves behind; moved away together by ``force_new``.
_FILES = (
    "result.json",
    "results.json",
    "samples*.jsonl",
    "documents.jsonl",
    "scores.csv",
    "leaderboard.*",
    "report.*",
    "*.svg",
    "*.png",
)


@dataclasses.dataclass(frozen=True, slots=True)
class ModelLoader:
    """In the place of a model: gives model (or backend) and processor once all else has been checked."""

    load: Callable[[], tuple[Any, Any]]


def evaluate(
    model: Any,
    processor: Any,
    task: str | TaskInfo | Task,
    *,
    data: str | Path,
    out: str | Path,
    methods: Sequence[Any] = (),
    options: Mapping[str, Any] | None = None,
    modes: Sequence[str] | None = None,
    limit: int | None = None,
    limit_per: str | None = None,
    groups: Sequence[str] | None = None,
    batch_size: int = 1,
    batch_tokens: int | None = None,
    layout: str | None = None,
    max_pixels: int | None = None,
    max_new_tokens: int | None = None,
    stop: Sequence[str] | None = None,
    seed: int = 0,
    shard: tuple[int, int] | None = None,
    keep_reasoning: bool = False,
    observers: Sequence[Any] = (),
    force_new: bool = False,
    report: bool = True,
    progress: bool = False,
    image_memory: int = 512,
) -> EvaluationResult:
    """Ask a model the documents of a task and score its responses.

    Documents whose request or response fails are recorded, counted and tried again by the next call.

    What can be checked without a model is checked first: task, options, data, layout and folder.

    :param model, processor: a transformers model and its processor (a tokenizer for text-only tasks); the model may be
        attached already. Or a :class:`paperhooks.generation.Backend` and None, or a :class:`ModelLoader` and None.
    :param task, options: name of a task that a plugin offers, or its TaskInfo, with options; or a
        :class:`paperhooks_evaluation.Task`.
    :param data: what the task takes: a folder, a file, a name on the hub.
    :param methods: plugin names or method instances to attach for the run, as in :func:`paperhooks.attach`.
    :param modes: ways of reading responses, the first one for the headline; all of the task's by default.
    :param limit, limit_per: only the first documents; with ``limit_per="subject"`` the first of each group of this
        grouping, and of those that are of none.
    :param groups: documents of these groups only: ``["subset=CA"]``, or ``["CA"]`` where one grouping alone has such a
        group. Of several, those of one grouping are taken together, and a document has to be of one group of each
        grouping that is named.
    :param batch_size, batch_tokens: how many documents are asked at a time at most, and how many tokens their prompts
        may have with padding (the longest prompt times the documents, image tokens included; 16,384 without it), so
        that a long one among short ones is asked apart.
    :param layout, max_pixels: where images go: ``"prepend"``, ``"interleave"``, ``"joined"`` or ``"text-only"`` (see
        :mod:`paperhooks.generation.layouts`; the task's default without one), and to how many pixels larger ones are
        scaled.
    :param max_new_tokens, stop: instead of the task's own. ``stop=["\\n\\n"]`` is what lmms-eval adds to tasks that
        name no stop string.
    :param seed: recorded with the run. Answers are greedy and draw nothing.
    :param shard: ``(index, count)``: answer only the documents whose id hashes to this share. Without it, the processes
        of an initialised ``torch.distributed`` share the documents, by replicas of the model: those that hold one
        together by tensor parallelism answer the same ones.
    :param keep_reasoning: read responses with the reasoning that a model wrote in tags in front of its answer; by
        default the answer is read alone. Both are stored, so that :func:`rescore` can read them the other way.
    :param observers: objects with any of ``started(run)``, ``sample(record)``, ``finished(result)``.
    :param force_new: begin anew; what the folder holds goes to a sub-folder ``previous-N``.
    :param report: whether to write a report with figures.
    :param progress: show one line on a terminal: done and total, rate, running score.
    :param image_memory: MiB that images may take which are opened ahead of the model, or remembered since several
        documents show them; those of the batch that is asked come on top. A task's requests have to hold
        :class:`paperhooks.io.Picture` for that; of those that it opens itself, fewer are made ahead.
    :raises DataError: data, options or a folder that cannot be used.
    """
    check_shard(shard)
    check_numbers(batch_size=batch_size, batch_tokens=batch_tokens, limit=limit, image_memory=image_memory)
    check_numbers(max_pixels=max_pixels, max_new_tokens=max_new_tokens)
    ranks = Ranks(alone=shard is not None)
    plan = ranks.agreed(lambda: Plan.make(task, options, modes, str(data), groups, limit, keep_reasoning, limit_per))
    asking = ask_options(plan.task, layout, max_pixels, max_new_tokens, stop)
    if isinstance(model, Backend):
        _backend(model, processor, methods)  # refuses what does not go with one
    made = [catalog().create_method(one) if isinstance(one, str) else one for one in methods]
    inputs = plan.inputs() | plain(dataclasses.asdict(asking))
    batch = batch_size, batch_tokens or BATCH_TOKENS, image_memory
    launch = "" if shard is None else f"{shard[1]} shards"
    with RunFolder(out) as run:
        if not force_new:
            ranks.agreed(lambda: _check_folder(run, inputs, seed, launch))
        backend = ranks.agreed(lambda: _backend(model, processor, made))
        ranks.agreed(lambda: check_answering(backend, plan))
        ranks = replicas(backend, shard, "document") or ranks
        share_of = shard or ranks.shard
        _started(run, ranks, inputs | dict(backend.describe()), seed, launch, force_new)
        # All have read before one writes: processes that hold one replica together have the same left to ask.
        file = ranks.agreed(lambda: SampleFile(run.path, run.result["inputs_hash"], share_of, writes=ranks.leader))
        ranks.agreed(lambda: _ask(plan, backend, run, asking, file, ranks, share_of, batch, observers, progress))
        ranks.agreed(lambda: _read_again(file, share(plan.wanted, share_of)))
        result = ranks.agreed(lambda: _finish(plan, run, file, backend.about(), report, writes=ranks.first))
    if ranks.first:
        notify(observers, "finished", result)
    return result


def rescore(
    out: str | Path,
    task: str | TaskInfo | Task | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    modes: Sequence[str] | None = None,
    keep_reasoning: bool | None = None,
    report: bool = True,
) -> EvaluationResult:
    """Score the responses of a run again, with other modes or a repaired task; needs neither model nor images.

    Rewrites ``results.json``, ``scores.csv`` and the report.

    :param task: without it, the run's own; it must have the name of that.
    :param options: options that change scores only; others are as the run was made, and so are these where they are
        not given. A task that is given by name or not at all takes them.
    :param keep_reasoning: see :func:`evaluate`; without it, as the run was scored last.
    :raises DataError: when the folder holds no evaluation, or one of another task, or an option changes responses.
    """
    run = open_evaluation(out)
    recorded = run.result["inputs"]
    if task is None:
        task = _recorded_task(recorded)
    if not isinstance(task, Task):
        options = {**recorded["options"], **run.result["results"]["scoring"], **(options or {})}
    name, loaded = load_task(task, options)
    if name != recorded["task"]:
        raise DataError(f"{out} holds a run of the task {recorded['task']!r}, not {name!r}")
    _check_responses_hold(loaded, recorded["options"])
    chosen = check_modes(name, loaded, modes)
    with run:
        run.start("evaluate", inputs=recorded, seed=run.result["seed"])
        known = run.result["results"]
        documents = read_documents(checked_file(run, "documents.jsonl"))
        kept = known["reasoning"]["kept"] if keep_reasoning is None else keep_reasoning
        plan = Plan(name, loaded, chosen, known["data"]["source"], documents, documents, known["data"], kept)
        file = SampleFile(run.path, run.result["inputs_hash"])
        file.require_all(document.id for document in documents)
        return _finish(plan, run, file, known["about"], report, writes=True)


# -- the steps of a run ------------------------------------------------------------------------------------------------


def _check_folder(run: RunFolder, inputs: Mapping[str, Any], seed: int, launch: str) -> None:
    """Refuse what is known to be another run, or is in use, before a model is loaded; a new folder is not touched."""
    if run.result_file.exists():
        there = RunFolder.open(run.path, "evaluate").result["inputs"]
        run.start("evaluate", inputs={**there, **inputs}, seed=seed, launch=launch)


def _backend(model: Any, processor: Any, methods: Sequence[Any]) -> Backend:
    if isinstance(model, ModelLoader):
        model, processor = model.load()
    if isinstance(model, Backend):
        if methods or processor is not None:
            raise DataError(f"methods and a processor go with a model, not with {type(model).__name__}")
        return model
    if processor is None:
        raise DataError(f"{type(model).__name__} needs its processor, or its tokenizer where it takes text only")
    from paperhooks.generation import TransformersBackend

    return TransformersBackend(model, processor, methods)


def _started(run: RunFolder, ranks: Ranks, inputs: Mapping[str, Any], seed: int, launch: str, force_new: bool) -> None:
    def start() -> None:
        if force_new and ranks.first and run.path.is_dir():
            with FolderLock(run.path, launch):
                _move_away(run.path)
        run.start("evaluate", inputs=inputs, seed=seed, launch=launch)

    ranks.agreed(start if ranks.first else lambda: None)
    # The others find the folder as the first one left it.
    ranks.agreed((lambda: None) if ranks.first else start)


def _read_again(file: SampleFile, asked: Sequence[Document]) -> None:
    file.reload()
    file.require_all(document.id for document in asked)


def _move_away(folder: Path) -> None:
    files = sorted({file for pattern in _FILES for file in folder.glob(pattern)})
    if not files:
        return
    number = 1
    while (target := folder / f"previous-{number}").exists():
        number += 1
    target.mkdir()
    for file in files:
        shutil.move(file, target / file.name)


def _ask(
    plan: Plan, backend: Backend, run: RunFolder, options: AskOptions, file: SampleFile, ranks: Ranks,
    shard: tuple[int, int] | None, batch: tuple[int, int, int], observers: Sequence[Any], progress: bool,
) -> None:  # fmt: skip
    _refuse_unknown(file, plan)
    mine = share(plan.wanted, shard)
    answered = [document.id for document in mine if file.answered(document)]
    observers = observers if ranks.leader else ()
    notify(observers, "started", EvaluationRun(plan.name, run.path, len(mine), len(answered), plan.modes))
    if len(answered) == len(mine):
        if ranks.in_step:
            with backend.opened():
                pass  # the other processes cannot call the model without this one
        return
    asker = Asker(TaskLedger(plan, mine, file, options, observers, run.confirm), backend, *batch)
    known = set(answered)
    waiting = [document.id for document in mine if document.id not in known]
    if ranks.first and (shard is None or shard[0] == 0):
        with run.timed("evaluate"):
            asker.run(waiting, answered, progress)
    else:
        asker.run(waiting, answered, False)


def _refuse_unknown(file: SampleFile, plan: Plan) -> None:
    for unknown in sorted(set(file.rows) - {document.id for document in plan.everything}):
        raise DataError(
            f"{file.path.parent} holds a response to {unknown!r}, which the data no longer have; use another folder, "
            "or force_new to begin anew"
        )


def _finish(
    plan: Plan, run: RunFolder, file: SampleFile, about: Mapping[str, Any], report: bool, writes: bool
) -> EvaluationResult:
    """Score what is there, and write it down when every document was tried and something is new."""
    tried = all(document.id in file.rows for document in plan.wanted)
    result = _scored(plan, run, file, tried)
    state = _state(plan, result)
    known = run.result["results"].get("scored") == state and run.finished and is_whole(run)
    missing = report and not (run.path / "report.html").exists()
    if writes and 0 < len(result.first.records) == result.first.empty:  # also of a run that was done before
        log.warning("%s: %s empty; see %s", plan.name, _every(result.first.empty, "answer", " is"), file.path)
    if not writes or not tried or (known and not missing):
        return result
    if not result.first.records:
        failures = result.first.failures
        raise DataError(
            f"task {plan.name!r}: {_every(len(failures), 'document')} failed, the first with "
            f"{next(iter(failures.values()))!r}; see {run.path}"
        )
    run.confirm()
    write_documents(run.path / "documents.jsonl", plan.wanted)
    reasoned = sum(bool(file.rows[one.id].get("reasoning")) for one in plan.wanted)
    reasoning = {"kept": plan.keep_reasoning, "responses": reasoned}
    scoring = {name: getattr(plan.task, name) for name in plan.task.scoring_options}
    run.record(
        data=plan.about, about=dict(about), modes=list(plan.modes), reasoning=reasoning, scoring=plain(scoring)
    )  # fmt: skip
    write_results(run, plan.task, result)
    run.record(files={name: content_digest(run.path / name) for name in CHECKED_FILES}, scored=state)
    if report:
        write_report(run, result)
    run.finish()
    return result


def _every(number: int, one: str, verb: str = "") -> str:
    """All of them in words, such as "all 3 documents" or "the only document"."""
    return f"the only {one}{verb}" if number == 1 else f"all {number} {one}s{' are' if verb else ''}"


def _scored(plan: Plan, run: RunFolder, file: SampleFile, whole: bool) -> EvaluationResult:
    answered = sum(not file.rows.get(one.id, {"error": True})["error"] for one in plan.wanted)
    options = {"keep_reasoning": plan.keep_reasoning, "whole": whole}
    modes = {mode: score_mode(plan.task, plan.wanted, file.rows, mode, **options) for mode in plan.modes}
    cost = total_cost(file.rows[one.id] for one in plan.wanted if one.id in file.rows)
    n, notes = plan.about["documents"], tuple(plan.about.get("notes", ()))
    untried = tuple(one.id for one in plan.wanted if one.id not in file.rows)
    return EvaluationResult(plan.name, run.path, modes, n, len(plan.wanted), answered, cost, notes, untried)


def _state(plan: Plan, result: EvaluationResult) -> str:
    """A hash of what the files show."""
    modes = [
        [mode, found.counts(), found.summary.metrics, [(one.document.id, one.score) for one in found.records]]
        for mode, found in result.modes.items()
    ]
    return hash_json([plan.inputs(), plan.scoring(), plan.about, plan.keep_reasoning, result.cost, modes])


def _check_responses_hold(task: Task, recorded: Mapping[str, Any]) -> None:
    """Raise DataError where an option that changes responses is another one than in the run."""
    for name, value in plain(task.options()).items():
        if name in recorded and recorded[name] != value:
            may = ", ".join(task.scoring_options) or "none"
            raise DataError(
                f"the run was made with {name} = {recorded[name]!r}, and scoring it again with {value!r} would not "
                f"change its responses; evaluate with this option (options that change scores only: {may})"
            )


def _recorded_task(inputs: Mapping[str, Any]) -> str:
    name: str = inputs["task"]
    if name not in available_tasks():
        raise PluginNotFound(
            f"the run is one of the task {name!r}, which no installed plugin offers; install the plugin, or give the "
            "task itself"
        )
    return name
