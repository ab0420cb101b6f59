"""Tensors of the emulated accelerator: the values are the CPU's, everything else is what a GPU's tensor would show.

Every operator runs on the values. Before it does, what a GPU would refuse is refused (tensors of several devices in one
operator), and what a host would have to wait for is told to :mod:`paperhooks.testing.waits`.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor, nn

from paperhooks.testing import compat
from paperhooks.testing.compat import DEVICE
from paperhooks.testing.waits import note

__all__ = ["COUNT", "EmulatedTensor", "asked_for", "copied_from", "emulated_index", "execute", "number_of"]

#: How many emulated devices there are.
COUNT: Final = 2

_aten = torch.ops.aten
_COPY: Final = frozenset({"aten.copy_", "aten._to_copy"})
_INDEX: Final = frozenset({"aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_"})
_WAITING: Final = frozenset(
    f"aten.{name}"
    for name in (
        *("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "argwhere", "masked_select"),
        *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive", "bincount"),
    )
)
#: Beside pointwise operators: what takes numbers that lie on the host as tensors of no dimensions.
_NUMBERS: Final = frozenset({"aten.masked_fill", "aten.masked_fill_", "aten.fill_", "aten.fill", "aten.index_fill_"})
_ASKED: Final = threading.local()


#: What a GPU's kernels take and the CPU's do not: histograms of whole numbers, by which experts are counted.
_ELSEWHERE: Final = {"aten.histc": lambda x, *args, **kwargs: torch.histc(x.float(), *args, **kwargs).to(x.dtype)}


class EmulatedTensor(Tensor):
    """A tensor of ``emulated:ordinal`` around the CPU tensor ``raw``.

    To torch's C++ code all of them lie on index 0, the only one that a device made of Python code can have; the ordinal
    is kept here. ``adrift`` are tensors that C++ code made without saying for which device: they go with any.
    """

    raw: Tensor
    ordinal: int
    adrift: bool

    __torch_function__ = compat.NO_FUNCTION_HOOK

    @staticmethod
    def __new__(cls, raw: Tensor, requires_grad: bool = False, index: int = 0, adrift: bool = False) -> Any:
        if isinstance(raw, EmulatedTensor):  # a library makes a parameter anew, by the class of the old one
            return nn.Parameter(raw.detach(), requires_grad=requires_grad)
        new = compat.wrapper(cls, raw, _device(0), requires_grad)
        new.raw, new.ordinal, new.adrift = raw, index, adrift
        return new

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return execute(func, args, kwargs or {})

    # -- where it lies ---------------------------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """The device with its index."""
        return _device(self.ordinal)

    def get_device(self) -> int:
        """The index, as of CUDA's tensors."""
        return self.ordinal

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """On another device, or in another dtype; a gradient goes back to where the tensor lay."""
        device, options = _parsed(args, kwargs)
        if device is not None and torch.device(device).type != "meta":
            index = emulated_index(device)
            if index != self.ordinal:
                moved: Tensor = _Moved.apply(self, torch.device(device))  # type: ignore[no-untyped-call]
                return moved.to(**options) if options else moved
        elif device is not None:
            options["device"] = device
        return super().to(**options) if options else self

    def cpu(self, **options: Any) -> Any:  # type: ignore[override]
        """On the CPU: the host waits."""
        return self.to("cpu", **options)

    @property
    def data(self) -> Any:
        """Without gradient."""
        return super().data

    @data.setter
    def data(self, new: Any) -> None:
        """Take over another tensor of this device."""
        if not isinstance(new, EmulatedTensor):
            raise TypeError(f"the data of a tensor of {self.device} must be one of that device, not of {new.device}")
        Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        self.raw, self.ordinal, self.adrift = new.raw, new.ordinal, new.adrift

    def data_ptr(self) -> int:
        """The address of the values."""
        return self.raw.data_ptr()

    def untyped_storage(self) -> Any:
        """The memory of the values."""
        return self.raw.untyped_storage()

    # -- what leaves the device ------------------------------------------------------------------------------------

    def tolist(self) -> Any:
        """Plain numbers: the host waits."""
        note("tolist")
        return self.raw.detach().tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        """Refused, as by a GPU."""
        raise TypeError(f"can't convert {self.device} tensor to numpy; use Tensor.cpu() to copy it to the host first")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def __repr__(self, **options: Any) -> str:  # type: ignore[override]
        return f"tensor on {self.device}: {self.raw!r}"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else repr(self)

    # -- copies of it ----------------------------------------------------------------------------------------------

    def new_tensor(self, data: Any, **options: Any) -> Any:  # type: ignore[override]
        """A tensor on this device, of this dtype."""
        return torch.tensor(data, **{"dtype": self.dtype, "device": self.device, **options})

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            raw = copy.deepcopy(self.raw.detach(), memo)
            new: Any = EmulatedTensor(raw, index=self.ordinal, adrift=self.adrift)
            new = nn.Parameter(new, self.requires_grad) if isinstance(self, nn.Parameter) else new
            new.requires_grad_(self.requires_grad)
            new.grad = copy.deepcopy(self.grad, memo)
            memo[id(self)] = new
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return compat.rebuilt_from(self.raw.detach(), self.device, self.requires_grad)


class _Moved(torch.autograd.Function):
    """A copy on another device, whose gradient goes back to where the tensor lay."""

    @staticmethod
    def forward(ctx: Any, source: EmulatedTensor, device: torch.device) -> Tensor:
        ctx.source = source.ordinal
        index = emulated_index(device)
        return Tensor.to(source, device) if index is None else EmulatedTensor(source.raw.clone(), index=index)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0].to(_device(ctx.source)), None


# -- devices -----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=COUNT)
def _device(index: int) -> torch.device:
    return torch.device(DEVICE, index)


def emulated_index(device: Any) -> int | None:
    """Which emulated device is meant; None for another device, or none.

    :raises RuntimeError: there is no such emulated device.
    """
    if device is None:
        return None
    device = torch.device(device)
    if device.type != DEVICE:
        return None
    if (device.index or 0) >= COUNT:
        raise RuntimeError(f"{device}: invalid device ordinal; there are {COUNT} emulated devices")
    return device.index or 0


@contextmanager
def asked_for(index: int | None) -> Iterator[None]:
    """A block whose operators are told the device by Python code, and not by torch's own."""
    before = getattr(_ASKED, "index", None)
    _ASKED.index = index
    try:
        yield
    finally:
        _ASKED.index = before


def _parsed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The device and the other options that a call of ``Tensor.to`` asks for."""
    options = dict(kwargs)
    first, rest = (args[0], args[1:]) if args else (options.pop("other", None), ())
    device = options.pop("device", None)
    if isinstance(first, Tensor):
        device, options["dtype"] = first.device, first.dtype
    elif isinstance(first, torch.dtype):
        options["dtype"] = first
    elif first is not None:
        device = first
    names = ("non_blocking", "copy") if isinstance(first, Tensor | torch.dtype) else ("dtype", "non_blocking", "copy")
    options.update(zip(names, rest, strict=False))
    return device, {name: value for name, value in options.items() if value is not None}


# -- operators ---------------------------------------------------------------------------------------------------------


def execute(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operator of the emulated device on the values of its tensors.

    :raises RuntimeError: it mixes devices, or is given random numbers of another device, as a GPU would refuse.
    """
    ours, others = list[EmulatedTensor](), list[Tensor]()
    _gather((args, tuple(kwargs.values())), ours, others)
    name = str(func.overloadpacket)
    if ours:
        _check_devices(func, name, args, ours, others)
        _note_waits(name, args, kwargs, others)
    elif name in _COPY and others[0].numel() and not kwargs.get("non_blocking"):
        note("copy from the host")
    index, adrift = _destination(name, ours, kwargs)
    if index is not None and kwargs.get("generator") is not None:
        raise RuntimeError(f"Expected a '{DEVICE}' device type for generator but found 'cpu'")
    func = _ELSEWHERE.get(name, func)
    out = func(*_plain(args), **{key: _plain(value) for key, value in kwargs.items()})
    return out if index is None else _wrapped(out, index, adrift, {id(t.raw): t for t in ours})


def copied_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """What torch's own code calls in place of ``copy_`` where it has made the target by itself."""
    return execute(_aten.copy_.default, (target, source, non_blocking), {})  # type: ignore[no-any-return]


def number_of(tensor: Tensor) -> bool | int | float | complex:
    """What torch's own code calls for the numbers in a list of which it makes a tensor: the host waits for each."""
    return execute(_aten.item.default, (tensor,), {})  # type: ignore[no-any-return]


def _gather(value: Any, ours: list[EmulatedTensor], others: list[Tensor]) -> None:
    if isinstance(value, EmulatedTensor):
        ours.append(value)
    elif isinstance(value, Tensor):
        others.append(value)
    elif isinstance(value, list | tuple):
        for each in value:
            _gather(each, ours, others)


def _plain(value: Any) -> Any:
    if isinstance(value, EmulatedTensor):
        return value.raw
    if isinstance(value, torch.device):
        return torch.device("cpu") if value.type == DEVICE else value
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def _wrapped(value: Any, index: int, adrift: bool, known: dict[int, EmulatedTensor]) -> Any:
    if isinstance(value, EmulatedTensor):
        return value
    if isinstance(value, Tensor):
        found = known.get(id(value))
        if found is None:
            return EmulatedTensor(value, index=index, adrift=adrift)
        if found.shape != value.shape or found.stride() != value.stride():  # such as an output that was made empty
            Tensor.data.__set__(found, EmulatedTensor(value, adrift=True))  # type: ignore[attr-defined]
        found.ordinal, found.adrift = index, adrift
        return found
    return type(value)(_wrapped(v, index, adrift, known) for v in value) if type(value) in (list, tuple) else value


def _destination(name: str, ours: list[EmulatedTensor], kwargs: dict[str, Any]) -> tuple[int | None, bool]:
    """On which emulated device the result lies (None: on the CPU), and whether that is not settled."""
    asked, meant = kwargs.get("device"), getattr(_ASKED, "index", None)
    if asked is not None:
        index = emulated_index(asked)
        if index is None:
            return None, False
        if index or meant is not None:
            return (index if meant is None else meant), False
    elif name == "aten.copy_" and not isinstance(_first(ours), EmulatedTensor):
        return None, False
    settled = next((t.ordinal for t in ours if not t.adrift), None)
    if settled is not None:
        return settled, False
    return (0, True) if ours or asked is not None else (None, False)


def _first(tensors: Sequence[Any]) -> Any:
    return tensors[0] if tensors else None


def _check_devices(func: Any, name: str, args: Sequence[Any], ours: list[EmulatedTensor], others: list[Tensor]) -> None:
    """What a GPU would refuse: only copies, numbers, and indices on the host may meet tensors of another device."""
    if name in _COPY:
        return
    places = {t.ordinal for t in ours if not t.adrift}
    foreign = others
    if name in _INDEX:
        indices = list[Tensor]()
        _gather(args[1], [], indices)
        foreign = [t for t in others if not any(t is each for each in indices)]
        if not isinstance(args[0], EmulatedTensor):
            foreign = others
    numbers = name in _INDEX or name in _NUMBERS or torch.Tag.pointwise in func.tags
    mixed = [t for t in foreign if t.dim() or not numbers]
    mixed += [args[i] for i in _written(func) if i < len(args) and any(args[i] is t for t in others)]
    if mixed or len(places) > 1:
        found = [*(str(_device(i)) for i in sorted(places)), *("cpu" for _ in mixed[:1])]
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {' and '.join(found)}! "
            f"({func})"
        )


_written: Callable[[Any], tuple[int, ...]] = lru_cache(maxsize=None)(compat.written_to)


def _note_waits(name: str, args: Sequence[Any], kwargs: dict[str, Any], others: list[Tensor]) -> None:
    if name in _WAITING:
        note(name)
    elif name == "aten._to_copy":
        device = kwargs.get("device")
        if device is not None and emulated_index(device) is None:
            note("copy to the host")
    elif name == "aten.copy_":
        if not isinstance(args[0], EmulatedTensor):
            note("copy to the host")
        elif others and others[0].numel() and not (len(args) > 2 and args[2]) and not kwargs.get("non_blocking"):
            note("copy from the host")
    elif name in _INDEX:
        _note_indexing(name, args, kwargs)
    elif name == "aten.repeat_interleave" and kwargs.get("output_size") is None and isinstance(args[-1], Tensor):
        note(name)


def _note_indexing(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """A mask must be counted before its positions are known, by the host alone where it lies there; what lies on the
    host is copied first.
    """
    indices = [index for index in args[1] if isinstance(index, Tensor)]
    if any(index.dim() and not isinstance(index, EmulatedTensor) for index in indices):
        note("index on the host")
    masks = any(isinstance(index, EmulatedTensor) and index.dtype in (torch.bool, torch.uint8) for index in indices)
    filled = name != "aten.index" and args[2].dim() == 0 and not (len(args) > 3 and args[3])
    if masks and not filled:
        note("index by a mask")
