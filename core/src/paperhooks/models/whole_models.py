"""Models read from a folder or the hub with all of their weights."""

from __future__ import annotations

from typing import Any, Final

from paperhooks.errors import DataError, first_line

__all__ = ["whole_model"]

#: How many weights a message names.
_NAMED: Final = 3


def whole_model(model_class: Any, name: str, **options: Any) -> Any:
    """``model_class.from_pretrained(name, **options)``, of which nothing may be missing.

    Weights that a folder lacks would be random, of which transformers only writes a table into the log.

    :raises DataError: there is no such model, or weights of it are missing, some of which are named.
    """
    try:
        model, info = model_class.from_pretrained(name, output_loading_info=True, **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"{name!r} has no weights that can be loaded: {first_line(error)}") from error
    if missing := sorted(info["missing_keys"]):
        more = ", ..." if len(missing) > _NAMED else ""
        raise DataError(
            f"{name!r} has no weights of {', '.join(missing[:_NAMED])}{more}, which would be random; name a whole "
            f"{model_class.__name__.removeprefix('AutoModelFor')} model"
        )
    return model
