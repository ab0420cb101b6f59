"""An accelerator for machines that have none: the devices "emulated:0" and "emulated:1", whose memory is the CPU's.

torch (2.10 or newer) lets Python code stand in for a device. What only a GPU would show becomes visible anywhere: an
operator that mixes devices raises, and every wait of the host is counted with its place
(:func:`paperhooks.testing.host_waits`). Results are those of the CPU, so a method can be compared number by number.

What it cannot show: speed, memory, streams, kernels of its own, rounding of another device, libraries that ask
``torch.cuda`` by name; ``torch.Generator`` cannot be made on it, and ``torch.compile`` does not know it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from paperhooks.testing import compat
from paperhooks.testing.compat import DEVICE
from paperhooks.testing.emulated_tensor import COUNT, asked_for, copied_from, emulated_index, execute, number_of
from paperhooks.testing.waits import note

__all__ = ["emulated_accelerator"]

#: What autocast runs in half precision, and what in full: the part of CUDA's lists that language models use.
_LOWER: Final = (
    *("linear", "matmul", "mm", "bmm", "mv", "addmm", "baddbmm", "addbmm", "conv1d", "conv2d", "conv3d"),
    *("scaled_dot_product_attention",),
)
_HIGHER: Final = ("softmax.int", "log_softmax.int", "layer_norm", "nll_loss", "cross_entropy_loss", "cumsum", "rsqrt")
_LIBRARIES: Final = list[Any]()  # torch forgets what was registered through a library when that is freed
_LOCK: Final = threading.Lock()


class _Backend:
    """What stands at ``torch.emulated``."""

    def __init__(self) -> None:
        self.open = 0  # contexts; outside of them nobody is offered the device
        self.current = 0

    def is_available(self) -> bool:
        return self.open > 0

    def is_initialized(self) -> bool:
        return True

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def device_count(self) -> int:
        return COUNT

    def current_device(self) -> int:
        return self.current

    def set_device(self, device: Any) -> None:
        self.current = _index(device)

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before, self.current = self.current, _index(device)
        try:
            yield
        finally:
            self.current = before

    def synchronize(self, device: Any = None) -> None:
        note("synchronize")

    def empty_cache(self) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    # Random numbers are drawn as on the CPU, from its state.

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def manual_seed(self, seed: int) -> None:
        pass  # the CPU's generator is seeded beside it

    manual_seed_all = manual_seed


def _index(device: Any) -> int:
    return device if isinstance(device, int) else emulated_index(device) or 0


class _Hooks:
    """What torch's C++ code asks the device."""

    def is_available(self) -> bool:
        return _BACKEND.is_available()

    def has_primary_context(self, device: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


_BACKEND: Final = _Backend()


class _Devices(TorchFunctionMode):
    """Tells operators which index Python code asks for: torch's own code asks for index 0 where it means any."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.pin_memory:
            return _pinned(args[0])
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        device = kwargs.get("device")
        if device is None and func is Tensor.to and len(args) > 1:
            device = args[1] if isinstance(args[1], str | int | torch.device) else getattr(args[1], "device", None)
        index = emulated_index(device) if device is not None else None
        if index is None:
            return func(*args, **kwargs)
        with asked_for(index):
            return func(*args, **kwargs)


def _pinned(tensor: Tensor) -> Tensor:
    """The tensor itself: all memory is the CPU's, so none is pinned.

    :raises RuntimeError: it lies on the device, as for a GPU's tensors.
    """
    if tensor.device.type != "cpu":
        raise RuntimeError(f"cannot pin a tensor of {tensor.device}; only dense CPU tensors can be pinned")
    return tensor


def _register() -> None:
    """Make the device known to torch, once a process.

    :raises LibraryBroken: torch is too old, or has another such backend.
    """
    with _LOCK:
        if _LIBRARIES:
            return
        compat.register_backend(_BACKEND, _Hooks)
        kernels = torch.library.Library("_", "IMPL")
        kernels.fallback(lambda func, *args, **kwargs: execute(func, args, kwargs), "PrivateUse1")
        kernels.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
        casts = torch.library.Library("aten", "IMPL")
        casts.impl("_copy_from", copied_from, "PrivateUse1")
        casts.impl("_local_scalar_dense", number_of, "PrivateUse1")
        for names, lower in ((_LOWER, True), (_HIGHER, False)):
            for name in names:
                packet, _, overload = name.partition(".")
                operator = getattr(getattr(torch.ops.aten, packet), overload or "default")
                casts.impl(name, _cast_kernel(operator, lower), "AutocastPrivateUse1")
        _LIBRARIES.extend((kernels, casts))


def _cast_kernel(operator: Any, lower: bool) -> Callable[..., Any]:
    """An operator with its floating-point tensors cast to autocast's dtype (``lower``), or to float32."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype(DEVICE) if lower else torch.float32

        def cast(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(dtype) if value.is_floating_point() and value.dtype != torch.float64 else value
            return type(value)(map(cast, value)) if type(value) in (list, tuple) else value

        with compat.without_autocast():
            return operator(*cast(args), **{name: cast(value) for name, value in kwargs.items()})

    return kernel


@contextmanager
def emulated_accelerator() -> Iterator[torch.device]:
    """A block in which there are the devices "emulated:0" and "emulated:1"; gives the first.

    Tensors and models get there as to any device: ``model.to("emulated:0")``, ``torch.zeros(3, device="emulated:1")``,
    accelerate's ``dispatch_model``. A model that is moved keeps its Parameter objects, so that optimisers and tied
    weights go with it. Work from a thread that was started inside the block is checked less strictly: a tensor that was
    made for index 0 there goes with those of index 1.

    The device type stays known to this process afterwards (torch can register one such backend, and only once); it says
    then that it is not available.

    :raises LibraryBroken: torch is older than 2.10.
    """
    _register()
    swap = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    _BACKEND.open += 1
    try:
        with _Devices():
            yield torch.device(DEVICE, 0)
    finally:
        _BACKEND.open -= 1
        torch.__future__.set_swap_module_params_on_conversion(swap)


# Torch makes the threads that compute gradients when it first computes some, one for every device that it knows then.
# Where it knows an accelerator, there are enough, and this process is left to that one.
if not compat.needed() and not torch.accelerator.is_available():
    _register()
