"""Methods that compress, for the tests: one offers levels of magnitude pruning, others pick among levels."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial

import torch
from paperhooks import Level, Traits, hookimpl
from paperhooks.models import calibrate

LINEARS = r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"


def prune(journal, name, module, *, share):
    """Set the smallest ``share`` of a weight's entries to zero."""
    original = journal.original(f"{name}.weight")
    order = original.abs().flatten().argsort(stable=True)
    cut = order[: int(share * len(order))]
    journal.write_sparse(f"{name}.weight", order, original.flatten()[order])
    journal.scale_sparse(f"{name}.weight", cut, 0.0)


@dataclass(eq=False)
class Magnitude:
    """Offers pruning each linear layer to given shares of zeros."""

    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    traits = Traits(writes=frozenset({"weights"}))

    @hookimpl
    def compression_levels(self, view, name, module, request):
        if not isinstance(module, torch.nn.Linear):
            return None
        size = module.weight.numel()
        return [
            Level(
                "magnitude", f"zeros {s}", {"parameters": size - int(s * size)}, partial(prune, share=s), {"share": s}
            )
            for s in self.shares
        ]


@dataclass(eq=False)
class Halve:
    """Offers one level more: all weights halved, at no saving."""

    traits = Traits()

    @hookimpl
    def compression_levels(self, name, module):
        def halve(journal, name, module):
            journal.write(f"{name}.weight", journal.original(f"{name}.weight") / 2)

        return [Level("halve", "half", {"parameters": module.weight.numel()}, halve)]


@dataclass(eq=False)
class Greedy:
    """Raises, again and again, the level of the module whose inputs are smallest, until the target is met.

    Keeps its calibration in the run folder, so that an interrupted run does not repeat it.
    """

    pattern: str = LINEARS
    interrupt: bool = field(default=False, init=False)  # no option, as a killed process is none
    calibrations: int = field(default=0, init=False)
    traits = Traits(writes=frozenset({"weights"}))

    @hookimpl
    def compression(self, view, request):
        modules = dict(view.modules(self.pattern))
        norms = self.norms(view, request, list(modules))
        if self.interrupt:
            view.journal.write(f"{next(iter(modules))}.weight", torch.zeros(32, 32))
            raise KeyboardInterrupt
        levels = request.levels(view, modules)
        chosen = dict.fromkeys(modules, 0)
        total = sum(v[0].cost["parameters"] for v in levels.values())
        while sum(levels[n][i].cost["parameters"] for n, i in chosen.items()) > request.target * total:
            open_ones = [n for n, i in chosen.items() if i + 1 < len(levels[n])]
            chosen[min(open_ones, key=lambda n: norms[n] * (chosen[n] + 1))] += 1
        for name, i in chosen.items():
            if i:
                levels[name][i].apply(view.journal, name, modules[name])
        labels = {name: levels[name][i].label for name, i in chosen.items()}
        return request.artefact(view, data={"levels": labels}, tensors={"norms": torch.tensor(list(norms.values()))})

    def norms(self, view, request, names):
        """Sum of squared inputs a module, from the run folder if they are there."""
        file = request.run.path / "norms.json" if request.run else None
        if file is not None and file.exists():
            return json.loads(file.read_text())
        norms = dict.fromkeys(names, 0.0)

        def add(name, module, hidden, batch):
            mask = torch.ones(hidden.shape[:2], dtype=torch.bool) if batch.mask is None else batch.mask
            norms[name] += float(hidden[mask].square().sum())

        calibrate(view, request.batches(batch_size=2), names, add, progress=request.progress)
        self.calibrations += 1
        if file is not None:
            file.write_text(json.dumps(norms))
        return norms


@dataclass(eq=False)
class Answers:
    """Returns from ``compression`` what a function makes of view and request."""

    answer: object = None
    traits = Traits()

    @hookimpl
    def compression(self, view, request):
        return self.answer(view, request) if callable(self.answer) else self.answer
