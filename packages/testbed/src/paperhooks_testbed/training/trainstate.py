"""One training step: the settings of a run, its state, and the forward pass over packed rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from paperhooks.errors import MissingExtra
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import LlavaForConditionalGeneration

from paperhooks_testbed.architecture import build_model
from paperhooks_testbed.training.curriculum import Curriculum
from paperhooks_testbed.training.neighbours import NeighbourHead, captured, neighbour_labels, neighbour_loss
from paperhooks_testbed.training.packer import IGNORE, PREFIX, Batch, pack, pixels
from paperhooks_testbed.training.warmup import PatchHeads, patch_labels, warmup_loss
from paperhooks_testbed.visibility import hide_from_text, hide_image

__all__ = ["Settings", "TrainState", "packed_logits"]

_EXTRA = "paperhooks-testbed[train]"


@dataclass(frozen=True)
class Settings:
    """Everything that decides the outcome of a run; ``run.json`` knows the fields, ``pictures`` too, by these names."""

    steps: int = 3300
    warmup_steps: int = 300
    warmup_pictures: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    rise: int = 100
    fall: int = 300
    seed: int = 0
    neighbours_from: int = 2000
    neighbours_weight: float = 0.3
    curriculum: Curriculum = field(default_factory=Curriculum)

    def rate(self, step: int) -> float:
        """The learning rate of a step: it rises in each phase, stays, and falls over the run's last ``fall`` steps."""
        since = step if step < self.warmup_steps else step - self.warmup_steps
        rising = min(1.0, (since + 1) / self.rise)
        left = (self.steps - step) / max(1, self.fall)
        return self.learning_rate * min(rising, left, 1.0)


class TrainState:
    """The model, the warm-up's heads and the optimisers: all that a step changes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.step = 0
        self.model = build_model(settings.seed)
        # Faster than sdpa on a CPU where masks are four-dimensional.
        self.model.set_attn_implementation("eager")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed + 1)
            self.heads = PatchHeads()
            self.neighbours = NeighbourHead()
        self.modules = {"model": self.model, "heads": self.heads, "neighbours": self.neighbours}
        self.optimizers = _optimizers(settings, self.modules)

    def advance(self) -> tuple[float, dict[str, float]]:
        """Run one step; returns the loss and the accuracies of the exercises on image tokens."""
        loss, details = self._warm() if self.step < self.settings.warmup_steps else self._learn()
        loss.backward()
        parameters = [p for module in self.modules.values() for p in module.parameters() if p.grad is not None]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.settings.rate(self.step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss.item(), details

    def _warm(self) -> tuple[torch.Tensor, dict[str, float]]:
        scenes = self.settings.curriculum.scenes(self.step, self.settings.warmup_pictures, 9, 5)
        with torch.autocast("cpu", torch.bfloat16):
            return warmup_loss(self.model, self.heads, pixels(scenes), patch_labels(scenes), self.step % 3 == 0)

    def _learn(self) -> tuple[torch.Tensor, dict[str, float]]:
        main_step = self.step - self.settings.warmup_steps
        lesson = self.settings.curriculum.lesson(self.step, main_step)
        batch = pack(lesson.scenes, lesson.questions)
        with captured(self.model) as states:
            logits = packed_logits(self.model, batch, lesson.hidden)
        loss = cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE)
        if main_step < self.settings.neighbours_from:
            return loss, {}
        labels = neighbour_labels(lesson.scenes)
        extra, share = neighbour_loss(self.neighbours, states[0][:, 1:PREFIX], labels)
        return loss + self.settings.neighbours_weight * extra, {"answers": loss.item(), "neighbours": share}


def packed_logits(
    model: LlavaForConditionalGeneration, batch: Batch, depth: torch.Tensor, dropped: bool = False
) -> torch.Tensor:
    """Logits ``[B, T, V]`` float32 of packed rows under bfloat16 autocast; the model's attention must be eager.

    :param depth: ``[B]`` int64; row b's questions cannot see the image in layers below ``depth[b]``.
    :param dropped: the other way round: they cannot see it in layers from ``depth[b]`` on.
    """
    image = torch.zeros(batch.input_ids.shape, dtype=torch.bool)
    image[:, 1:PREFIX] = True
    made: dict[tuple[bool, ...], torch.Tensor] = {}

    def mask_for(layer: int) -> torch.Tensor | None:
        rows = (layer >= depth) if dropped else (layer < depth)
        if not rows.any():
            return None
        key = tuple(rows.tolist())
        if key not in made:
            made[key] = _additive(hide_from_text(batch.attention_mask, image, rows))
        return made[key]

    with torch.autocast("cpu", torch.bfloat16), hide_image(model, mask_for):
        outputs = model(
            input_ids=batch.input_ids,
            pixel_values=batch.pixel_values,
            attention_mask=_additive(batch.attention_mask),
            position_ids=batch.position_ids,
            use_cache=False,
        )
    return outputs.logits.float()


def _additive(mask: torch.Tensor) -> torch.Tensor:
    return torch.zeros(mask.shape, dtype=torch.bfloat16).masked_fill_(~mask, -1e4)


def _optimizers(settings: Settings, modules: Mapping[str, nn.Module]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the network, AdamW for everything else."""
    if not hasattr(torch.optim, "Muon"):
        raise MissingExtra(f"torch 2.9 or later (found {torch.__version__})", _EXTRA, "for the Muon optimiser")
    matrices: list[nn.Parameter] = []
    tables: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in (pair for module in modules.values() for pair in module.named_parameters()):
        if parameter.ndim == 2 and (".layers." in name or "multi_modal_projector" in name):
            matrices.append(parameter)
        else:
            (tables if parameter.ndim >= 2 else vectors).append(parameter)
    rate, decay = settings.learning_rate, settings.weight_decay
    groups = [{"params": tables, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return [
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98)),
        torch.optim.Muon(matrices, lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
    ]
