"""The loop on the tiny reference model: rounds, resuming, refusals, alarms, and what it leaves alone."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paperhooks
import pytest
import torch
from loop_models import OFF, PROMPTS, CountingBackend, products, quick, tokenizer
from paperhooks import DataError, UnsupportedModel
from paperhooks.generation import CallableBackend, Response
from paperhooks.io import model_digest
from paperhooks.testing import fingerprint
from paperhooks_sso import SSO, AlarmLimits, align
from paperhooks_sso.data import read_lines
from paperhooks_sso.loop import LoopOptions, Pace, rounds_of, train_file
from sso_models import tiny


@pytest.fixture(autouse=True)
def _count_anew() -> None:
    CountingBackend.asked.clear()
    CountingBackend.fails_at = CountingBackend.log = None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Two iterations that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    return folder / "out", align(tiny(), PROMPTS, out=folder / "out", iterations=2, **quick(folder))


def results(out: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / name / "result.json").read_text())
    return found


def test_every_iteration_samples_with_the_checkpoint_of_the_one_before(whole: tuple[Path, Any]) -> None:
    out, found = whole
    first, second = (results(out, f"iteration-{n}") for n in (1, 2))
    assert first["inputs"]["sampler"] == first["inputs"]["trained"] == model_digest(tiny())
    assert second["inputs"]["sampler"] == second["inputs"]["trained"] == first["results"]["train"]["model"]
    assert model_digest(found.model) == second["results"]["train"]["model"]
    assert (found.iterations, found.stopped, found.alarms) == (2, "", ())
    assert first["status"] == second["status"] == "finished"
    steps = read_lines(out / "iteration-1" / "steps.jsonl")
    assert [step["step"] for step in steps] == [1, 2]
    # The reference is what is trained: at the first step nothing has moved.
    assert steps[0]["plain_margin"] == pytest.approx(0, abs=1e-5)
    assert steps[0]["L_plain"] == pytest.approx((1 / (2 * 0.2)) ** 2, rel=1e-4)


def test_the_saved_model_is_the_one_that_is_returned(whole: tuple[Path, Any]) -> None:
    out, found = whole
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = out / "iteration-2" / "checkpoint"
    assert model_digest(AutoModelForCausalLM.from_pretrained(checkpoint)) == model_digest(found.model)
    assert AutoTokenizer.from_pretrained(checkpoint).chat_template
    assert not found.model.training


def test_called_again_nothing_is_done_again(whole: tuple[Path, Any], tmp_path: Path) -> None:
    out, found = whole
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.jsonl")}
    again = align(
        tiny(), PROMPTS, out=out, iterations=2, **quick(tmp_path, make_backend=CountingBackend)
    )  # fmt: skip
    assert CountingBackend.asked.total() == 0
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.jsonl")} == before
    assert model_digest(again.model) == model_digest(found.model)


@pytest.mark.parametrize("until", ["samples", "pairs"])
def test_a_stage_alone_is_done_of_the_first_round_that_is_not_trained(
    whole: tuple[Path, Any], tmp_path: Path, until: str
) -> None:
    out, options = tmp_path / "out", quick(tmp_path)
    for _ in range(2):
        align(tiny(), PROMPTS, out=out, iterations=1, until=until, **options)
    assert not (out / "iteration-1" / "checkpoint").exists()
    align(tiny(), PROMPTS, out=out, iterations=1, **options)
    for _ in range(2):
        part = align(tiny(), PROMPTS, out=out, iterations=2, until=until, **options)
    assert part.iterations == 1
    assert (out / "iteration-2" / "samples").is_dir()
    assert (out / "iteration-2" / "pairs.jsonl").exists() == (until == "pairs")
    assert not (out / "iteration-2" / "checkpoint").exists()
    end = align(tiny(), PROMPTS, out=out, iterations=2, **options)
    assert model_digest(end.model) == model_digest(whole[1].model)


def test_model_and_global_random_state_stay_as_they_were(tmp_path: Path) -> None:
    model = tiny().train()
    model.model.embed_tokens.weight.requires_grad_(False)
    before = fingerprint(model)
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    wanted = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    found = align(model, PROMPTS[:4], out=tmp_path / "out", iterations=1, **quick(tmp_path))
    assert (torch.rand(1), random.random(), np.random.rand()) == wanted
    assert fingerprint(model) == before
    assert found.model is not model
    frozen = found.model.model.embed_tokens.weight
    assert not frozen.requires_grad
    assert torch.equal(frozen, model.model.embed_tokens.weight)
    assert not torch.equal(found.model.lm_head.weight, model.lm_head.weight)
    assert paperhooks.active_session(found.model) is None


@pytest.mark.parametrize("at", [0, 9, 24, 40])
def test_interrupted_while_sampling_it_goes_on_and_asks_nothing_twice(
    whole: tuple[Path, Any], tmp_path: Path, at: int
) -> None:
    options = quick(tmp_path, make_backend=CountingBackend)
    CountingBackend.fails_at = at
    with pytest.raises(KeyboardInterrupt) as caught:
        align(tiny(), PROMPTS, out=tmp_path / "out", iterations=2, **options)
    (note,) = caught.value.__notes__
    assert "the same call goes on from" in note
    assert "iteration-1: prompts" in note
    assert ("iteration-2: prompts" in note) == (at >= 3 * len(PROMPTS))
    CountingBackend.fails_at = None
    align(tiny(), PROMPTS, out=tmp_path / "out", iterations=2, **options)
    assert set(CountingBackend.asked.values()) == {2}  # once an iteration
    assert len(CountingBackend.asked) == 3 * len(PROMPTS)
    assert products(tmp_path / "out") == products(whole[0])


def test_pace_and_order_of_prompts_do_not_change_what_is_sampled(whole: tuple[Path, Any], tmp_path: Path) -> None:
    options = quick(tmp_path, pace=Pace(sample_batch=3, micro_batch=1))
    align(tiny(), PROMPTS[:5], out=tmp_path / "out", iterations=1, **options)
    pairs = read_lines(tmp_path / "out" / "iteration-1" / "pairs.jsonl")
    assert pairs == read_lines(whole[0] / "iteration-1" / "pairs.jsonl")[: len(pairs)]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"seed": 6}, "holds a run with seed = 5, not 6"),
        ({"preset": "v1-dpo"}, "holds a run with inputs.preset = 'v1-ipo', not 'v1-dpo'"),
        ({"objective": {"beta": 0.5}}, "inputs.objective"),
        ({"max_new_tokens": 13}, "inputs.max_new_tokens = 12, not 13"),
        ({"prompts": PROMPTS[:7]}, "inputs.prompts"),
        ({"model": "reference"}, "inputs.model"),
    ],
)
def test_another_configuration_is_refused_with_its_field(
    whole: tuple[Path, Any], tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    changed = dict(changed)
    model, prompts = tiny(changed.pop("model", "policy")), changed.pop("prompts", PROMPTS)
    before = products(whole[0])
    with pytest.raises(DataError, match=words):
        align(model, prompts, out=whole[0], iterations=2, **quick(tmp_path, **changed))
    assert products(whole[0]) == before


def copied(whole: tuple[Path, Any], tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(whole[0], tmp_path / "copy"))


def test_more_iterations_go_on_from_the_last_checkpoint(whole: tuple[Path, Any], tmp_path: Path) -> None:
    out = copied(whole, tmp_path)
    found = align(tiny(), PROMPTS, out=out, iterations=3, **quick(tmp_path))
    assert found.iterations == 3
    assert results(out, "iteration-3")["inputs"]["sampler"] == results(out, "iteration-2")["results"]["train"]["model"]


def test_a_checkpoint_with_other_weights_is_refused(whole: tuple[Path, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    out = copied(whole, tmp_path)
    file = out / "iteration-2" / "checkpoint" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"iteration-2/checkpoint holds other weights than its round has left"):
        align(tiny(), PROMPTS, out=out, iterations=3, **quick(tmp_path))


def test_a_file_of_pairs_that_was_changed_is_refused(whole: tuple[Path, Any], tmp_path: Path) -> None:
    out = copied(whole, tmp_path)
    file = out / "iteration-2" / "pairs.jsonl"
    file.write_text(file.read_text().replace("plain", "plainer"))
    with pytest.raises(DataError, match=r"pairs.jsonl was changed after it was written"):
        align(tiny(), PROMPTS, out=out, iterations=2, **quick(tmp_path))


def test_an_alarm_stops_the_loop_and_other_limits_go_on(whole: tuple[Path, Any], tmp_path: Path) -> None:
    strict = AlarmLimits(min_pairs=len(PROMPTS) + 1, cut=None, same=None)
    found = align(tiny(), PROMPTS, out=tmp_path / "out", iterations=2, **quick(tmp_path, limits=strict))
    assert found.iterations == 0
    assert [alarm.name for alarm in found.alarms] == ["min_pairs"]
    assert "prompts gave a pair, and 9 are wanted" in found.stopped
    assert model_digest(found.model) == model_digest(tiny())
    assert not (tmp_path / "out" / "iteration-1" / "checkpoint").exists()
    assert results(tmp_path / "out", "")["results"]["alarms"][0]["sentence"] == found.stopped
    again = align(tiny(), PROMPTS, out=tmp_path / "out", iterations=2, **quick(tmp_path))
    assert again.stopped == ""
    assert products(tmp_path / "out") == products(whole[0])


def test_nothing_left_stops_with_a_report(tmp_path: Path) -> None:
    answers = CallableBackend(lambda request: "always the same")
    options = quick(tmp_path, make_backend=lambda model, tokenizer: answers)
    found = align(tiny(), PROMPTS, out=tmp_path / "out", iterations=1, **options)
    assert [alarm.name for alarm in found.alarms] == ["min_pairs"]
    assert "same 8" in found.stopped
    assert (tmp_path / "out" / "iteration-1" / "pairs.jsonl").read_bytes() == b""


def test_version_2_trains_a_generator_and_then_the_model_as_it_was(tmp_path: Path) -> None:
    found = align(tiny(), PROMPTS, out=tmp_path / "out", iterations=1, **quick(tmp_path, preset="v2"))
    generator, policy = (results(tmp_path / "out", n) for n in ("iteration-1-generator", "iteration-1"))
    start = model_digest(tiny())
    assert generator["inputs"]["sampler"] == generator["inputs"]["trained"] == policy["inputs"]["trained"] == start
    assert policy["inputs"]["sampler"] == generator["results"]["train"]["model"] != start
    assert model_digest(found.model) == policy["results"]["train"]["model"]
    steps = read_lines(tmp_path / "out" / "iteration-1-generator" / "steps.jsonl")
    assert "L_plain" not in steps[0]
    assert "likelihood" in steps[0]
    plain = read_lines(tmp_path / "out" / "iteration-1" / "steps.jsonl")
    assert "L_bad" not in plain[0]
    assert plain[0]["loss"] == pytest.approx(np.log(2), rel=1e-4)
    pairs = [read_lines(tmp_path / "out" / n / "pairs.jsonl") for n in ("iteration-1-generator", "iteration-1")]
    assert "ordinary" in pairs[0][0]
    assert "ordinary" not in pairs[1][0]  # nothing compares it
    assert pairs[0][0]["good_system"] == pairs[1][0]["good_system"]
    assert pairs[0][0]["chosen_ids"] != pairs[1][0]["chosen_ids"]
    # The reference is asked for the rows that are compared, and for no others; at the first step nothing has moved.
    sums = [read_lines(tmp_path / "out" / n / "reference.jsonl", "") for n in ("iteration-1-generator", "iteration-1")]
    assert [{len(row["sums"]) for row in rows if "sums" in row} for rows in sums] == [{4}, {2}]
    for name in ("good_margin", "bad_margin"):
        assert steps[0][name] == pytest.approx(0, abs=1e-5)


def test_adapters_alone_are_trained_and_saved(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny(), config)
    before = copy.deepcopy(model.state_dict())
    options = quick(tmp_path, learning_rate=0.05)
    found = align(model, PROMPTS[:4], out=tmp_path / "out", iterations=2, **options)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    changed = [name for name, value in found.model.state_dict().items() if not torch.equal(before[name], value)]
    assert changed
    assert all("lora_" in name for name in changed)
    saved = {file.name for file in (tmp_path / "out" / "iteration-1" / "checkpoint").iterdir()}
    assert "adapter_model.safetensors" in saved
    assert "model.safetensors" not in saved
    steps = read_lines(tmp_path / "out" / "iteration-1" / "steps.jsonl")
    assert steps[0]["plain_margin"] == pytest.approx(0, abs=1e-5)  # no dropout
    again = align(model, PROMPTS[:4], out=tmp_path / "out", iterations=3, **options)
    assert again.iterations == 3


def test_what_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    model = tiny()
    with paperhooks.attach(model, SSO()), pytest.raises(UnsupportedModel, match="methods are attached to this model"):
        align(model, PROMPTS, out=tmp_path / "out", **quick(tmp_path))
    assert not (tmp_path / "out" / "result.json").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "v3"}, "preset is 'v3'"),
        ({"top_p": 0}, "top_p is 0"),
        ({"features": []}, r"features is \[\]"),
        ({"features": "all"}, "features is 'all'"),
        ({"objective": {"reference": None}}, "objective has 'reference'"),
        ({"objective": {"beto": 1}}, "expected options of SSO"),
        ({"objective": {"beta": 0}}, "beta is 0"),
        ({"objective": 3}, "objective is 3; expected options by name"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_options_that_cannot_be_meant_are_named(options: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LoopOptions(**options)


def test_features_that_no_principle_knows_are_named() -> None:
    with pytest.raises(DataError, match=r"there is no principle for 'Acuracy'.*Accuracy"):
        LoopOptions(features=["Acuracy"])


def test_more_tokens_than_the_model_has_room_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="max_new_tokens is 2040, and the model was made for 2048 tokens"):
        align(tiny(), PROMPTS, out=tmp_path / "out", **quick(tmp_path, max_new_tokens=2040))


def test_rounds_of_both_versions() -> None:
    assert [(r.name, r.sampler, r.trained) for r in rounds_of(LoopOptions(), 2)] == [
        ("iteration-1", "start", "start"), ("iteration-2", "iteration-1", "iteration-1"),
    ]  # fmt: skip
    assert [(r.name, r.sampler, r.trained, r.is_policy) for r in rounds_of(LoopOptions(preset="v2"), 2)] == [
        ("iteration-1-generator", "start", "start", False),
        ("iteration-1", "iteration-1-generator", "start", True),
        ("iteration-2-generator", "iteration-1", "iteration-1", False),
        ("iteration-2", "iteration-2-generator", "iteration-1", True),
    ]
    _, policy = LoopOptions(preset="v2", objective={"beta": 0.3}).methods()
    assert (policy.loss, policy.beta, policy.weight, policy.gap) == ("sigmoid", 0.3, False, False)
    assert OFF.min_pairs == 1


class _FailingBackend(CountingBackend):
    """Answers, but for every third request while the service is away."""

    away = True

    def answers(self, prompts: Any) -> Any:
        for some in super().answers(prompts):
            yield {
                at: Response("", error="502 bad gateway") if self.away and at % 3 == 0 else reply
                for at, reply in some.items()
            }


def test_answers_that_failed_stop_the_loop_and_are_asked_again(whole: tuple[Path, Any], tmp_path: Path) -> None:
    options = quick(tmp_path, make_backend=_FailingBackend)
    _FailingBackend.away = True
    for until in ("samples", "pairs", "after"):
        found = align(tiny(), PROMPTS, out=tmp_path / "out", iterations=2, until=until, **options)
        assert [alarm.name for alarm in found.alarms] == ["failed"]
        assert "502 bad gateway" in found.stopped
        assert "another call asks them again" in found.stopped
        assert not (tmp_path / "out" / "iteration-1" / "pairs.jsonl").exists()
    _FailingBackend.away = False
    align(tiny(), PROMPTS, out=tmp_path / "out", iterations=2, **options)
    wanted = products(whole[0])
    assert {n: v for n, v in products(tmp_path / "out").items() if n.endswith("pairs.jsonl")} == {
        n: v for n, v in wanted.items() if n.endswith("pairs.jsonl")
    }
    _FailingBackend.away = True
    allowed = quick(tmp_path, make_backend=_FailingBackend, limits=replace(OFF, failed=0.5))
    some = align(tiny(), PROMPTS, out=tmp_path / "some", iterations=1, until="pairs", **allowed)
    assert some.stopped == ""
    assert results(tmp_path / "some", "iteration-1")["results"]["pairs"]["dropped"]["missing"] > 0


def test_questions_about_features_that_failed_are_asked_again(tmp_path: Path) -> None:
    options = quick(tmp_path, make_backend=_FailingBackend, features="asked", max_new_tokens=8)
    _FailingBackend.away = True
    for _ in range(2):
        with pytest.raises(DataError, match=r"of the questions about features, .* failed, such as .*502 bad gateway"):
            align(tiny(), PROMPTS[:4], out=tmp_path / "out", iterations=1, until="samples", **options)
    _FailingBackend.away = False
    found = align(tiny(), PROMPTS[:4], out=tmp_path / "out", iterations=1, until="samples", **options)
    assert found.stopped == ""


@pytest.mark.parametrize("limits", [{"min_pairs": 1000}, {"gap_kept": 1000.0}])
def test_stricter_limits_of_a_finished_loop_are_alarms(tmp_path: Path, limits: dict[str, Any]) -> None:
    align(tiny(), PROMPTS, out=tmp_path / "out", iterations=2, **quick(tmp_path))
    again = align(tiny(), PROMPTS, out=tmp_path / "out", iterations=2, **quick(tmp_path, limits=replace(OFF, **limits)))
    assert [alarm.name for alarm in again.alarms] == list(limits)
    assert again.iterations == 1


def test_the_policy_of_version_2_is_trained_on_fresh_pairs(tmp_path: Path) -> None:
    """Also where the generator has not moved: its samples are other draws."""
    align(tiny(), PROMPTS, out=tmp_path / "out", iterations=1, **quick(tmp_path, preset="v2", learning_rate=1e-12))
    one, two = (read_lines(tmp_path / "out" / n / "pairs.jsonl") for n in ("iteration-1-generator", "iteration-1"))
    assert sum(a["chosen_ids"] == b["chosen_ids"] for a, b in zip(one, two, strict=True)) <= 1


def test_a_model_of_which_nothing_learns_is_refused_before_it_samples(tmp_path: Path) -> None:
    model = tiny().requires_grad_(False)
    with pytest.raises(UnsupportedModel, match="no parameter of LlamaForCausalLM learns"):
        align(model, PROMPTS, out=tmp_path / "out", iterations=1, **quick(tmp_path, make_backend=CountingBackend))
    assert CountingBackend.asked.total() == 0
    part = align(model, PROMPTS[:2], out=tmp_path / "out", iterations=1, until="samples", **quick(tmp_path))
    assert part.iterations == 0


def test_pairs_of_one_id_are_refused(whole: tuple[Path, Any], tmp_path: Path) -> None:
    """Such as those of two rounds in one file: each has a reference of its own."""
    parts = [(whole[0] / f"iteration-{n}" / "pairs.jsonl").read_text() for n in (1, 2)]
    (tmp_path / "both.jsonl").write_text("".join(parts))
    with pytest.raises(DataError, match=r"both.jsonl, record \d+ has the id '0' of record 0"):
        train_file(tiny(), tmp_path / "both.jsonl", tokenizer=tokenizer(), out=tmp_path / "out", report=False)
    assert not (tmp_path / "out" / "checkpoint").exists()
