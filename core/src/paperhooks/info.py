"""What a plugin says about itself without importing anything heavy.

:class:`PluginInfo` is the object an entry point of the group ``paperhooks.plugins`` points at; :class:`Traits` is the
class attribute by which a method declares where it acts, what it changes and which modes it was tested with. Neither
imports torch: listing the installed plugins must stay instant.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from paperhooks.io.options import choice, flag, function_or_choice, optional, refused, text, whole, whole_list

#: Version of the hook contract in :mod:`paperhooks.hooks.specs`. New optional arguments and new hooks keep the number.
HOOK_API: Final = 1

#: The entry point group under which plugins are found.
#: What a plugin may be.
KINDS: Final = ("paper", "benchmark", "toolkit")
ENTRY_POINT_GROUP: Final = "paperhooks.plugins"

Write: TypeAlias = Literal["tokens", "positions", "objective", "weights"]

#: Which decoder layers a method acts on: all, those with attention, given indices, or a predicate on the site.
LayerSelector: TypeAlias = Literal["all", "attention"] | Sequence[int] | Callable[[Any], bool]

Parallel: TypeAlias = Literal["ddp", "fsdp2", "tp", "cp", "offload"]

#: The ways of spreading a model that a method may declare: see :attr:`paperhooks.models.Spread.kinds`.
PARALLEL: Final[tuple[Parallel, ...]] = ("ddp", "fsdp2", "tp", "cp", "offload")

WRITES: Final[frozenset[str]] = frozenset({"tokens", "positions", "objective", "weights"})
_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_MODULE = re.compile(r"[A-Za-z_][\w.]*")
_ARXIV = re.compile(r"\d{4}\.\d{4,5}(v\d+)?")


@dataclass(frozen=True, slots=True)
class Traits:
    """What a method touches and which modes it was tested with. Undeclared modes are refused, never guessed.

    layers
        Decoder layers whose ``pre_attention`` and ``post_layer`` hooks run. ``"attention"`` skips layers without
        self-attention; a predicate receives a :class:`paperhooks.Site`. A method whose layers depend on its options
        may narrow the choice with a method ``selects_layer(site) -> bool`` of its own.
    writes
        What the method changes. Two methods that both write ``objective`` or both write ``positions`` exclude each
        other; two that write ``tokens`` compose in the user's order.
    static_cache, beams, assisted, chunked_prefill
        Generation modes the method supports: preallocated caches, beam search, assisted or prompt-lookup decoding,
        prompts fed in chunks.
    training, compile
        Gradients through the method are right; ``torch.compile`` of an attached model works with ``fullgraph=True``.
    parallel
        Spread models that the method is right on: ``"ddp"``, ``"fsdp2"``, ``"tp"`` (tensor parallelism), ``"cp"``
        (context and sequence parallelism), ``"offload"``. Others are refused.
    shared_work
        The method's own work (scoring, collecting) is dealt out among the processes of a launch.
    devices, dtypes, attention
        What the test suite ran on, for the registry. They refuse nothing.

    Raises ValueError naming a field whose value cannot be meant.
    """

    layers: LayerSelector = "all"
    writes: frozenset[Write] = frozenset()
    static_cache: bool = False
    beams: bool = False
    assisted: bool = False
    chunked_prefill: bool = False
    training: bool = False
    compile: bool = False
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[str, ...] = ("float32",)
    attention: tuple[str, ...] = ("eager", "sdpa")
    parallel: tuple[Parallel, ...] = ()
    shared_work: bool = False

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {"layers": _layers(self.layers), "writes": frozenset(_words("writes", self.writes))}
        unknown = sorted(checked["writes"] - WRITES)
        if unknown:
            raise ValueError(f"Traits.writes has unknown entries {unknown}; allowed are {sorted(WRITES)}")
        checked |= {name: flag(f"Traits.{name}", getattr(self, name)) for name in (*MODES, "shared_work")}
        checked |= {name: tuple(_words(name, getattr(self, name))) for name in _LISTS}
        unknown = sorted(set(checked["parallel"]) - set(PARALLEL))
        if unknown:
            raise ValueError(f"Traits.parallel has unknown entries {unknown}; allowed are {list(PARALLEL)}")
        for name, value in checked.items():
            object.__setattr__(self, name, value)


def _layers(layers: Any) -> Any:
    """The layer selector with indices as a tuple of numbers. Which indices a model has is known when attaching."""
    if isinstance(layers, str) or callable(layers) or not isinstance(layers, Iterable):
        try:
            return function_or_choice("Traits.layers", layers, ("all", "attention"))
        except ValueError:
            raise refused("Traits.layers", layers, "'all', 'attention', indices or a predicate") from None
    return tuple(whole_list("Traits.layers", layers, at_least=0))


def _words(name: str, value: Any, of: str = "Traits") -> list[str]:
    """A field that lists words; a bare string would be a list of letters."""
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        raise refused(f"{of}.{name}", value, "a list of words")
    return [text(f"each of {of}.{name}", word) for word in value]


#: The modes of :class:`Traits` that are plain yes/no declarations, in the order the registry lists them.
MODES: Final = ("training", "compile", "beams", "assisted", "static_cache", "chunked_prefill")
#: Those that list words.
_LISTS: Final = ("devices", "dtypes", "attention", "parallel")


@dataclass(frozen=True, slots=True)
class Paper:
    """The paper a plugin implements."""

    arxiv: str
    title: str
    authors: str = ""
    year: int | None = None
    venue: str = ""
    code: str = ""

    def __post_init__(self) -> None:
        for name in ("arxiv", "title", "authors", "venue", "code"):
            text(f"Paper.{name}", getattr(self, name))
        object.__setattr__(self, "year", optional(whole, "Paper.year", self.year))
        if self.arxiv and not _ARXIV.fullmatch(self.arxiv):
            raise ValueError(f"Paper.arxiv is {self.arxiv!r}; expected an identifier such as '2410.17247'")

    @property
    def url(self) -> str:
        """Address of the abstract, or an empty string without an arXiv identifier."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """The light description that an entry point exposes as ``PLUGIN``.

    name
        Kebab-case, equal to the entry point's name.
    api
        The :data:`HOOK_API` the plugin was written for.
    summary
        One line under 100 characters.
    methods
        Method name to ``"package.module:Class"``. A method called like the plugin is addressed by the plugin's name,
        any other as ``plugin/method``.
    hooks
        Optional ``"package.module"`` (or ``"package.module:object"``) whose hook implementations, plain functions, are
        registered process-wide: what is not bound to a model, such as ``evaluation_tasks`` and ``register_commands``.
    demo
        Optional ``"package.module:function"`` run by ``paperhooks demo NAME``; it receives a
        :class:`paperhooks.authoring.DemoContext`.
    claims
        File name of the package's claims table, relative to the package that holds the plugin module.
    kind
        ``"paper"``; ``"benchmark"``, which offers evaluation tasks; or ``"toolkit"``, which papers and benchmarks may
        import.

    Raises ValueError when a field is malformed.
    """

    name: str
    api: int
    summary: str
    methods: Mapping[str, str] = field(default_factory=dict)
    paper: Paper | None = None
    hooks: str | None = None
    demo: str | None = None
    claims: str | None = None
    kind: str = "paper"

    def __post_init__(self) -> None:
        self._check_types()
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"PluginInfo.name is {self.name!r}; expected kebab-case such as 'pyramiddrop'")
        if not 0 < len(self.summary) < 100:
            raise ValueError(
                f"PluginInfo.summary of {self.name!r} must have 1 to 99 characters, not {len(self.summary)}"
            )
        for where, target in [*self.methods.items(), ("hooks", self.hooks), ("demo", self.demo)]:
            plain = where == "hooks" and target is not None and _MODULE.fullmatch(target)
            if target is not None and not plain and not _TARGET.fullmatch(target):
                raise ValueError(f"{self.name}: {where} is {target!r}; expected 'package.module:Name'")

    def _check_types(self) -> None:
        for name in ("name", "summary"):
            text(f"PluginInfo.{name}", getattr(self, name))
        for name in ("hooks", "demo", "claims"):
            optional(text, f"PluginInfo.{name} of {self.name!r}", getattr(self, name))
        choice(f"PluginInfo.kind of {self.name!r}", self.kind, KINDS)
        object.__setattr__(self, "api", whole(f"PluginInfo.api of {self.name!r}", self.api))
        methods = dict(self.methods) if isinstance(self.methods, Mapping) else {None: None}
        if not all(isinstance(word, str) for pair in methods.items() for word in pair):
            raise refused(f"PluginInfo.methods of {self.name!r}", self.methods, "names to 'package.module:Name'")
        object.__setattr__(self, "methods", methods)
        if self.paper is not None and not isinstance(self.paper, Paper):
            raise refused(f"PluginInfo.paper of {self.name!r}", self.paper, "a paperhooks.info.Paper, or None")


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """A task as a plugin offers it by the hook ``evaluation_tasks``.

    name, summary
        Kebab-case name for :func:`paperhooks.evaluate`, and one line.
    task
        ``"package.module:Class"`` of a :class:`Task` whose fields all have defaults.
    needs
        What the model must take: ``"text"``, and ``"image"`` where images are shown.

    Raises ValueError when a field is malformed.
    """

    name: str
    summary: str
    task: str
    needs: tuple[str, ...] = ("text",)

    def __post_init__(self) -> None:
        for name in ("name", "summary", "task"):
            text(f"TaskInfo.{name}", getattr(self, name))
        object.__setattr__(self, "needs", tuple(_words("needs", self.needs, "TaskInfo")))
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"TaskInfo.name is {self.name!r}; expected kebab-case such as 'pope'")
        if not _TARGET.fullmatch(self.task):
            raise ValueError(f"TaskInfo.task of {self.name!r} is {self.task!r}; expected 'package.module:Class'")
