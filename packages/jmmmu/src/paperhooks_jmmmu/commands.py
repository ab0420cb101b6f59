"""Commands under ``paperhooks jmmmu``: make-sample, check, controls, rotations, paired, export, import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

import typer
from paperhooks.cli import say, writable_folder
from paperhooks_evaluation import Document

from paperhooks_jmmmu.data import Questions, SampleKind

__all__ = ["add_commands"]

#: How many faults are listed before they are only counted.
_LISTED: Final = 100
_EDITIONS: Final = {"jmmmu": "JAPANESE", "jmmmu-verified": "VERIFIED", "jmmmu-pro": "VISION", "mmmu-paired": "ENGLISH"}

Data = Annotated[str, typer.Argument(help="Folder, file or hub name of the data.")]
Edition = Annotated[str, typer.Option("--task", help=f"One of {', '.join(_EDITIONS)}.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", callback=writable_folder, help="Folder for a report.")]


def add_commands(app: typer.Typer) -> None:
    """Register this module's commands."""
    group = typer.Typer(help="JMMMU: synthetic data, checks, controls, languages in pairs.", no_args_is_help=True)
    group.command("make-sample")(make)
    for command in (check, controls, rotations, paired, export):
        group.command()(command)
    group.command("import")(replay)
    app.add_typer(group, name="jmmmu")


def make(
    folder: Annotated[Path, typer.Argument(help="Where the data set is written.")],
    per_subject: Annotated[int, typer.Option("--per-subject", min=1, help="Questions of each subject.")] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of what is drawn.")] = 0,
    kind: Annotated[SampleKind, typer.Option("--kind", help="Japanese, its English twin, or JMMMU-Pro.")] = "japanese",
    font: Annotated[str, typer.Option("--font", help="File of a font with Japanese characters.")] = "",
) -> None:
    """Write a synthetic data set in JMMMU's form, to try everything without the benchmark."""
    from paperhooks_jmmmu.data import make_sample

    make_sample(folder, per_subject, seed, kind=kind, font=font)
    say(f"wrote {folder}")


def check(
    data: Data,
    task: Edition = "jmmmu",
    revision: Annotated[str, typer.Option("--revision", help="Of the hub, to pin it.")] = "",
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Decode all pictures, too.")] = True,
) -> None:
    """Read a data set and tell everything that is wrong with it."""
    from paperhooks_evaluation.sources import raise_faults

    questions = _questions(data, task, revision)
    if pictures:
        raise_faults(f"the data in {data}", _picture_faults(questions.documents), listed=_LISTED)
    n = len(questions.documents)
    say(f"{n} questions of {len({one.groups['subject'] for one in questions.documents})} subjects")
    for note in questions.notes():
        say(note)
    for subject, missing in questions.missing.items():
        say(f"{subject}: {missing} fewer than in the whole set")


def paired(
    english: Annotated[Path, typer.Argument(help="Run folder of mmmu-paired.")],
    japanese: Annotated[Path, typer.Argument(help="Run folder of jmmmu.")],
    mode: Annotated[str, typer.Option("--mode", help="Way of reading both.")] = "robust-wrong",
    out: Out = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the bootstrap.")] = 0,
) -> None:
    """Compare Japanese with English, question by question."""
    from paperhooks_jmmmu.paired import compare_languages

    found = compare_languages(english, japanese, mode=mode, out=out, seed=seed)
    say(str(found))
    for line in found.groups:
        if line.grouping in ("domain", "translated"):
            say(f"{line.part}: {line.delta:+.4g} [{line.low:+.4g}, {line.high:+.4g}], n = {line.n}, p = {line.p:.3g}")
    if out is not None:
        say(f"report: {out / 'report.html'}")


def controls(data: Data, task: Edition = "jmmmu", seed: Annotated[int, typer.Option("--seed", min=0)] = 0) -> None:
    """What scores without looking: random letters (expected, and one draw), the most frequent letter, always A.

    Controls that ask a model are options of the tasks: --option pictures=blank, pictures=shuffled, rotation=1, and
    --layout text-only.
    """
    from paperhooks_jmmmu.baselines import baselines

    for name, value in baselines(_questions(data, task, "").documents, seed).items():
        say(f"{name}: {value:.2%}")


def rotations(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of all rotations, in any order.")],
    mode: Annotated[str, typer.Option("--mode", help="Way of reading all.")] = "robust-wrong",
    out: Out = None,
) -> None:
    """Take runs of all rotations together: mean accuracy, questions right in every one, letter bias."""
    from paperhooks_jmmmu.rotations import compare_rotations

    say(str(compare_rotations(runs, mode=mode, out=out)))
    if out is not None:
        say(f"report: {out / 'report.html'}")


def export(
    data: Data,
    to: Annotated[Literal["lm-eval", "lmms-eval"], typer.Option("--to", help="The harness that is to run it.")],
    out: Annotated[Path, typer.Option("--out", "-o", callback=writable_folder, help="Folder for its --include_path.")],
    task: Edition = "jmmmu",
) -> None:
    """Write a folder by which lm-eval or lmms-eval runs the task; with options: paperhooks export TASK."""
    from paperhooks_evaluation import export_task

    say(str(export_task(_known(task), data=data, to=to, out=out)))


def replay(
    replies: Annotated[list[Path], typer.Argument(help="Files or folders of lm-eval, lmms-eval or a run.")],
    data: Annotated[str, typer.Option("--data", help="Folder, file or hub name of the data.")],
    out: Annotated[Path, typer.Option("--out", "-o", callback=writable_folder, help="Run folder.")],
    task: Edition = "jmmmu",
    model: Annotated[str, typer.Option("--model", help="What gave the replies, for the record.")] = "",
) -> None:
    """Score replies of a harness in all modes; with options: paperhooks evaluate MODEL TASK --replay FILE."""
    from paperhooks.generation import ReplayBackend
    from paperhooks_evaluation import evaluate

    name = _known(task)
    say(str(evaluate(ReplayBackend(*replies, model=model), None, name, data=data, out=out)))


def _picture_faults(documents: Sequence[Document]) -> list[str]:
    from rich.console import Console
    from rich.progress import track

    from paperhooks_jmmmu.data.picture_checks import picture_faults

    console, checked = Console(stderr=True), picture_faults(documents)
    told = track(checked, "pictures", len(documents), console=console, disable=not console.is_terminal)
    return [faults for faults in told if faults]


def _known(task: str) -> str:
    if task not in _EDITIONS:
        raise typer.BadParameter(f"--task is {task!r}; expected one of {', '.join(_EDITIONS)}")
    return task


def _questions(data: str, task: str, revision: str) -> Questions:
    from paperhooks_jmmmu import data as room

    return room.read_questions(data, getattr(room, _EDITIONS[_known(task)]), revision=revision)
