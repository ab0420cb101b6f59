"""Fitness: the reference values, the plain evaluator's survivors, and nothing left behind."""

from __future__ import annotations

import builtins
import math
import warnings
from pathlib import Path

import pytest
import scored_models as made
import torch
from paperhooks import ModelView
from paperhooks.errors import DataError
from paperhooks.hooks import Levels
from paperhooks.testing import fingerprint, fresh_process, tiny_text
from paperhooks_evopress.evaluator import CalibrationWarning, Evaluator
from paperhooks_evopress.evaluator.teacher import Teacher

pytest_plugins = ["paperhooks.testing.accelerator_fixtures"]

STATES = made.facts()["states"]


def evaluator_of(view: ModelView, levels: Levels, sequences, **options) -> Evaluator:
    return Evaluator(view, levels, sequences, most_perplexity=math.inf, **options)


@pytest.fixture(scope="module")
def reference() -> tuple[ModelView, Levels]:
    view = ModelView.from_model(made.reference_model())
    return view, made.drop_levels(view)


@pytest.mark.parametrize("batch_tokens", [1, 1000])
@pytest.mark.parametrize(
    ("value", "options"),
    [
        ("kl", {}),
        ("ppl", {"fitness": "perplexity"}),
        ("top10", {"tokens": 10, "rest": False}),
    ],
)
def test_reference_values(reference: tuple[ModelView, Levels], value: str, options, batch_tokens: int) -> None:
    view, levels = reference
    sequences = [made.texts()[f"data{n}"] for n in range(4)]
    with levels:
        evaluator = evaluator_of(view, levels, sequences, batch_tokens=batch_tokens, **options)
        found = evaluator.score([made.letters(view, each["letters"]) for each in STATES.values()], 49, 0)
    assert found == pytest.approx([each[value] for each in STATES.values()], rel=2e-4, abs=2e-5)
    assert evaluator.teacher_perplexity == pytest.approx(STATES["none"]["ppl"], rel=2e-4)


@pytest.mark.parametrize(("value", "fitness"), [("big_kl", "kl"), ("big_ppl", "perplexity")])
def test_reference_values_of_a_long_sequence(reference: tuple[ModelView, Levels], value: str, fitness: str) -> None:
    view, levels = reference
    choice = made.letters(view, STATES["mix"]["letters"])
    with levels:
        found = evaluator_of(view, levels, [made.texts()["big"]], fitness=fitness).score([choice], 1500, 0)
    assert found == pytest.approx([made.facts()[value]], rel=2e-4)


def test_few_tokens_and_the_rest_give_less_than_all(reference: tuple[ModelView, Levels]) -> None:
    view, levels = reference
    sequences = [made.texts()[f"data{n}"] for n in range(4)]
    choice = made.letters(view, STATES["mix"]["letters"])
    with levels:
        found = [
            evaluator_of(view, levels, sequences, tokens=tokens).score([choice], 49, 0)[0] for tokens in (10, 40, 97)
        ]
    assert found == sorted(found)
    assert found[2] == pytest.approx(STATES["mix"]["kl"], rel=2e-4)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "mixtral"])
@pytest.mark.parametrize("fitness", ["kl", "perplexity"])
def test_batches_and_padding_change_nothing(family: str, fitness: str) -> None:
    view = ModelView.from_model(tiny_text(family))
    levels = made.drop_levels(view)
    sequences = made.sequences_of([3, 17, 2, 9, 30, 11, 8])
    choices = made.random_choices(levels, 5)
    with levels:
        found = [
            evaluator_of(view, levels, sequences, fitness=fitness, batch_tokens=size).score(choices, 61, 4)
            for size in (1, 32, 1000)
        ]
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_survivors_of_three_stages_are_the_plain_evaluators() -> None:
    model = tiny_text(layers=8)
    view = ModelView.from_model(model)
    levels = made.drop_levels(view)
    sequences = made.sequences_of([24] * 30, seed=3)
    with levels:
        evaluator = evaluator_of(view, levels, sequences, batch_tokens=48)
        for seed in range(3):
            left = made.random_choices(levels, 24, seed=seed)
            for stage, (survivors, tokens) in enumerate([(8, 96), (2, 192), (1, 384)]):
                number = 10 * seed + stage
                wanted = made.plain_score(model, levels, sequences, left, tokens, number)
                found = evaluator.score(left, tokens, number, survivors)
                best = sorted(range(len(left)), key=lambda n: wanted[n])[:survivors]
                assert sorted(range(len(left)), key=lambda n: found[n])[:survivors] == best
                assert [found[n] for n in best] == pytest.approx([wanted[n] for n in best], rel=1e-4)
                assert all(f == math.inf or f == pytest.approx(w, rel=1e-4) for f, w in zip(found, wanted, strict=True))
                left = [left[n] for n in best]
    assert evaluator.counters.dropped > 10


def test_early_stop_keeps_ties_and_repeated_candidates() -> None:
    view = ModelView.from_model(tiny_text(layers=4))
    levels = made.drop_levels(view)
    sequences = made.sequences_of([16] * 8)
    one, two, *others = made.random_choices(levels, 8, share=0.5)
    with levels:
        choices = [one, two, one, *others, two, {}, {}]
        whole = evaluator_of(view, levels, sequences, early_stop=False, batch_tokens=1).score(choices, 128, 0, 5)
        found = evaluator_of(view, levels, sequences, batch_tokens=1).score(choices, 128, 0, 5)
    order = sorted(range(len(choices)), key=lambda n: whole[n])[:5]
    assert sorted(range(len(choices)), key=lambda n: found[n])[:5] == order
    assert [found[n] for n in order] == [whole[n] for n in order]
    assert found[0] == found[2]
    assert whole[-1] == pytest.approx(0, abs=1e-6)


def test_what_was_seen_is_remembered_and_changes_nothing() -> None:
    view = ModelView.from_model(tiny_text())
    levels = made.drop_levels(view)
    sequences = made.sequences_of([20] * 6)
    choices = made.random_choices(levels, 6)
    with levels:
        evaluator = evaluator_of(view, levels, sequences, batch_tokens=1)
        evaluator.score(choices, 100, 1, 2)
        before = evaluator.counters.tokens
        again = evaluator.score(choices, 100, 2, 2)
        assert evaluator.counters.remembered > 0
        assert evaluator.counters.tokens - before < 6 * 100
        fresh = evaluator_of(view, levels, sequences, batch_tokens=1)
        assert fresh.score(choices, 100, 2, 2) == again
        ran, tokens = evaluator.counters.layers, evaluator.counters.tokens
        assert evaluator.score(choices, 100, 2, 2) == again
        assert (evaluator.counters.layers, evaluator.counters.tokens) == (ran, tokens)


def test_what_is_kept_of_the_teacher_changes_nothing_but_rounding() -> None:
    view = ModelView.from_model(tiny_text(layers=3))
    levels = made.drop_levels(view)
    sequences = made.sequences_of([40] * 4)
    choices = made.random_choices(levels, 4)
    with levels:
        wide = evaluator_of(view, levels, sequences).score(choices, 160, 0)
        narrow = evaluator_of(view, levels, sequences, limit=16_000).score(choices, 160, 0)
    assert narrow == pytest.approx(wide, rel=1e-5)
    with pytest.raises(DataError, match="limit is 1000 bytes for the teacher; with 100 vocabulary entries at least"):
        evaluator_of(view, levels, sequences, limit=1000)


def test_the_teacher_keeps_within_its_limit() -> None:
    view = ModelView.from_model(tiny_text(layers=2))
    levels = made.drop_levels(view)
    with levels:
        evaluator = evaluator_of(view, levels, made.sequences_of([30] * 12), limit=100_000)
        for seed in range(4):
            evaluator.score([{}], 200, seed)
            assert 0 < evaluator.teacher.nbytes < 100_000


@pytest.mark.parametrize(("sequences", "limit"), [(6, 32), pytest.param(64, 256, marks=pytest.mark.slow)])
def test_peak_memory_of_a_large_vocabulary(sequences: int, limit: int) -> None:
    found = fresh_process(Path(__file__).parent / "teacher_memory.py", str(sequences), str(limit))
    own = 3 * 127 * 50_000 * 4 / 2**20  # a candidate's logits, and what is made of them
    assert limit / 4 < found["kept"] < limit
    assert found["mib"] < limit + own < sequences * 127 * 50_000 * 4 / 2**20


def test_half_precision_is_compared_in_single() -> None:
    model = tiny_text(layers=4).bfloat16()
    view = ModelView.from_model(model)
    levels = made.drop_levels(view)
    sequences = made.sequences_of([25, 14, 9])
    choices = made.random_choices(levels, 4)
    with levels:
        found = evaluator_of(view, levels, sequences, batch_tokens=1).score(choices, 48, 0)
        wanted = made.plain_score(model, levels, sequences, choices, 48, 0)
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("fitness", ["kl", "perplexity"])
def test_levels_of_head_and_embeddings(fitness: str) -> None:
    model = tiny_text(layers=3)
    view = ModelView.from_model(model)
    modules = view.modules(r"lm_head|model\.embed_tokens|.*up_proj")
    levels = Levels(view, {name: made.rounding(module) for name, module in modules})
    sequences = made.sequences_of([12, 9])
    choices = made.random_choices(levels, 12, share=0.6)
    with levels:
        evaluator = evaluator_of(view, levels, sequences, fitness=fitness, limit=16_000)
        found = evaluator.score(choices, 21, 0)
        one_by_one = [evaluator_of(view, levels, sequences, fitness=fitness).score([c], 21, 0)[0] for c in choices]
        assert found == pytest.approx(one_by_one, rel=1e-5)
        if fitness == "kl":
            assert found == pytest.approx(made.plain_score(model, levels, sequences, choices, 21, 0), rel=1e-4)


@pytest.mark.parametrize("fitness", ["kl", "perplexity"])
def test_another_device_gives_the_cpus_fitness(accelerator, fitness: str) -> None:
    found = []
    for device in ("cpu", accelerator):
        view = ModelView.from_model(tiny_text(layers=4).to(device))
        sequences = made.sequences_of([3, 17, 9, 30])
        with made.drop_levels(view) as levels:
            choices = made.random_choices(levels, 6)
            found.append(evaluator_of(view, levels, sequences, fitness=fitness).score(choices, 50, 0, 5))
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_text().train()
    model.model.layers[1].eval()
    view = ModelView.from_model(model)
    levels = made.drop_levels(view)
    before, modes = fingerprint(model), [module.training for module in model.modules()]
    state = torch.get_rng_state()
    with levels:
        evaluator = evaluator_of(view, levels, made.sequences_of([9, 9]))
        evaluator.score(made.random_choices(levels, 6), 18, 0, 2)
        with pytest.raises(DataError, match="has no level 'gone'"):
            evaluator.score([{"model.layers.0.mlp": "gone"}], 18, 0)
    assert fingerprint(model) == before
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    model(torch.tensor([[5, 6]]), labels=torch.tensor([[5, 6]])).loss.backward()


def test_no_file_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    view = ModelView.from_model(tiny_text())
    modules = view.modules(r".*(up|q)_proj")
    levels = Levels(view, {name: made.rounding(module) for name, module in modules})
    sequences = made.sequences_of([9] * 5)
    choices = made.random_choices(levels, 10)
    with levels:
        evaluator = evaluator_of(view, levels, sequences)
        evaluator.score(choices, 30, 0, 3)
        opened: list[object] = []
        own = builtins.open
        monkeypatch.setattr(builtins, "open", lambda *a, **k: (opened.append(a), own(*a, **k))[1])
        evaluator.score(made.random_choices(levels, 10, seed=1), 30, 1, 3)
    assert opened == []


@pytest.mark.parametrize("fitness", ["kl", "perplexity"])
def test_what_is_not_finite_is_worst(fitness: str) -> None:
    view = ModelView.from_model(tiny_text(layers=3))
    broken = view.model.get_submodule("model.layers.1.mlp.up_proj")

    def values() -> dict[str, made.Dense]:
        return {"weight": made.Dense(torch.full_like(broken.weight.detach(), torch.nan))}

    levels = Levels(
        view,
        {
            "model.layers.1.mlp.up_proj": [made.Level("x", "broken", {"bytes": 10**6}, values)],
            **made.drop_levels(view),
        },
    )
    choices = [{"model.layers.1.mlp.up_proj": "broken"}, {"model.layers.0.mlp": "out"}, {"model.layers.2.mlp": "out"}]
    with levels:
        evaluator = evaluator_of(view, levels, made.sequences_of([9] * 5), fitness=fitness, batch_tokens=1)
        for survivors in (None, 1, 2):
            found = evaluator.score(choices, 40, 0, survivors)
            assert found[0] == math.inf
            assert min(found[1:]) < math.inf


def test_a_teacher_that_is_broken_or_guesses_is_refused() -> None:
    model = tiny_text()
    view = ModelView.from_model(model)
    levels = made.drop_levels(view)
    sequences = made.sequences_of([30, 30])
    with levels, pytest.raises(DataError, match=r"more than 100 is not searched .*another tokenizer"):
        Evaluator(view, levels, sequences)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight[0, 0] = torch.nan
    with levels, pytest.raises(DataError, match=r"not finite on 30 tokens.*load it in float32 or bfloat16"):
        evaluator_of(view, levels, sequences)


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "none of 0 calibration sequences has 2 tokens"),
        ([torch.tensor([5])], "none of 1 calibration sequence has 2 tokens"),
        ([torch.tensor([5, 6, 700])], "calibration sequence 0.*700"),
        ([torch.tensor([[5, 6]])], r"calibration sequence 0 is \[1, 2\]"),
        ([[5, 6]], "calibration sequence 0 is list"),
        ([torch.full((600,), 5)], "600 tokens, and the model reads at most 512; split it"),
    ],
)
def test_texts_that_cannot_be_read_are_named(sequences, message: str) -> None:
    view = ModelView.from_model(tiny_text(layers=2))
    levels = made.drop_levels(view)
    with levels, pytest.raises(DataError, match=message):
        evaluator_of(view, levels, sequences)


def test_one_token_is_left_out_with_a_warning() -> None:
    view = ModelView.from_model(tiny_text(layers=2))
    levels = made.drop_levels(view)
    long = made.sequences_of([9, 5])
    choice = {"model.layers.0.mlp": "out"}
    with levels:
        with pytest.warns(CalibrationWarning, match="1 of 3 calibration sequences have fewer than 2 tokens"):
            evaluator = evaluator_of(view, levels, [torch.tensor([5]), *long])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert evaluator.score([choice], 14, 0) == evaluator_of(view, levels, long).score([choice], 14, 0)
        assert evaluator.score([], 14, 0) == []


@pytest.mark.parametrize("options", [{"fitness": "k1"}, {"batch_tokens": 0}, {"tokens": 0}])
def test_options_that_are_wrong_are_named(options) -> None:
    view = ModelView.from_model(tiny_text(layers=2))
    with made.drop_levels(view) as levels, pytest.raises(ValueError, match=f"{next(iter(options))} is"):
        evaluator_of(view, levels, made.sequences_of([9]), **options)


def test_rows_go_before_states_where_memory_is_short() -> None:
    view = ModelView.from_model(tiny_text(layers=2))
    with made.drop_levels(view) as levels:
        teacher = Teacher(evaluator_of(view, levels, made.sequences_of([9])).head, limit=40_000)
    states = torch.zeros(10, 32)
    first, second = ((0, 11),), ((1, 11),)
    for chunk in (first, second):
        teacher.keep(chunk, states)
        teacher.rows(chunk, states, 0)
    for number in range(2, 30):
        teacher.keep(((number, 11),), states)
        teacher.rows(((number, 11),), states, 0)
    assert teacher.nbytes <= 40_000
    assert teacher.states(((29, 11),)) is not None
    assert not teacher.has_rows(first, 0)
