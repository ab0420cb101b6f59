"""Parsing of what commands share: methods with options, models, text files."""

from __future__ import annotations

import ast
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any, Final

import typer

from paperhooks.errors import DataError, PaperhooksError, UnsupportedModel, did_you_mean, first_line
from paperhooks.io.options import shown
from paperhooks.io.records import read_records
from paperhooks.plugins.installed import catalog
from paperhooks.plugins.methods import method_options

__all__ = [
    "build_methods",
    "empty_model",
    "load_model",
    "load_processor",
    "load_records",
    "parse_method",
    "parse_value",
    "usage_errors",
]

#: What Python raises for text that is no literal: nested too deep, of too many digits, with NUL, or keys without hash.
_UNREADABLE: Final = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError)
#: Quoted text, or a value with a slash in it that reaches to the next comma or the end.
_PATH: Final = re.compile(
    r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|(?<==)\s*(?P<path>[^\s,'"(){}\[\]=]*/[^\s,'"(){}\[\]=]*)(?=\s*(?:,|$))"""
)
_WORDS: Final = {"true": True, "false": False, "none": None, "null": None}


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of ``NAME`` or ``NAME:k=v,k=v``; values are Python literals; bare words and paths are strings.

    >>> parse_method("pyramiddrop:stages={8: 0.5, 16: 0.25},positions=keep")
    ('pyramiddrop', {'stages': {8: 0.5, 16: 0.25}, 'positions': 'keep'})
    >>> parse_method("evopress:start=runs/bits-2.5,generations=3")
    ('evopress', {'start': 'runs/bits-2.5', 'generations': 3})

    Raises typer.BadParameter (exit code 2) naming the part that cannot be read.
    """
    name, _, options = text.partition(":")
    if not name:
        raise typer.BadParameter(f"{shown(text)} does not begin with a method's name")
    if not options.strip():
        return name, {}
    malformed = f"the options {shown(options)} of {shown(name)} are not of the form k=v,k=v"
    try:
        source = f"f({_PATH.sub(_with_quotes, options)})"
        call = ast.parse(source, mode="eval").body
    except _UNREADABLE as error:
        raise typer.BadParameter(malformed) from error
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise typer.BadParameter(malformed)
    return name, {str(keyword.arg): _literal(source, str(keyword.arg), keyword.value) for keyword in call.keywords}


def _with_quotes(found: re.Match[str]) -> str:
    """A path with quotes; a division of numbers is none."""
    path = found["path"]
    return found[0] if path is None or not any(map(str.isalpha, path)) else repr(path)


def _literal(source: str, option: str, node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id.lower(), node.id)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError) as error:
        text = (ast.get_source_segment(source, node) or ast.unparse(node))[:100]
        raise typer.BadParameter(
            f"the value {text} of option {option!r} is no literal; quote text: '{text}'"
        ) from error
    except (RecursionError, MemoryError) as error:
        raise typer.BadParameter(f"the value of option {option!r} is nested too deep") from error


def parse_value(text: str) -> Any:
    """A value given alone: a Python literal, true, false or none, or else text as it stands, such as a path."""
    try:
        return ast.literal_eval(text.strip())
    except _UNREADABLE:
        return _WORDS.get(text.strip().lower(), text)


def usage_errors(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose values that an option cannot have (ValueError) are errors of usage, with exit code 2.

    Errors of paperhooks stay what they are, also those that are values of data.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except PaperhooksError:
            raise
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return run


def build_methods(texts: Sequence[str]) -> list[Any]:
    """Instances of the methods given as ``NAME[:k=v,...]``; call it before a model is loaded.

    :raises typer.BadParameter: an option that the method lacks, or a value that it cannot have (exit code 2).
    :raises PluginError: no such method, or one that cannot be used.
    """
    built = []
    for name, options in [parse_method(text) for text in texts]:
        known = method_options(catalog().method_class(name))
        for option in options:
            if option not in known:
                raise typer.BadParameter(f"{name} has no option {option!r}; {did_you_mean(option, known)}")
        try:
            built.append(catalog().create_method(name, **options))
        except PaperhooksError:
            raise
        except (TypeError, ValueError) as error:
            raise typer.BadParameter(f"{name}: {error}") from error
    return built


def _config(model: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise DataError(f"{model!r} is no model folder or hub name with a usable config.json: {reason}") from error


def _model_class(config: Any) -> Any:
    import transformers

    for name in getattr(config, "architectures", None) or ():
        found = getattr(transformers, name, None)
        if found is not None and hasattr(found, "prepare_inputs_for_generation"):
            return found
    for auto in (transformers.AutoModelForImageTextToText, transformers.AutoModelForCausalLM):
        if type(config) in auto._model_mapping:
            return auto._model_mapping[type(config)]
    raise UnsupportedModel(f"{config.model_type!r} is neither a causal nor an image-text-to-text model of transformers")


def empty_model(model: str) -> Any:
    """The model of a folder or hub name on the meta device: only its config is read."""
    import torch

    config = _config(model)
    with torch.device("meta"):
        return _model_class(config)._from_config(config)


def load_model(model: str, device: str = "cpu", dtype: str = "auto") -> Any:
    """The model of a folder or hub name with its weights, in evaluation mode.

    :param device: "cuda" is the GPU of this process where torchrun or accelerate started several.
    :raises DataError: no such model, one that lacks weights, or a device that cannot be used.
    """
    import torch

    from paperhooks.models.whole_models import whole_model

    found = _model_class(_config(model))
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        torch.empty(1, device=device)
    except (AssertionError, RuntimeError) as error:
        raise DataError(f"the device {device!r} cannot be used: {first_line(error)}") from error
    try:
        return whole_model(found, model, dtype=dtype).to(device).eval()
    except RuntimeError as error:  # of the device
        raise DataError(f"{model!r} cannot be put on {device}: {first_line(error)}") from error


def load_processor(model: str) -> Any:
    """The processor of a folder or hub name, or its tokenizer where it is a text-only model."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise DataError(f"{model!r} has no processor or tokenizer: {reason}") from error


def load_records(source: str, limit: int | None = None) -> list[Any]:
    """Records (texts or objects) of a source that :func:`paperhooks.io.read_records` reads; of text files a text a
    block between blank lines.

    :param limit: so many of them, the first ones: no more is read, however large the source is.
    :raises DataError: something that cannot be read, naming file and line.
    """
    found = []
    for where, record in islice(read_records(source, text="blocks"), limit):
        if not isinstance(record, str | Mapping):
            raise DataError(f"{where}: expected a text or an object, not {type(record).__name__}")
        found.append(record)
    if not found:
        raise DataError(f"{source} holds no record")
    return found
