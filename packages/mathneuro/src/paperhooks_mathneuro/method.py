"""MathNeuro as a method of ``paperhooks.compress``: collect, select and edit in one call, with an artefact at the end.

>>> data = {"target": maths, "reference": prose}  # doctest: +SKIP
>>> artefact = paperhooks.compress(model, "mathneuro", data=data, ratio=0.05, scale=0.0, out="run/")  # doctest: +SKIP
>>> artefact.undo()  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, get_args

from paperhooks import Artefact, CompressionRequest, DataError, ModelView, Traits, hookimpl
from paperhooks.io import choice, flag, number, optional, pattern, refused, text, whole

from paperhooks_mathneuro.matrices import HeadChoice
from paperhooks_mathneuro.selection.overlaps import shares
from paperhooks_mathneuro.selection.ratio_sweep import Combine, Mode, select
from paperhooks_mathneuro.selection.selections import Granularity
from paperhooks_mathneuro.selection.set_algebra import set_names
from paperhooks_mathneuro.statistics.collector import TokenScope, collect
from paperhooks_mathneuro.statistics.statistics import AGGREGATES, Aggregate, Statistics
from paperhooks_mathneuro.surgery import Rounding, edit
from paperhooks_mathneuro.texts import TEMPLATE, check_template, read_records

__all__ = ["MathNeuro"]

_TARGET: Final = "target"
_CHOICES: Final = {
    "mode": get_args(Mode),
    "token_scope": get_args(TokenScope),
    "aggregate": AGGREGATES,
    "granularity": get_args(Granularity),
    "combine": get_args(Combine),
    "rounding": get_args(Rounding),
}


def _set_expression(name: str, value: object) -> str:
    written = text(name, value)
    try:
        set_names(written)
    except DataError as error:
        raise ValueError(f"{name} is {value!r}; {error}") from None
    return written


@dataclass(eq=False)
class MathNeuro:
    """Finds the entries of weight matrices that matter for a skill and not for other texts, and scales them.

    Calibration data is a mapping: ``"target"`` has the skill's texts, every other part is a reference.

    ratio
        Share of every matrix that is a side's top.
    scale
        Factor on the isolated entries: 0 prunes, a little above 1 strengthens.
    samples
        Texts drawn from each part (with the run's seed); all of them by default.
    mode
        "exact", or "compat" for the arithmetic of the official code, which also scores untied heads and leaves out
        modules with "embed" in their name (in its time GPT-NeoX's head was among them: ``head="no"`` for that family).

    Beyond the paper:

    reference_ratio, token_scope, aggregate, granularity, combine, expression, max_isolated, head, include, exclude,
    rounding, template, max_length, truncate, batch_size
        See :func:`paperhooks_mathneuro.collect`, :func:`~paperhooks_mathneuro.sweep` and
        :func:`~paperhooks_mathneuro.apply`. Without a ``head``, it is left out in exact mode.

    :raises ValueError: an option that cannot be meant; names it, its value and what is expected.
    """

    ratio: float = 0.05
    scale: float = 0.0
    mode: Mode = "exact"
    reference_ratio: float | None = None
    samples: int | None = None
    token_scope: TokenScope = "all"
    aggregate: Aggregate = "sum_of_norms"
    granularity: Granularity = "matrix"
    combine: Combine = "union"
    expression: str | None = None
    max_isolated: float | None = None
    head: HeadChoice | None = None
    include: str | None = None
    exclude: str | None = None
    rounding: Rounding = "nearest"
    template: str = TEMPLATE
    max_length: int | None = None
    truncate: bool = False
    batch_size: int = 8

    traits: ClassVar[Traits] = Traits(
        writes=frozenset({"weights"}),
        devices=("cpu", "cuda", "emulated"),
        dtypes=("float32", "bfloat16", "float16"),
        parallel=("ddp",),
        shared_work=True,
    )

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_words()
        self.truncate = flag("truncate", self.truncate)
        if self.mode == "compat" and self.aggregate != "sum_of_norms":
            expected = "'sum_of_norms' with mode='compat', since the official code sums norms"
            raise refused("aggregate", self.aggregate, expected)

    def _check_numbers(self) -> None:
        self.ratio = number("ratio", self.ratio, above=0, high=1)
        self.scale = number("scale", self.scale)
        self.batch_size = whole("batch_size", self.batch_size, at_least=1)
        for name in ("reference_ratio", "max_isolated"):
            setattr(self, name, optional(number, name, getattr(self, name), above=0, high=1))
        for name in ("samples", "max_length"):
            setattr(self, name, optional(whole, name, getattr(self, name), at_least=1))

    def _check_words(self) -> None:
        for name, words in _CHOICES.items():
            setattr(self, name, choice(name, getattr(self, name), words))
        for name in ("include", "exclude"):
            setattr(self, name, optional(pattern, name, getattr(self, name)))
        self.head = optional(choice, "head", self.head, get_args(HeadChoice))
        self.expression = optional(_set_expression, "expression", self.expression)
        try:
            check_template(text("template", self.template))
        except DataError as error:
            raise refused("template", self.template, "text with {question} in it and {answer} at its end") from error

    @hookimpl
    def compression(self, view: ModelView, request: CompressionRequest) -> Artefact:
        """Collect the statistics of every part, select, and edit through the view's journal."""
        ratio = self._ratio(request)  # before texts are read
        sides = self._collected(view, request)
        target, references = {_TARGET: sides.pop(_TARGET)}, sides
        selection = select(
            view.model, target, references, ratio=ratio, reference_ratio=self.reference_ratio,
            combine=self.combine, expression=self.expression, granularity=self.granularity, aggregate=self.aggregate,
            mode=self.mode, max_isolated=self.max_isolated,
        )  # fmt: skip
        if request.run is not None:
            selection.save(request.run.path / "selection.safetensors")
        edit(view.journal, selection, self.scale, rounding=self.rounding, seed=request.seed)
        found = shares(selection.matrices, selection.about["counts"])
        data = {"selection": selection.label, "scale": self.scale, "share": found.total, "by_kind": found.by_kind}
        return request.artefact(view, data=data)

    def _collected(self, view: ModelView, request: CompressionRequest) -> dict[str, Statistics]:
        if not isinstance(request.data, Mapping) or _TARGET not in request.data or len(request.data) < 2:
            raise DataError(
                "mathneuro contrasts texts: pass data={'target': [...], 'reference': [...]}, with the target and at "
                "least one reference, each texts, records or a file"
            )
        compat = self.mode == "compat"
        parts = {
            name: read_records(data) for name, data in request.data.items()
        }  # all of them before a model reads one
        return {
            name: collect(
                view.model, records, tokenizer=request.tokenizer, name=name, samples=self.samples, seed=request.seed,
                token_scope=self.token_scope, template=self.template, max_length=self.max_length,
                truncate=self.truncate, head=self.head or ("untied" if compat else "no"), include=self.include,
                exclude=self.exclude or ("embed" if compat else None), batch_size=self.batch_size,
                out=None if request.run is None else request.run.path / name, progress=request.progress,
            )
            for name, records in parts.items()
        }  # fmt: skip

    def _ratio(self, request: CompressionRequest) -> float:
        """The run's target, where it has one, is the ratio."""
        try:
            return self.ratio if request.target in (None, "") else float(request.target)
        except (TypeError, ValueError) as error:
            raise DataError(f"the target of mathneuro is a ratio such as 0.05, not {request.target!r}") from error
