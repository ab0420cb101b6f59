"""Faults that are planted in methods (and some in core) are caught by the contract; their mended twins pass."""

from __future__ import annotations

from functools import partial
from typing import Any

import paperhooks.hooks.call
import paperhooks.sessions.generate_guard
import planted_methods as planted
import pytest
import torch
from paperhooks.sessions import Session
from paperhooks.testing import Dropper, MethodContract, emulated_accelerator
from torch import nn

FAILURES = (AssertionError, pytest.fail.Exception)


def contract(make: Any, **flags: Any) -> MethodContract:
    """The contract of a method, with flags."""
    return type("Contract", (MethodContract,), {"make": lambda self: make(), **flags})()


def passes(make: Any, check: str, *args: Any, **flags: Any) -> None:
    """The check passes."""
    getattr(contract(make, **flags), check)(*args)


def fails(make: Any, check: str, *args: Any, match: str | None = None, errors: Any = FAILURES, **flags: Any) -> None:
    """The check fails, with a text that says why."""
    with pytest.raises(errors, match=match):
        passes(make, check, *args, **flags)


@pytest.mark.parametrize(
    "wrong",
    [
        planted.ScaleWithoutGradient,
        planted.ScaleDetached,
        planted.ScaleDetachedAtTheEnd,
        planted.ScaleHalfDetached,
        planted.ScaleDetachedPositions,
        planted.ScaleStraightThrough,
    ],
)
def test_gradients_that_are_cut(wrong):
    fails(wrong, "test_gradients_are_not_cut", match=r"gradients are cut|not the slope of the loss")


@pytest.mark.parametrize("right", [planted.Scale, planted.KeepLookedAt, planted.KeepHalf])
def test_gradients_that_are_whole_also_where_ranking_has_none(right):
    passes(right, "test_gradients_are_not_cut")
    passes(right, "test_gradients", None)


def test_gradients_that_are_stopped_on_purpose():
    passes(planted.ScaleStraightThrough, "test_gradients_are_not_cut", exact_gradients=False)
    fails(planted.ScaleWithoutGradient, "test_gradients_are_not_cut", match="are cut", exact_gradients=False)


PATCHES = {
    "a function of torch": partial(planted.Patching, torch.nn.functional, "silu"),
    "a function under torch": partial(planted.Patching, torch, "cat"),
    "a method of Tensor": partial(planted.Patching, torch.Tensor, "softmax"),
    "a class of torch": partial(planted.Patching, nn, "Linear"),
    "a method of a class of torch": partial(planted.Patching, nn.Linear, "forward"),
    "a method of the model's class": partial(planted.Patching, lambda view: type(view.model), "forward"),
    "a method that the model inherits": partial(planted.Patching, lambda view: type(view.model), "get_decoder"),
    "a method of a layer's class": partial(planted.Patching, lambda view: type(view.layers[0]), "forward"),
    "a function of the model's module": partial(
        planted.Patching, lambda view: __import__("sys").modules[type(view.model).__module__], "apply_rotary_pos_emb"
    ),
    "a function that the model imports": partial(
        planted.Patching, __import__("transformers.masking_utils").masking_utils, "create_causal_mask"
    ),
    "a builtin": partial(planted.Patching, __import__("builtins"), "sorted"),
    "for good": planted.PatchingForGood,
    "for the length of a call": planted.PatchingForACall,
    "inside a function": planted.ExchangingCode,
    "the table of kernels": planted.Registering,
    "hooks on all modules": planted.GlobalHook,
    "random numbers": planted.Seeding,
    "gradients": planted.LeavingGradientsOff,
}


@pytest.mark.parametrize("name", PATCHES)
def test_globals_that_are_patched(name):
    try:
        fails(PATCHES[name], "test_global_state_is_left_alone", match=r"was (replaced|added|changed)")
    finally:
        vars(torch.nn.functional).pop("planted", None)


def test_globals_that_are_patched_for_good_before_the_check():
    check = contract(planted.PatchingForGood)
    type(check).setup_class()
    try:
        check.test_undo_is_exact()
        with pytest.raises(FAILURES, match="planted was added"):
            check.test_global_state_is_left_alone()
    finally:
        type(check).teardown_class()
        del torch.nn.functional.planted


def test_globals_that_are_left_alone():
    passes(planted.Scale, "test_global_state_is_left_alone")
    passes(planted.KeepLookedAt, "test_global_state_is_left_alone")


@pytest.mark.parametrize(
    "wrong",
    [
        planted.Remembering,
        planted.RememberingNumbers,
        planted.RememberingOnModules,
        planted.RememberingOnTheClass,
        planted.RememberingGlobally,
        planted.RememberingInOneTensor,
    ],
)
def test_memory_that_is_kept_between_forwards(wrong):
    fails(wrong, "test_nothing_is_gathered", match=r"after 3 more forwards")
    planted.KEPT.clear()


@pytest.mark.parametrize("right", [planted.Scale, planted.RememberingInACycle, planted.RememberingInTheCall])
def test_memory_that_is_let_go(right):
    passes(right, "test_nothing_is_gathered")


def test_lengths_of_both_parities():
    fails(planted.KeepHalfOfTheSlots, "test_batch_equals_singles", "right", "sdpa", match=r"row 1 \(6 tokens\)")
    for pad in ("left", "right"):
        passes(planted.KeepHalf, "test_batch_equals_singles", pad, "eager")
    passes(planted.KeepHalf, "test_short_prompts")


def test_prompts_of_one_token():
    fails(planted.KeepAllButTheSecond, "test_short_prompts", errors=(*FAILURES, IndexError))


@pytest.mark.parametrize("wrong", [planted.ShiftingBesideTheCache, planted.ShiftingOnTheMethod])
def test_state_that_does_not_follow_the_rows_of_a_cache(wrong):
    fails(wrong, "test_rows_of_a_cache_may_change", match="rows after", errors=(*FAILURES, RuntimeError))
    fails(wrong, "test_rows_of_a_cache_may_change", errors=(*FAILURES, RuntimeError), cache_rows=False)


def test_state_that_belongs_to_another_sequence():
    fails(planted.ShiftingOnTheMethod, "test_sequences_in_turn", match="after another one was read")
    passes(planted.Shifting, "test_sequences_in_turn")


def test_state_that_follows_the_rows_of_a_cache():
    for check in ("test_rows_of_a_cache_may_change", "test_a_cache_may_be_cut_back"):
        passes(planted.Shifting, check)


def test_a_method_that_refuses_caches_with_other_rows():
    from paperhooks import DataError

    class Refusing(planted.ShiftingBesideTheCache):
        def known(self, call):
            shift = super().known(call)
            if shift is not None and len(shift) != call.rows:
                raise DataError("rows were changed")
            return shift

    fails(Refusing, "test_rows_of_a_cache_may_change", errors=FAILURES)


@pytest.mark.parametrize("wrong", [planted.ShiftingBesideTheCache, planted.ShiftingUnnoticed])
def test_a_cache_that_goes_on_otherwise_outside_the_session(wrong):
    fails(wrong, "test_a_cache_outlives_the_session", match="goes on otherwise outside")


@pytest.mark.parametrize("right", [planted.Shifting, planted.Scale, planted.KeepHalf])
def test_a_cache_that_is_right_or_refused_outside_the_session(right):
    passes(right, "test_a_cache_outlives_the_session")


@pytest.mark.parametrize("wrong", [planted.BrightenByTheCall, planted.BrightenByIds])
def test_original_coordinates_crash_behind_a_dropper(wrong):
    passes(wrong, "test_batch_equals_singles", "left", "sdpa", vision=True)
    fails(wrong, "test_behind_a_dropper", "left", match=r"docs/coordinates\.md", vision=True)


@pytest.mark.parametrize("wrong", [planted.BrightenCutToFit, planted.BrightenWhereNothingWasDropped])
def test_original_coordinates_are_wrong_behind_a_dropper(wrong):
    fails(wrong, "test_behind_a_dropper", "right", match=r"docs/coordinates\.md", vision=True)


def test_padding_in_original_coordinates_behind_a_dropper():
    passes(planted.FadeByTheCall, "test_batch_equals_singles", "left", "sdpa")
    fails(planted.FadeByTheCall, "test_behind_a_dropper", "left", match=r"docs/coordinates\.md")


@pytest.mark.parametrize("pad", ["left", "right"])
def test_living_coordinates_pass_behind_a_dropper(pad):
    passes(planted.Brighten, "test_behind_a_dropper", pad, vision=True)
    passes(planted.FadeByPadding, "test_behind_a_dropper", pad)
    passes(planted.KeepLookedAt, "test_behind_a_dropper", pad)
    passes(planted.KeepHalf, "test_behind_a_dropper", pad)


@pytest.mark.parametrize(
    ("right", "flags"),
    [
        (planted.Brighten, {"vision": True}),
        (planted.KeepHalf, {"recompute": False}),
        (planted.Shifting, {"recompute": False}),
    ],
)
def test_decoding_behind_a_dropper(right, flags):
    passes(right, "test_decoding_behind_a_dropper", **flags)


def test_a_dropper_goes_behind_another():
    passes(Dropper, "test_behind_a_dropper", "left", vision=True)
    passes(Dropper, "test_decoding_behind_a_dropper", recompute=False)


def test_a_method_that_refuses_what_was_dropped():
    from paperhooks import UnsupportedModel

    class Refusing(planted.Brighten):
        def images(self, call, inputs):
            if call.kept is not None:
                raise UnsupportedModel("tokens are missing")
            return call.image_mask

    fails(Refusing, "test_behind_a_dropper", "left", match="raises UnsupportedModel", vision=True)
    with pytest.raises(pytest.skip.Exception, match="refuses it: tokens are missing"):
        passes(Refusing, "test_behind_a_dropper", "left", vision=True, behind_dropper=False)
    fails(planted.BrightenByTheCall, "test_behind_a_dropper", "left", vision=True, behind_dropper=False)


def test_teardowns_that_cannot_be_repeated():
    fails(planted.DoubledOnce, "test_closing_goes_on_after_an_interrupt", match=r"interrupted at .*layers\.1.*differ")
    passes(planted.Doubled, "test_closing_goes_on_after_an_interrupt")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_methods_that_know_plain_modules_only():
    pytest.importorskip("peft")
    passes(planted.NudgeByPlainModules, "test_undo_is_exact")
    fails(planted.NudgeByPlainModules, "test_attaching_through_a_wrapper", match="wrapped|PEFT")
    passes(planted.Nudge, "test_attaching_through_a_wrapper")


def test_options_that_are_not_checked():
    fails(planted.FadeUnchecked, "test_wrong_options_are_refused", match="expected a ValueError that names 'factor'")
    passes(planted.Fade, "test_wrong_options_are_refused")


# -- faults of core itself ---------------------------------------------------------------------------------------------


def test_settings_that_are_read_off_the_arguments_alone(monkeypatch):
    from transformers import GenerationConfig

    def given_alone(model: Any, given: Any) -> Any:
        known = vars(GenerationConfig())
        return GenerationConfig(**{name: value for name, value in given.items() if name in known})

    passes(planted.Scale, "test_generation_modes", "chunked_prefill")
    monkeypatch.setattr(paperhooks.sessions.generate_guard, "merged_generation", given_alone)
    fails(planted.Scale, "test_generation_modes", "chunked_prefill", match="asked for in generation_config=")


@pytest.mark.parametrize(
    "module", [paperhooks.hooks.call, paperhooks.sessions.generate_guard], ids=["a call", "generate"]
)
def test_a_visual_mask_that_is_not_checked(monkeypatch, module):
    passes(planted.Brighten, "test_a_visual_mask_is_checked", vision=True)
    monkeypatch.setattr(module, "check_token_mask", lambda *_: None)
    fails(planted.Brighten, "test_a_visual_mask_is_checked", errors=(*FAILURES, RuntimeError), vision=True)


def test_a_session_that_is_closed_while_a_thread_generates(monkeypatch):
    passes(planted.Scale, "test_a_thread_that_still_generates_is_waited_for")
    monkeypatch.setattr(Session, "_wait_for_calls", lambda session: None)
    fails(planted.Scale, "test_a_thread_that_still_generates_is_waited_for", match="has another answer")


@pytest.fixture
def device():
    with emulated_accelerator() as device:
        yield device


def test_a_method_that_is_right_on_an_accelerator(device):
    passes(planted.ScaleByATable, "test_logits_on_an_accelerator", device, "sdpa")
    passes(planted.ScaleByATable, "test_generation_on_an_accelerator", device)
    for checkpointing in (None, True, False):
        passes(planted.ScaleByATable, "test_gradients_on_an_accelerator", device, checkpointing)
    passes(planted.ScaleByATable, "test_the_host_seldom_waits", device, prefill_waits=0)


def test_tensors_that_stay_on_the_host(device):
    for check, *args in (("logits", "sdpa"), ("generation",), ("gradients", None)):
        name = f"test_{check}_on_an_accelerator"
        fails(planted.ScaleByATableOnTheHost, name, device, *args, match="same device", errors=RuntimeError)


def test_results_that_are_others_on_an_accelerator(device):
    for check, *args in (("logits", "sdpa"), ("generation",), ("gradients", None)):
        fails(planted.ScaleOnTheHostAlone, f"test_{check}_on_an_accelerator", device, *args, match="accelerator")


def test_waits_in_a_forward(device):
    wrong = planted.ScaleByATableFromTheHost
    fails(
        wrong,
        "test_the_host_seldom_waits",
        device,
        match="decode step.* than 0 times.*\n.*copy .* the host at .*planted",
    )
    fails(wrong, "test_the_host_seldom_waits", device, match="prefill.* than 3 times", prefill_waits=3)
    passes(wrong, "test_the_host_seldom_waits", device, prefill_waits=8, decode_waits=8)
