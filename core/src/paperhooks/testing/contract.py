"""The contract every method keeps, as a test class to subclass.



    class TestDamp(MethodContract):
        def make(self):
            return Damp(factor=0.5)

Class flags say what does not apply to a method. Every test runs on tiny random models, in about a second.
"""

from __future__ import annotations

from paperhooks.testing.contract_devices import DeviceChecks
from paperhooks.testing.contract_traces import TraceChecks

__all__ = ["MethodContract"]


class MethodContract(TraceChecks, DeviceChecks):
    """Subclass it, define :meth:`make`, and set the flags that describe the method.

    vision, family
        Run on a vision-language model; which tiny family to use.
    changes_outputs
        Attached outputs differ from plain ones (False for observers).
    batch_independent
        A row of a batch gives what it gives alone.
    recompute
        Decoding with a cache gives the logits of one forward over the whole text. False for methods that decide by
        the prompt's last token.
    cache_rows
        After rows of a cache were reordered, selected or repeated, and after its end was cut off, every row goes on as
        it would alone. False: the method may refuse that with a PaperhooksError, but never goes on otherwise.
    behind_dropper
        Works where another method has dropped tokens. False: the method may refuse that with a PaperhooksError.
    exact_gradients
        Gradients are the slope of the loss. False for methods that stop some of them on purpose, such as
        straight-through estimators; that no parameter is cut off entirely is checked still.
    prefill_waits, decode_waits
        How often the host may wait for an accelerator in the forward that reads a prompt, and in one that reads a new
        token, beyond the model alone (:func:`paperhooks.testing.host_waits`). None: as often as it likes.
    tolerance
        How far logits may lie apart that should be equal.
    """
