"""One function makes the ids of a prompt, for sampling and for training alike (section 6.3).

A prompt is a conversation whose last turn is the user's. Its three forms differ in the system message: none of ours
(x), a good principle (x+), a bad one (x-). What the model is asked is what it is trained on, token for token:

- the chat template writes the ids, and with them the beginning-of-sequence token, once;
- x keeps the default system text of a template that has one, x+ and x- replace it;
- a system text of the user's stands in all three, in front of the principle;
- where a template knows no system role, the system text stands in front of the user's last message.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Final

from paperhooks import DataError
from paperhooks.io import hash_json, shown

from paperhooks_sso.data.faults import writable

__all__ = ["ChatFormat", "Conversation", "conversation_of", "id_text"]

_ROLES: Final = ("system", "user", "assistant", "tool")
#: A text that no template writes by itself.
_MARK: Final = "QXZJ"


@dataclass(frozen=True, slots=True)
class Conversation:
    """A prompt in the user's words.

    id
        By which its samples are found again; unique in a run.
    messages
        ``{"role", "content"}`` each, without system messages, the last one the user's.
    system
        The user's own system text, or None.
    """

    id: str
    messages: tuple[Mapping[str, str], ...]
    system: str | None = None


@dataclass(frozen=True, eq=False)
class ChatFormat:
    """A tokenizer's chat template, with the options that it is called with.

    tokenizer
        Whose template it is; left as it was.
    options
        ``chat_template_kwargs``, such as ``{"enable_thinking": False}``.
    template
        A template in place of the tokenizer's own.

    :raises DataError: there is no chat template, or it cannot write a conversation.
    """

    tokenizer: Any
    options: Mapping[str, Any] = field(default_factory=dict)
    template: str | None = None
    _system: bool = field(default=True, init=False, repr=False)
    _end: tuple[int, ...] = field(default=(), init=False, repr=False)
    _control: frozenset[int] = field(default=frozenset(), init=False, repr=False)

    def __post_init__(self) -> None:
        if not (self.template or getattr(self.tokenizer, "chat_template", None)):
            raise DataError(
                f"{type(self.tokenizer).__name__} has no chat template, so a prompt with a system message cannot be "
                "written; use the tokenizer of a chat model, or give a template: ChatFormat(tokenizer, template=...)"
            )
        object.__setattr__(self, "_system", self._takes_system())
        object.__setattr__(self, "_end", self._end_of_turn())
        object.__setattr__(self, "_control", self._control_ids())

    @property
    def digest(self) -> str:
        """SHA-256 of template and options."""
        return hash_json([self.template or self.tokenizer.chat_template, dict(self.options)])

    @property
    def end_of_turn(self) -> tuple[int, ...]:
        """Ids that the template writes behind an answer, up to the first special token, such as that of ``<|im_end|>``;
        the end-of-sequence token where it writes none."""
        return self._end

    def prompt_ids(self, conversation: Conversation, principle: str | None = None) -> list[int]:
        """Ids of a prompt: x without a principle, x+ or x- with the text of one. An empty one is none.

        :raises DataError: the template refuses the conversation; names its id.
        """
        messages = self._messages(conversation, principle)
        try:
            return list(self._rendered(messages, tokenize=True, add_generation_prompt=True))
        except Exception as error:
            raise DataError(f"the chat template cannot write the prompt {conversation.id!r}: {error}") from error

    def response_ids(self, text: str) -> list[int]:
        """Ids of an answer that comes as text, with the end of its turn; what was sampled keeps its own ids.

        :raises DataError: see :meth:`spells`.
        """
        if not self.spells(text):
            raise DataError(
                f"{type(self.tokenizer).__name__} makes control tokens of the text {shown(text)}; leave the answer out"
            )
        return [*self._text_ids(text), *self.end_of_turn]

    def spells(self, text: str) -> bool:
        """Whether the tokenizer can write a text as text; False where it makes control tokens of names such as
        ``<|im_end|>`` that stand in it."""
        return not self._control & set(self._text_ids(text))

    def _text_ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if not self._control & set(ids):
            return ids
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        self.tokenizer("")  # fast tokenizers keep the option until the next call
        return ids

    def _messages(self, conversation: Conversation, principle: str | None) -> list[dict[str, str]]:
        told = "\n\n".join(part for part in (conversation.system, principle) if part)
        messages = [dict(message) for message in conversation.messages]
        if not told:
            return messages
        if self._system:
            return [{"role": "system", "content": told}, *messages]
        messages[-1]["content"] = f"{told}\n\n{messages[-1]['content']}"
        return messages

    def _rendered(self, messages: Sequence[Mapping[str, str]], *, tokenize: bool, **options: Any) -> Any:
        given = {**copy.deepcopy(dict(self.options)), **options}
        if self.template is not None:
            given["chat_template"] = self.template
        return self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=tokenize,
            **({"return_dict": False} if tokenize else {}), **given,
        )  # fmt: skip

    def _takes_system(self) -> bool:
        """Whether a system message reaches the prompt: some templates refuse it, some leave it out."""
        user = {"role": "user", "content": "a"}
        self._written([user])
        try:
            text = self._rendered([{"role": "system", "content": _MARK}, user], tokenize=False)
        except Exception:
            return False
        return _MARK in text

    def _written(self, messages: Sequence[Mapping[str, str]]) -> str:
        try:
            return str(self._rendered(messages, tokenize=False))
        except Exception as error:
            raise DataError(f"the chat template cannot write a conversation of one message: {error}") from error

    def _control_ids(self) -> frozenset[int]:
        """Special tokens, but for the one of unknown words, which is text."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        special = {*self.tokenizer.all_special_ids, *(id for id, token in added.items() if token.special)}
        return frozenset(special - {getattr(self.tokenizer, "unk_token_id", None)})

    def _end_of_turn(self) -> tuple[int, ...]:
        answered = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
        tail = self._written(answered).rpartition(_MARK)[2]
        special = set(self.tokenizer.all_special_ids) | set(getattr(self.tokenizer, "added_tokens_decoder", {}))
        ids: list[int] = self.tokenizer(tail, add_special_tokens=False)["input_ids"]
        at = next((place for place, one in enumerate(ids) if one in special), None)
        if at is not None:
            return tuple(ids[: at + 1])
        if self.tokenizer.eos_token_id is None:
            raise DataError(
                f"the chat template writes no special token behind an answer, and {type(self.tokenizer).__name__} has "
                "no end-of-sequence token, so nothing says where an answer ends"
            )
        return (int(self.tokenizer.eos_token_id),)


def conversation_of(record: Any, id: str, where: str = "the prompt") -> Conversation:
    """A prompt from what people have: a text, messages, or a mapping with one of them.

    :param record: a text; a list of messages; or a mapping with ``prompt`` (a text or messages), ``messages``,
        ``instruction`` (with what it is about in ``input``, on a line of its own) or ``question``, and perhaps
        ``system``, ``history`` ([question, answer] pairs) and ``id``. An assistant's message at the end, the answer
        that is to be written anew, is left out. A content of parts may hold text alone. None and NaN count as missing.
    :param id: where the record has none. :param where: what holds it, for messages of errors.
    :raises DataError: none of these, an unknown role, an empty question, a history beside messages, a system or an id
        that is no text.
    """
    system, history = None, None
    if isinstance(record, Mapping):
        keys = ", ".join(map(str, record)) or "none"
        record = {name: value for name, value in record.items() if not _missing(value)}
        id = id_text(record.get("id"), where) or id
        system, history = _system(record, where), record.get("history")
        names = [name for name in ("messages", "prompt", "instruction", "question") if record.get(name)]
        if not names:
            raise DataError(
                f"{where} has the keys {keys}; expected prompt, messages, instruction or question, and something there"
            )
        record = _instructed(record, where) if names[0] == "instruction" else record[names[0]]
    turns = _turns(() if history is None else history, where)
    if turns and not isinstance(record, str):
        raise DataError(f"{where} has a history beside messages; put its turns in front of the messages")
    if isinstance(record, str):
        record = [*turns, {"role": "user", "content": record}]
    if isinstance(record, str | Mapping) or not isinstance(record, Sequence):
        raise DataError(f"{where} is {shown(record)}; expected a text or messages")
    messages = [_message(each, where) for each in record]
    own = [each["content"] for each in messages if each["role"] == "system"]
    messages = [each for each in messages if each["role"] != "system"]
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    if not messages or not messages[-1]["content"].strip():
        raise DataError(f"{where} asks nothing: the user's last message is empty or missing")
    return Conversation(id, tuple(messages), "\n\n".join([*own, *([system] if system else [])]) or None)


def id_text(id: Any, where: str) -> str:
    """An id as text; a number counts as its text, and nothing, None and NaN as "".

    :raises DataError: it is something else.
    """
    if _missing(id):
        return ""
    if isinstance(id, bool) or not isinstance(id, str | Real):
        raise DataError(f"{where} has id = {shown(id)}; expected a text or a number")
    return str(id)


def _missing(value: Any) -> bool:
    """None, or what pandas puts where there is nothing."""
    return value is None or type(value).__name__ == "NAType" or (isinstance(value, Real) and value != value)


def _system(record: Mapping[str, Any], where: str) -> str | None:
    system = record.get("system")
    if system is not None and not isinstance(system, str):
        raise DataError(f"{where} has system = {shown(system)}; expected a text")
    return _whole(system, where) if system else None


def _instructed(record: Mapping[str, Any], where: str) -> Any:
    """An instruction with its input, as sets in the manner of Alpaca have them."""
    instruction, about = record["instruction"], record.get("input")
    if not about:
        return instruction
    if not isinstance(instruction, str) or not isinstance(about, str):
        raise DataError(f"{where} has input = {shown(about)}; expected a text beside an instruction that is one")
    return f"{instruction}\n{about}"


def _turns(history: Any, where: str) -> list[dict[str, str]]:
    """Messages of [question, answer] pairs."""
    if isinstance(history, str | Mapping) or not isinstance(history, Sequence):
        raise DataError(f"{where} has history = {shown(history)}; expected a list of [question, answer] pairs")
    found = []
    for turn in history:
        pair = list(turn) if isinstance(turn, Sequence) and not isinstance(turn, str) else []
        if len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise DataError(f"{where} has the turn {shown(turn)} in its history; expected [question, answer] as texts")
        found += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return found


def _message(message: Any, where: str) -> dict[str, str]:
    role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
    if isinstance(content, list) and all(map(_is_text, content)):
        content = "".join(one["text"] for one in content)
    if role not in _ROLES or not isinstance(content, str):
        raise DataError(
            f"{where} has the message {shown(message)}; expected a role ({', '.join(_ROLES)}) and a content of text"
        )
    return {"role": str(role), "content": _whole(content, where)}


def _whole(text: str, where: str) -> str:
    if not writable(text):
        raise DataError(
            f"{where} has the text {shown(text)} with half of a character; expected one that can be encoded"
        )
    return text


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and set(part) == {"type", "text"} and isinstance(part["text"], str)
