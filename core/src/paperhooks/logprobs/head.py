"""A model's head: hidden states to logits, with the scaling and soft-capping that some families put behind it.

Which of them a model uses is read off its config and then proven: the head must reproduce the model's own logits on a
few tokens, or :class:`~paperhooks.errors.UnsupportedModel` says by how much they differ.

Where FSDP2 shards the model, the output embeddings have their weights only while the model calls them; :meth:`Head.run`
does the work there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from paperhooks.compat import attention_kernel
from paperhooks.errors import UnsupportedModel
from paperhooks.logprobs.chosen import chosen_logprobs, formed
from paperhooks.logprobs.flattened import check_kept_apart
from paperhooks.models.engines import given_up_again
from paperhooks.models.forward import (
    evaluation_mode,
    last_hidden_state,
    ordinary_tokens,
    reading_hidden_states,
    run_in_head,
    view_of,
)
from paperhooks.models.view import ModelView
from paperhooks.models.wrappers import running_model

__all__ = ["Head"]

_T = TypeVar("_T")

#: Config entries that scale logits: multiplied (cohere, falcon_h1) or divided by (granite, minicpm-like).
_MULTIPLIERS = ("logit_scale", "lm_head_multiplier")
_DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
#: Config entry that hidden states are divided by in front of the head (minicpm3), relative to their width.
_BASE = "dim_model_base"
#: Share of the largest logit that the self-check tolerates.
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
_LOW_PRECISION_TOLERANCE = 3e-2
#: Vocabulary entries whose logits are made at once on a CPU, so that they are still in its cache when they are summed.
_SLICE = 1024


@dataclass(frozen=True, eq=False)
class Head:
    """Hidden states to logits.

    module
        The output embeddings, called as a module so that adapters, offloading and quantised weights work.
    scale
        Factor on the logits.
    softcap
        c of ``c * tanh(logits / c)``, applied after the scale, or None.
    view
        Of the model that it belongs to; None for a head made by hand, which is called as it stands.
    forward
        Of a sharded model, inside of :meth:`run`: the module's own forward, which is not to be called itself then.
    """

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None
    view: ModelView | None = field(default=None, repr=False)
    forward: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)
    _apart: set[tuple[str, bool]] = field(default_factory=set, init=False, repr=False)

    @classmethod
    def from_model(cls, model: nn.Module | ModelView) -> Head:
        """The head of ``model``, checked against the model's own logits of four tokens.

        Costs one forward of four tokens, in eval mode and without gradient.

        :raises UnsupportedModel: the model has no output embeddings, or its logits are made in another way.
        """
        view = view_of(model)
        module: Any = getattr(view.model, "get_output_embeddings", lambda: None)()
        if module is None:
            raise UnsupportedModel(f"{type(view.model).__name__} has no output embeddings, so it gives no logits")
        whole = model if _sharded(view) and isinstance(model, nn.Module) else view.model
        dtype, raw, logits = _probe(view, whole, module)
        tried = [(cls(module, *form, view=view), form) for form in _forms(view)]
        errors = [float((head._formed(raw) - logits).abs().max()) for head, _ in tried]
        allowed = _TOLERANCE.get(dtype, _LOW_PRECISION_TOLERANCE) * float(logits.abs().max())
        for (head, _), error in zip(tried, errors, strict=True):
            if error <= allowed:
                return head
        scale, cap = tried[errors.index(min(errors))][1]
        raise UnsupportedModel(
            f"the logits of {type(view.model).__name__} are not its output embeddings of the decoder's output: the "
            f"nearest form tried (scale {scale:g}, soft cap {cap}) differs by {min(errors):.3g}, allowed are "
            f"{allowed:.3g}; use the model's own logits for this family"
        )

    @property
    def vocabulary(self) -> int:
        """Number of logits V."""
        module: Any = self.module
        return int(getattr(module, "out_features", None) or module.weight.shape[0])

    def run(self, model: nn.Module | ModelView, batch: Mapping[str, Any], work: Callable[[Tensor, Head], _T]) -> _T:
        """``work(hidden, head)`` for the hidden states that this head receives when ``model`` is called with ``batch``.

        The way to the head that holds however the model is spread. Where FSDP2 shards it, the work is done inside of
        the model's call, while the weights are there; on every rank, then, also on one whose batch asks for nothing.

        :param model: the model, a wrapped one, or a view. Mode and gradient are the caller's.
        :param batch: inputs of the model; labels are left out.
        :param work: receives [B, T, D] and the head to ask, which is this one or stands for it. Gives a tensor, or a
            tuple of them; the backward pass has to begin with these.
        :raises UnsupportedModel: the decoder, or a sharded head, did not run exactly once.
        """
        view = self.view_of(model)
        if not _sharded(view):
            return work(last_hidden_state(model, batch, view=view), self)
        if _number(view.text_config, _BASE):
            raise UnsupportedModel(
                f"{type(view.model).__name__} scales hidden states in front of its head ({_BASE}), which is not "
                "supported for a model that FSDP2 shards; use the model's own logits"
            )

        def inside(hidden: Tensor, own: Callable[[Tensor], Tensor]) -> _T:
            return work(hidden, replace(self, forward=own))

        return run_in_head(model, batch, self.module, inside, view=view)

    def check_kept_apart(self, model: nn.Module | ModelView, rows: int) -> None:
        """Whether ``model`` keeps apart several sequences that lie in one row, tried once for a kernel of attention.

        Of a model whose calls are made in step, every rank has to ask.

        :param rows: of the batch. :raises UnsupportedModel: it does not.
        """
        view = self.view_of(model)
        tried = (attention_kernel(view.text_config), rows > 1)
        if tried not in self._apart:
            whole = model if _sharded(view) and isinstance(model, nn.Module) else view.model
            check_kept_apart(whole, view, rows)
            self._apart.add(tried)

    def view_of(self, model: nn.Module | ModelView) -> ModelView:
        """A view of ``model``: the one that was there when the head was found, where it is of this model."""
        if self.view is not None and not isinstance(model, ModelView) and running_model(model) is self.view.model:
            return self.view
        return view_of(model)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] float32 of hidden states [..., D].

        :raises UnsupportedModel: FSDP2 shards the model, and this is not the head that :meth:`run` hands on.
        """
        return self._formed(self._raw(hidden))

    def takes_gradient(self, hidden: Tensor) -> bool:
        """Whether a backward pass through this head reaches anything but the hidden states, such as its weights.

        :param hidden: [n, D], of which one row is tried where the weights alone do not tell: what a hook or a patch
            adds may learn too.
        """
        if any(parameter.requires_grad for parameter in self.module.parameters()):
            return True
        if _is_plain(self.module) and self.forward is None:
            return False
        with torch.enable_grad():
            return self._raw(hidden[:1].detach()).requires_grad

    def _raw(self, hidden: Tensor) -> Tensor:
        """What the output embeddings return."""
        if self.forward is not None:
            return self.forward(hidden)
        if self.view is not None and _sharded(self.view):
            raise UnsupportedModel(
                f"the head of {type(self.view.model).__name__} is called outside of the model, which FSDP2 shards, so "
                "its weights are not there; do it in head.run(model, batch, work), with the head that work receives"
            )
        raw: Tensor = self.module(hidden)
        return raw

    def logprobs(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Log-probabilities float32 [n] of ``targets`` int64 [n] given hidden states [n, D].

        Without gradient, a linear head on a CPU makes no more than 1,024 of a position's logits at once; any other
        makes all of them. With gradient, one copy of what the output embeddings return is kept for the backward pass.
        """
        if not torch.is_grad_enabled() and _is_plain(self.module):
            return self._logprobs_in_slices(hidden, targets)
        raw = self._raw(hidden)
        return chosen_logprobs(raw, targets.to(raw.device), self.scale, self.softcap)

    def _logprobs_in_slices(self, hidden: Tensor, targets: Tensor) -> Tensor:
        chosen, sums = torch.zeros(len(hidden), dtype=torch.float32), []
        for first, logits in self.slices(hidden):
            place = targets - first
            inside = (place >= 0) & (place < logits.shape[-1])
            chosen[inside] = logits[inside, place[inside]]
            sums.append(logits.logsumexp(-1))
        return chosen - torch.stack(sums).logsumexp(0)

    def slices(self, hidden: Tensor, vocabulary: int | None = None) -> Iterator[tuple[int, Tensor]]:
        """Logits float32 [n, v] of hidden states [n, D], a part of the vocabulary after another, and where each begins.

        Without gradient, of a linear head on a CPU, 1,024 entries at a time, so that they are in its cache when they
        are read; of any other all at once. :param vocabulary: how many leading logits there are to be.
        """
        size, module = vocabulary or self.vocabulary, self.module
        if torch.is_grad_enabled() or not _is_plain(module):
            yield 0, self.logits(hidden)[..., :size]
            return
        for first in range(0, size, _SLICE):
            part = slice(first, min(size, first + _SLICE))
            bias: Any = module.bias
            weight: Any = module.weight
            yield first, self._formed(nn.functional.linear(hidden, weight[part], None if bias is None else bias[part]))

    def _formed(self, logits: Tensor) -> Tensor:
        return formed(logits, self.scale, self.softcap)


def _is_plain(module: nn.Module) -> bool:
    """Whether the weight may be used without calling the module: an ordinary linear layer on a CPU that nobody wrapped.

    Adapters and quantised layers are other classes, offloading and patches put a ``forward`` on the module itself, and
    tensor parallelism makes the weight another class.
    """
    return (
        type(module) is nn.Linear
        and type(module.weight) in (nn.Parameter, Tensor)
        and module.weight.device.type == "cpu"
        and not ("forward" in vars(module) or module._forward_hooks or module._forward_pre_hooks)
    )


def _sharded(view: ModelView) -> bool:
    """Whether the head's weights may be there in the model's call alone."""
    return "fsdp2" in view.spread.kinds


def _probe(view: ModelView, model: nn.Module, module: nn.Module) -> tuple[torch.dtype, Tensor, Tensor]:
    """Dtype of the hidden states, what ``module`` makes of them and the model's logits float32, [1, 4, V], for four
    ordinary tokens."""
    device: Any = getattr(view.model, "device", torch.device("cpu"))
    ids = ordinary_tokens(view, 4)[None].to("cpu" if device.type == "meta" else device)
    options = {"use_cache": False} | ({"logits_to_keep": 0} if _keeps(view) else {})
    made: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, args, output: made.append(output))
    with evaluation_mode(view.model), torch.no_grad(), given_up_again(model), reading_hidden_states(view) as seen:
        try:
            logits: Tensor = model(input_ids=ids, **options).logits
        finally:
            handle.remove()
        if len(seen) != 1 or seen[0].shape[:2] != logits.shape[:2] or (_sharded(view) and len(made) != 1):
            raise UnsupportedModel(
                f"{type(view.model).__name__} does not make its logits [B, T, V] from one run of its decoder; "
                "use the model's own logits for this family"
            )
        return seen[0].dtype, made[0] if _sharded(view) else module(seen[0]), logits.float()


def _keeps(view: ModelView) -> bool:
    return "logits_to_keep" in inspect.signature(view.model.forward).parameters


def _forms(view: ModelView) -> Iterator[tuple[float, float | None]]:
    """(scale, soft cap) that the config allows, the declared one first.

    An untrained model's logits can be too small to tell forms apart; then the declared form is the right one.
    """
    config = view.text_config
    cap = _number(config, "final_logit_softcapping")
    scales = [s for n in _MULTIPLIERS if (s := _number(config, n))]
    divisors = [s for n in _DIVISORS if (s := _number(config, n))]
    base = _number(config, _BASE)
    if base:
        divisors.append(config.hidden_size / base)
    scales += [1 / s for s in divisors] + divisors + [1.0]
    for softcap in (cap, None) if cap else (None,):
        for scale in dict.fromkeys(scales):
            yield scale, softcap


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value else None
