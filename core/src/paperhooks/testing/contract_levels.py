"""The contract every method that offers levels keeps, as a test class to subclass.

class TestNearest(LevelsContract):
    def make(self):
        return Nearest(widths=(3, 4))
"""

from __future__ import annotations

import io
import random
from typing import Any, Final

import pytest
import torch
from torch import Tensor, nn

from paperhooks.hooks.compression import CompressionRequest
from paperhooks.hooks.levels import Levels
from paperhooks.models.view import ModelView
from paperhooks.plugins.methods import describe_method
from paperhooks.sessions.method_set import MethodSet
from paperhooks.testing.fingerprints import fingerprint
from paperhooks.testing.tiny import tiny_llama
from paperhooks.weights.journal import WeightJournal
from paperhooks.weights.packed_forms import read_packed

__all__ = ["LevelsContract"]

_IDS: Final = ((5, 6, 7, 8, 9),)
_SWITCHES: Final = 40


class LevelsContract:
    """Subclass it and define :meth:`make`; the other methods may be replaced.

    Levels that leave a module as it is need no values; all others are held to the bytes that they cost.
    """

    #: Which modules levels are wanted of, by qualified name.
    modules: str = r"model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"

    def make(self) -> object:
        """A method that implements ``compression_levels``."""
        raise NotImplementedError(f"{type(self).__name__} must define make(), which returns the method")

    def model(self) -> nn.Module:
        """A small model; the same one at every call."""
        found: nn.Module = tiny_llama(layers=2)
        return found

    def data(self) -> Any:
        """Calibration data, for methods that read some."""
        return [[5, 6, 7, 8], [9, 10], [11, 12, 13]]

    def levels(self, model: nn.Module) -> Levels:
        """What the method offers for the modules of a model."""
        view, methods = ModelView.from_model(model), MethodSet([self.make()])
        (name, method), *_ = methods.methods.items()
        offers = [one.function for one in methods.implementations("compression_levels")]
        assert offers, f"{name} does not implement compression_levels"
        request = CompressionRequest(
            name, describe_method(method)["options"], self.data(), offers=offers, progress=False
        )  # fmt: skip
        found = request.levels(view, [module for module, _ in view.modules(self.modules)])
        assert any(found.values()), f"{name} offers no level for any of {self.modules!r}"
        return found

    # -- the checks ----------------------------------------------------------------------------------------------------

    def test_offering_leaves_the_model_as_it_was(self) -> None:
        """Offering reads weights and data, and changes neither model nor random state."""
        model, state = self.model(), torch.random.get_rng_state()
        before = fingerprint(model)
        self.levels(model)
        assert fingerprint(model) == before, "offering levels changed the model"
        assert torch.equal(torch.random.get_rng_state(), state), "offering levels drew from the global random state"

    def test_costs_are_the_exact_bytes(self) -> None:
        """``cost["bytes"]`` is what packed values of a level take, where it has any, and 0 for what is skipped.

        Parameters of the module that the level leaves as they are, such as a bias, count where all of them do.
        """
        levels = self.levels(self.model())
        for name, own in levels.items():
            for level in own:
                packed = levels.packed(name, level.label)
                if packed or level.skip:
                    held, told = sum(each.nbytes for each in packed.values()), level.cost.get("bytes")
                    module = levels.view.model.get_submodule(name)
                    others = [p for n, p in module.named_parameters() if n not in packed and not level.skip]
                    rest = sum(p.numel() * p.element_size() for p in others)
                    assert told in (held, held + rest), (
                        f"{level.label!r} of {name} costs {told} bytes, and its values take {held}"
                    )

    def test_values_are_those_of_the_level_wherever_the_model_stands(self) -> None:
        """A level's values are packed and unpacked without loss, finite, and the same after other levels."""
        model = self.model()
        with self.levels(model) as levels:
            for name, own in levels.items():
                for level in reversed(own):
                    levels.switch({name: level.label})
                    fresh = self.levels(self.model()).packed(name, level.label)
                    for parameter, packed in levels.packed(name, level.label).items():
                        here = model.get_parameter(f"{name}.{parameter}").detach()
                        again = read_packed(packed.form, packed.tensors(), packed.settings()).unpack()
                        where = f"{level.label!r} of {name}"
                        assert bool(here.isfinite().all()), f"{where} is not finite"
                        assert torch.equal(here, packed.unpack()), f"{where} is not what stands in the model"
                        assert torch.equal(again, here), f"{where} is another one when it is read again"
                        assert torch.equal(fresh[parameter].unpack(), here), f"{where} depends on where the model stood"
                break  # one module: levels of others are made in the same way

    def test_switching_is_undone_exactly(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Switched at random, a choice always gives the same; afterwards every bit is back. No file is opened."""
        model, draw = self.model(), random.Random(0)
        before, own = fingerprint(model), _logits(model)
        levels = self.levels(model)
        for name, offered in levels.items():
            for level in offered:
                levels.packed(name, level.label)

        def refuse(*arguments: Any, **named: Any) -> None:
            raise AssertionError("a file was opened in a switch")

        seen: dict[tuple[tuple[str, str], ...], Tensor] = {}
        with levels, monkeypatch.context() as patched:
            patched.setattr("builtins.open", refuse)
            patched.setattr(io, "open", refuse)
            names = [name for name, offered in levels.items() if offered]
            for _ in range(_SWITCHES):
                some = draw.sample(names, draw.randint(1, min(3, len(names))))
                choice = {name: draw.choice(levels[name]).label for name in some}
                levels.switch(choice)
                found = _logits(model)
                expected = seen.setdefault(tuple(sorted(choice.items())), found)
                assert torch.equal(found, expected), "the same choice gave other logits"
        assert fingerprint(model) == before, "the model is not as it was before the switches"
        assert torch.equal(_logits(model), own), "the model does not give what it gave before the switches"

    def test_the_journal_undoes_what_was_written(self) -> None:
        """Written, the choice stands; undone, the model is as it was."""
        model = self.model()
        before, journal = fingerprint(model), WeightJournal(model)
        with self.levels(model) as levels:
            choice = {name: own[-1].label for name, own in levels.items() if own}
            levels.switch(choice)
            wanted = _logits(model)
            levels.write(journal, method="contract")
        assert torch.equal(_logits(model), wanted), "what was written is not the choice"
        journal.undo()
        assert fingerprint(model) == before, "the journal did not bring the model back"


@torch.no_grad()
def _logits(model: nn.Module) -> Tensor:
    logits: Tensor = model(input_ids=torch.tensor(_IDS)).logits
    return logits
