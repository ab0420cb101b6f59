"""Wrong methods, each beside its mended twin: what the contract has to tell apart."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from paperhooks import Traits, hookimpl
from paperhooks.hooks import attention_from
from paperhooks.io import number
from paperhooks.tokens import compact
from torch import Tensor, nn

MODES = dict.fromkeys(("beams", "assisted", "static_cache", "training"), True)
DROPS = Traits(layers=[2], writes=frozenset({"tokens"}), training=True)
MOVES = Traits(writes=frozenset({"positions"}))

# -- gradients ---------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Scale:
    """Scales what every layer returns."""

    traits = Traits(**MODES)

    @hookimpl
    def post_layer(self, hidden_states):
        return hidden_states * 0.9


class ScaleWithoutGradient(Scale):
    @hookimpl
    def post_layer(self, hidden_states):
        with torch.no_grad():
            return hidden_states * 0.9


class ScaleDetached(Scale):
    @hookimpl
    def post_layer(self, site, hidden_states):
        return hidden_states.detach() * 0.9 if site.index == 1 else None


class ScaleDetachedAtTheEnd(Scale):
    @hookimpl
    def post_layer(self, site, hidden_states):
        return hidden_states.detach() * 0.9 if site.index == site.n_layers - 1 else None


class ScaleHalfDetached(Scale):
    """Every parameter still has a gradient, of one of two summands."""

    @hookimpl
    def post_layer(self, hidden_states):
        return hidden_states * 0.6 + hidden_states.detach() * 0.3


class ScaleDetachedPositions(Scale):
    """The gradient of every second token is cut off."""

    @hookimpl
    def post_layer(self, hidden_states):
        even = torch.arange(hidden_states.shape[1])[:, None] % 2 == 0
        return 0.9 * torch.where(even, hidden_states.detach(), hidden_states)


class ScaleStraightThrough(Scale):
    """Rounds, and lets gradients pass as if it did not: their being no slope is the method."""

    @hookimpl
    def post_layer(self, hidden_states):
        rounded = (hidden_states * 4).round() / 4
        return hidden_states + (rounded - hidden_states).detach()


@dataclass(eq=False)
class KeepLookedAt:
    """Keeps the half of a prompt's tokens that the last one looks at most, and the last; ranks without gradient."""

    traits = DROPS

    @hookimpl
    def pre_attention(self, site, call, inputs):
        if call.query_length == 1:
            return None
        real = living(inputs)
        numbers = real.long().cumsum(1)
        last = numbers.argmax(1, keepdim=True)  # the first slot with the highest number
        scores = attention_from(site, inputs, last)[:, 0].masked_fill(~real, -1.0)
        scores = scores.scatter(1, last, 2.0)
        places = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        keep = real & (places < (real.sum(1, keepdim=True) + 1) // 2)
        return inputs.select(*compact(keep, int(keep.sum(1).max())))


def living(inputs: Any) -> Tensor:
    """Which tokens of a layer are real, bool [B, T]."""
    mask, hidden = inputs.padding_mask, inputs.hidden_states
    return torch.ones(hidden.shape[:2], dtype=torch.bool) if mask is None else mask


# -- what belongs to the process ---------------------------------------------------------------------------------------


@dataclass(eq=False)
class Patching:
    """Puts a function of its own into a library while it is attached, and the old one back in the end."""

    owner: Any = None
    name: str = ""
    traits = Traits(**MODES)

    @hookimpl
    def setup(self, view):
        owner = self.owner(view) if callable(self.owner) and not isinstance(self.owner, type) else self.owner
        before = getattr(owner, self.name)
        own = type(before.__name__, (before,), {}) if isinstance(before, type) else _calling(before)
        setattr(owner, self.name, own)
        view.defer(lambda: setattr(owner, self.name, before))

    @hookimpl
    def post_layer(self, hidden_states):
        return hidden_states * 0.9


def _calling(before: Any) -> Any:
    return functools.wraps(before)(lambda *args, **kwargs: before(*args, **kwargs))


class PatchingForGood(Patching):
    """The same, and never put back; the second time there is nothing left to change."""

    @hookimpl
    def setup(self, view):
        torch.nn.functional.planted = self.planted

    @staticmethod
    def planted(x: Any) -> Any:
        """What is put there."""
        return x


class PatchingForACall(Scale):
    """A function of torch is another one only while a layer runs."""

    @hookimpl
    def pre_attention(self, call):
        call.state(self)["before"] = torch.nn.functional.silu
        torch.nn.functional.silu = functools.partial(torch.nn.functional.silu)

    @hookimpl
    def post_layer(self, call, hidden_states):
        torch.nn.functional.silu = call.state(self).pop("before")
        return hidden_states * 0.9


class ExchangingCode(Scale):
    """The function stays the same object, and does something else."""

    @hookimpl
    def setup(self, view):
        function = type(view.layers[0]).forward
        before = function.__code__
        function.__code__ = before.replace(co_name="planted")
        view.defer(lambda: setattr(function, "__code__", before))


class Registering(Scale):
    """Adds an attention kernel to the table that all models share."""

    @hookimpl
    def setup(self, view):
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        ALL_ATTENTION_FUNCTIONS["planted"] = lambda *_: None
        view.defer(lambda: ALL_ATTENTION_FUNCTIONS.pop("planted"))


class GlobalHook(Scale):
    @hookimpl
    def setup(self, view):
        view.defer(nn.modules.module.register_module_forward_hook(lambda *_: None).remove)


class Seeding(Scale):
    @hookimpl
    def post_layer(self, hidden_states):
        torch.manual_seed(0)
        return hidden_states * 0.9


class LeavingGradientsOff(Scale):
    @hookimpl
    def setup(self, view):
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        view.defer(lambda: torch.set_grad_enabled(before))


# -- memory ------------------------------------------------------------------------------------------------------------

KEPT: list[Tensor] = []


@dataclass(eq=False)
class Remembering:
    """Keeps what every layer returned."""

    kept: list[Any] = field(default_factory=list, init=False)
    traits = Traits(**MODES)

    @hookimpl
    def post_layer(self, hidden_states):
        self.kept.append(hidden_states)
        return hidden_states * 0.9


class RememberingNumbers(Remembering):
    @hookimpl
    def post_layer(self, hidden_states):
        self.kept.append(float(hidden_states.mean()))
        return hidden_states * 0.9


class RememberingOnModules(Remembering):
    @hookimpl
    def post_layer(self, site, hidden_states):
        site.layer.__dict__.setdefault("norms", []).append(float(hidden_states.norm()))
        return hidden_states * 0.9


class RememberingOnTheClass(Remembering):
    norms: ClassVar[list[float]] = []

    @hookimpl
    def post_layer(self, hidden_states):
        self.norms.append(float(hidden_states.norm()))
        return hidden_states * 0.9


class RememberingGlobally(Remembering):
    @hookimpl
    def post_layer(self, hidden_states):
        KEPT.append(hidden_states.mean())
        return hidden_states * 0.9


class RememberingInOneTensor(Remembering):
    @hookimpl
    def post_layer(self, hidden_states):
        self.kept = [torch.cat([*self.kept, hidden_states.mean()[None]])]
        return hidden_states * 0.9


class RememberingInACycle(Remembering):
    """What only the garbage collector frees is no leak."""

    @hookimpl
    def post_layer(self, hidden_states):
        cycle: list[Any] = [hidden_states]
        cycle.append(cycle)
        return hidden_states * 0.9


class RememberingInTheCall(Remembering):
    @hookimpl
    def post_layer(self, call, hidden_states):
        call.state(self).setdefault("kept", []).append(hidden_states)
        return hidden_states * 0.9


# -- lengths -----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class KeepHalfOfTheSlots:
    """Every other slot from the end: right where all rows have lengths of one parity."""

    traits = DROPS

    @hookimpl
    def pre_attention(self, call, inputs):
        if call.query_length == 1:
            return None
        length = inputs.hidden_states.shape[1]
        return inputs.select(torch.arange(length - 1, -1, -2).flip(0).expand(len(inputs.hidden_states), -1))


class KeepHalf(KeepHalfOfTheSlots):
    """Every other real token from the end."""

    @hookimpl
    def pre_attention(self, call, inputs):
        if call.query_length == 1:
            return None
        real = living(inputs)
        keep = real & (real.long().flip(1).cumsum(1).flip(1) % 2 == 1)
        return inputs.select(*compact(keep, int(keep.sum(1).max())))


class KeepAllButTheSecond(KeepHalfOfTheSlots):
    """A prompt of one token has no second one."""

    @hookimpl
    def pre_attention(self, call, inputs):
        if call.past_length:
            return None
        inputs.hidden_states[:, 1]
        keep = living(inputs) & (living(inputs).long().cumsum(1) != 2)
        return inputs.select(*compact(keep, int(keep.sum(1).max())))


# -- caches ------------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Shifting:
    """Text behind the prompt goes on at a position that depends on the prompt; kept where rows can be followed."""

    traits = MOVES
    needed = "positions behind the prompt are shifted"

    def known(self, call: Any) -> Tensor | None:
        """The shift of every row, int64 [B], or None in a prompt."""
        found = call.row_state("shifting", self.needed).at(call.past_length, call.rows)
        return None if found is None else found["shift"]

    def note(self, call: Any, shift: Tensor) -> None:
        """Keep it for later forwards."""
        start = call.past_length + call.query_length - 1
        call.row_state("shifting", self.needed).note(start, call.past_length + call.query_length, shift=shift)

    @hookimpl
    def pre_decoder(self, call, inputs):
        shift = self.known(call)
        total = call.past_length + call.query_length
        real = torch.ones(call.rows, total, dtype=torch.int64) if call.padding_mask is None else call.padding_mask
        places = (real.cumsum(1) - 1).clamp(min=0)[:, -call.query_length :]
        if shift is None:
            self.note(call, 3 + real.sum(1) % 5)
            return inputs.replace(position_ids=places)
        return inputs.replace(position_ids=places + shift[:, None])


class ShiftingBesideTheCache(Shifting):
    """What is kept does not follow when rows are reordered."""

    def known(self, call):
        return call.cache_state("shifting").get("shift")

    def note(self, call, shift):
        call.cache_state("shifting")["shift"] = shift


class ShiftingOnTheMethod(Shifting):
    """What is kept belongs to whichever sequence came last."""

    def known(self, call):
        return None if call.is_prefill else self.__dict__.get("shift")

    def note(self, call, shift):
        self.__dict__["shift"] = shift


class ShiftingUnnoticed(Shifting):
    """The cache does not say that it needs the method."""

    needed = ""


# -- living coordinates ------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Brighten:
    """Scales image tokens at the entry of a layer."""

    traits = Traits(layers=[3], **MODES)

    def images(self, call: Any, inputs: Any) -> Any:
        """Which tokens to scale."""
        return inputs.image_mask

    @hookimpl
    def pre_attention(self, call, inputs):
        mask = self.images(call, inputs)
        if mask is None or call.query_length == 1:
            return None
        scale = torch.where(mask, 1.5, 1.0).to(inputs.hidden_states)
        return inputs.replace(hidden_states=inputs.hidden_states * scale[..., None])


class BrightenByTheCall(Brighten):
    def images(self, call, inputs):
        return call.image_mask


class BrightenByIds(Brighten):
    def images(self, call, inputs):
        return call.input_ids == 95


class BrightenCutToFit(Brighten):
    """No crash: the mask is made to fit, and marks other tokens."""

    def images(self, call, inputs):
        mask = call.image_mask
        return None if mask is None else mask[:, -inputs.hidden_states.shape[1] :]


class BrightenWhereNothingWasDropped(Brighten):
    """Gives up silently where another method has dropped tokens."""

    def images(self, call, inputs):
        return call.image_mask if call.kept is None else None


@dataclass(eq=False)
class FadeByPadding:
    """Adds to every token of a prompt, also one of a single token, the mean of its row's real tokens."""

    traits = Traits(layers=[3], training=True)

    def real(self, call: Any, inputs: Any) -> Tensor:
        """Which tokens count."""
        return living(inputs)

    @hookimpl
    def pre_attention(self, call, inputs):
        if call.past_length:
            return None
        weight = self.real(call, inputs).to(inputs.hidden_states)[..., None]
        mean = (inputs.hidden_states * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True)
        return inputs.replace(hidden_states=inputs.hidden_states + 0.5 * mean)


class FadeByTheCall(FadeByPadding):
    def real(self, call, inputs):
        return call.padding_mask[:, -call.query_length :].bool()


# -- closing, wrappers, options ----------------------------------------------------------------------------------------


@dataclass(eq=False)
class Doubled:
    """Doubles a weight while attached; what it was is kept, so undoing twice does no harm."""

    traits = Traits(writes=frozenset({"weights"}), **MODES)

    @hookimpl
    def setup(self, view):
        self.weight = next(view.layers[1].parameters())
        self.before = self.weight.detach().clone()
        with torch.no_grad():
            self.weight.mul_(2)

    @hookimpl
    def post_layer(self, hidden_states):
        return None

    @hookimpl
    def teardown(self, view):
        with torch.no_grad():
            self.weight.copy_(self.before)
            self.weight.requires_grad_(True)


class DoubledOnce(Doubled):
    """Undoing halves the weight, however often it is asked to."""

    @hookimpl
    def teardown(self, view):
        with torch.no_grad():
            self.weight.mul_(0.5)
            self.weight.requires_grad_(True)


@dataclass(eq=False)
class Nudge:
    """Adds a little of a projection of what a layer receives to what it returns."""

    traits = Traits(layers=[1], **MODES)

    def projected(self, site: Any, hidden: Tensor) -> Tensor:
        """The first two columns of the queries, [B, T, 2]."""
        return site.view.attention(site.index).q_proj(hidden)[..., :2]

    @hookimpl
    def post_layer(self, site, hidden_states):
        change = self.projected(site, hidden_states)
        return hidden_states + 0.1 * torch.nn.functional.pad(change, (0, hidden_states.shape[-1] - 2))


class NudgeByPlainModules(Nudge):
    """Does nothing where the projection is not the class that it knows."""

    def projected(self, site, hidden):
        projection = site.view.attention(site.index).q_proj
        return projection(hidden)[..., :2] if type(projection) is nn.Linear else torch.zeros_like(hidden[..., :2])


@dataclass(eq=False)
class Fade:
    """Scales by an option that is checked."""

    factor: float = 0.9
    traits = Traits(**MODES)

    def __post_init__(self):
        self.factor = number("factor", self.factor)

    @hookimpl
    def post_layer(self, hidden_states):
        return hidden_states * self.factor


class FadeUnchecked(Fade):
    def __post_init__(self):
        pass


# -- devices -----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class ScaleByATable(Scale):
    """The factor of every position, from a table that is made where the states are."""

    def factors(self, hidden_states: Tensor) -> Tensor:
        return torch.linspace(0.8, 0.9, hidden_states.shape[-1], device=hidden_states.device)

    @hookimpl
    def post_layer(self, hidden_states):
        return hidden_states * self.factors(hidden_states)


class ScaleByATableOnTheHost(ScaleByATable):
    def factors(self, hidden_states: Tensor) -> Tensor:
        return torch.linspace(0.8, 0.9, hidden_states.shape[-1])


class ScaleByATableFromTheHost(ScaleByATable):
    """Right, but the host waits in every layer."""

    def factors(self, hidden_states: Tensor) -> Tensor:
        return super().factors(hidden_states.detach().cpu()).to(hidden_states.device)


class ScaleOnTheHostAlone(Scale):
    """Another result on an accelerator."""

    @hookimpl
    def post_layer(self, hidden_states):
        return hidden_states * (0.9 if hidden_states.device.type == "cpu" else 0.8)
