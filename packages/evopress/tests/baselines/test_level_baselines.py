"""Baselines over bits, sparsity and bytes: what they add up, and that they keep the budget."""

from __future__ import annotations

import math
from random import Random

import pytest
import scored_models as made
import torch
from paperhooks import CompressionRequest, DataError, ModelView
from paperhooks.testing import fingerprint, tiny_llama, tiny_text
from paperhooks_evopress import (
    GPTQ,
    Evaluator,
    Space,
    SparseGPT,
    Target,
    problem,
)
from paperhooks_evopress import (
    SublayerDrop as Drop,
)
from paperhooks_evopress.baselines import (
    BASELINES,
    Setting,
    additive,
    baselines_of,
    least_error,
    optimum,
    owl,
    random_best,
    uniform,
)  # fmt: skip
from paperhooks_evopress.baselines.outliers import outlier_share, sparsities
from paperhooks_evopress.spaces import module_names

SEQUENCES = made.sequences_of([24, 17, 9])
TOKENS = 40


def offer(method):
    """The hook as core calls it, which leaves out what it does not take."""
    return (
        method.compression_levels if not isinstance(method, Drop) else lambda v, m, _: method.compression_levels(v, m)
    )


def setting(target: str, methods, *, model=None, fitness: str = "kl", fuse: str = "no") -> Setting:
    view = ModelView.from_model(tiny_llama(layers=2) if model is None else model)
    data = [ids.tolist() for ids in SEQUENCES]
    request = CompressionRequest("test", data=data, offers=[offer(each) for each in methods], progress=False)
    levels = request.levels(view, module_names(view, wanted := Target.of(target)))
    levels = request.levels(view, [name for name, own in levels.items() if own])
    evaluator = Evaluator(view, levels, SEQUENCES, fitness=fitness, most_perplexity=math.inf)
    return Setting(levels, problem(view, levels, wanted, exchange="none", fuse=fuse), evaluator, TOKENS)


def bits(**options) -> Setting:
    return setting("bits=3", [GPTQ(widths=(2, 3, 4), group=16)], **options)


def pruned(sparsity: float = 0.5, **options) -> Setting:
    return setting(f"sparsity={sparsity}", [SparseGPT(sparsities=(0.0, 0.25, 0.5, 0.75))], **options)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def labels(found) -> set[str]:
    return set(found.choice.values())


def test_uniform_choices_are_alike() -> None:
    assert len(labels(uniform(bits()))) == 1
    assert len(labels(uniform(pruned()))) == 1


def test_the_error_of_a_matrix_is_that_of_its_outputs() -> None:
    asked = bits()
    found = least_error(asked)
    name = "model.layers.1.mlp.down_proj"
    module = asked.view.model.get_submodule(name)
    read = []
    hook = module.register_forward_pre_hook(lambda _, args: read.append(args[0].flatten(0, 1)))
    with torch.no_grad():
        for ids in asked.sequences():
            asked.view.model(ids[None], use_cache=False)
    hook.remove()
    inputs, weight = torch.cat(read), module.weight.detach()
    assert len(inputs) == TOKENS == found.tokens
    for label, error in found.told["errors"][name].items():
        change = asked.levels.packed(name, label)["weight"].unpack() - weight
        wanted = (inputs @ change.T).square().sum() / (inputs @ weight.T).square().sum()
        assert error == pytest.approx(float(wanted), rel=1e-3)


@pytest.mark.parametrize("fuse", ["no", "vllm"])
def test_the_least_error_is_the_least_of_all_states(fuse: str) -> None:
    asked = bits(fuse=fuse, model=tiny_llama(layers=1))
    found, space = least_error(asked), asked.problem.space
    errors = found.told["errors"]

    def total(state) -> float:
        return math.fsum(errors[name][label] for name, label in asked.problem.choice(state).items())

    assert space.cost(found.state) <= space.budget * (1 + 1e-12)
    assert total(found.state) == pytest.approx(min(map(total, space.states())))


@pytest.mark.parametrize("fitness", ["kl", "perplexity"])
def test_the_additive_model_adds_what_each_level_does_alone(fitness: str) -> None:
    asked = bits(fitness=fitness, model=tiny_llama(layers=1))
    found, space = additive(asked), asked.problem.space
    name = "model.layers.0.mlp.up_proj"
    own, *scores = asked.scores([{}, *({name: level.label} for level in asked.levels[name])])
    wanted = [s - own if fitness == "kl" else math.log(s / own) for s in scores]
    by_label = dict(zip((level.label for level in asked.levels[name]), wanted, strict=True))
    unit = next(unit for unit in space.units if unit.name == name)
    assert found.told["damages"][name] == pytest.approx([by_label[c.label] for c in unit.choices], abs=1e-6)

    def total(state) -> float:
        return math.fsum(found.told["damages"][u.name][p] for u, p in zip(space.units, state, strict=True))

    assert total(found.state) <= min(map(total, space.states())) + 1e-12
    assert found.tokens == TOKENS * (1 + sum(len(unit.choices) for unit in space.units))
    start = Space(space.units, space.budget, space.budgets, start=found.state).initial(Random(0))
    assert space.feasible(start)
    assert not space.feasible(found.state) or start == found.state


def test_the_additive_model_mixes_kinds_under_one_budget() -> None:
    methods = [Drop(), GPTQ(widths=(2, 4), group=16), SparseGPT(sparsities=(0.5,))]
    asked = setting("bytes=50kB", methods)
    found, space = additive(asked), asked.problem.space
    assert space.cost(found.state) <= space.budget
    damages = [found.told["damages"][unit.name] for unit in space.units]
    assert optimum(space, damages) == found.state
    own = next(p for p, c in enumerate(space.units[-1].choices) if not c.label)
    assert damages[-1][own] == 0
    start = Space(space.units, space.budget, space.budgets, start=found.state).initial(Random(0))
    assert space.feasible(start)
    with pytest.raises(DataError, match="may be left out, which has no error of a matrix"):
        least_error(asked)


def test_outliers_are_counted_over_a_whole_layer() -> None:
    assert outlier_share([torch.ones(3, 2), torch.tensor([[9.0, 1.0]])], 3) == pytest.approx(1 / 8)
    assert outlier_share([torch.zeros(4)], 3) == 0


def test_shares_are_the_mean_and_no_further_apart_than_lambda_says() -> None:
    found = sparsities([0.1, 0.2, 0.3], 0.6, 0.08)
    assert found == pytest.approx([0.68, 0.6, 0.52])
    assert sparsities([0.2, 0.2], 0.6, 0.08) == [0.6, 0.6]
    sizes = [1.0, 3.0, 2.0]
    found = sparsities([0.1, 0.2, 0.4], 0.95, 0.2, sizes)
    assert found[0] == 1
    assert all(0 <= each <= 1 for each in found)
    assert sum(size * each for size, each in zip(sizes, found, strict=True)) == pytest.approx(0.95 * 6)
    assert sparsities([0.0, 1.0], 0.0, 0.2) == pytest.approx([0, 0], abs=1e-9)


def test_owl_keeps_the_number_of_zeros_and_the_best_candidate() -> None:
    asked = setting("sparsity=0.5", [SparseGPT(around=0.5, step=64)], model=tiny_llama(layers=3))
    found, space = owl(asked, outlier=(2, 3), strength=(0.1, 0.2)), asked.problem.space
    assert space.cost(found.state) == space.budget
    assert found.told["fitness"] == asked.scores([found.choice])[0]
    ratios = found.told["ratios"]["2"]
    shares = [outlier_share(metrics, 2) for metrics in layer_metrics(asked)]
    assert ratios == pytest.approx(shares)
    one = owl(asked, outlier=(2,), strength=(0.2,))
    zeros = [sum(zeros_of(asked, one, layer)) for layer in range(3)]
    assert sorted(range(3), key=zeros.__getitem__) == sorted(range(3), key=lambda layer: -ratios[layer])
    assert (max(zeros) - min(zeros)) / 9216 == pytest.approx(0.4, abs=0.02), "twice lambda of a layer's weights"
    assert one.tokens == 2 * TOKENS


def zeros_of(asked: Setting, found, layer: int) -> list[int]:
    names = [name for name in found.choice if name.startswith(f"model.layers.{layer}.")]
    own = [asked.levels.packed(name, found.choice[name]) for name in names]
    return [int((each["weight"].unpack() == 0).sum()) if "weight" in each else 0 for each in own]


def layer_metrics(asked: Setting) -> list[list[torch.Tensor]]:
    asked.levels.restore()
    model, squares, hooks = asked.view.model, {}, []
    for name in asked.levels:

        def add(_, args, name=name):
            squares[name] = squares.get(name, 0) + args[0].flatten(0, 1).square().sum(0)

        hooks.append(model.get_submodule(name).register_forward_pre_hook(add))
    with torch.no_grad():
        for ids in asked.sequences():
            model(ids[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    found = [[] for _ in asked.view.layers]
    for name, own in squares.items():
        found[int(name.split(".")[2])].append(model.get_submodule(name).weight.detach().abs() * own.sqrt())
    return found


def test_owl_with_equal_layers_is_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    from paperhooks_evopress.baselines import outliers

    monkeypatch.setattr(outliers, "outlier_share", lambda metrics, outlier: 0.25)
    asked = pruned()
    found = owl(asked)
    assert found.state == uniform(asked).state
    assert found.tokens == 2 * TOKENS, "equal states are one candidate"


@pytest.mark.parametrize("even", [False, True])
def test_random_states_are_within_the_budget(even: bool) -> None:
    asked = setting("bits=2.5", [GPTQ(widths=(2, 3, 4), group=16)])
    found = random_best(asked, 6 * TOKENS, even=even)
    assert found.told["candidates"] == 6
    assert asked.problem.space.feasible(found.state)
    if even:
        assert len(labels(found)) == 2


@pytest.mark.parametrize("family", ["gpt2", "phi3", "gemma3"])
@pytest.mark.parametrize("make", [bits, pruned])
def test_all_baselines_of_a_kind_keep_the_budget_and_the_model(family: str, make) -> None:
    model = tiny_text(family, layers=2)
    before = fingerprint(model)
    asked = make(model=model)
    space = asked.problem.space
    with asked.levels:
        for name in baselines_of(asked.problem.target.kind):
            found = BASELINES[name](asked)
            assert space.cost(found.state) <= space.budget * (1 + 1e-12), name
            assert found.choice == asked.problem.choice(found.state)
    assert fingerprint(model) == before


def test_what_a_baseline_cannot_answer_is_refused() -> None:
    asked = bits()
    for name in set(BASELINES) - set(baselines_of("bits")):
        with pytest.raises(DataError, match="the target is bits=3"):
            BASELINES[name](asked)
    experts = pruned(model=tiny_text("mixtral", layers=2))
    for baseline in (owl, least_error):
        with pytest.raises(DataError, match=r"experts is a .*; this baseline reads the inputs of linear layers alone"):
            baseline(experts)
    broken = bits(fitness="perplexity")
    broken.evaluator.score = lambda choices, *_: [math.inf] * len(choices)
    with pytest.raises(DataError, match="a perplexity that is not finite"):
        random_best(broken)
