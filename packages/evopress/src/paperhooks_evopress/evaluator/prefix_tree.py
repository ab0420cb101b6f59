"""Many choices of levels on one batch, of which shared prefixes run once.

Two choices that have the same levels in layers 0 to i - 1 have the same hidden states in front of layer i. So the
choices are walked layer by layer: at each, the open branches are gathered by the state that they want the layer in, the
layer is brought to each of these states once, and every branch runs it by itself. What a branch computes is, bit for
bit, what a pass of its choice alone computes. One hidden state is held of each open branch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
from paperhooks.errors import UnsupportedModel
from paperhooks.models import LayerCalls, ModelView, last_hidden_state
from torch import Tensor

if TYPE_CHECKING:
    from paperhooks.hooks import Levels

__all__ = ["Path", "PrefixTree", "State"]

#: What differs from a part's own weights: (module, label) of every level there that does something, by name.
State: TypeAlias = tuple[tuple[str, str], ...]
#: The states of what lies before the layers, of each layer in order, and of the output embeddings.
Path: TypeAlias = tuple[State, ...]

#: The part of a path that lies before the layers, and that of the output embeddings.
_FRONT: Final = 0
_HEAD: Final = -1


class PrefixTree:
    """Runs a model at many choices of levels.

    What is neither in a layer nor the output embeddings (embeddings, the last norm, a vision tower) counts as before
    the layers: choices that differ there share nothing.

    :param view: of the model. :param levels: what is offered; where it stands is moved, and left where it then is.
    :raises UnsupportedModel: a module with levels that contains several layers.
    """

    def __init__(self, view: ModelView, levels: Levels) -> None:
        self.view, self.levels = view, levels
        #: How many times a layer was run.
        self.layers_run = 0
        self._layers = _name_of(view, view.layer_list)
        head: Any = getattr(view.model, "get_output_embeddings", lambda: None)()
        self._head = None if head is None else _name_of(view, head)
        self._count = len(view.layer_list)
        self._part = {name: self._part_of(name) for name in levels}
        self._standing: list[State] = []
        self._one_by_one = True

    @property
    def own(self) -> Path:
        """The path of the model's own weights."""
        return ((),) * (self._count + 2)

    def path(self, choice: Mapping[str, str]) -> Path:
        """Where a choice differs from the model's own weights; equal for choices that give the same model.

        Levels that change nothing, and parts of what is skipped, do not count.

        :param choice: module name to label. :raises DataError: an unknown module or label.
        """
        chosen = {name: self.levels.level(name, label) for name, label in choice.items()}
        skipped = {name for name, level in chosen.items() if level.skip}
        states: list[list[tuple[str, str]]] = [[] for _ in self.own]
        for name in sorted(chosen):
            level = chosen[name]
            if (level.skip or level.prepare is not None) and skipped.isdisjoint(_outer(name)):
                states[self._part[name]].append((name, level.label))
        return tuple(map(tuple, states))

    def last(self, paths: Sequence[Path], batch: Mapping[str, Tensor]) -> list[Tensor]:
        """What the head receives for each path: [B, T, D] in the model's dtype.

        Mode and gradient are the caller's. After an error the levels stand where they stood at that moment.

        :param paths: made by :meth:`path`. :param batch: inputs of the model.
        """
        self._standing = list(self.path(self.levels.choice))
        found: dict[int, Tensor] = {}
        for front, members in _grouped(range(len(paths)), lambda n: paths[n][_FRONT]):
            self._put(_FRONT, front)
            calls = self._calls(batch)
            found.update(self._whole(batch, paths, members) if calls is None else self._shared(calls, paths, members))
        return [found[number] for number in range(len(paths))]

    def put_own(self) -> None:
        """Give the model its own weights."""
        with torch.inference_mode(False), torch.no_grad():
            self.levels.restore()

    def put_head(self, path: Path) -> None:
        """Bring the output embeddings to the state that they have in ``path``."""
        self._standing = list(self.path(self.levels.choice))
        self._put(_HEAD, path[_HEAD])

    @property
    def head_has_levels(self) -> bool:
        """Whether the output embeddings are among the modules with levels."""
        return self._head in self.levels

    def _calls(self, batch: Mapping[str, Tensor]) -> LayerCalls | None:
        """The layers' calls for a batch, or None for a model whose layers cannot be run one by one."""
        if self._one_by_one:
            try:
                return LayerCalls.of(self.view, batch)
            except UnsupportedModel as error:
                self._one_by_one = False
                warnings.warn(f"candidates share no layers, which takes longer: {error}", stacklevel=4)
        return None

    def _whole(
        self, batch: Mapping[str, Tensor], paths: Sequence[Path], members: Sequence[int]
    ) -> Iterable[tuple[int, Tensor]]:
        """A pass of its own for each path."""
        for states, own in _grouped(members, lambda n: paths[n][:_HEAD]):
            for part, state in enumerate(states):
                self._put(part, state)
            self.layers_run += self._count
            last = last_hidden_state(self.view, batch)
            yield from ((number, last) for number in own)

    def _shared(self, calls: LayerCalls, paths: Sequence[Path], members: Sequence[int]) -> Iterable[tuple[int, Tensor]]:
        """Layer by layer, with one hidden state a branch."""
        open_branches: list[_Branch] = [(calls.embeddings, list(members))]
        for layer in range(self._count):
            part = layer + 1
            wanted = _by_state(open_branches, [path[part] for path in paths])
            open_branches = []
            # The state that the layer is in comes first: it has one change less to go through.
            for state in sorted(wanted, key=lambda state: state != self._standing[part]):
                if self._skips(layer, state):
                    open_branches += wanted[state]
                    continue
                self._put(part, state)
                for hidden, own in wanted[state]:
                    open_branches.append((calls.run(hidden, layer, layer + 1), own))
                    self.layers_run += 1
        for hidden, own in open_branches:
            last = calls.output(hidden)
            yield from ((number, last) for number in own)

    def _skips(self, layer: int, state: State) -> bool:
        """Whether the whole layer is skipped, so that its hidden states are handed on."""
        name = f"{self._layers}.{layer}"
        return len(state) == 1 and state[0][0] == name and self.levels.level(*state[0]).skip

    def _put(self, part: int, state: State) -> None:
        """Bring one part of the model to a state."""
        if self._standing[part] == state:
            return
        states = [*self._standing]
        states[part] = state
        # Tensors made in inference mode would stay so in the parameters.
        with torch.inference_mode(False), torch.no_grad():
            self.levels.switch({name: label for each in states for name, label in each})
        self._standing = states

    def _part_of(self, name: str) -> int:
        """The place of a module's state in a path."""
        if not name or self._layers == name or self._layers.startswith(f"{name}."):
            raise UnsupportedModel(
                f"{name or 'the whole model'} has levels and contains all layers; offer levels of layers, or of what "
                "is in them"
            )
        index = name.removeprefix(f"{self._layers}.").partition(".")[0]
        if name.startswith(f"{self._layers}.") and index.isdecimal():
            return int(index) + 1
        return _HEAD if name == self._head else _FRONT


#: A hidden state, and the numbers of the paths that have it.
_Branch: TypeAlias = tuple[Tensor, list[int]]


def _by_state(branches: Iterable[_Branch], states: Sequence[State]) -> dict[State, list[_Branch]]:
    """Branches by the state that they want the next layer in; those that part there are there more than once.

    :param states: what each path wants.
    """
    wanted: dict[State, list[_Branch]] = {}
    for hidden, own in branches:
        for state, few in _grouped(own, lambda n: states[n]):
            wanted.setdefault(state, []).append((hidden, few))
    return wanted


def _outer(name: str) -> set[str]:
    """The names of all modules that a module is part of."""
    parts = name.split(".")
    return {".".join(parts[:n]) for n in range(1, len(parts))}


def _name_of(view: ModelView, module: torch.nn.Module) -> str:
    """The qualified name of a module."""
    for name, each in view.model.named_modules():
        if each is module:
            return str(name)
    raise UnsupportedModel(
        f"{type(module).__name__} of {type(view.model).__name__} is not among its modules, so that it cannot be told "
        "which levels lie in which layer"
    )


def _grouped(numbers: Iterable[int], key: Callable[[int], Any]) -> list[tuple[Any, list[int]]]:
    """Numbers by their key, in the order in which they come."""
    groups: dict[Any, list[int]] = {}
    for number in numbers:
        groups.setdefault(key(number), []).append(number)
    return list(groups.items())
