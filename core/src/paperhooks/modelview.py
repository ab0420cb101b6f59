"""Finds in a transformers model what methods need: decoder, layers, image tokens and their grids.

The only module that knows model families. Everything here is looked up through public names where they exist; the two
exceptions (the attention kernel a config carries, and the class that marks decoder layers) are held by a test that
names the transformers version.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from paperhooks.errors import UnsupportedModel

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from paperhooks.weights import WeightJournal

__all__ = ["GridPart", "ImageSpan", "LayerCall", "ModelView", "image_runs"]

ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention")
#: Layers whose decoder keeps the caller's keyword arguments to itself, although their signature may look open.
CLOSED_LAYERS = ("BloomBlock", "MambaBlock")
#: Families whose decoder reshapes its output to the length of its input.
FULL_LENGTH = ("gpt2",)
CACHE_NAMES = ("past_key_values", "layer_past", "past_key_value")


@dataclass(frozen=True, slots=True)
class GridPart:
    """A rectangle of image tokens: ``rows`` x ``cols`` tokens from ``start``, ``stride`` tokens from row to row.

    ``stride`` exceeds ``cols`` where a model closes every row with a newline token.
    """

    start: int
    rows: int
    cols: int
    stride: int

    def indices(self) -> list[int]:
        """The sequence indices of the grid's tokens, row by row (length rows * cols)."""
        return [self.start + r * self.stride + c for r in range(self.rows) for c in range(self.cols)]


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """A contiguous run of image tokens: batch ``row``, columns ``start`` to ``stop`` (exclusive), and its grids.

    ``parts`` is empty when the layout inside the run is not a known grid.
    """

    row: int
    start: int
    stop: int
    parts: tuple[GridPart, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerCall:
    """How a decoder names the arguments that it hands to its layers."""

    names: tuple[str, ...]
    cache: str

    @classmethod
    def of(cls, layer: nn.Module) -> LayerCall:
        """Read the names off ``layer.forward``; raises UnsupportedModel where keyword arguments are not accepted."""
        parameters = inspect.signature(layer.forward).parameters.values()
        if type(layer).__name__ in CLOSED_LAYERS or not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise UnsupportedModel(
                f"{type(layer).__name__} receives no keyword arguments of the model's caller, so per-forward state "
                "cannot reach it; paperhooks needs a decoder that hands **kwargs down to its layers, which bloom and "
                "mamba do not"
            )
        names = tuple(p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD))
        return cls(names, next((n for n in CACHE_NAMES if n in names), CACHE_NAMES[0]))


@dataclass(eq=False)
class ModelView:
    """What core found in a model. Made by :meth:`from_model`; methods receive it as ``view``.

    model, decoder, layers
        The attached model, its text decoder, and the decoder's layers in order.
    config, text_config, family
        The model's config, the config of its text decoder, and ``config.model_type``.
    image_token_ids
        Token ids that stand for image or video features; empty for text models.
    layer_types
        One of transformers' layer types a layer, such as ``"full_attention"``.
    """

    model: nn.Module
    decoder: nn.Module
    layers: tuple[nn.Module, ...]
    config: PretrainedConfig
    text_config: PretrainedConfig
    family: str
    image_token_ids: tuple[int, ...]
    layer_types: tuple[str, ...]
    deferred: list[Callable[[], object]] = field(default_factory=list, repr=False)
    compact_loss: bool = field(default=False, repr=False)
    writer: str = field(default="", repr=False)  # the method that weight edits are booked to
    _journal: WeightJournal | None = field(default=None, repr=False)

    @classmethod
    def from_model(cls, model: nn.Module) -> ModelView:
        """Look at ``model``, a stock transformers causal or vision-language model.

        Raises UnsupportedModel naming what was looked for when there is no config, no decoder or no decoder layers.
        """
        config = getattr(model, "config", None)
        if type(model).__name__ == "OptimizedModule":
            raise UnsupportedModel("this is what torch.compile returned; attach to the model itself, then compile it")
        if config is None or not hasattr(model, "get_decoder"):
            found = type(model).__name__
            raise UnsupportedModel(f"expected a transformers model with .config and .get_decoder(), got {found}")
        if getattr(config, "is_encoder_decoder", False):
            raise UnsupportedModel(f"{type(model).__name__} is an encoder-decoder model; only decoders are supported")
        decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
        layers = _find_layers(decoder)
        text_config = config.get_text_config(decoder=True)
        return cls(
            model=model,
            decoder=decoder,
            layers=layers,
            config=config,
            text_config=text_config,
            family=str(config.model_type),
            image_token_ids=_image_token_ids(config),
            layer_types=_layer_types(text_config, layers),
        )

    def __getstate__(self) -> dict[str, object]:
        # What a session will undo belongs to the original alone, not to a copy of an attached model.
        return {**self.__dict__, "deferred": [], "_journal": None}

    @property
    def attention_kernel(self) -> str:
        """The attention implementation the decoder runs now: eager, sdpa, flash_attention_2, flex_attention, ..."""
        return str(getattr(self.text_config, "_attn_implementation", None) or "eager")

    @property
    def flash(self) -> bool:
        """Whether the attention kernel is one of the flash family, which takes 2-D masks or none."""
        return self.attention_kernel.startswith("flash")

    @property
    def rotary(self) -> nn.Module | None:
        """The decoder's rotary embedding module, or None for other kinds of positions."""
        return getattr(self.decoder, "rotary_emb", None)

    @property
    def image_side(self) -> int | None:
        """Rows (and columns) of the square grid of every image or tile, for families whose images have one size."""
        return _fixed_side(self)

    @property
    def multimodal_rotary(self) -> bool:
        """Whether positions are triples (time, row, column), as in the Qwen-VL families, and not plain counts."""
        parameters = getattr(self.text_config, "rope_parameters", None) or {}
        return bool(parameters.get("mrope_section"))

    @property
    def journal(self) -> WeightJournal:
        """The reversible weight journal of this view; every edit through it is undone when the session closes."""
        if self._journal is None:
            from paperhooks.weights import WeightJournal

            self._journal = WeightJournal(self.model)
        self._journal.writer = self.writer
        return self._journal

    def defer(self, undo: Callable[[], object]) -> None:
        """Run ``undo`` when the session closes, after later entries and before earlier ones."""
        self.deferred.append(undo)

    def use_compact_loss(self) -> None:
        """Leave dropped tokens out of the logits in training: the loss is taken on the kept tokens' labels.

        Call it from ``setup``. Without it core restores dropped rows with zeros, so logits keep their full length.

        :raises UnsupportedModel: the decoder reshapes its output to its input's length (gpt2).
        """
        if self.family in FULL_LENGTH:
            raise UnsupportedModel(
                f"{self.family} needs outputs of full length, so a loss on kept tokens only cannot be"
            )
        self.compact_loss = True

    def attention(self, index: int) -> nn.Module | None:
        """The self-attention module of layer ``index``, or None for a layer without one."""
        return next((m for n, m in self.layers[index].named_children() if n in ATTENTION_NAMES), None)

    def modules(self, pattern: str) -> Iterator[tuple[str, nn.Module]]:
        """Modules of the model whose qualified name matches the regular expression ``pattern`` in full."""
        expression = re.compile(pattern)
        return ((name, module) for name, module in self.model.named_modules() if expression.fullmatch(name))

    @contextmanager
    def onloaded(self, module: nn.Module) -> Iterator[None]:
        """A context in which ``module``'s weights are real even if accelerate offloads them between forwards."""
        hooks: list[Any] = [m._hf_hook for m in module.modules() if hasattr(m, "_hf_hook")]
        with ExitStack() as stack:
            if hooks:
                from accelerate.utils import align_module_device

                for part in module.modules():
                    stack.enter_context(align_module_device(part, execution_device=hooks[0].execution_device))
            yield

    def image_mask(self, input_ids: Tensor) -> Tensor:
        """Which tokens of ``input_ids`` [B, T] stand for image features; bool [B, T]."""
        mask = torch.zeros_like(input_ids, dtype=torch.bool)
        for token in self.image_token_ids:
            mask = mask | (input_ids == token)
        return mask

    def image_spans(
        self, input_ids: Tensor | None, inputs: Mapping[str, Any] | None = None, *, mask: Tensor | None = None
    ) -> list[ImageSpan]:
        """Runs of image tokens in ``input_ids`` [B, T], with the grids they unroll.

        :param inputs: the model's other inputs; ``image_grid_thw`` (qwen) and ``image_sizes`` (llava_next) say the
            grid of each image. Neighbouring images of a fixed size are told apart by that size.
        :param mask: bool [B, T], which tokens stand for images, where ``input_ids`` do not say.
        """
        if mask is None:
            if input_ids is None:
                raise UnsupportedModel("image_spans needs input_ids [B, T], or mask (bool [B, T]) in their place")
            mask = self.image_mask(input_ids)
        layouts = _image_layouts(self, inputs or {})
        return [span for run in image_runs(mask) for span in _split_run(run, layouts, self)]


def _find_layers(decoder: nn.Module) -> tuple[nn.Module, ...]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    lists = [tuple(m) for m in decoder.modules() if isinstance(m, nn.ModuleList) and len(m) > 0]
    found = [m for m in lists if all(isinstance(layer, GradientCheckpointingLayer) for layer in m)]
    if not found:
        seen = sorted({type(m[0]).__name__ for m in lists}) or ["no ModuleList"]
        raise UnsupportedModel(
            f"{type(decoder).__name__} has no list of decoder layers: looked for a ModuleList whose members are all "
            f"GradientCheckpointingLayer (transformers >= 5.23), found {', '.join(seen)}"
        )
    return max(found, key=len)


def _image_token_ids(config: Any) -> tuple[int, ...]:
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    ids = (getattr(config, name, None) for name in names)
    return tuple(dict.fromkeys(i for i in ids if isinstance(i, int)))


def _layer_types(text_config: Any, layers: tuple[nn.Module, ...]) -> tuple[str, ...]:
    declared = getattr(text_config, "layer_types", None)
    if declared is not None and len(declared) >= len(layers):
        return tuple(declared[: len(layers)])
    sliding = getattr(text_config, "sliding_window", None) is not None
    kind = "sliding_attention" if sliding else "full_attention"
    has = [any(n in ATTENTION_NAMES for n, _ in layer.named_children()) for layer in layers]
    return tuple(kind if attention else "other" for attention in has)


def image_runs(mask: Tensor) -> list[tuple[int, int, int]]:
    """(row, start, stop) of every run of True in ``mask`` bool [B, T], row by row."""
    padded = torch.nn.functional.pad(mask.to(torch.int8), (1, 1))
    step = padded.diff(dim=1)
    starts, stops = (step == 1).nonzero().tolist(), (step == -1).nonzero().tolist()
    return [(row, start, stop) for (row, start), (_, stop) in zip(starts, stops, strict=True)]


# A layout is the number of tokens of one image and its grids relative to the image's first token.
_Layout = tuple[int, tuple[GridPart, ...]]


def _image_layouts(view: ModelView, inputs: Mapping[str, Any]) -> list[_Layout]:
    grids = inputs.get("image_grid_thw")
    if grids is not None:
        merge = int(getattr(getattr(view.config, "vision_config", None), "spatial_merge_size", 1))
        return [_qwen_layout(thw, merge) for thw in grids.tolist()]
    sizes = inputs.get("image_sizes")
    if view.family == "llava_next" and sizes is not None:
        return [_llava_next_layout(view.config, size) for size in torch.as_tensor(sizes).tolist()]
    return []


def _qwen_layout(thw: list[int], merge: int) -> _Layout:
    frames, rows, cols = thw[0], thw[1] // merge, thw[2] // merge
    return frames * rows * cols, tuple(GridPart(f * rows * cols, rows, cols, cols) for f in range(frames))


def _llava_next_layout(config: Any, size: list[int]) -> _Layout:
    """The base image's grid, then the unpadded grid of tiles with a newline token at the end of every row."""
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    side = config.vision_config.image_size // config.vision_config.patch_size
    tiles = get_anyres_image_grid_shape(tuple(size), config.image_grid_pinpoints, config.vision_config.image_size)
    rows, cols = tiles[0] * side, tiles[1] * side
    if size[1] / size[0] > cols / rows:
        rows -= 2 * ((rows - round(size[0] * (cols / size[1]), 7).__int__()) // 2)
    else:
        cols -= 2 * ((cols - round(size[1] * (rows / size[0]), 7).__int__()) // 2)
    base = GridPart(0, side, side, side)
    return side * side + rows * (cols + 1), (base, GridPart(side * side, rows, cols, cols + 1))


def _fixed_side(view: ModelView) -> int | None:
    """Side of the square grid every image (or tile) has, for families whose images have one size."""
    vision = getattr(view.config, "vision_config", None)
    size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    size, patch = (v[0] if isinstance(v, list | tuple) else v for v in (size, patch))
    if not size or not patch:
        return None
    side = int(size) // int(patch)
    if view.family in ("smolvlm", "idefics3"):
        return side // int(view.config.scale_factor)
    if view.family == "internvl":
        return round(side * float(view.config.downsample_ratio))
    return side if view.family in ("llava", "vipllava", "paligemma", "llava_onevision") else None


def _split_run(run: tuple[int, int, int], layouts: list[_Layout], view: ModelView) -> Iterator[ImageSpan]:
    """Cut one run into images: by the known layouts in order, else by the fixed size, else leave it whole."""
    row, start, stop = run
    while layouts and start + layouts[0][0] <= stop:
        length, parts = layouts.pop(0)
        moved = tuple(GridPart(start + p.start, p.rows, p.cols, p.stride) for p in parts)
        yield ImageSpan(row, start, start + length, moved)
        start += length
    side = _fixed_side(view)
    while side and start + side * side <= stop and (stop - start) % (side * side) == 0:
        yield ImageSpan(row, start, start + side * side, (GridPart(start, side, side, side),))
        start += side * side
    if start < stop:
        yield ImageSpan(row, start, stop)
