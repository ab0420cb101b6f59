"""Methods that compress, for the tests: one offers levels of magnitude pruning, others pick among levels."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial

import torch
from paperhooks import Level, Traits, hookimpl
from paperhooks.logprobs import Head, TeacherRows
from paperhooks.models import calibrate, last_hidden_state, module_cost
from paperhooks.weights import Dense, Masked, Quantised, packed_bytes

#: Layers, attentions and MLPs, and the matrices in them.
UNITS = r"model\.layers\.\d+(\.(self_attn|mlp)(\.\w+_proj)?)?"
LINEARS = r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"


def pruned(module, share):
    """The weight without the smallest ``share`` of its entries."""
    weight = module.weight.detach()
    order = weight.abs().flatten().argsort(stable=True)
    kept = torch.ones(weight.numel(), dtype=torch.bool, device=weight.device)
    kept[order[: int(share * len(order))]] = False
    return {"weight": Masked.of(weight, kept.view_as(weight))}


def rounded(module, width, group):
    """The weight rounded to the nearest of 2 ** width values of its group."""
    weight = module.weight.detach().float()
    rows, columns = weight.shape
    parts = weight.view(rows, columns // group, group)
    low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
    scales = ((high - low) / (2**width - 1)).clamp(min=1e-8).to(module.weight.dtype)
    zeros = (-low / scales.float()).round().clamp(0, 2**width - 1)
    codes = (parts / scales.float()[..., None] + zeros[..., None]).round().clamp(0, 2**width - 1)
    return {"weight": Quantised.of(codes.view(rows, columns).int(), scales, zeros.int(), width, group)}


@dataclass(eq=False)
class Magnitude:
    """Offers pruning each linear layer to given shares of zeros."""

    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75)
    traits = Traits(writes=frozenset({"weights"}))

    @hookimpl
    def compression_levels(self, view, modules, request):
        return {name: self.levels(module) for name, module in modules.items() if isinstance(module, torch.nn.Linear)}

    def levels(self, module):
        weight = module.weight
        size = weight.numel()
        found = []
        for s in self.shares:
            kept = size - int(s * size)
            told = packed_bytes(weight.shape, kept=kept, itemsize=weight.element_size())
            cost = {"parameters": kept, **told}
            found.append(
                Level("magnitude", f"zeros {s}", cost, partial(pruned, module, s) if s else None, {"share": s})
            )
        return found


@dataclass(eq=False)
class Nearest:
    """Offers rounding each linear layer to codes of some bits."""

    widths: tuple[int, ...] = (2, 3, 4)
    group: int = 16
    traits = Traits(writes=frozenset({"weights"}))

    @hookimpl
    def compression_levels(self, modules):
        found = {}
        for name, module in modules.items():
            if not isinstance(module, torch.nn.Linear):
                continue
            weight = module.weight
            told = {w: packed_bytes(weight.shape, width=w, group=self.group, itemsize=weight.element_size())
                    for w in self.widths}  # fmt: skip
            found[name] = [
                Level("nearest", f"{w} bits", {"parameters": weight.numel(), **told[w]},
                      partial(rounded, module, w, self.group), {"width": w})
                for w in self.widths
            ]  # fmt: skip
        return found


@dataclass(eq=False)
class LeaveOut:
    """Offers leaving out layers, attentions and MLPs: at no cost, against that of what belongs to no other unit."""

    traits = Traits()

    @hookimpl
    def compression_levels(self, view, modules, request):
        found = {}
        for name in modules:
            if name in view.sublayers and not view.sublayers[name].refusal:
                kept = module_cost(view, name, without=modules)
                found[name] = [
                    Level("leave_out", "kept", kept),
                    Level("leave_out", "left out", dict.fromkeys(kept, 0), skip=True),
                ]
        return found


@dataclass(eq=False)
class Halve:
    """Offers one level more: all weights halved, at no saving."""

    traits = Traits()

    @hookimpl
    def compression_levels(self, modules):
        def halved(module):
            return {"weight": Dense(module.weight.detach() / 2)}

        return {
            name: [Level("halve", "half", {"parameters": module.weight.numel()}, partial(halved, module))]
            for name, module in modules.items()
        }


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
        with levels:
            levels.switch({name: levels[name][i].label for name, i in chosen.items() if i})
            levels.write(view.journal)
        labels = {name: levels[name][i].label for name, i in chosen.items()}
        tensors = {"norms": torch.tensor(list(norms.values()))}
        return request.artefact(view, data={"levels": labels}, tensors=tensors, levels=levels)

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
class Descent:
    """Takes, again and again, the level that diverges least from the model for the bytes that it saves, until no more
    than the target share of them is left. Units may be of any kind and contain one another."""

    pattern: str = UNITS
    traits = Traits(writes=frozenset({"weights"}))

    @hookimpl
    def compression(self, view, request):
        batches = [{"input_ids": torch.tensor([ids])} for ids in request.data]
        with request.levels(view, [name for name, _ in view.modules(self.pattern)]) as levels:
            levels.prepare(request.run.path / "levels" if request.run else None, progress=False)
            head = Head.from_model(view)
            teacher = [TeacherRows.of(self.states(view, batch), head, limit=2**24) for batch in batches]

            @torch.no_grad()
            def divergence(choice):
                levels.switch(choice)
                pairs = zip(teacher, batches, strict=True)
                return sum(float(rows.divergence(self.states(view, batch), head).sum()) for rows, batch in pairs)

            order = {n: sorted(own, key=lambda each: -each.cost["bytes"]) for n, own in levels.items() if own}
            places = dict.fromkeys(order, 0)
            choice = {n: own[0].label for n, own in order.items()}
            total = levels.cost(choice)
            while levels.cost(choice) > request.target * total:
                tried = []
                for name in (n for n, place in places.items() if place + 1 < len(order[n])):
                    other = {**choice, name: order[name][places[name] + 1].label}
                    saved = levels.cost(choice) - levels.cost(other)
                    if saved > 0:
                        tried.append((divergence(other) / saved, name, other))
                _, name, choice = min(tried, key=lambda each: each[:2])
                places[name] += 1
            levels.switch(choice)
            levels.write(view.journal, method=request.method)
            return request.artefact(view, levels=levels)

    def states(self, view, batch):
        with torch.no_grad():
            return last_hidden_state(view, batch).flatten(0, 1)


@dataclass(eq=False)
class Answers:
    """Returns from ``compression`` what a function makes of view and request."""

    answer: object = None
    traits = Traits()

    @hookimpl
    def compression(self, view, request):
        return self.answer(view, request) if callable(self.answer) else self.answer
