"""Every hook of API version 1: when it runs, what it gets, what it may return, and who uses it.

Two levels work together. pluggy does names, signatures, validation, ordering, listing and tracing. The path that runs
for every token is a tuple of plain functions that core freezes out of pluggy when a session attaches: one idle pluggy
call costs 1.4 us and 2.5 us with two implementations against 0.2 us for the frozen fold, and pluggy has no notion of
chaining one result into the next implementation. Tests check that both levels agree on order and arguments.

Call rules
----------
each
    Every implementation runs; results are ignored.
chained
    Every implementation receives the previous one's result; returning None leaves it unchanged.
firstresult
    Implementations run until one returns something other than None.
collected
    Every implementation runs; results other than None are gathered.

Order is the order in which the user wrote the methods, left to right; ``tryfirst`` and ``trylast`` move an
implementation inside that order. Wrappers are refused on chained hooks. An implementation may ask for fewer arguments
than its hook offers, in any order, but for none that the hook does not have. Implementations take no default values.

Shapes: B batch entries, T tokens of this forward, S cached tokens, D hidden width, K kept tokens.
"""

# Specifications have no body; the annotations are for readers and type checkers, never evaluated.
# mypy: disable-error-code="empty-body"

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import pluggy

PROJECT: Final = "paperhooks"


#: Marks a function of :mod:`paperhooks.hooks.specs` as the declaration of a hook.
hookspec: Final = pluggy.HookspecMarker(PROJECT)


#: Marks a method of a plugin as the implementation of the hook of the same name.
hookimpl: Final = pluggy.HookimplMarker(PROJECT)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from paperhooks.hooks.call import Call, Site
    from paperhooks.hooks.compression import CompressionRequest
    from paperhooks.hooks.inputs import DecoderInputs, LayerInputs
    from paperhooks.hooks.level import Level
    from paperhooks.hooks.loss import LossContext
    from paperhooks.info import TaskInfo
    from paperhooks.models.view import ModelView
    from paperhooks.weights.artefact import Artefact

__all__ = ["PROJECT", "CatalogHooks", "OfflineHooks", "RuntimeHooks", "hookimpl", "hookspec"]

#: Hooks whose implementations are folded: each sees what the one before it returned.
CHAINED = frozenset({"pre_decoder", "pre_attention", "post_layer"})
#: Hooks that take part in the training loss.
LOSS_HOOKS = ("compute_loss", "loss_terms")


class RuntimeHooks:
    """Hooks of a method attached to a model."""

    @hookspec
    def setup(self, view: ModelView) -> None:
        """Prepare a method for one model. Each, left to right, once, before any torch hook is registered.

        Check here that the model has what the method needs and raise
        :class:`~paperhooks.errors.UnsupportedModel` or :class:`~paperhooks.errors.PluginIncompatible` if not: the
        session then undoes everything. ``view.defer(undo)`` puts a callback on the session's undo stack.

        :param view: the model's decoder, layers and image tokens. Used by PyramidDrop.
        """

    @hookspec
    def pre_decoder(self, view: ModelView, call: Call, inputs: DecoderInputs) -> DecoderInputs | None:
        """Change what the decoder receives, before rotary tables and masks are made. Chained, every forward.

        :param view: the attached model.
        :param call: this forward: cache, lengths, labels, image tokens, state.
        :param inputs: ``input_ids`` [B, T] int64 or None, ``inputs_embeds`` [B, T, D] or None, ``attention_mask`` (as
            the caller gave it: None, [B, S+T], 4-D or a dict), ``position_ids`` [B, T] (or [3, B, T] with multimodal
            rotary positions) or None, and ``cache``.
        :return: a changed copy (``inputs.replace(...)``), or None for no change. For methods that set positions or
            whole-sequence masks.
        """

    @hookspec
    def pre_attention(self, site: Site, call: Call, inputs: LayerInputs) -> LayerInputs | None:
        """Change what a decoder layer receives. Chained, at the entry of each selected layer.

        :param site: which layer, and the module.
        :param call: this forward.
        :param inputs: ``hidden_states`` [B, T, D], ``attention_mask`` (None, [B, S+T], or [B, 1, T, S+T] bool or
            float, additive), ``position_ids`` [B, T] or None, ``position_embeddings`` (cos, sin) each [B or 1, T, h] or
            None, and ``cache``.
        :return: ``inputs.replace(...)``, ``inputs.select(index)`` to go on with fewer tokens, or None for no change.
            Used by PyramidDrop.
        """

    @hookspec
    def post_layer(self, site: Site, call: Call, hidden_states: Tensor) -> Tensor | None:
        """See or change what a decoder layer returns. Chained, at the exit of each selected layer.

        :param site: which layer, and the module.
        :param call: this forward; ``call.cache.layers[site.index]`` holds the layer's keys and values.
        :param hidden_states: [B, T, D] in the model's dtype.
        :return: a tensor of the same shape, dtype and device, or None for no change.
        """

    @hookspec
    def teardown(self, view: ModelView) -> None:
        """Release what ``setup`` took. Each, right to left, once; runs even after an error.

        :param view: the same object that ``setup`` received.
        """

    @hookspec(firstresult=True)
    def compute_loss(self, context: LossContext) -> Tensor | None:
        """Replace the training loss. Firstresult; two attached methods that implement it are a conflict.

        :param context: model, inputs, outputs and labels of this batch, and the number of items in the accumulated
            batch.
        :return: a scalar float tensor with gradient, already normalised for gradient accumulation, or None to leave
            the loss to the next implementation and finally to the model.
        """

    @hookspec
    def loss_terms(self, context: LossContext) -> Mapping[str, Tensor] | None:
        """Add weighted terms to the training loss. Collected; every term is logged as ``loss/<method>/<name>``.

        :param context: see :meth:`compute_loss`; ``context.loss`` is the loss so far.
        :return: name to scalar float tensor (already weighted), or None.
        """

    @hookspec
    def count_examples(self, view: ModelView, batch: Mapping[str, Any]) -> int | None:
        """Say how many examples a batch holds, where they are not its rows. Each method speaks for itself alone.

        The number is what :meth:`~paperhooks.LossContext.example_mean` divides by in this method's loss hooks, counted
        over the micro-batches of an optimiser step and over processes, and what its evaluated loss is weighted by.
        Asked once a batch, on the device where the batch comes from, before anything runs.

        :param view: the attached model. :param batch: the batch by name, a method's own columns included.
        :return: the number, 0 or more; None for the rows of the batch. Used by MiniPLM.
        """


class OfflineHooks:
    """Hooks of methods that work on a model or on data outside any forward of the user's."""

    @hookspec(firstresult=True)
    def compression(self, view: ModelView, request: CompressionRequest) -> Artefact | None:
        """Compress or edit a model. Firstresult, asked of the method that ``paperhooks.compress`` was given.

        :param view: the model; ``view.journal`` makes every weight edit reversible.
        :param request: calibration data, target, options, output folder, seed, progress.
        :return: the artefact that reproduces the edit on the same weights.
        """

    @hookspec
    def compression_levels(
        self, view: ModelView, modules: Mapping[str, nn.Module], request: CompressionRequest
    ) -> Mapping[str, Sequence[Level]] | None:
        """Say what could be done to modules, and at what cost. Collected over all methods of a run.

        :param view: the model.
        :param modules: qualified name to module, unchanged: linear layers, or larger parts.
        :param request: the running request, with the calibration data.
        :return: name to the levels this method offers, of those modules for which it has any; or None.
        """

    @hookspec(firstresult=True)
    def score_examples(self, views: Mapping[str, ModelView], examples: Sequence[Any]) -> Tensor | None:
        """Score training examples with one or more models. Firstresult by method, called batch by batch.

        :param views: role to model, for example ``{"teacher": ..., "reference": ...}``.
        :param examples: n examples in the corpus' own order.
        :return: float tensor [n]; larger is better, NaN marks an example that cannot be scored.
        """


class CatalogHooks:
    """Hooks that are not bound to a model; ``PluginInfo.hooks`` names the object that implements them."""

    @hookspec
    def evaluation_tasks(self) -> Sequence[TaskInfo] | None:
        """Offer evaluation tasks to ``paperhooks.evaluate``. Collected by the catalogue.

        :return: descriptions of the tasks; loading their data comes later.
        """

    @hookspec
    def register_commands(self, app: Any) -> None:
        """Add commands to the command line. Each.

        :param app: a ``typer.Typer`` whose commands and groups become those of ``paperhooks``; add one sub-application
            named like the plugin. A name that is taken leaves all commands of the plugin out. What can go on after
            Ctrl-C adds a note to the KeyboardInterrupt that says what is done; the command line shows it.
        """
