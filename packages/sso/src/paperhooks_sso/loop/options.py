"""What decides the results of a loop: all of it is written into its folder, and nothing of it may change on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from typing import Any, Final, Literal, TypeAlias, get_args

from paperhooks.io import choice, flag, number, optional, plain, refused, text, whole

from paperhooks_sso.algorithm import PRESETS
from paperhooks_sso.data import ROLES, PrincipleBank
from paperhooks_sso.method import SSO

__all__ = ["FeatureSource", "LoopOptions", "Pace", "TooLong"]

FeatureSource: TypeAlias = Literal["asked", "random"]
TooLong: TypeAlias = Literal["cut", "drop"]
#: Options of :class:`~paperhooks_sso.SSO` that the loop sets itself.
_OWN: Final = ("preset", "reference")


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """How pairs are made, and what is trained on them.

    preset
        "v1-ipo", "v1-dpo" or "v2".
    objective
        Options of :class:`~paperhooks_sso.SSO` in place of the preset's, such as ``{"beta": 0.1}``; with "v2" those of
        its generator.
    seed
        Of everything that is drawn.

    Asking:

    features
        "asked" has the model say which features matter for a prompt, "random" draws them; or the features, by name.
    feature_number, concision
        How many features a prompt gets, and with which probability Concision joins them.
    generated
        Have the model write principles for the prompt; the bank's stand in where it fails.
    principles
        TOML files that add to the bank.
    safety
        False leaves Safety out, whose bad answers are harmful on purpose.
    temperature, top_p, max_new_tokens
        How answers are drawn.
    too_long
        "cut" prompts that leave no room for an answer, or "drop" them.
    chat_options, template
        Of the chat template; see :class:`~paperhooks_sso.data.ChatFormat`.

    Pairs:

    keep_cut, drop_leaks, filter
        Keep answers that met their limit; drop those that speak of their principle; keep only the pairs that the
        filter keeps (about one in ten).

    Training, one epoch:

    learning_rate, batch, warmup, weight_decay
        Of AdamW with betas 0.9 and 0.95 and a cosine; ``batch`` are the prompts of one step, ``warmup`` is a share.
    trainer
        Arguments of ``transformers.TrainingArguments`` in place of the loop's, such as ``{"bf16": True}``.

    :raises ValueError: an option that cannot be meant. :raises DataError: a file of principles with faults.
    """

    preset: str = "v1-ipo"
    objective: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    features: FeatureSource | Sequence[str] = "asked"
    feature_number: int = 2
    concision: float = 0.2
    generated: bool = False
    principles: Sequence[str] = ()
    safety: bool = True
    temperature: float = 0.7
    top_p: float = 0.8
    max_new_tokens: int = 2048
    too_long: TooLong = "cut"
    chat_options: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    keep_cut: bool = False
    drop_leaks: bool = True
    filter: bool = False
    learning_rate: float = 5e-7
    batch: int = 32
    warmup: float = 0.1
    weight_decay: float = 0.1
    trainer: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checked = {
            "preset": choice("preset", self.preset, tuple(PRESETS)),
            "seed": whole("seed", self.seed, at_least=0, at_most=2**31 - 1),
            "too_long": choice("too_long", self.too_long, get_args(TooLong)),
            "template": optional(text, "template", self.template),
            "principles": _paths(self.principles),
            **{n: whole(n, getattr(self, n), at_least=1) for n in ("feature_number", "max_new_tokens", "batch")},
            **{n: flag(n, getattr(self, n)) for n in ("generated", "safety", "keep_cut", "drop_leaks", "filter")},
            **{n: number(n, getattr(self, n), above=0) for n in ("temperature", "learning_rate")},
            **{n: number(n, getattr(self, n), low=0, high=1) for n in ("concision", "warmup")},
            "top_p": number("top_p", self.top_p, above=0, high=1),
            "weight_decay": number("weight_decay", self.weight_decay, low=0),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        for name in ("objective", "chat_options", "trainer"):
            if not isinstance(getattr(self, name), Mapping):
                raise refused(name, getattr(self, name), "options by name")
        object.__setattr__(self, "features", self._checked_features())
        self.methods()

    def methods(self) -> tuple[SSO, ...]:
        """The objectives of one iteration, in the order of their training; raises ValueError for options of none."""
        wrong = [name for name in self.objective if name in _OWN]
        if wrong:
            raise ValueError(f"objective has {wrong[0]!r}, which the loop sets itself; leave it out")
        try:
            first = SSO(self.preset, **self.objective)
        except TypeError as error:
            raise refused("objective", dict(self.objective), f"options of SSO ({error})") from error
        if self.preset != "v2":
            return (first,)
        return first, SSO(None, loss=first.loss, beta=first.beta, weight=False, gap=False)

    def bank(self) -> PrincipleBank:
        """The principles that prompts may get."""
        return PrincipleBank.load(*self.principles, safety=self.safety)

    def names(self) -> tuple[str, ...]:
        """The features that prompts may get."""
        return self.bank().features if isinstance(self.features, str) else tuple(self.features)

    def roles(self, method: SSO) -> tuple[str, ...]:
        """The answers that an objective compares."""
        return tuple(role for role in ROLES if role != "yo" or "bad" in method.objective.groups)

    def inputs(self) -> dict[str, Any]:
        """As plain data; principles by their texts, which files may change."""
        bank = {name: [each.adjectives, each.good, each.bad] for name, each in self.bank().items()}
        told: dict[str, Any] = plain({**asdict(self), "principles": bank})
        return told

    def _checked_features(self) -> FeatureSource | tuple[str, ...]:
        bank = self.bank()  # read at once, so that a file with faults is told before any work
        if isinstance(self.features, str):
            word: Any = self.features
            found: FeatureSource = choice("features", word, get_args(FeatureSource), also="a list of names")
            return found
        names = tuple(bank.pick(str(name)).feature for name in self.features)
        if not names:
            raise refused("features", self.features, "at least one name")
        return names


def _paths(given: Any) -> tuple[str, ...]:
    """Files, of which one may come by itself."""
    found = (given,) if isinstance(given, str | PathLike) else given
    if not isinstance(found, Sequence) or not all(isinstance(each, str | PathLike) for each in found):
        raise refused("principles", given, "TOML files")
    return tuple(map(str, found))


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a loop goes; nothing of it decides what comes out, but for rounding.

    sample_batch
        Answers that are sampled at a time.
    micro_batch
        Prompts whose rows are trained on at a time.
    batch_tokens
        Tokens that are scored at a time; chosen without it.
    probe_pairs
        Most pairs that probes look at.
    progress
        Show lines of progress on a terminal.
    """

    sample_batch: int = 16
    micro_batch: int = 2
    batch_tokens: int | None = None
    probe_pairs: int = 128
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("sample_batch", "micro_batch", "probe_pairs"):
            object.__setattr__(self, name, whole(name, getattr(self, name), at_least=1))
        object.__setattr__(self, "batch_tokens", optional(whole, "batch_tokens", self.batch_tokens, at_least=1))
        object.__setattr__(self, "progress", flag("progress", self.progress))
