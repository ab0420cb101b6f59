"""The model that really runs inside what a user holds: adapters, parallel and compiled wrappers, value heads.

A wrapper's ``generate`` often goes straight to the model inside, so that hooks on the wrapper never run; and a wrapper
may lengthen the sequence before the model sees it. Methods belong to the model inside, whoever calls it.
"""

from __future__ import annotations

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from paperhooks.compat import PreTrainedModel
from paperhooks.errors import UnsupportedModel
from paperhooks.models.engines import flat_sharded, one_of_each

__all__ = ["refuse_replicator", "running_model"]


def running_model(model: object) -> nn.Module:
    """The transformers model that runs when ``model`` is called; ``model`` itself when it wraps none.

    :raises UnsupportedModel: it is no module, or wraps several models; says which object to give.
    """
    if not isinstance(model, nn.Module):
        hint = "load it first, for example with AutoModelForCausalLM.from_pretrained"
        raise UnsupportedModel(
            f"expected a loaded transformers model, got {type(model).__name__} {model!r:.60}; {hint}"
        )
    found = _outermost(model, "")
    if len(found) > 1:
        places = ", ".join(f"model.{place} ({type(inner).__name__})" for place, inner in found)
        raise UnsupportedModel(
            f"{type(model).__name__} wraps several models: {places}; give the one that the method is for"
        )
    return found[0][1] if found else model


def refuse_replicator(model: nn.Module, inner: nn.Module) -> None:
    """Refuse what DistributedDataParallel has made of a model, or anything around that, and a model that FSDP1 wraps.

    Some callers use the wrapper and others the model inside: which object is meant has to be plain. FSDP1 hides
    parameters from everything that looks at a model before it runs.

    :param inner: the transformers model in it. :raises UnsupportedModel: names the object to attach to.
    """
    if not any(flat_sharded(m) or isinstance(m, DistributedDataParallel) for m in one_of_each(model.modules())):
        return
    for place, module in model.named_modules():
        if isinstance(module, DistributedDataParallel) and module is not inner:
            path = ".".join(filter(None, ("model", place, "module")))
            raise UnsupportedModel(
                f"this is a {type(module).__name__} around {type(inner).__name__}; attach to the model itself, before "
                f"it is wrapped or through the wrapper: attach({path}, ...), and go on calling the wrapper"
            )
        if flat_sharded(module):
            raise UnsupportedModel(
                f"{type(inner).__name__} is wrapped by {type(module).__name__} (FSDP1); attach before wrapping, or use "
                "fully_shard (accelerate: fsdp_version 2), before or after attaching"
            )


def _outermost(module: nn.Module, place: str) -> list[tuple[str, nn.Module]]:
    """The transformers models in ``module`` that are in no other one, with their places."""
    if isinstance(module, PreTrainedModel):
        return [(place, module)]
    found: dict[int, tuple[str, nn.Module]] = {}
    for name, child in module.named_children():
        for where, inner in _outermost(child, f"{place}.{name}" if place else name):
            found.setdefault(id(inner), (where, inner))
    return list(found.values())
