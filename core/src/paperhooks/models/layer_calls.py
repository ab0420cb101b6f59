"""How a decoder calls its layers for a batch, recorded once; then layers i to j run from any hidden state.

While the calls are recorded no layer runs. Each is exchanged for a double of its class whose forward notes what it is
called with, and what the doubles give back is not a number: whatever is made of it on the way shows, and the model is
refused. So no family has to be known here, and none gives wrong numbers.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor, nn

from paperhooks.compat import is_cache, layer_list, stood_for, times_written
from paperhooks.errors import UnsupportedModel
from paperhooks.models.engines import flat_sharded
from paperhooks.models.forward import last_hidden_state, reading_hidden_states, uncompiled
from paperhooks.models.layer_doubles import doubles_in_place, returned
from paperhooks.models.own_hooks import hooked
from paperhooks.models.view import ModelView

__all__ = ["LayerCalls"]

#: Ways of spreading a model in which a layer can be called by itself.
_SPREAD: Final = ("offload",)
#: What a decoder raises that expects layers to return a tuple and gets a tensor.
_FORM_ERRORS: Final = (ValueError, TypeError, IndexError, AttributeError)


class LayerCalls:
    """What the layers of a decoder are called with for one batch: masks, rotary tables and positions, each its own.

    Made by :meth:`of`. Layers are looked up when they run, so that weights may have been edited and layers exchanged
    since. What comes before the first layer is recorded: ``embeddings``, masks and tables are those of the weights at
    that time. Mode and gradient are the caller's, as in a call of the model.

    view
        Of the model.
    embeddings
        What layer 0 receives: [B, T, D] in the model's dtype (some families give their layers another form).

    >>> import torch
    >>> from paperhooks.models import LayerCalls, ModelView, last_hidden_state
    >>> from paperhooks.testing import tiny_llama
    >>> view = ModelView.from_model(tiny_llama(layers=4))
    >>> batch = {"input_ids": torch.tensor([[5, 6, 7], [8, 9, 10]])}
    >>> with torch.no_grad():
    ...     calls = LayerCalls.of(view, batch)
    ...     prefix = calls.run(calls.embeddings, 0, 3)
    ...     whole = calls.output(calls.run(prefix, 3))
    ...     torch.equal(whole, last_hidden_state(view, batch))
    True
    """

    def __init__(
        self, view: ModelView, embeddings: Tensor, calls: tuple[_Call, ...], decoder: _Arguments, tuples: bool
    ) -> None:
        self.view = view
        self.embeddings = embeddings
        self._calls = calls
        self._decoder = decoder
        self._tuples = tuples

    @classmethod
    def of(cls, view: ModelView, batch: Mapping[str, Any]) -> LayerCalls:
        """Call the model with ``batch`` without its layers: embeddings (with images), masks and tables are made.

        :param batch: inputs of the model, as for :func:`~paperhooks.models.last_hidden_state`; the tensors are kept.
        :raises UnsupportedModel: layers cannot be run one by one: the decoder works on the hidden states between them,
            hands them what earlier ones make (shared keys, a cache) or calls them in another order; methods with hooks
            inside the forward are attached; or the model is sharded.
        """
        _check_model(view)
        errors: list[_OtherForm] = []
        for tuples in (False, True):
            try:
                return cls._recorded(view, batch, tuples=tuples)
            except _OtherForm as error:
                errors.append(error)
        told = min(errors, key=lambda error: error.__cause__ is not None)  # what was seen, before what it led to
        raise UnsupportedModel(f"{told}, so its layers cannot be run one by one") from told.__cause__

    @classmethod
    def _recorded(cls, view: ModelView, batch: Mapping[str, Any], *, tuples: bool) -> LayerCalls:
        name = type(view.decoder).__name__
        recording = _Recording(view, tuples)
        given = {**batch, **_no_outputs(view.model)}
        try:
            with _counted(), recording.hook(), doubles_in_place(recording.layers, recording.note):
                last = last_hidden_state(view, given)
        except UnsupportedModel:
            raise
        except _FORM_ERRORS as error:
            if not recording.calls:
                raise
            raise _OtherForm(f"{name} ended with {type(error).__name__} on what its layers give back") from error
        count = len(recording.layers)
        if len(recording.calls) != count:
            raise UnsupportedModel(
                f"{name} called {len(recording.calls)} of its {count} layers, so they cannot be run one by one; a "
                "model that leaves out layers in training has to be in eval mode"
            )
        first = recording.embeddings
        if first is None or recording.decoder is None or last.ndim != 3:
            raise _OtherForm(f"{name} gave {list(last.shape)} where [B, T, D] was expected")
        if _not_a_number(last) and not _not_a_number(first):
            raise UnsupportedModel(
                f"{name} reads what earlier layers than the last give, after the last; its layers cannot be run one by "
                "one"
            )
        return cls(view, first, tuple(recording.calls), recording.decoder, tuples)

    def __len__(self) -> int:
        """The number of layers."""
        return len(self._calls)

    def run(self, hidden: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Run layers ``start`` to ``stop - 1``, as they are now.

        :param hidden: what layer ``start`` receives: of the shape of ``embeddings``. It is left as it is.
        :param start, stop: half-open, as in ``range``; without ``stop`` to the last layer.
        :return: what layer ``stop`` receives, or :meth:`output` after the last; ``hidden`` itself for no layers.
        :raises IndexError: there are no such layers. :raises ValueError: hidden states of another shape.
        :raises UnsupportedModel: the model has changed since in a way that the recorded calls do not fit.
        """
        count = len(self._calls)
        stop = count if stop is None else stop
        if not 0 <= start <= stop <= count:
            raise IndexError(
                f"layers {start} to {stop} (this one excluded) were asked for, and {type(self.view.decoder).__name__} "
                f"has {count}; expected 0 <= start <= stop <= {count}"
            )
        layers = self._layers(hidden, start, stop)
        states = hidden.clone() if start < stop else hidden  # a layer may write into what it is given
        for index in range(start, stop):
            states = self._calls[index].run(index, layers[index], states)
        return states

    def output(self, hidden: Tensor) -> Tensor:
        """What the head receives, [B, T, D]: the final norm, and whatever the decoder does after its last layer.

        The decoder is called again with the recorded arguments and without its layers, so that its own code runs.

        :param hidden: what the last layer gave: of the shape of ``embeddings``. It is left as it is.
        :raises ValueError, UnsupportedModel: as for :meth:`run`.
        """
        layers = self._layers(hidden)
        reached: list[int] = []

        def put(index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            last = index == len(self._calls) - 1
            reached.append(index)
            return returned(hidden.clone() if last else torch.full_like(hidden, torch.nan), self._tuples)

        args, kwargs = self._decoder
        with uncompiled(), reading_hidden_states(self.view) as seen, doubles_in_place(layers, put):
            self.view.decoder(*args, **kwargs)
        if reached != list(range(len(self._calls))) or len(seen) != 1:
            raise UnsupportedModel(
                f"{type(self.view.decoder).__name__} called layers {reached} where {len(self._calls)} in order were "
                "recorded; a model that leaves out layers in training has to be in eval mode"
            )
        return seen[0]

    def _layers(self, hidden: object, start: int = 0, stop: int | None = None) -> nn.ModuleList:
        """The decoder's layers as they stand now, after a look at what they are to read and at those that will run."""
        layers = self.view.layer_list
        _check_model(self.view, [self.view.decoder, *layers[start:stop]])
        expected = list(self.embeddings.shape)
        if not isinstance(hidden, Tensor) or list(hidden.shape) != expected or not hidden.is_floating_point():
            found = f"{list(hidden.shape)} {hidden.dtype}" if isinstance(hidden, Tensor) else type(hidden).__name__
            raise ValueError(
                f"hidden states were {found}, and the layers of this batch read {expected} {self.embeddings.dtype}; "
                "record the calls of each batch with LayerCalls.of"
            )
        if len(layers) != len(self._calls):
            raise UnsupportedModel(
                f"{type(self.view.decoder).__name__} has {len(layers)} layers, and {len(self._calls)} calls were "
                "recorded; record them again with LayerCalls.of"
            )
        return layers


#: Positional and keyword arguments.
_Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


class _OtherForm(Exception):
    """The decoder expects its layers to return something of another form, or works on it between them."""


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """The arguments of a layer without the hidden states; ``name`` is theirs, or empty where they come first."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str

    def run(self, index: int, layer: nn.Module, states: Tensor) -> Tensor:
        if self.name:
            output = layer(*self.args, **{self.name: states}, **self.kwargs)
        else:
            output = layer(states, *self.args, **self.kwargs)
        given = output[0] if isinstance(output, tuple) else output
        if not isinstance(given, Tensor) or given.shape != states.shape:
            found = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise UnsupportedModel(
                f"layer {index} ({type(layer).__name__}) gave {found} for hidden states {list(states.shape)}; layers "
                "run one by one have to keep their shape"
            )
        return given


class _Recording:
    """One call of the model with doubles in the places of its layers.

    :param tuples: whether doubles return a tuple, as the layers of some families do.
    """

    def __init__(self, view: ModelView, tuples: bool) -> None:
        self.view = view
        self.layers = layer_list(view.decoder)
        self.tuples = tuples
        self.decoder: _Arguments | None = None
        self.embeddings: Tensor | None = None
        self.calls: list[_Call] = []
        self._given: Tensor | None = None  # by the double before
        self._written = 0
        self._clean: set[tuple[int, int]] = set()  # tensors among the arguments, which the calls keep alive

    @contextmanager
    def hook(self) -> Iterator[None]:
        """Notes what the decoder is called with, before anybody else's hook changes it."""
        thread = threading.get_ident()

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if threading.get_ident() == thread:
                self.decoder = args, dict(kwargs)

        register = self.view.decoder.register_forward_pre_hook
        with ExitStack() as stack:
            stack.callback(register(note, with_kwargs=True, prepend=True).remove)
            yield

    def note(self, index: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The forward of the double of layer ``index``."""
        name = type(self.view.decoder).__name__
        if index != len(self.calls):
            raise UnsupportedModel(
                f"{name} called layer {index} where layer {len(self.calls)} was expected, so its layers cannot be run "
                "one by one"
            )
        hidden, call = _without_hidden(layer, args, kwargs)
        if self.embeddings is None:
            self.embeddings = hidden
        elif hidden is not self._given or times_written(hidden) != self._written:
            raise _OtherForm(f"{name} works on the hidden states between layers {index - 1} and {index}")
        for argument, value in _named(layer, call):
            self._check(argument, value, index)
        self.calls.append(call)
        last = len(self.calls) == len(self.layers)
        self._given = self.embeddings.clone() if last else torch.full_like(self.embeddings, torch.nan)
        self._written = times_written(self._given)
        return returned(self._given, self.tuples)

    def _check(self, argument: str, value: Any, index: int) -> None:
        """Whether an argument can be used for any hidden state: it must not come from other layers, or go to them."""
        what = f"{type(self.view.decoder).__name__} hands layer {index} {argument!r}"
        if is_cache(value):
            raise UnsupportedModel(f"{what}, a {type(value).__name__}; layers are run one by one without a cache")
        if isinstance(value, MutableMapping | list | set) and not value:
            raise UnsupportedModel(
                f"{what}, an empty {type(value).__name__}, through which layers hand things to later ones (as shared "
                "keys and values are); they cannot be run one by one"
            )
        for tensor in _tensors(value):
            mark = id(tensor), times_written(tensor)
            if mark not in self._clean and index > 0 and _not_a_number(tensor):
                raise UnsupportedModel(
                    f"{what}, which is made of what earlier layers give (or is not a number by itself); its layers "
                    "cannot be run one by one"
                )
            self._clean.add(mark)


def _check_model(view: ModelView, parts: Sequence[nn.Module] = ()) -> None:
    """Whether layers can be called outside of a call of the model.

    :param parts: the decoder, of which its own hooks count, and the layers that will run; without it all is looked at.
    """
    name = type(view.model).__name__
    modules = [*parts[:1], *(m for layer in parts[1:] for m in layer.modules())] or [*view.decoder.modules()]
    if any(map(hooked, modules)):
        raise UnsupportedModel(
            f"methods are attached to {name} whose hooks run inside of a call of the model, and layers that are run "
            "one by one would go without them; close the session, or strip the copy, and attach again afterwards"
        )
    untried = [kind for kind in view.spread.kinds if kind not in _SPREAD]
    if untried or any(map(flat_sharded, modules)):
        raise UnsupportedModel(
            f"{name} is {view.spread if untried else 'sharded by FSDP1'}, and nobody has run its layers one by one so; "
            "use the model in one process, where accelerate may offload it"
        )


@contextmanager
def _counted() -> Iterator[None]:
    """Writing in place is counted inside, as it is not in inference mode; without gradient where that was on."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


def _no_outputs(model: nn.Module) -> dict[str, bool]:
    """Arguments that keep a model from collecting what its layers give: attention, routing, hidden states."""
    return {name: False for name in inspect.signature(model.forward).parameters if name.startswith("output_")}


def _without_hidden(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, _Call]:
    """The hidden states that a layer is called with, and the call without them."""
    if args:
        hidden, call = args[0], _Call(args[1:], dict(kwargs), "")
    else:
        name = next(iter(_parameters(layer)), "")
        hidden, call = kwargs.get(name), _Call((), {n: v for n, v in kwargs.items() if n != name}, name)
    if not isinstance(hidden, Tensor):
        raise UnsupportedModel(
            f"{type(layer).__name__} is not called with hidden states first, but with {type(hidden).__name__}; its "
            "layers cannot be run one by one"
        )
    return hidden, call


def _parameters(layer: nn.Module) -> list[str]:
    """The names of a layer's parameters in order, of one that is skipped too."""
    return list(inspect.signature(stood_for(layer).forward).parameters)


def _named(layer: nn.Module, call: _Call) -> Iterable[tuple[str, Any]]:
    """The arguments of a call by name, as far as positions have names."""
    names = _parameters(layer)[1:]
    positional = [(names[n] if n < len(names) else f"argument {n + 1}", value) for n, value in enumerate(call.args)]
    return [*positional, *call.kwargs.items()]


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in an argument, also in tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(each)


def _not_a_number(tensor: Tensor) -> bool:
    """Whether a tensor holds values that are none."""
    return tensor.is_floating_point() and bool(tensor.isnan().any())
