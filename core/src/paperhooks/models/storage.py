"""What a module is asked for: where its weights are, in which dtype they compute.

Layers are not always plain: quantised ones keep their weights in buffers or in packed objects, offloaded ones keep them
elsewhere until they are called. Everything that has to know asks here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["compute_dtype", "device_of", "onloaded"]


def device_of(module: nn.Module, default: torch.device) -> torch.device:
    """Where ``module`` wants its inputs: its weights' device, or the one that accelerate brings them to.

    :param default: for a module that owns no tensor which could tell, such as a packed quantised layer.
    """
    hooks = [hook for part in module.modules() for hook in _placing(part)]
    for hook in hooks:
        if hook.execution_device is not None:
            return _device(hook.execution_device)
    tensor = next(_tensors(module), None)
    return default if tensor is None or tensor.is_meta else tensor.device


def compute_dtype(module: nn.Module) -> torch.dtype | None:
    """The dtype of the floating-point weights that ``module`` multiplies with; None when it does not show any."""
    weight = getattr(module, "weight", None)
    candidates = [weight] if isinstance(weight, Tensor) else list(module.parameters(recurse=False))
    return next((t.dtype for t in candidates if t.is_floating_point() and t.element_size() > 1), None)


@contextmanager
def onloaded(module: nn.Module) -> Iterator[None]:
    """A context in which ``module``'s weights are real even if accelerate offloads them between forwards."""
    devices = [h.execution_device for part in module.modules() for h in _placing(part)]
    with ExitStack() as stack:
        if devices:
            from accelerate.utils import align_module_device

            for part in module.modules():
                stack.enter_context(align_module_device(part, execution_device=devices[0]))
        yield


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _placing(module: nn.Module) -> list[Any]:
    """accelerate's hooks on ``module`` that place weights; several hooks may be chained in one."""
    hook = getattr(module, "_hf_hook", None)
    chained = getattr(hook, "hooks", (hook,))
    return [h for h in chained if hasattr(h, "execution_device")]


def _device(value: Any) -> torch.device:
    return torch.device(value if not isinstance(value, int) or torch.cuda.is_available() else "cpu")
