"""Writing the folder by which lm-eval or lmms-eval runs a task.

The folder holds ``export.json`` (task, options, mode, where the data are), a YAML file for each task and group of the
harness, ``functions.py`` that its YAML calls, and for each task the ids of its documents. Questions, answers and
pictures stay where they are and are read by the task when the harness asks, so that a folder holds nothing of the
data but ids and groups.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from paperhooks.errors import DataError, counted, did_you_mean
from paperhooks.info import TaskInfo
from paperhooks.io import local_path, plain, read_json, write_json, write_text

from paperhooks_evaluation.harness import lm_eval, lmms_eval
from paperhooks_evaluation.harness.bridge import RECORD, UNPARSABLE
from paperhooks_evaluation.harness.outline import Bundle, Harness, Leaf, make_outline
from paperhooks_evaluation.plan import AskOptions, Plan, ask_options, check_numbers
from paperhooks_evaluation.scoring import check_modes, score_response
from paperhooks_evaluation.task import Document, Task

__all__ = ["Export", "export_task"]

_MODULES: Final = {"lm-eval": lm_eval, "lmms-eval": lmms_eval}
_COMMANDS: Final = {"lm-eval": "lm_eval run", "lmms-eval": "lmms-eval eval"}
#: What tasks include; not ``.yaml``, which both take for a task.
_BASE: Final = "base.yml"
_FUNCTIONS: Final = '''"""What {harness} calls: the task of paperhooks that this folder was exported from."""

from pathlib import Path

from paperhooks_evaluation.harness import {module}

(
    {names},
) = {module}.functions(Path(__file__).resolve().parent)
'''


@dataclass(frozen=True, slots=True)
class Export:
    """What was written.

    :param name: what to ask the harness for: its task of this name, or the group of all tasks.
    :param tasks: how many tasks of the harness there are.
    :param mode: how responses are read.
    :param passed_over: modes before it that the harness cannot follow, since they look at all responses together.
    """

    path: Path
    harness: str
    name: str
    tasks: int
    mode: str
    passed_over: tuple[str, ...] = ()

    def __str__(self) -> str:
        told = f"{self.path}: {counted(self.tasks, 'task')} for {self.harness}, read in the mode {self.mode!r}"
        if self.passed_over:
            told += f" (not {', '.join(self.passed_over)}: an answer depends on the whole run, which no harness shows)"
        return f"{told}; run: {_COMMANDS[self.harness]} --include_path {self.path} --tasks {self.name} --model ..."


def export_task(
    task: str | TaskInfo | Task,
    *,
    data: str | Path,
    to: str,
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
    layout: str | None = None,
    max_pixels: int | None = None,
    max_new_tokens: int | None = None,
    stop: Sequence[str] | None = None,
) -> Export:
    """Write a folder by which a harness runs a task: ``--include_path FOLDER --tasks NAME``.

    The harness reports the mean score of each group, weighted where groups are put together, and the share of
    responses that could not be read. What a task makes of them beyond means comes from its own evaluation of the
    sample files, see :class:`paperhooks.generation.ReplayBackend`.

    :param task, options: as in :func:`paperhooks.evaluate`; the task's class must be one that can be imported.
    :param data: as in :func:`paperhooks.evaluate`. A folder or file beside ``out`` may be moved together with it.
    :param to: ``"lm-eval"`` or ``"lmms-eval"``.
    :param mode: how responses are read; without it the first mode that a harness can follow.
    :param layout, max_pixels, max_new_tokens, stop: as in :func:`paperhooks.evaluate`; the limit and the stop strings
        must be the same for all documents.
    :raises DataError: task, data or a setting that cannot be exported, or a folder with other files in it.
    """
    if to not in get_args(Harness):
        raise DataError(f"there is no harness {to!r}; {did_you_mean(to, get_args(Harness))}")
    check_numbers(max_pixels=max_pixels, max_new_tokens=max_new_tokens)
    plan = Plan.make(task, options, None if mode is None else [mode], str(data), None, None)
    asking = ask_options(plan.task, layout, max_pixels, max_new_tokens, stop)
    chosen, passed_over = _mode(plan, mode)
    folder = _emptied(local_path(out))
    name = f"paperhooks_{_word(plan.name)}"  # both harnesses have tasks of their own by the names of benchmarks
    outline = make_outline(name, plan.everything)
    record = _record(plan, asking, chosen, folder)
    files = {_BASE: _base(to, record), "functions.py": _code(to)}
    for leaf in outline.leaves:
        files[f"{leaf.name}.yaml"] = _leaf(leaf)
        files[_data_file(leaf)] = "".join(_row(document) for document in leaf.documents)
    for bundle in outline.bundles:
        files[f"{bundle.name}.yaml"] = _bundle(bundle, record)
    for file, text in files.items():
        write_text(folder / file, text)
    write_json(folder / RECORD, record | {"harness": to, "name": name, "files": sorted(files)})
    return Export(folder, to, name, len(outline.leaves), chosen, passed_over)


# -- what is exported --------------------------------------------------------------------------------------------------


def _mode(plan: Plan, mode: str | None) -> tuple[str, tuple[str, ...]]:
    """The mode, and those before it that look at all responses together; raises DataError for such a one."""
    passed_over: list[str] = []
    for each in check_modes(plan.name, plan.task, None if mode is None else [mode]):
        if not _settles(plan.task, plan.everything, each):
            return each, tuple(passed_over)
        passed_over.append(each)
    others = [each for each in plan.task.modes if each != mode]
    raise DataError(
        f"what the task {plan.name!r} reads in the mode {' or '.join(map(repr, passed_over))} depends on the responses "
        f"of the whole run, which no harness shows; other modes: {', '.join(others) or 'none'}"
    )


def _settles(task: Task, documents: Sequence[Document], mode: str) -> bool:
    """Whether a mode changes records once it sees them all, tried on responses that nothing can be read from."""
    if type(task).settle is Task.settle:
        return False
    records = []
    for document in documents:
        try:
            records.append(score_response(task, document, "", mode))
        except Exception:  # a response that a task cannot score is a failure of its document in any run
            continue
    return list(task.settle(records, mode)) != records


def _record(plan: Plan, asking: AskOptions, mode: str, folder: Path) -> dict[str, Any]:
    """What the folder says of itself: all that is needed to make the task and its documents again."""
    first = asking.apply(plan.task.request(plan.everything[0]))
    return {
        "task": plan.name,
        "class": _importable(plan.task),
        "version": str(plan.task.version),
        "options": plain(plan.task.options() | {name: getattr(plan.task, name) for name in plan.task.scoring_options}),
        "fingerprint": plan.task.fingerprint(),
        "data": _place(plan.source, folder) | {"fingerprint": plan.about["fingerprint"]},
        "mode": mode,
        "metric": _word(plan.task.metric),
        "asking": plain(dataclasses.asdict(asking)),
        "generation": {"max_new_tokens": first.max_new_tokens, "stop": list(first.stop)},
        "shows_pictures": any(asking.apply(plan.task.request(document)).images for document in plan.everything),
    }


def _importable(task: Task) -> str:
    """``package.module:Class`` of a task; raises DataError where a harness, another process, could not import it."""
    kind = type(task)
    if kind.__module__ == "__main__" or "." in kind.__qualname__:
        raise DataError(
            f"the class {kind.__qualname__} of {kind.__module__} cannot be imported by a harness; put the task into a "
            "module of its own, on the path of modules (PYTHONPATH) or installed"
        )
    return f"{kind.__module__}:{kind.__qualname__}"


def _place(source: str, folder: Path) -> dict[str, str]:
    """Where the data are: a name of the hub, or a path, relative to the folder where both lie side by side."""
    if not Path(source).exists():
        return {"name": source}
    path, beside = Path(source).resolve(), folder.resolve().parent
    if path.is_relative_to(beside) and path != beside:
        return {"path": Path("..", path.relative_to(beside)).as_posix()}
    return {"path": str(path)}


# -- files -------------------------------------------------------------------------------------------------------------


def _emptied(folder: Path) -> Path:
    """The folder without what an export left in it; raises DataError when it holds anything else."""
    if not folder.exists() or not any(folder.iterdir()):
        return folder
    if not (folder / RECORD).is_file():
        raise DataError(f"{folder} holds files that are no export; name a new folder")
    for file in read_json(folder / RECORD, "an exported task")["files"]:
        (folder / Path(file).parent.name / Path(file).name).unlink(missing_ok=True)
    return folder


def _code(harness: str) -> str:
    module = _MODULES[harness]
    return _FUNCTIONS.format(
        harness=harness, module=module.__name__.rpartition(".")[2], names=",\n    ".join(module.FUNCTIONS)
    )


def _base(harness: str, record: Mapping[str, Any]) -> str:
    """What all tasks include."""
    generation = record["generation"]
    own = _MODULES[harness].settings(generation["max_new_tokens"], generation["stop"], record["shows_pictures"])
    settings = {
        "dataset_path": "json",
        "test_split": "test",
        "output_type": "generate_until",
        "num_fewshot": "0",
        "doc_to_text": "!function functions.doc_to_text",
        "doc_to_target": "id",  # which answer is right, the task alone knows
        **own,
        "process_results": "!function functions.process_results",
        "metric_list": f"""
  - metric: {record["metric"]}
    aggregation: mean
    higher_is_better: true
  - metric: {UNPARSABLE}
    aggregation: !function functions.unparsable_share
    higher_is_better: false""",
        "metadata": f"{{version: {_quoted(record['version'])}}}",
    }
    return _yaml(settings)


def _leaf(leaf: Leaf) -> str:
    return _yaml(
        {
            "include": _BASE,
            "task": _quoted(leaf.name),
            "task_alias": _quoted(leaf.alias),
            **({"tag": _quoted(list(leaf.tags))} if leaf.tags else {}),
            "dataset_kwargs": f"{{data_files: {{test: {_quoted(_data_file(leaf))}}}}}",
        }
    )


def _bundle(bundle: Bundle, record: Mapping[str, Any]) -> str:
    metrics = "".join(
        f"\n  - metric: {metric}\n    aggregation: mean\n    weight_by_size: true"
        for metric in (record["metric"], UNPARSABLE)
    )
    return _yaml(
        {
            "group": _quoted(bundle.name),
            "group_alias": _quoted(bundle.alias),
            "task": _quoted(list(bundle.members)),
            "aggregate_metric_list": metrics,
            "metadata": f"{{version: {_quoted(record['version'])}}}",
        }
    )


def _data_file(leaf: Leaf) -> str:
    return f"documents/{leaf.name}.jsonl"


def _row(document: Document) -> str:
    groups = {"groups": dict(document.groups)} if document.groups else {}
    return json.dumps({"id": document.id, **groups}, ensure_ascii=False) + "\n"


def _yaml(settings: Mapping[str, str]) -> str:
    return "".join(f"{key}:{'' if value.startswith(chr(10)) else ' '}{value}\n" for key, value in settings.items())


def _quoted(value: Any) -> str:
    """A text or a list of texts as YAML, which takes JSON."""
    return json.dumps(value, ensure_ascii=False)


def _word(text: str) -> str:
    return re.sub(r"\W+", "_", text)
