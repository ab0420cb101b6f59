"""Attach methods to a model, describe what they do there, and undo everything.

>>> with paperhooks.attach(model, "pyramiddrop") as session:  # doctest: +SKIP
...     model.generate(**inputs)

After the block the model is bit for bit what it was.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Self

from torch import nn

from paperhooks.compat import keyword_parameters
from paperhooks.errors import PluginConflict, UnsupportedGeneration
from paperhooks.hooks.call import Site
from paperhooks.hooks.inputs import shape_text
from paperhooks.hooks.specs import LOSS_HOOKS
from paperhooks.models.engines import dealt_attention
from paperhooks.models.own_hooks import own_hooks, strip_hooks
from paperhooks.models.spread import Spread
from paperhooks.models.view import ModelView
from paperhooks.models.wrappers import refuse_replicator, running_model
from paperhooks.sessions.agreement import Agreement
from paperhooks.sessions.chain import Flags
from paperhooks.sessions.installer import Installer
from paperhooks.sessions.method_set import Implementation, Method, MethodSet
from paperhooks.sessions.removal import open_session
from paperhooks.sessions.threads import in_stack, still_inside
from paperhooks.sessions.torch_hooks import ModelEnter, ModelExit
from paperhooks.sessions.undo import UndoStack
from paperhooks.sessions.versions import warn_untested
from paperhooks.weights.structure import skipped_modules

__all__ = ["Session", "active_session", "attach"]

log = logging.getLogger("paperhooks.session")

_LOCK = threading.RLock()
#: How often a closing session looks whether calls of other threads have ended, in seconds.
_POLL: Final = 0.002


class _Traced:
    """Logs one line a call; used while :meth:`Session.trace` is on."""

    __slots__ = ("function", "label")

    def __init__(self, function: Callable[..., Any], label: str) -> None:
        self.function = function
        self.label = label

    def __call__(self, *args: Any) -> Any:
        result = self.function(*args)
        where = f" layer {args[0].index}" if isinstance(args[0], Site) else ""
        logging.getLogger("paperhooks.trace").info("%s%s -> %s", self.label, where, shape_text(result))
        return result


class Session:
    """The methods attached to one model. Made by :func:`attach`; also a context manager.

    view
        What core found in the model.
    methods
        Name to configured method instance, in the user's order.
    """

    def __init__(self, model: nn.Module, methods: MethodSet) -> None:
        self.view = ModelView.from_model(model)
        self.methods: dict[str, Method] = methods.methods
        self.closed = False
        self._set = methods
        self._flags = flags = Flags()
        self._undo = UndoStack()
        self._agreement = Agreement(methods.options, lambda: flags.calls)
        self._watched = False
        self._called: Spread | None = None  # how the model was spread in its last call: only there DDP shows
        self._installer = Installer(self.view, methods, self._flags, self._undo)
        #: Methods whose teardown is still to run, in the order of their setup.
        self._begun: list[str] = []
        self._open()

    # -- opening ---------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        try:
            self.view.spread.check(self._set.traits())
            self._agreement.announce()
            in_forward = bool(self._set.in_forward())
            names = keyword_parameters(self.view.model) if in_forward else ()
            # First of all and undone last: by it a session whose opening or closing was interrupted can be found.
            entry = ModelEnter(self.view, names, self, in_forward, self._flags)
            self._installer.hook(self.view.model, "forward_pre", entry)
            for implementation in self._set.implementations("setup"):
                self._begun.append(implementation.method)
                self.view.writer = implementation.method
                implementation.function(self.view)
                self._take_deferred()
            self._begun = [i.method for i in self._set.implementations("teardown")]
            with_loss = self._with_loss_hooks()
            self._installer.install(entry, _never_asked(with_loss) if with_loss else "")
        except BaseException as exc:
            self._teardown()
            self._unwind()
            strip_hooks(self.view.model)  # one that was registered when an interrupt came, and not yet noted
            self.closed = self._flags.closed = True
            for error in self._undo.errors:
                exc.add_note(f"paperhooks: while undoing: {error!r}")
            raise

    def _take_deferred(self) -> None:
        while self.view.deferred:
            self._undo.push("deferred callback", self.view.deferred[0])
            del self.view.deferred[0]

    # -- looking ---------------------------------------------------------------------------------------------------

    def implementations(self, hook: str) -> tuple[Implementation, ...]:
        """The implementations of ``hook`` in call order, each taking all of the hook's arguments by position.

        :raises LookupError: there is no such hook; names the nearest.
        """
        return self._set.implementations(hook)

    def describe(self) -> str:
        """A table of decoder layers against methods: which hooks run where. One line a run of equal layers."""
        state = "closed" if self.closed else "attached"
        now = self.view.spread
        found = self._called if self._called is not None and not now.kinds else now
        spread = f"{found}; declared for these methods: {', '.join(self._set.spreads()) or 'plain models only'}"
        head = f"{type(self.view.model).__name__} ({self.view.family}), {state}\nspread: {spread}"
        if skipped := ", ".join(skipped_modules(self.view.model)):
            head += f"\nskipped: {skipped}"
        return f"{head}\n{self._set.table(self.view)}"

    @contextlib.contextmanager
    def trace(self) -> Iterator[None]:
        """While the context is open, log every runtime hook call as one line to ``paperhooks.trace`` (level INFO)."""
        chains = [h.chain for h in own_hooks(self.view.model) if hasattr(h, "chain")]
        before = [chain.functions for chain in chains]
        try:
            for chain in chains:
                chain.functions = tuple(
                    _Traced(f, f"{chain.hook} {n}") for n, f in zip(chain.names, chain.functions, strict=True)
                )
            yield
        finally:
            for chain, functions in zip(chains, before, strict=True):
                chain.functions = functions

    def _with_loss_hooks(self) -> list[str]:
        return list(dict.fromkeys(i.method for name in LOSS_HOOKS for i in self._set.implementations(name)))

    @property
    def runs_in_forward(self) -> bool:
        """Whether any method has hooks inside the forward."""
        return bool(self._set.in_forward())

    def meet(self, training: bool) -> None:
        """Check how the model is spread now, and agree with the ranks that call it in step. Core calls it.

        :param training: whether the model is called in training mode with gradient.
        :raises UnsupportedModel: a method has not declared the way in which the model is spread.
        :raises PluginConflict: other ranks of the model have attached something else.
        """
        spread = self._called = self.view.spread
        spread.check(self._set.traits())
        if len(spread.group) > 1 and not self._watched:
            self._watched = True
            self._installer.hook(self.view.model, "forward", ModelExit(self._agreement.fail), always=True)
        self._agreement.meet(spread, training)

    @property
    def disturbed(self) -> bool:
        """Whether this rank's last call has failed, or another rank has closed its session and this one has noticed."""
        return self._agreement.disturbed

    def fail(self, error: BaseException) -> None:
        """Let the ranks that call the model in step learn of ``error``, or note on it which rank failed before."""
        self._agreement.fail(error)

    @property
    def options(self) -> dict[str, dict[str, str]]:
        """Every method's options as texts, equal in all processes that attached the same."""
        return self._set.options()

    def note_asked(self) -> None:
        """A training loop asks for the loss with this session's hooks.

        :raises UnsupportedModel: inside torch's ``context_parallel``, where a hook may call a teacher before the model.
        """
        self._flags.asked = True
        if dealt_attention():
            self.view.spread.check(self._set.traits())

    # -- going on where a run stopped ------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of a training run needs of the methods: for each that has ``state_dict()``, what it gives.

        Tensors by name, such as the state of a random generator. ``accelerator.register_for_checkpointing(session)``
        keeps it.
        """
        return {name: m.state_dict() for name, m in self.methods.items() if hasattr(m, "state_dict")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        :raises PluginConflict: it is of other methods; names both.
        """
        own = [name for name, method in self.methods.items() if hasattr(method, "state_dict")]
        if set(own) != set(state):
            raise PluginConflict(
                f"the state is of {', '.join(state) or 'no method'}, and the session has {', '.join(own) or 'none'} "
                "with a state; attach the methods of the run that is to go on"
            )
        for name in own:
            self.methods[name].load_state_dict(state[name])  # type: ignore[attr-defined]

    # -- closing ---------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Undo everything, last in first out. Closing twice is fine.

        Calls of the model that other threads have under way are waited for: they end as they began. Calls that begin
        meanwhile run without the methods. Every entry runs even if one raises; errors of ``teardown`` and of undo
        entries are raised together as an ExceptionGroup. An interrupt (KeyboardInterrupt, SystemExit) leaves the
        session open; close it again, or call ``paperhooks.strip(model)``, to go on where it stopped: a ``teardown`` or
        deferred callback that was interrupted runs once more. Warns of what could not be undone because somebody else
        has written there, when no hook ever ran, and when the model was trained without its loss hooks.

        :raises UnsupportedGeneration: called inside a call of the model in the same thread.
        """
        if self._close():
            self._warn_of_what_never_ran()

    def _close(self) -> bool:
        """Undo everything; False when that was done before."""
        if self.closed:
            return False
        self._wait_for_calls()
        self._agreement.end()
        with _LOCK:
            if self.closed:
                return False
            self._teardown()
            self._unwind()
            self.closed = self._flags.closed = True
        for left in filter(None, (attribute.left for attribute in self._installer.attributes)):
            warnings.warn(left, stacklevel=3)
        if self._undo.errors:
            raise ExceptionGroup(
                "paperhooks: errors while detaching; everything else was undone", list(self._undo.errors)
            )
        return True

    def _wait_for_calls(self) -> None:
        inside = self._threads()
        if threading.get_ident() in inside:
            raise UnsupportedGeneration(
                f"the session of {', '.join(self.methods)} was closed inside a call of its model, which would go on "
                "without the methods; close it after the call has returned"
            )
        self._flags.closing = True
        if self._installer.guard is not None:
            self._installer.guard.active = False
        if inside:
            log.info("closing waits for %d thread(s) that are inside a call of the model", len(inside))
        while self._threads():
            time.sleep(_POLL)

    def _threads(self) -> set[int]:
        """The threads that are inside a call of the model now."""
        me, guard = threading.get_ident(), self._installer.guard
        noted = {*list(self._flags.inside), *(list(guard.calls) if guard is not None else ())} - {me}
        here = in_stack(self.view.model) or (guard is not None and in_stack(guard))
        return still_inside(noted) | ({me} if here else set())

    def _teardown(self) -> None:
        teardowns = {i.method: i.function for i in self._set.implementations("teardown")}
        while self._begun:
            name = self._begun[-1]
            try:
                if name in teardowns:
                    teardowns[name](self.view)
            except Exception as exc:
                exc.add_note(f"paperhooks: raised in teardown of {name!r}")
                self._undo.errors.append(exc)
            self._begun.pop()

    def _unwind(self) -> None:
        self._take_deferred()
        if (journal := self.view.opened_journal) is not None:
            self._undo.push("weight journal", journal.undo)  # finds nothing left the second time
        self._undo.unwind()

    def _warn_of_what_never_ran(self) -> None:
        if not self._flags.fired and self._set.in_forward():
            warnings.warn(_never_fired(self.methods), stacklevel=3)
        unasked = self._flags.trained and not (self._flags.asked or self._flags.warned)
        if unasked and (left_out := self._with_loss_hooks()):
            warnings.warn(_never_asked(left_out), stacklevel=3)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, exc: BaseException | None, traceback: object) -> None:
        if exc is None or isinstance(exc, GeneratorExit):
            self.close()
            return
        self._agreement.fail(exc, final=True)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                self._close()  # an error came first; that hooks did not run is no news
            except ExceptionGroup as group:
                exc.add_note(f"paperhooks: while detaching: {group.exceptions!r}")
        for warning in said:
            exc.add_note(f"paperhooks: while detaching: {warning.message}")

    def __repr__(self) -> str:
        return f"<Session of {', '.join(self.methods)} on {type(self.view.model).__name__}>"


def attach(model: nn.Module, *methods: str | Method) -> Session:
    """Attach methods to a stock transformers model.

    :param model: any supported model, on any device, before ``torch.compile``; or a wrapper of one (PEFT, a value
        head): the methods go to the model inside, whoever calls it. What is to be replicated or sharded may be so
        already or become it afterwards; give the model itself, and not its DistributedDataParallel.
    :param methods: plugin names (``"pyramiddrop"``, ``"plugin/method"``) or configured method instances, in the order
        in which their hooks shall run.
    :return: the open session; close it, or use it as a context manager.
    :raises PluginNotFound: an unknown name.
    :raises PluginConflict: methods that exclude each other, or a model that is attached already or is being called.
    :raises PluginIncompatible: an object that is no method, or one without hooks that run in a session.
    :raises UnsupportedModel: core or a method cannot work with this model, or it is none. Whatever is raised, nothing
        stays attached.
    """
    warn_untested()
    inner = running_model(model)
    refuse_replicator(model, inner)
    chosen = MethodSet(methods)
    chosen.check_attachable()
    with _LOCK:
        if own_hooks(model):
            raise PluginConflict(
                f"{type(model).__name__} is attached already; close that session first, or pass all methods to one "
                "attach(model, first, second) so that their order is defined (paperhooks.strip(model) clears a copy)"
            )
        if in_stack(inner):
            raise PluginConflict(
                f"{type(inner).__name__} is being called right now, and would change in the middle of that call; "
                "attach before it or after it"
            )
        session = Session(model, chosen)
    log.info("attached %s to %s", ", ".join(session.methods), type(inner).__name__)
    return session


def active_session(model: nn.Module) -> Session | None:
    """The open session of ``model`` (or of the model inside a wrapper), or None. A copy has hooks but no session."""
    return session if isinstance(session := open_session(model), Session) else None


def _never_asked(methods: Iterable[str]) -> str:
    return (
        f"{', '.join(methods)}: the model was trained, but nobody asked for this session's loss, so it was trained as "
        "without it. Put HooksTrainerMixin before Trainer (class MyTrainer(HooksTrainerMixin, Trainer)), or call "
        "paperhooks.training.compute_loss in a loop of your own"
    )


def _never_fired(methods: dict[str, Method]) -> str:
    return (
        f"{', '.join(methods)}: the session was closed but none of its hooks ever ran. Either the model was not "
        "called, or model.forward(...) was called directly instead of model(...), or code compiled before attach() "
        "ran, or only a copy of the model was used"
    )
