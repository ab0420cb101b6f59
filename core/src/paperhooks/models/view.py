"""Finds in a transformers model what methods need: decoder, layers, image tokens and their grids.

The only module that knows model families; the names of transformers come from :mod:`paperhooks.compat`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from paperhooks import compat
from paperhooks.errors import UnsupportedModel
from paperhooks.models.images import ImageSpan, fixed_side, image_layouts, image_runs, split_run
from paperhooks.models.spread import Spread, spread_mark, spread_of
from paperhooks.models.storage import onloaded
from paperhooks.models.wrappers import running_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from paperhooks.weights.journal import WeightJournal
    from paperhooks.weights.sublayers import Sublayer

__all__ = ["ModelView"]

#: Families whose decoder reshapes its output to the length of its input.
FULL_LENGTH = ("gpt2",)


@dataclass(eq=False)
class ModelView:
    """What core found in a model. Made by :meth:`from_model`; methods receive it as ``view``.

    model, decoder, layer_list
        The attached model, its text decoder, and where that keeps its layers.
    config, text_config, family
        The model's config, the config of its text decoder, and ``config.model_type``.
    image_token_ids
        Token ids that stand for image or video features; empty for text models.
    """

    model: nn.Module
    decoder: nn.Module
    layer_list: nn.ModuleList
    config: PretrainedConfig
    text_config: PretrainedConfig
    family: str
    image_token_ids: tuple[int, ...]
    deferred: list[Callable[[], object]] = field(default_factory=list, repr=False)
    compact_loss: bool = field(default=False, repr=False)
    writer: str = field(default="", repr=False)  # the method that weight edits are booked to
    _journal: WeightJournal | None = field(default=None, repr=False)
    _layers: tuple[tuple[nn.Module, ...], tuple[nn.Module, ...]] | None = field(default=None, repr=False)
    _spreads: dict[object, Spread] = field(default_factory=dict, repr=False)

    @classmethod
    def from_model(cls, model: nn.Module) -> ModelView:
        """Look at ``model``, a stock transformers causal or vision-language model, or a wrapper of one (PEFT, DDP).

        :raises UnsupportedModel: names what was looked for when there is no config, no decoder or no decoder layers.
        """
        if type(model).__name__ == "OptimizedModule":
            raise UnsupportedModel("this is what torch.compile returned; attach to the model itself, then compile it")
        model = running_model(model)
        config = getattr(model, "config", None)
        if config is None or not hasattr(model, "get_decoder"):
            found = type(model).__name__
            raise UnsupportedModel(f"expected a transformers model with .config and .get_decoder(), got {found}")
        if getattr(config, "is_encoder_decoder", False):
            raise UnsupportedModel(f"{type(model).__name__} is an encoder-decoder model; only decoders are supported")
        decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
        try:
            layer_list = compat.layer_list(decoder)
        except UnsupportedModel:
            spread_of(model)  # a stage of a pipeline says so
            raise
        text_config = config.get_text_config(decoder=True)
        return cls(
            model=model,
            decoder=decoder,
            layer_list=layer_list,
            config=config,
            text_config=text_config,
            family=str(config.model_type),
            image_token_ids=_image_token_ids(config),
        )

    def __getstate__(self) -> dict[str, object]:
        # What a session will undo belongs to the original alone, not to a copy of an attached model.
        return {**self.__dict__, "deferred": [], "_journal": None, "_layers": None, "_spreads": {}}

    @property
    def spread(self) -> Spread:
        """How the model is spread over processes and devices now: read anew after it was wrapped, sharded or offloaded.

        :raises UnsupportedModel: it is spread in a way that nobody has run.
        """
        mark = spread_mark(self.model, self.layers)
        if mark not in self._spreads:
            self._spreads[mark] = spread_of(self.model)
        return self._spreads[mark]

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        """The decoder's layers in order, as they stand now: one that is skipped is there as what skips it."""
        members = tuple(self.layer_list)
        if self._layers is None or self._layers[0] != members:
            self._layers = members, tuple(map(compat.inside, members))
        return self._layers[1]

    @property
    def layer_types(self) -> tuple[str, ...]:
        """One of transformers' layer types a layer, such as ``"full_attention"``, or ``"skipped"`` where the layer or
        its attention is skipped."""
        return compat.layer_types(self.text_config, self.layers)

    @property
    def attention_kernel(self) -> str:
        """The attention implementation the decoder runs now: eager, sdpa, flash_attention_2, flex_attention, ..."""
        return compat.attention_kernel(self.text_config)

    @property
    def flash(self) -> bool:
        """Whether the attention kernel is one of the flash family, which takes 2-D masks or none."""
        return self.attention_kernel.startswith("flash")

    @property
    def rotary(self) -> nn.Module | None:
        """The decoder's rotary embedding module, or None for other kinds of positions."""
        return getattr(self.decoder, "rotary_emb", None)

    def full_attention(self, index: int) -> bool:
        """Whether layer ``index`` attends to the whole sequence, and not to a window or by other means."""
        return compat.full_attention(self.layer_types[index])

    @property
    def causal(self) -> bool:
        """Whether layers leave out the tokens that follow, as those of a language model do, and an encoder's do not."""
        return any(compat.causal(layer) for layer in self.layers)

    @property
    def sliding_window(self) -> int | None:
        """How many tokens the decoder's sliding layers see; None when it has none."""
        return compat.sliding_window(self.text_config, self.layer_types)

    @property
    def image_side(self) -> int | None:
        """Rows (and columns) of the square grid of every image or tile, for families whose images have one size."""
        return fixed_side(self)

    @property
    def multimodal_rotary(self) -> bool:
        """Whether positions are triples (time, row, column), as in the Qwen-VL families, and not plain counts."""
        parameters = getattr(self.text_config, "rope_parameters", None) or {}
        return bool(parameters.get("mrope_section"))

    @property
    def opened_journal(self) -> WeightJournal | None:
        """The journal, or None as long as nobody has asked for it."""
        return self._journal

    @property
    def journal(self) -> WeightJournal:
        """The reversible weight journal of this view; every edit through it is undone when the session closes."""
        if self._journal is None:
            from paperhooks.weights.journal import WeightJournal

            self._journal = WeightJournal(self.model)
        self._journal.writer = self.writer
        return self._journal

    @property
    def sublayers(self) -> Mapping[str, Sublayer]:
        """Layers, attentions and MLPs by qualified name, and which of them can be skipped: by a level, or through
        ``view.journal.structure``. Found at the first look, when the decoder reads two tokens.

        :raises UnsupportedModel: the decoder cannot be tried so, or is sharded.
        """
        return self.journal.structure.sublayers

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
        """The self-attention module of layer ``index``, or None for a layer without one, or where it is skipped."""
        return compat.attention_module(self.layers[index])

    def modules(self, pattern: str) -> Iterator[tuple[str, nn.Module]]:
        """Modules of the model whose qualified name matches the regular expression ``pattern`` in full."""
        expression = re.compile(pattern)
        return ((name, module) for name, module in self.model.named_modules() if expression.fullmatch(name))

    def onloaded(self, module: nn.Module) -> AbstractContextManager[None]:
        """A context in which ``module``'s weights are real even if accelerate offloads them between forwards."""
        return onloaded(module)

    def image_mask(self, input_ids: Tensor) -> Tensor:
        """Which tokens of ``input_ids`` [B, T] stand for image features; bool [B, T]."""
        mask = torch.zeros_like(input_ids, dtype=torch.bool)
        for token in self.image_token_ids:
            mask = mask | (input_ids == token)
        return mask

    def image_mask_of_embeddings(self, embeds: Tensor) -> Tensor | None:
        """Which of ``inputs_embeds`` [B, T, D] are still the embedding of an image token: bool [B, T], None for none.

        So transformers itself finds where features go when it is called with embeddings and images.
        """
        embed = self.model.get_input_embeddings()  # type: ignore[operator]
        mask = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        with torch.no_grad():
            for token in self.image_token_ids:
                vector = embed(torch.tensor([token], device=embeds.device)).to(embeds)
                mask |= (embeds == vector).all(-1)
        return mask if bool(mask.any()) else None

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
        layouts = image_layouts(self, inputs or {})
        return [span for run in image_runs(mask) for span in split_run(run, layouts, self)]


def _image_token_ids(config: Any) -> tuple[int, ...]:
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    ids = (getattr(config, name, None) for name in names)
    return tuple(dict.fromkeys(i for i in ids if isinstance(i, int)))
