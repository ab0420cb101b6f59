"""Parsing of what commands share: methods with options, models, text files."""

from __future__ import annotations

import ast
import functools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import typer

from paperhooks.errors import DataError, PaperhooksError, UnsupportedModel
from paperhooks.plugins.installed import catalog

__all__ = [
    "build_methods",
    "empty_model",
    "load_model",
    "load_processor",
    "parse_method",
    "parse_value",
    "read_records",
    "usage_errors",
]

_WORDS: Final = {"true": True, "false": False, "none": None, "null": None}


def parse_method(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of ``NAME`` or ``NAME:k=v,k=v``; values are Python literals, and bare words are strings.

    >>> parse_method("pyramiddrop:stages={8: 0.5, 16: 0.25},positions=keep")
    ('pyramiddrop', {'stages': {8: 0.5, 16: 0.25}, 'positions': 'keep'})

    Raises typer.BadParameter (exit code 2) naming the part that cannot be read.
    """
    name, _, options = text.partition(":")
    if not name:
        raise typer.BadParameter(f"{text!r} does not begin with a method's name")
    if not options.strip():
        return name, {}
    try:
        call = ast.parse(f"f({options})", mode="eval").body
    except SyntaxError as error:
        raise typer.BadParameter(f"the options {options!r} of {name!r} are not of the form k=v,k=v") from error
    if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
        raise typer.BadParameter(f"the options {options!r} of {name!r} are not of the form k=v,k=v")
    return name, {str(keyword.arg): _literal(str(keyword.arg), keyword.value) for keyword in call.keywords}


def _literal(option: str, node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        return _WORDS.get(node.id.lower(), node.id)
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        text = ast.unparse(node)
        raise typer.BadParameter(
            f"the value {text} of option {option!r} is no literal; quote text: '{text}'"
        ) from error


def parse_value(text: str) -> Any:
    """A value given alone: a Python literal, true, false or none, or else text as it stands, such as a path."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
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
    """Instances of the methods given as ``NAME[:k=v,...]``."""
    return [catalog().create_method(name, **options) for name, options in map(parse_method, texts)]


def _config(model: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
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
    :raises DataError: no such model, or a device that cannot be used.
    """
    try:
        loaded = _model_class(_config(model)).from_pretrained(model, dtype=dtype)
    except (OSError, ValueError) as error:
        raise DataError(f"{model!r} has no weights that can be loaded: {str(error).splitlines()[0]}") from error
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        return loaded.to(device).eval()
    except (AssertionError, RuntimeError) as error:
        raise DataError(f"the device {device!r} cannot be used: {str(error).splitlines()[0]}") from error


def load_processor(model: str) -> Any:
    """The processor of a folder or hub name, or its tokenizer where it is a text-only model."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{model!r} has no processor or tokenizer: {reason}") from error


def read_records(path: Path) -> list[Any]:
    """Records of a ``.jsonl`` file (strings or objects), or texts of a plain text file (one a blank-line block).

    Raises DataError naming file and line.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from error
    if path.suffix == ".jsonl":
        lines = enumerate(content.splitlines(), 1)
        return [_record_of(path, number, line) for number, line in lines if line.strip()]
    return [block.strip() for block in content.split("\n\n") if block.strip()]


def _record_of(path: Path, number: int, line: str) -> Any:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}:{number}: is not JSON: {error}") from error
    if not isinstance(record, str | Mapping):
        raise DataError(f"{path}:{number}: expected a string or an object, not {type(record).__name__}")
    return record
