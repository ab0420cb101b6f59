"""The contract that every training loss keeps, as a test class to subclass.

    class TestHinge(LossContract):
        def make(self):
            return Hinge(margin=1.0)

        def batch(self, numbers):
            return collate([EXAMPLES[number] for number in numbers])

Every test runs on a tiny random model, in a second or two.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest
import torch
from torch import Tensor

from paperhooks.sessions.session import attach
from paperhooks.testing.fingerprints import fingerprint
from paperhooks.testing.tiny import tiny_text
from paperhooks.training.accumulated_counts import AccumulatedCounts
from paperhooks.training.loss import compute_loss

__all__ = ["LossContract"]

_SPLITS: Final = ((4,), (3, 1), (1, 3), (2, 2), (1, 1, 1, 1))
_Gradients = Mapping[str, Tensor]


class LossContract(ABC):
    """Subclass it, define :meth:`make` and :meth:`batch`, and set what describes the loss.

    tolerance
        Share of the largest gradient by which gradients may differ that should be equal.
    reentrant
        Whether the loss calls the model once a batch, so that reentrant checkpointing works everywhere.
    """

    tolerance: ClassVar[float] = 1e-5
    reentrant: ClassVar[bool] = True

    @abstractmethod
    def make(self) -> Any:
        """A fresh configured method."""

    @abstractmethod
    def batch(self, numbers: Sequence[int]) -> dict[str, Any]:
        """A batch of the examples with these numbers, from 0 to 3, which had best be of unequal lengths."""

    def model(self) -> Any:
        """A fresh model to train, the same at every call."""
        return tiny_text("llama", layers=2)

    def others(self, method: Any) -> Sequence[torch.nn.Module]:
        """Models that the method asks and that are not to learn, such as a reference."""
        return ()

    # -- the loss ----------------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("split", _SPLITS[1:], ids=lambda split: "+".join(map(str, split)))
    def test_micro_batches_of_any_size_add_up(self, split: tuple[int, ...]) -> None:
        """Four examples have the same gradients in one batch and in several, however unequal."""
        wanted, loss = self._gradients(_SPLITS[0])
        found, other = self._gradients(split)
        self._same(found, wanted, f"accumulated over batches of {split}")
        assert other == pytest.approx(loss, rel=1e-4), "the parts of an accumulated batch do not add up to its loss"

    def test_the_loss_is_a_finite_number_with_gradient(self) -> None:
        """A scalar of floating point, that reaches a parameter."""
        gradients, loss = self._gradients(_SPLITS[0])
        assert math.isfinite(loss)
        assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
        assert any(bool(gradient.any()) for gradient in gradients.values()), "no parameter has a gradient"

    @pytest.mark.parametrize("reentrant", [False, True])
    def test_checkpointing_changes_no_gradient(self, reentrant: bool) -> None:
        """Of either kind, by transformers."""
        if reentrant and not self.reentrant:
            pytest.skip("declared: calls the model more than once")
        wanted, _ = self._gradients(_SPLITS[0])
        model = self.model().train()
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        self._same(self._gradients(_SPLITS[0], model)[0], wanted, "with checkpointing")

    def test_half_precision_gives_a_loss_near_that_of_float32(self) -> None:
        """In bfloat16, to a tenth."""
        _, wanted = self._gradients(_SPLITS[0])
        gradients, loss = self._gradients(_SPLITS[0], self.model().to(torch.bfloat16))
        assert loss == pytest.approx(wanted, rel=0.1, abs=0.1)
        assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())

    def test_models_that_are_asked_do_not_learn(self) -> None:
        """They get no gradient, keep their mode, and do not become part of the trained model."""
        method, model = self.make(), self.model().train()
        others = self.others(method)
        before = [fingerprint(other) for other in others]
        modes = [[module.training for module in other.modules()] for other in others]
        parameters = {id(parameter) for parameter in model.parameters()}
        self._run(method, model, _SPLITS[0])
        assert {id(parameter) for parameter in model.parameters()} == parameters
        for other, seen, mode in zip(others, before, modes, strict=True):
            assert fingerprint(other) == seen
            assert [module.training for module in other.modules()] == mode
            assert all(parameter.grad is None for parameter in other.parameters())

    def test_nothing_stays_behind(self) -> None:
        """Model, modes, and the global random state are as before once the session is closed."""
        method, model = self.make(), self.model().train()
        before, state = fingerprint(model), torch.get_rng_state()
        self._run(method, model, _SPLITS[0])
        model.zero_grad(set_to_none=True)
        assert fingerprint(model) == before
        assert torch.equal(torch.get_rng_state(), state), "the loss draws from torch's global generator"

    # -- in the Trainer ----------------------------------------------------------------------------------------------

    def test_the_trainer_takes_the_step_of_a_loop(self, tmp_path: Path) -> None:
        """A step of plain descent moves the parameters by the gradients of a loop, also over unequal micro-batches."""
        wanted, loss = self._gradients(_SPLITS[0])
        model = self.model()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        with self._trainer(model, tmp_path, _SPLITS[1]) as trainer:
            trainer.train()
        moved = {n: before[n] - p.detach() for n, p in model.named_parameters() if n in wanted}
        self._same(moved, wanted, "in the Trainer", allowed=max(self.tolerance, 1e-4))
        assert trainer.state.log_history[0]["loss"] == pytest.approx(loss, rel=1e-3, abs=1e-4)

    def test_figures_are_logged_in_training_and_evaluation(self, tmp_path: Path) -> None:
        """What a hook logs is finite, and there in evaluation too, where the loss is that of the hook."""
        model = self.model()
        with attach(model, self.make()) as session, torch.no_grad():
            batch = self.batch(range(4))
            context = AccumulatedCounts.of(session, [batch]).context(model, batch)
            wanted = float(compute_loss(session, context))
            names = {*context.terms, *context.figures}
        with self._trainer(model, tmp_path, _SPLITS[0]) as trainer:
            evaluated = trainer.evaluate()
            trainer.train()
        assert evaluated["eval_loss"] == pytest.approx(wanted, rel=1e-4)
        for name in names:
            assert name.startswith("loss/")
            assert math.isfinite(evaluated[f"eval_{name}"]), name
            assert math.isfinite(next(entry[name] for entry in trainer.state.log_history if name in entry)), name

    # -- how ---------------------------------------------------------------------------------------------------------

    @contextmanager
    def _trainer(self, model: Any, out: Path, split: tuple[int, ...]) -> Iterator[Any]:
        """A Trainer of one step of plain descent over these micro-batches, with the method attached."""
        from transformers import Trainer, TrainingArguments

        from paperhooks.training.trainer import HooksTrainerMixin

        class HooksTrainer(HooksTrainerMixin, Trainer):  # type: ignore[misc, unused-ignore]
            """What a user writes."""

        arguments = TrainingArguments(
            output_dir=str(out), use_cpu=True, max_steps=1, per_device_train_batch_size=1,
            per_device_eval_batch_size=1, gradient_accumulation_steps=len(split), learning_rate=1.0,
            lr_scheduler_type="constant", optim="sgd", max_grad_norm=0.0, report_to="none", save_strategy="no",
            logging_steps=1, disable_tqdm=True, remove_unused_columns=False, seed=0,
        )  # fmt: skip
        data = [list(range(sum(split[:at]), sum(split[: at + 1]))) for at in range(len(split))]
        with attach(model, self.make()):
            yield HooksTrainer(
                model, arguments, data_collator=lambda rows: self.batch(rows[0]), train_dataset=data, eval_dataset=data
            )

    def _gradients(self, split: tuple[int, ...], model: Any = None) -> tuple[_Gradients, float]:
        return self._run(self.make(), self.model() if model is None else model, split)

    def _run(self, method: Any, model: Any, split: tuple[int, ...]) -> tuple[_Gradients, float]:
        """Gradients and the summed loss of the examples in micro-batches of these sizes."""
        ends = [sum(split[: at + 1]) for at in range(len(split))]
        batches = [self.batch(range(end - size, end)) for end, size in zip(ends, split, strict=True)]
        total = 0.0
        with attach(model, method) as session:
            counts = AccumulatedCounts.of(session, batches)
            for batch in batches:
                loss = compute_loss(session, counts.context(model, batch))
                loss.backward()
                total += float(loss.detach())
        return {n: p.grad.float() for n, p in model.named_parameters() if p.grad is not None}, total

    def _same(self, found: _Gradients, wanted: _Gradients, what: str, allowed: float | None = None) -> None:
        largest = max(float(gradient.abs().max()) for gradient in wanted.values())
        for name, gradient in wanted.items():
            assert name in found, f"{name} has a gradient, but none {what}"
            off = float((found[name] - gradient).abs().max()) / largest
            assert off <= (allowed or self.tolerance), f"{what}, the gradient of {name} differs by {off:.2g}"
