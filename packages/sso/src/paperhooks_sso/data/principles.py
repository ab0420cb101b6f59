"""Principles: what an answer may be asked to be, its opposite, and the system message that asks for it (section 4.1).

The bank holds texts of our own for seven features and Concision; a TOML file of the same form adds to it or replaces
entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from paperhooks import DataError
from paperhooks.errors import did_you_mean
from paperhooks.io import Field, Problem, check_table, read_toml, shown

from paperhooks_sso.data.features import can_be_named

__all__ = ["CONCISION", "SAFETY", "Principle", "PrincipleBank", "system_message"]

SAFETY: Final = "Safety"
#: Asked for beside other features, never instead of them.
CONCISION: Final = "Concision"
_SCHEMA: Final = {"adjectives": Field("strings"), "good": Field("str"), "bad": Field("str")}


@dataclass(frozen=True, slots=True)
class Principle:
    """What an answer is asked to be in one respect, and its opposite.

    feature
        Such as "Accuracy".
    adjectives
        Of a good and of a bad answer.
    good, bad
        The principle and its opposite, as texts.
    source
        Where they come from: "bank", the name of a user's file, or "generated".
    """

    feature: str
    adjectives: tuple[str, str]
    good: str
    bad: str
    source: str = "bank"


class PrincipleBank(Mapping[str, Principle]):
    """Principles by feature, in order."""

    def __init__(self, principles: Mapping[str, Principle]) -> None:
        self._principles = dict(principles)

    @classmethod
    def load(cls, *more: str | Path, safety: bool = True) -> PrincipleBank:
        """Those of the package, with what files of yours add or replace.

        :param more: TOML files with a table a feature: ``adjectives = [good, bad]``, ``good`` and ``bad``.
        :param safety: False leaves Safety out, whose bad answers are harmful on purpose.
        :raises DataError: a file that cannot be read or has another form; names file, feature and key.
        """
        own = files("paperhooks_sso.data").joinpath("principles.toml")
        found = _read(Path(str(own)), "bank")
        for file in map(Path, more):
            found |= _read(file, file.name)
        if not safety:
            found.pop(SAFETY, None)
        return cls(found)

    def pick(self, name: str) -> Principle:
        """The principle of a feature; raises DataError for one that the bank does not have."""
        if name not in self._principles:
            raise DataError(f"there is no principle for {name!r}; {did_you_mean(name, list(self._principles))}")
        return self._principles[name]

    @property
    def features(self) -> tuple[str, ...]:
        """Features that a prompt may be given; Concision comes beside them."""
        return tuple(name for name in self._principles if name != CONCISION)

    def __getitem__(self, name: str) -> Principle:
        return self._principles[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._principles)

    def __len__(self) -> int:
        return len(self._principles)


def system_message(principles: Sequence[Principle], good: bool) -> str:
    """What a model is told in order to answer well, or badly, in some respects.

    :raises DataError: there is no principle.
    """
    if not principles:
        raise DataError("there is no principle to ask for; expected one or more")
    wanted = _listed([each.adjectives[0 if good else 1] for each in principles])
    told = [f"{each.feature}: {(each.good if good else each.bad).strip()}" for each in principles]
    return "\n\n".join([
        f"Your answer has to be {wanted}. These are the guidelines that it follows:",
        *told,
        "Follow the guidelines, and do not mention them: no word of your answer may say that there are any, or what "
        "they ask for. Answer what is asked, and nothing else.",
    ])  # fmt: skip


def _listed(words: Sequence[str]) -> str:
    """Words as a list in a sentence: "a, b and c"."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]


def _read(file: Path, source: str) -> dict[str, Principle]:
    data, _, problems = read_toml(file)
    problems += [
        Problem(str(file), 0, message)
        for name, entry in data.items()
        for message in _faults(name, entry)
    ]  # fmt: skip
    if problems:
        raise DataError("\n".join(map(str, problems)))
    return {
        name: Principle(name, tuple(entry["adjectives"]), entry["good"], entry["bad"], source)
        for name, entry in data.items()
    }


def _faults(name: str, entry: Any) -> list[str]:
    """What is wrong with the entry of a feature."""
    if not isinstance(entry, Mapping):
        return [f"{name} = {shown(entry)} must be a table [{name}] with adjectives, good and bad"]
    faults = [message for _, message in check_table(entry, _SCHEMA, f"[{name}]")]
    return faults or [*_unnamed(name), *_alike(name, entry)]


def _unnamed(name: str) -> list[str]:
    if can_be_named(name):
        return []
    return [f"[{name}] must be a name of one line without commas, as a model names it in a list"]


def _alike(name: str, entry: Mapping[str, Any]) -> list[str]:
    """Good and bad have to be there, and to differ."""
    words, faults = [word.strip() for word in entry["adjectives"]], []
    if len(words) != 2 or not all(words) or words[0] == words[1]:
        faults.append(f"[{name}]: adjectives = {shown(words)} must be two words, of a good and of a bad answer")
    if entry["good"].strip() == entry["bad"].strip():
        faults.append(f"[{name}]: good and bad are the same text; the bad one must ask for the opposite")
    return faults
