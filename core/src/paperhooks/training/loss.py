"""The training loss with the hooks ``compute_loss`` and ``loss_terms``.

:class:`LossContext` is what the hooks receive: the model and the whole batch, not only outputs and labels, so that a
method may call the model in its own way or consult a teacher. :func:`compute_loss` runs the hooks, for any training
loop; :class:`paperhooks.training.HooksTrainerMixin` does it inside ``transformers.Trainer``.

One rule makes gradient accumulation right: what the hooks return is *normalised for the accumulated batch already*, so
that the gradients of its micro-batches add up. :meth:`LossContext.token_mean`, :meth:`LossContext.example_mean` and
:meth:`LossContext.target_row_mean` do the normalisation.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from paperhooks.errors import HookError
from paperhooks.hooks.batch_counts import predicts_nothing
from paperhooks.hooks.loss import LossContext
from paperhooks.hooks.specs import LOSS_HOOKS

if TYPE_CHECKING:
    from paperhooks.sessions.method_set import Implementation
    from paperhooks.sessions.session import Session

__all__ = ["compute_loss", "find_session", "has_loss_hooks"]


def compute_loss(session: Session, context: LossContext) -> Tensor:
    """The loss of one micro-batch with all hooks of ``session``: a scalar with gradient.

    ``compute_loss`` hooks come first (firstresult), then the model's own loss if they leave it, then all ``loss_terms``
    are added. Terms are in ``context.terms`` afterwards, and what hooks logged beside them in ``context.figures``. A
    micro-batch in which nothing is predicted contributes 0.

    :raises HookError: a result that is no scalar floating-point tensor; a figure and a term of one name.
    :raises DataError: nothing is predicted in a micro-batch that is a whole optimiser step.
    """
    session.note_asked()
    try:
        return _with_hooks(session, context)
    except Exception as exc:
        session.fail(exc)
        raise


def _with_hooks(session: Session, context: LossContext) -> Tensor:
    context.check_targets(not predicts_nothing(context.host_inputs))
    loss = None
    for hook in session.implementations("compute_loss"):
        with _asked("compute_loss", hook, context):
            loss = hook.function(context)
            if loss is not None:
                loss = _scalar(loss, f"compute_loss of {hook.method!r}")
                break
    context.loss = context.model_loss if loss is None else loss
    for hook in session.implementations("loss_terms"):
        with _asked("loss_terms", hook, context):
            for name, term in _terms(hook.function(context), hook.method).items():
                context.terms[f"loss/{hook.method}/{name}"] = term.detach()
                context.loss = context.loss + term.to(context.loss.device)
    _check_names(context)
    return context.loss


def has_loss_hooks(session: Session | None) -> bool:
    """Whether any method of the session takes part in the loss."""
    return session is not None and any(session.implementations(name) for name in LOSS_HOOKS)


def find_session(model: nn.Module) -> Session | None:
    """The open session of a model, also inside parallel, compiled or adapter wrappers."""
    from paperhooks.sessions.session import active_session

    return active_session(model)


def _terms(result: Any, method: str) -> Mapping[str, Tensor]:
    if result is None:
        return {}
    if not isinstance(result, Mapping) or not all(isinstance(name, str) for name in result):
        raise HookError(
            f"loss_terms of {method!r} returned {type(result).__name__}; expected a dict of name to scalar tensor, or "
            "None"
        )
    return {name: _scalar(term, f"term {name!r} of {method!r}") for name, term in result.items()}


def _scalar(value: Any, where: str) -> Tensor:
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.is_floating_point():
        found = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise HookError(f"{where} is {found}; expected a scalar floating-point tensor")
    return value.reshape(())


def _check_names(context: LossContext) -> None:
    twice = sorted(set(context.terms) & set(context.figures))
    if twice:
        method, _, name = twice[0].removeprefix("loss/").partition("/")
        raise HookError(f"{method} logs the figure {name!r} and has a term of that name; give one of them another name")


@contextlib.contextmanager
def _asked(name: str, hook: Implementation, context: LossContext) -> Iterator[None]:
    """Around the call of a hook: the context knows whose it is, and an error names it."""
    context.method = hook.method
    try:
        yield
    except Exception as exc:
        exc.add_note(f"paperhooks: raised in {name} of {hook.method!r}")
        raise
    finally:
        context.method = None
