"""The names of torch that the emulated accelerator stands on and that torch does not call public.

They were brought by torch 2.10, which lets Python code stand in for a device. Nothing else in the package spells them;
all are looked up when the device is first asked for, so that an older torch is told by name what it lacks.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from typing import Any, Final

import torch
from torch import Tensor

from paperhooks.errors import LibraryBroken

__all__ = [
    "DEVICE",
    "NO_FUNCTION_HOOK",
    "needed",
    "rebuilt_from",
    "register_backend",
    "without_autocast",
    "wrapper",
    "written_to",
]

#: The device type of the emulated accelerator.
DEVICE: Final = "emulated"

_SETUP: Final = "_setup_privateuseone_for_python_backend"

#: Makes torch call the functions of a tensor subclass as they are.
NO_FUNCTION_HOOK: Final[Any] = torch._C._disabled_torch_function_impl


def needed() -> str:
    """What this torch lacks for Python code to stand in for a device; empty where it lacks nothing."""
    registration = importlib.import_module("torch.utils.backend_registration")
    if not (hasattr(registration, _SETUP) and hasattr(torch._C, "_acc")):
        return f"the emulated accelerator needs torch 2.10 or newer; this is torch {torch.__version__}"
    name = torch._C._get_privateuse1_backend_name()
    if name not in ("privateuseone", DEVICE):
        return f"torch has room for one device type that is not its own, and {name!r} is there already"
    return ""


def register_backend(module: object, hook: type) -> None:
    """Make :data:`DEVICE` a device type of this process: ``module`` becomes ``torch.emulated``.

    :param hook: a class that gets torch's class of hooks as its base.
    :raises LibraryBroken: see :func:`needed`.
    """
    lacking = needed()
    if lacking:
        raise LibraryBroken(lacking)
    setup = getattr(importlib.import_module("torch.utils.backend_registration"), _SETUP)
    accelerator: Any = torch._C._acc
    setup(DEVICE, backend_module=module, hook=type(hook.__name__, (hook, accelerator.PrivateUse1Hooks), {})())


def wrapper(cls: type[Tensor], like: Tensor, device: torch.device, requires_grad: bool) -> Any:
    """A tensor of ``cls`` without memory: shape, strides and dtype of ``like``, on ``device``."""
    return torch.Tensor._make_wrapper_subclass(
        cls,
        like.size(),
        strides=like.stride(),
        storage_offset=like.storage_offset(),
        dtype=like.dtype,
        device=device,
        requires_grad=requires_grad,
    )


def written_to(operator: Any) -> tuple[int, ...]:
    """Which positional arguments an operator writes to."""
    arguments = operator._schema.arguments
    return tuple(i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write)


def without_autocast() -> AbstractContextManager[Any]:
    """A block in which autocast leaves the operators of the emulated device alone."""
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)  # type: ignore[attr-defined]
    guard: AbstractContextManager[Any] = torch._C._ExcludeDispatchKeyGuard(keys)
    return guard


def rebuilt_from(raw: Tensor, device: torch.device, requires_grad: bool) -> tuple[Any, tuple[Any, ...]]:
    """How pickle makes a tensor of ``device`` out of its values on the CPU, in a form that ``torch.load`` allows."""
    return torch._utils._rebuild_device_tensor_from_cpu_tensor, (raw, raw.dtype, str(device), requires_grad)
