"""What differs between two runs besides their responses, and what of it makes their scores incomparable."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from paperhooks.errors import DataError, did_you_mean

__all__ = ["InputDifference", "RunsDiffer", "check_allowed", "differences"]

#: What answers and how it computes: two runs are made to compare these. All other inputs make scores incomparable.
_COMPARED: Final = frozenset({
    "backend", "model", "dtype", "config", "processor", "tokenizer", "chat_template", "generation", "methods",
    "name", "url", "query", "parameters", "replies",
})  # fmt: skip
#: What follows from other inputs.
_DERIVED: Final = frozenset({"fingerprint", "options"})
_NOTHING: Final = "nothing"


@dataclass(frozen=True, slots=True)
class InputDifference:
    """An input that two runs do not share.

    :param name: as it is allowed by: ``"layout"``, ``"max_new_tokens"``, an option of the task, ``"documents"``, ...
    :param a, b: its values, shortened.
    :param comparable: whether scores can be compared in spite of it: it is what answers, such as the model.
    """

    name: str
    a: str
    b: str
    comparable: bool

    def __str__(self) -> str:
        return f"{self.name}: {self.a} in a, {self.b} in b"


class RunsDiffer(DataError):
    """Two runs whose scores cannot be compared.

    :param differences: the inputs that make them so.
    """

    def __init__(self, text: str, differences: Collection[InputDifference]) -> None:
        super().__init__(text)
        self.differences = tuple(differences)


def differences(
    inputs_a: Mapping[str, Any], inputs_b: Mapping[str, Any], further: Mapping[str, tuple[Any, Any]]
) -> tuple[list[InputDifference], list[str]]:
    """Every input that differs, and the names of all.

    :param inputs_a, inputs_b: of the runs' ``result.json``. :param further: name to the values in both of what is not
        among the inputs, such as how responses were scored.
    """
    pairs = {name: (inputs_a.get(name), inputs_b.get(name)) for name in [*inputs_a, *inputs_b] if name not in _DERIVED}
    options_a, options_b = inputs_a["options"], inputs_b["options"]
    for name in [*options_a, *options_b]:
        # A limit may be an option of the task, and be replaced by the caller: either may differ.
        if name not in pairs or pairs[name][0] == pairs[name][1]:
            pairs[name] = options_a.get(name), options_b.get(name)
    pairs |= further
    found = [
        InputDifference(name, _short(a, b), _short(b, a), name in _COMPARED and name not in further)
        for name, (a, b) in pairs.items()
        if a != b
    ]
    return found, list(pairs)


def check_allowed(
    found: Collection[InputDifference], allow: Collection[str], known: Collection[str], where: str
) -> None:
    """Raise RunsDiffer for differences that make scores incomparable and are not allowed.

    :param known: the names of all inputs. :param where: the runs, for the message.
    :raises DataError: a name that is allowed and unknown.
    """
    for name in [allow] if isinstance(allow, str) else allow:
        if name not in known:
            raise DataError(f"allow names {name!r}, which is no input of the runs; {did_you_mean(name, known)}")
    refused = [one for one in found if not one.comparable and one.name not in allow]
    if refused:
        listed = "".join(f"\n  {one}" for one in refused)
        names = ", ".join(one.name for one in refused)
        raise RunsDiffer(
            f"{where} differ in what makes their scores incomparable:{listed}\nmake both runs alike, or allow by name "
            f"what is meant to differ (on the command line one --allow for each name): {names}",
            refused,
        )


def _short(value: Any, other: Any) -> str:
    """A value as a text; of two mappings only what differs."""
    if value is None:
        return _NOTHING
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        own = {key: item for key, item in value.items() if other.get(key) != item or key not in other}
        return ", ".join(f"{key} {_clipped(item)}" for key, item in own.items()) or _NOTHING
    return _clipped(value)


def _clipped(value: Any, most: int = 60) -> str:
    text = value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."
