"""The contract's checks of traces: undo, also after errors and interrupts, copies, wrappers, memory, global state."""

from __future__ import annotations

import copy
import inspect
import sys
import warnings
from contextlib import ExitStack
from typing import Any, ClassVar, Final

import pytest
import torch
from torch import Tensor, nn

import paperhooks.sessions.session
from paperhooks.models.view import ModelView
from paperhooks.sessions.removal import strip
from paperhooks.sessions.session import attach
from paperhooks.testing.contract_material import Material
from paperhooks.testing.fingerprints import fingerprint
from paperhooks.testing.interrupts import count_lines, interrupted, moments
from paperhooks.testing.leftovers import NewTensors, gathered
from paperhooks.testing.process_state import ProcessState

__all__ = ["TraceChecks", "closing_files"]

#: At how many moments of closing a session it is interrupted.
_INTERRUPTS: Final = 20


class TraceChecks(Material):
    """What a method leaves behind: nothing."""

    #: The libraries as they were before anything was attached: what is replaced for good is seen once only.
    libraries: ClassVar[ProcessState | None] = None

    @classmethod
    def setup_class(cls) -> None:
        """Take down what the libraries are like before the first check."""
        model = cls().model()
        cls().generate(model, cls().inputs(model))
        cls.libraries = ProcessState(model)

    @classmethod
    def teardown_class(cls) -> None:
        """Forget it."""
        cls.libraries = None

    def test_undo_is_exact(self) -> None:
        """Everything is bit for bit what it was: attributes, hooks, weights, config, logits, tokens."""
        model = self.model()
        self.generate(model, self.inputs(model))  # transformers installs its own recorders at the first forward
        before, plain = fingerprint(model), self.logits(model, self.inputs(model))
        with attach(model, self.make()):
            attached = self.logits(model, self.inputs(model))
            self.generate(model, self.inputs(model))
        assert fingerprint(model).differences(before) == []
        assert torch.equal(self.logits(model, self.inputs(model)), plain)
        assert torch.equal(attached, plain) != self.changes_outputs

    def test_closing_twice_is_fine(self) -> None:
        """A session may be closed again, and its model attached again."""
        model = self.model()
        with attach(model, self.make()) as session:
            self.logits(model, self.inputs(model))
        session.close()
        with attach(model, self.make()):
            self.logits(model, self.inputs(model))

    def test_undone_after_an_error(self) -> None:
        """An exception inside the context leaves the model clean."""
        model = self.model()
        self.logits(model, self.inputs(model))
        before = fingerprint(model)
        with pytest.raises(ZeroDivisionError):  # noqa: PT012, SIM117
            with attach(model, self.make()):
                self.logits(model, self.inputs(model))
                raise ZeroDivisionError
        assert fingerprint(model).differences(before) == []

    def test_closing_goes_on_after_an_interrupt(self) -> None:
        """A KeyboardInterrupt at any moment of closing, then closing again: the model is what it was.

        A ``teardown`` or deferred callback that was interrupted runs once more, so it must bear that.
        """
        model = self.model()
        self.logits(model, self.inputs(model))
        before = fingerprint(model)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no hook ran
            for files in (closing_files(), [inspect.getfile(type(self.make()))]):
                for moment in moments(count_lines(attach(model, self.make()).close, files), _INTERRUPTS):
                    session = attach(model, self.make())
                    place = interrupted(session.close, files, moment)
                    session.close()
                    changed = fingerprint(model).differences(before)
                    assert changed == [], f"interrupted at {place}; after closing again {changed[:5]} differ"

    def test_two_models_do_not_meet(self) -> None:
        """Attached to one model, another one is untouched; both may be attached at once."""
        one, two = self.model(seed=0), self.model(seed=1)
        inputs = self.inputs(one)
        alone = self.logits(two, self.inputs(two))
        with attach(one, self.make()):
            first = self.logits(one, inputs)
            assert torch.equal(self.logits(two, self.inputs(two)), alone)
            with attach(two, self.make()):
                self.logits(two, self.inputs(two))
                assert torch.equal(self.logits(one, self.inputs(one)), first)

    def test_copies_can_be_stripped(self) -> None:
        """A deep copy of an attached model works on its own and can be cleaned."""
        model = self.model()
        plain = self.logits(model, self.inputs(model))
        with attach(model, self.make()):
            attached = self.logits(model, self.inputs(model))
            twin = copy.deepcopy(model)
        assert torch.equal(self.logits(twin, self.inputs(twin)), attached) or not self.batch_independent
        assert strip(twin) > 0
        assert torch.equal(self.logits(twin, self.inputs(twin)), plain)

    @pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # what peft asks for
    def test_attaching_through_a_wrapper(self) -> None:
        """Attached to a PEFT model, it gives what it gives attached to the model inside."""
        peft = pytest.importorskip("peft", reason="peft is not installed")
        model = self.model()
        adapted = _first_projection(ModelView.from_model(model).layers[0])
        plain = self.logits(model, self.inputs(model))
        with attach(model, self.make()):
            logits = self.logits(model, self.inputs(model))
            tokens = self.generate(model, self.inputs(model))
        wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=[adapted], task_type="CAUSAL_LM"))
        wrapped.eval()  # a new adapter changes nothing yet
        with attach(wrapped, self.make()):
            found = self.logits(wrapped, self.inputs(model))
            assert self.generate(wrapped, self.inputs(model)).tolist() == tokens.tolist(), "a wrapped model's tokens"
        self.assert_same(found, logits, "attached to a PEFT model instead of the model inside")
        self.assert_same(self.logits(wrapped, self.inputs(model)), plain, "a wrapped model after the session")

    # -- what does not belong to the model -------------------------------------------------------------------------

    def test_global_state_is_left_alone(self) -> None:
        """Functions and classes of torch and transformers, random state and settings are what they were, all the time.

        Looked at inside some layers too: a function that is exchanged for the length of a call meets other threads.
        """
        model = self.model()
        self.generate(model, self.inputs(model))
        state, inside = self.libraries or ProcessState(model), list[str]()
        state.note_settings()

        def look(*_: object) -> None:
            inside.extend(each for each in state.changes(settings=False) if each not in inside)

        with ExitStack() as stack:
            layers = ModelView.from_model(model).layers
            for layer in (layers[0], layers[len(layers) // 2], layers[-1]):
                stack.callback(next(layer.children()).register_forward_pre_hook(look).remove)
            with attach(model, self.make()):
                self.logits(model, self.inputs(model))
                attached = state.changes()
            closed = state.changes()
        for found, when in ((inside, "inside a layer"), (attached, "while attached"), (closed, "after closing")):
            assert found == [], f"{when}: {'; '.join(found[:5])}; change the model through hooks, never the libraries"

    def test_compile(self) -> None:
        """Attached, then compiled in one graph, gives the eager logits."""
        if not self.traits.compile:
            pytest.skip("declared: not for torch.compile in one graph")
        model = self.model()
        inputs = self.inputs(model, slice(0, 1))
        with attach(model, self.make()):
            expected = self.logits(model, inputs)
            compiled = torch.compile(model, backend="eager", fullgraph=True)
            got = self.logits(compiled, inputs)
        torch.testing.assert_close(got, expected, atol=self.tolerance, rtol=1e-4)
        torch.compiler.reset()
        if self.libraries is not None:  # torch.compile itself has replaced a function or two
            type(self).libraries = ProcessState(model)

    def test_nothing_is_gathered(self) -> None:
        """Forwards leave nothing in memory: neither tensors, nor growing lists on the method."""
        model, method = self.model(), self.make()
        with attach(model, method), NewTensors() as new:
            self._work(model, 2)
            tensors, entries = new.size(), gathered(method, model)
            self._work(model, 3)
            grown = [now - before for now, before in zip(new.size(), tensors, strict=True)]
            more = gathered(method, model) - entries
        assert max(grown) <= 0, (
            f"{grown[0]} more tensors ({grown[1]} bytes) are alive after 3 more forwards; what belongs to a forward "
            "goes into call.state(self), what belongs to a sequence into call.cache_state or call.row_state"
        )
        assert more <= 0, (
            f"{type(method).__name__}, its module or the model hold {more} more entries after 3 more forwards"
        )

    def _work(self, model: Any, times: int) -> None:
        """Read a batch and decode a token, several times."""
        for _ in range(times):
            inputs = self.inputs(model)
            cache, logits = self.read(model, inputs)
            self.follow(model, inputs["attention_mask"], cache, logits.argmax(-1, keepdim=True))

    def test_wrong_options_are_refused(self) -> None:
        """Construction refuses what an option cannot mean, in an error that names the option."""
        from paperhooks.testing.wrong_options import check_options

        complaints = check_options(self.make)
        assert complaints == [], "\n".join(
            ["check options in __post_init__ (paperhooks.io.options helps):", *complaints]
        )


def _first_projection(layer: nn.Module) -> str:
    """The name of a decoder layer's first matrix, without which there is nothing to adapt."""
    weights = {name: getattr(module, "weight", None) for name, module in layer.named_modules()}
    found = (name for name, weight in weights.items() if isinstance(weight, Tensor) and weight.ndim == 2)
    return str(next(found))


def closing_files() -> list[str]:
    """Core's source files that undo something while a session is closed."""
    looking = "paperhooks.sessions.threads"  # goes through many frames, and changes nothing
    modules = [m for n, m in sys.modules.items() if n.startswith("paperhooks.sessions.") and n != looking]
    return [inspect.getfile(module) for module in (*modules, paperhooks.sessions.session)]
