"""``registry.toml``: every plugin, what it needs, what it was tested with, and how to get it.

Schema 1::

    schema = 1

    [core]
    distribution = "paperhooks"
    path = "core"
    hook_api = 1

    [[plugin]]
    name = "pyramiddrop"                       # unique, kebab-case, the entry point's name
    distribution = "paperhooks-pyramiddrop"    # unique
    path = "packages/pyramiddrop"              # or: repository = "https://..." for third parties
    kind = "paper"                             # paper (also when left out) | benchmark | toolkit
    summary = "..."                            # one line under 100 characters
    hooks = ["setup", "pre_attention"]         # what the classes implement
    hook_api = 1
    models = ["llava", "qwen2_vl"]             # families the test suite runs on
    status = "stable"                          # experimental | stable | deprecated | broken
    devices = ["cpu"]                          # these four: union over the methods' Traits
    dtypes = ["float32"]
    attention = ["eager", "sdpa"]
    parallel = ["ddp", "fsdp2"]                # out of ddp, fsdp2, tp, cp, offload
    shared_work = false                        # any method deals its work out among processes

    # a paper has these too, and of the lines above models to shared_work; a benchmark may have the first two:
    [plugin.paper]                             # title, authors, year, venue, arxiv, code
    [plugin.evidence]                          # summary, command: what was reproduced, and how to rerun it
    [plugin.supports]                          # training, compile, beams, assisted, static_cache, chunked_prefill

Third parties add an entry with ``repository``. Into entries that have a ``path``, ``paperhooks registry update`` writes
what PluginInfo and Traits of the package know; :mod:`paperhooks.authoring.registry_check` compares. The file ships
inside the wheel, so that what could be installed is known offline.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from paperhooks.errors import RegistryError
from paperhooks.info import KINDS, MODES, PARALLEL
from paperhooks.io.harmless import markdown_text
from paperhooks.io.toml import Field, Problem, check_table, line_of, read_toml

__all__ = [
    "Registry",
    "RegistryEntry",
    "check_schema",
    "find_registry",
    "install_hint",
    "load_registry",
    "plugin_table_markdown",
    "replace_between_markers",
    "spread_table_markdown",
]

STATUSES: Final = ("experimental", "stable", "deprecated", "broken")

_WORD: Final = r"[\w.-]+"
_TOP: Final = {"schema": Field("int", choices=(1,)), "core": Field("table"), "plugin": Field("tables")}
_CORE: Final = {"distribution": Field("str"), "path": Field("str"), "hook_api": Field("int")}
_PLUGIN: Final = {
    "name": Field("str", pattern=r"[a-z][a-z0-9]*(-[a-z0-9]+)*"),
    "distribution": Field("str", pattern=r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"),
    "path": Field("str", required=False, pattern=r"\w[\w.-]*(/\w[\w.-]*)*"),
    "repository": Field("str", required=False, pattern=r"https?://[\w.-]+(:\d+)?(/[\w.~%+@-]+)*/?"),
    "kind": Field("str", required=False, choices=KINDS),
    "summary": Field("str", longest=99),
    "hooks": Field("strings", pattern=_WORD),
    "hook_api": Field("int"),
    "status": Field("str", choices=STATUSES),
}
#: What only a paper has to say.
_METHODS: Final = {
    "models": Field("strings", pattern=_WORD),
    "devices": Field("strings", pattern=_WORD),
    "dtypes": Field("strings", pattern=_WORD),
    "attention": Field("strings", pattern=_WORD),
    "parallel": Field("strings", pattern="|".join(PARALLEL)),
    "shared_work": Field("bool", required=False),
    "paper": Field("table"),
    "evidence": Field("table"),
    "supports": Field("table"),
}
#: What a benchmark may say.
_BENCHMARK: Final = {"paper": Field("table", required=False), "evidence": Field("table", required=False)}
_PAPER: Final = {
    "title": Field("str"),
    "authors": Field("str"),
    "year": Field("int"),
    "venue": Field("str", required=False),
    "arxiv": Field("str", pattern=r"\d{4}\.\d{4,5}(v\d+)?"),
    "code": Field("str", required=False),
}
#: A command is there to be copied into a shell: one line that runs nothing else beside it.
_EVIDENCE: Final = {"summary": Field("str"), "command": Field("str", pattern=r"[^;&|<>$`\\\x00-\x1f]+")}
_SUPPORTS: Final = {mode: Field("bool") for mode in MODES}
_SUBTABLES: Final = {"paper": _PAPER, "evidence": _EVIDENCE, "supports": _SUPPORTS}


@dataclass(frozen=True, slots=True)
class RegistryEntry:
    """One ``[[plugin]]``; ``data`` is the table as written, already checked against the schema."""

    index: int
    data: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The plugin's name."""
        return str(self.data["name"])

    @property
    def kind(self) -> str:
        """``"paper"``, ``"benchmark"`` or ``"toolkit"``."""
        return str(self.data.get("kind", "paper"))

    @property
    def distribution(self) -> str:
        """What pip calls it."""
        return str(self.data["distribution"])

    @property
    def path(self) -> str | None:
        """Folder in this repository, or None for a third party's plugin."""
        return self.data.get("path")

    @property
    def pip_command(self) -> str:
        """How to install it."""
        source = "" if self.path is not None else f" @ git+{self.data['repository']}"
        return f"pip install {shlex.quote(self.distribution + source)}"


@dataclass(frozen=True, slots=True)
class Registry:
    """A checked registry file."""

    file: Path
    text: str
    core: Mapping[str, Any]
    entries: tuple[RegistryEntry, ...]

    def line(self, entry: RegistryEntry, key: str = "", table: str = "") -> int:
        """1-based line of a key of an entry."""
        return line_of(self.text, "plugin", entry.index, key, table)

    def get(self, name: str) -> RegistryEntry | None:
        """The entry of that name, or None."""
        return next((entry for entry in self.entries if entry.name == name), None)


def find_registry(start: Path | None = None) -> Path:
    """``registry.toml`` of the nearest folder upwards from ``start``, else the one shipped in the wheel.

    In a source checkout the file above the package is found. Raises RegistryError when there is none.
    """
    here = Path(__file__).resolve().parents[1]
    shipped = here / "registry.toml"
    if start is None and shipped.is_file():
        return shipped
    for folder in [start or here, *(start or here).resolve().parents]:
        if (folder / "registry.toml").is_file():
            return folder / "registry.toml"
    raise RegistryError(f"no registry.toml in {start or here} or above; give its path")


def load_registry(path: str | Path | None = None) -> Registry:
    """Read and check the registry; raises RegistryError listing every fault of the file itself."""
    file = Path(path) if path is not None else find_registry()
    registry, problems = check_schema(file)
    if registry is None or problems:
        raise RegistryError("the plugin registry has faults:\n" + "\n".join(map(str, problems)))
    return registry


def check_schema(file: Path) -> tuple[Registry | None, list[Problem]]:
    """The registry and its faults; None when it cannot be read at all. The packages are not looked at."""
    data, text, problems = read_toml(file)
    if problems:
        return None, problems
    found = [Problem(str(file), _top_line(text, key), fault) for key, fault in check_table(data, _TOP, "the registry")]
    if found:
        return None, found
    found = [Problem(str(file), 0, fault) for _, fault in check_table(data["core"], _CORE, "[core]")]
    for index, table in enumerate(data["plugin"]):
        found += _check_entry(file, text, index, table)
    found += _check_unique(file, text, data["plugin"])
    if found:
        return None, found
    entries = tuple(RegistryEntry(index, table) for index, table in enumerate(data["plugin"]))
    return Registry(file, text, data["core"], entries), []


def _top_line(text: str, key: str) -> int:
    lines = text.splitlines()
    return next((n for n, line in enumerate(lines, 1) if key and line.lstrip("[ ").startswith(key)), 0)


def _check_entry(file: Path, text: str, index: int, table: Mapping[str, Any]) -> list[Problem]:
    where = f"plugin {table.get('name', index + 1)!r}"
    schema = {**_PLUGIN, **{"paper": _METHODS, "benchmark": _BENCHMARK}.get(str(table.get("kind", "paper")), {})}
    faults = [("", key, fault) for key, fault in check_table(table, schema, where)]
    for name, schema in _SUBTABLES.items():
        if isinstance(table.get(name), dict):
            faults += [(name, key, fault) for key, fault in check_table(table[name], schema, f"{where}, {name}")]
    if ("path" in table) == ("repository" in table):
        faults.append(("", "", f"{where} needs either path (in this repository) or repository (an address)"))
    return [Problem(str(file), line_of(text, "plugin", index, key, sub), fault) for sub, key, fault in faults]


def _check_unique(file: Path, text: str, tables: list[dict[str, Any]]) -> list[Problem]:
    problems = []
    for key in ("name", "distribution", "path"):
        seen: dict[Any, int] = {}
        for index, table in enumerate(tables):
            value = table.get(key)
            if value is not None and str(value) in seen:
                line = line_of(text, "plugin", index, key)
                first = line_of(text, "plugin", seen[str(value)], key)
                problems.append(Problem(str(file), line, f"{key} = {value!r} is already used in line {first}"))
            seen.setdefault(str(value), index)
    return problems


def install_hint(name: str) -> str:
    """How to install the plugin behind a method address, or an empty string when the registry does not know it."""
    try:
        entry = load_registry().get(name.partition("/")[0])
    except RegistryError:
        return ""
    return f"install it with: {entry.pip_command}" if entry else ""


def plugin_table_markdown(registry: Registry) -> str:
    """The README's table of plugins."""
    rows = ["| plugin | paper | what it does | hooks | status |", "| --- | --- | --- | --- | --- |"]
    for entry in registry.entries:
        data = entry.data
        link = entry.path or data["repository"]
        cite = _cited(data["paper"]) if "paper" in data else entry.kind
        hooks = ", ".join(f"`{hook}`" for hook in data["hooks"])
        cells = [f"[{entry.name}]({link})", cite, markdown_text(data["summary"]), hooks, data["status"]]
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)


def spread_table_markdown(registry: Registry) -> str:
    """Which plugin works on a model that is spread in which way, as their Traits declare it."""
    words = {
        "ddp": "DDP", "fsdp2": "FSDP2", "tp": "tensor parallel", "cp": "context or sequence parallel",
        "offload": "offloaded",
    }  # fmt: skip
    rows = [f"| plugin | {' | '.join(words[kind] for kind in PARALLEL)} |", "| --- " * (len(PARALLEL) + 1) + "|"]
    for entry in registry.entries:
        if "parallel" in entry.data:
            cells = ["yes" if kind in entry.data["parallel"] else "refused" for kind in PARALLEL]
            rows.append(f"| {entry.name} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _cited(paper: Mapping[str, Any]) -> str:
    title, published = markdown_text(paper["title"]), markdown_text(paper.get("venue") or paper["year"])
    return f"[{title}](https://arxiv.org/abs/{paper['arxiv']}), {published}"


def replace_between_markers(text: str, marker: str, content: str) -> str:
    """``text`` with what lies between ``<!-- marker:start -->`` and ``<!-- marker:end -->`` replaced by ``content``.

    Raises RegistryError when the markers are missing or in the wrong order.
    """
    start, end = f"<!-- {marker}:start -->", f"<!-- {marker}:end -->"
    head, found_start, rest = text.partition(start)
    _, found_end, tail = rest.partition(end)
    if not found_start or not found_end:
        raise RegistryError(f"the text needs the markers {start} and {end}, in this order")
    return f"{head}{start}\n{content.strip()}\n{end}{tail}"
