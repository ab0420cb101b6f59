"""How many tokens a model was made for, as its config says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["stated_context"]


def stated_context(config: Any) -> int:
    """Tokens of prompt and answer together that a text config states; 0 where it states none, or positions do not end.

    Rotary positions that are scaled reach as far as the scaling says. ALiBi and recurrence know no last position.
    """
    limit = getattr(config, "max_position_embeddings", None)
    recurrent = "rwkv" in str(getattr(config, "model_type", ""))
    if not isinstance(limit, int) or limit < 1 or recurrent or getattr(config, "alibi", False):
        return 0
    return max([limit, *_scaled(getattr(config, "rope_parameters", None), limit)])


def _scaled(parameters: Any, limit: int) -> Iterator[int]:
    """How far scaled rotary positions reach; the parameters may be those of each kind of layer."""
    if not isinstance(parameters, Mapping):
        return
    for inner in parameters.values():
        yield from _scaled(inner, limit)
    factor = parameters.get("factor")
    own = parameters.get("original_max_position_embeddings") or limit
    if isinstance(factor, int | float) and factor > 1 and isinstance(own, int):
        yield int(own * factor)
