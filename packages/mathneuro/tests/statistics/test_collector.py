"""Collecting: data of every form, refusals, interruption, several processes, what is left as it was."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import golden_mathneuro as golden
import paperhooks
import pytest
import torch
from paperhooks import DataError, ModelError
from paperhooks.io import Ranks
from paperhooks.testing import fingerprint, run_ranks, tiny_text, tiny_vlm
from paperhooks_mathneuro import CoverageWarning, Sample, Statistics, collect, find_matrices, read_records, tokenized
from paperhooks_mathneuro.statistics.norms import refined
from torch import nn

ROWS = [[1, 5, 6, 7, 8, 9], [1, 10, 11], [1, 12, 13, 14], [1, 15], [1, 16, 17, 18, 19]]


def quick(model, data=ROWS, **options):
    return collect(model, data, progress=False, **options)


def plain_norms(model, rows, name: str) -> torch.Tensor:
    """Norms of one module's input, one text at a time, by a plain hook."""
    seen: list[torch.Tensor] = []
    module = model.get_submodule(name)
    handle = module.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach().double().flatten(0, -2)))
    with torch.no_grad():
        for row in rows:
            model(torch.tensor([list(row)]))
    handle.remove()
    return torch.stack([x.norm(dim=0) for x in seen])


FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "gpt2", "gpt_neox", "opt", "bloom")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_covered_in_full_and_batches_equal_single_texts(family: str) -> None:
    model = tiny_text(family, layers=2)
    found = quick(model, batch_size=3)
    assert found.coverage.share == 1.0, str(found.coverage)
    assert found.unreached == ()
    for matrix in found.matrices:
        wanted = plain_norms(model, ROWS, matrix.module)
        torch.testing.assert_close(found.sample_norms(matrix.name).double(), wanted, rtol=2e-5, atol=1e-6)


def test_transposed_layers_are_scored_along_their_rows() -> None:
    model = tiny_text("gpt2", layers=2)
    matrices = find_matrices(paperhooks.ModelView.from_model(model)).matrices
    assert {m.kind for m in matrices} == {"c_attn", "c_proj", "c_fc"}
    for matrix in matrices:
        assert matrix.input_dim == 0
        assert tuple(model.get_parameter(matrix.name).shape) == matrix.shape
        assert matrix.channels == matrix.shape[0]


def test_experts_are_scored_one_by_one() -> None:
    model = tiny_text("mixtral", layers=2)
    with pytest.warns(
        CoverageWarning, match=r"not scored: .*mlp\.gate\.weight \(MixtralTopKRouter is no linear layer\)"
    ):
        found = quick(model, batch_size=3)
    assert 0.9 < found.coverage.share < 1
    experts = [m for m in found.matrices if m.expert is not None]
    assert len(experts) == 2 * 2 * 2
    holder = model.model.layers[0].mlp.experts
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    handle = holder.register_forward_pre_hook(lambda m, args: seen.append((args[0].detach(), args[1])))
    with torch.no_grad():
        for row in ROWS:
            model(torch.tensor([row]))
    handle.remove()
    name = "model.layers.0.mlp.experts"
    for expert in range(2):
        first, last = [], []
        for hidden, index in seen:
            rows = hidden[(index == expert).any(-1)]
            first.append(rows.norm(dim=0))
            gate, up = (rows @ holder.gate_up_proj[expert].T).chunk(2, dim=-1)
            last.append((holder.act_fn(gate) * up).detach().norm(dim=0))
        for own, wanted in (("gate_up_proj", first), ("down_proj", last)):
            norms = found.sample_norms(f"{name}.{own}[{expert}]")
            torch.testing.assert_close(norms, torch.stack(wanted), rtol=2e-5, atol=1e-6)


def test_the_head_is_protected_where_it_is_tied() -> None:
    tied, untied = golden.model(), tiny_text(layers=2)
    names = {
        head: [m.name for m in find_matrices(paperhooks.ModelView.from_model(tied), head=head).matrices]
        for head in ("no", "untied", "tied")
    }
    assert "lm_head.weight" not in names["no"] + names["untied"]
    assert names["tied"][-1] == "lm_head.weight"
    view = paperhooks.ModelView.from_model(untied)
    assert find_matrices(view, head="untied").matrices[-1].name == "lm_head.weight"
    with pytest.raises(ValueError, match="head is True"):
        find_matrices(view, head=True)
    head = quick(untied, head="untied")
    torch.testing.assert_close(
        head.sample_norms("lm_head.weight").double(), plain_norms(untied, ROWS, "lm_head"), rtol=2e-5, atol=1e-6
    )
    kept = find_matrices(view, head="untied", exclude="lm_head")
    assert [(one.parameter, one.reason) for one in kept.uncovered] == [
        ("lm_head.weight", "left out by include or exclude")
    ]


def test_include_and_exclude_choose_and_what_they_leave_is_listed() -> None:
    view = paperhooks.ModelView.from_model(tiny_text(layers=2))
    coverage = find_matrices(view, include=r"mlp\.", exclude=r"layers\.1\.")
    assert [m.kind for m in coverage.matrices] == ["gate_proj", "up_proj", "down_proj"]
    assert len(coverage.uncovered) == 11
    assert 0 < coverage.share < 0.5
    with pytest.raises(ModelError, match="no matrix to score"):
        find_matrices(view, include="nothing")
    with pytest.raises(ValueError, match="expected a regular expression"):
        find_matrices(view, exclude="(")


def test_adapters_are_left_out_and_named() -> None:
    class Adapter(nn.Module):
        """As peft wraps a layer."""

        active_adapters = ("one",)

        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base_layer = base
            self.lora_A = nn.Linear(base.in_features, 2, bias=False)

        def forward(self, x):
            self.lora_A(x)
            return self.base_layer(x)

    model = tiny_text(layers=2)
    model.model.layers[0].self_attn.q_proj = Adapter(model.model.layers[0].self_attn.q_proj)
    with pytest.warns(CoverageWarning) as caught:
        found = quick(model)
    assert any("adapters are active" in str(one.message) for one in caught)
    assert any("lora_A.weight (part of an adapter)" in str(one.message) for one in caught)
    names = [m.name for m in found.matrices]
    assert "model.layers.0.self_attn.q_proj.base_layer.weight" in names
    assert not any("lora" in name for name in names)
    assert found.matrices[0].kind == "q_proj"


def test_text_of_a_vision_language_model_goes_through_its_decoder() -> None:
    found = quick(tiny_vlm("llava", layers=2))
    assert len(found.matrices) == 14
    assert all("language_model" in m.name for m in found.matrices)


# -- what counts ------------------------------------------------------------------------------------------------------


def test_scopes_leave_tokens_out() -> None:
    model, name = tiny_text(layers=2), "model.layers.1.mlp.down_proj"
    records = [{"input_ids": row, "answer_start": 1 if len(row) < 4 else 3} for row in ROWS]
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda m, args: seen.append(args[0][0].detach()))
    with torch.no_grad():
        for row in ROWS:
            model(torch.tensor([row]))
    handle.remove()
    for scope, start in (("answer", [r["answer_start"] for r in records]), ("no_first", [1] * len(ROWS))):
        found = quick(model, records, token_scope=scope, batch_size=2)
        wanted = torch.stack([x[s:].norm(dim=0) for x, s in zip(seen, start, strict=True)])
        torch.testing.assert_close(found.sample_norms(f"{name}.weight"), wanted, rtol=2e-5, atol=1e-6)
        assert found.tokens.tolist() == [len(row) - s for row, s in zip(ROWS, start, strict=True)]
    with pytest.raises(ValueError, match="token_scope is 'some'"):
        quick(model, token_scope="some")


def test_aggregates() -> None:
    model, name = tiny_text(layers=2), "model.layers.0.self_attn.o_proj.weight"
    found = quick(model)
    norms, tokens = found.sample_norms(name).double(), sum(map(len, ROWS))
    wanted = {
        "sum_of_norms": norms.sum(0),
        "mean_of_norms": norms.mean(0),
        "rms": (norms.square().sum(0) / tokens).sqrt(),
    }
    sums = quick(model, keep="sums")
    for aggregate, value in wanted.items():
        torch.testing.assert_close(found.channel_norms(name, aggregate).double(), value, rtol=1e-6, atol=0)
        torch.testing.assert_close(sums.channel_norms(name, aggregate).double(), value, rtol=1e-6, atol=0)
    assert not sums.norms
    with pytest.raises(DataError, match="keep='samples'"):
        sums.take([0])
    with pytest.raises(ValueError, match="keep is 'all'"):
        quick(model, keep="all")
    with pytest.raises(ValueError, match="aggregate is 'max'"):
        found.channel_norms(name, "max")


def test_half_precision_activations_are_widened_before_they_are_squared() -> None:
    model = tiny_text(layers=2).half()
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(100)
        model.model.layers[1].post_attention_layernorm.weight.fill_(400)
    found = quick(model, include="layers.1.mlp.up_proj")
    assert float(found.sample_norms("model.layers.1.mlp.up_proj.weight").max()) > 300
    assert bool(found.sample_norms("model.layers.1.mlp.up_proj.weight").isfinite().all())


def test_what_is_not_finite_is_named() -> None:
    model = tiny_text(layers=2)
    with torch.no_grad():
        model.model.embed_tokens.weight[13] = float("nan")
    with pytest.raises(
        DataError, match=r"input of model\.layers\.0\.self_attn\.q_proj is NaN or infinite for record 2"
    ):
        quick(model)


# -- left as it was ---------------------------------------------------------------------------------------------------


def test_the_model_is_left_as_it_was_also_after_an_error() -> None:
    model = tiny_text(layers=2).train()
    model.model.layers[0].eval()
    foreign = []
    handle = model.model.layers[1].mlp.up_proj.register_forward_pre_hook(lambda m, a: foreign.append(1))
    model(torch.tensor([[1, 2]]))
    before, state = fingerprint(model), torch.random.get_rng_state()
    modes = [m.training for m in model.modules()]
    quick(model)
    with pytest.raises(DataError):
        quick(model, [[1, 2], ["x"]])
    assert fingerprint(model) == before
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(foreign) > 1
    handle.remove()
    with paperhooks.attach(model, _Idle()):
        model(torch.tensor([[1, 2]]))
        with pytest.raises(ModelError, match="attached to a session"):
            quick(model)


class _Idle:
    traits = paperhooks.Traits(parallel=("ddp", "fsdp2", "tp"))

    @paperhooks.hookimpl
    def post_layer(self, hidden_states):
        return None


# -- data -------------------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer: one token a letter, with a first token of its own."""

    name_or_path = "letters"

    def __call__(self, text, **options):
        return {"input_ids": [1, *(3 + ord(c) % 90 for c in text)]} if text else {"input_ids": []}


def test_records_of_every_form() -> None:
    records = [
        "ab",
        {"text": "ab"},
        {"prompt": "a", "completion": "b"},
        {"question": "a", "answer": "b"},
        {"question": "a", "solution": "b"},
        {"qa": "Question: a\n\nAnswer: b"},
        {"question": "a", "choices": "['x', 'b']", "answer": "1", "qa": "Question: a\n\nAnswer: b"},
        {"input_ids": [4, 5, 6], "answer_start": 2},
        torch.tensor([4, 5]),
        [7, 8],
    ]
    found = tokenized(records, Letters(), template="{question}{answer}")
    starts = [one.answer_start for one in found]
    assert starts == [0, 0, 2, 2, 2, 1 + len("Question: a\n\nAnswer:"), 1 + len("Question: a\n\nAnswer:"), 2, 0, 0]
    assert found[0].ids == found[1].ids == found[2].ids == found[3].ids
    assert found[5].ids == found[6].ids
    assert len(found[6].choices) == 2
    assert found[6].right == 1
    assert found[6].choices[1].ids == found[6].ids
    assert found[7].ids == (4, 5, 6)


@pytest.mark.parametrize(
    ("records", "options", "words"),
    [
        ([], {}, "there is no text"),
        (["", {"text": "  "}], {}, "there is no text"),
        ([{"other": 1}], {}, r"record 0 has the keys \['other'\]"),
        ([3], {}, "record 0 is int"),
        ([{"qa": "q", "choices": ["a"], "answer": 4}], {}, "answer 4 is not one of 1"),
        ([{"question": "q", "choices": "[", "answer": 0}], {}, "record 0: choices is '\\[', which is no list of texts"),
        ([{"qa": "q", "choices": ["a"]}], {}, "'answer' is null; expected the number of the right one"),
        ([{"qa": "q", "choices": ["a", "b"], "answer": True}], {}, "'answer' is true; expected the number"),
        ([{"qa": "q", "choices": ["a", 2], "answer": 0}], {}, r"choices is \['a', 2\]; expected a list of texts"),
        (["a", {"text": 3}], {}, "record 1: text is 3; expected text"),
        ([{"text": True}], {}, "text is true; expected text"),
        ([{"text": None}], {}, "of which text is null"),
        ([{"question": "a", "answer": 4}], {}, "answer is 4; expected text"),
        ([[1, 2], [1, True]], {}, "record 1 has true among its token ids"),
        ([{"input_ids": [1, 2.5]}], {}, "has 2.5 among its token ids"),
        ([{"input_ids": [1, 2], "answer_start": 3}], {}, "answer_start is 3; expected a number from 0 to 2"),
        (["abc"], {"template": "{answer}{question}"}, "must hold {question} and end with {answer}"),
        (["abcdef"], {"max_length": 3}, "record 0 has 7 tokens, the longest allowed are 3"),
    ],
)
def test_records_that_cannot_be_used_are_named(records, options, words: str) -> None:
    with pytest.raises(DataError, match=words):
        tokenized(records, Letters(), **options)


def test_text_needs_a_tokenizer_and_long_texts_may_be_cut(caplog) -> None:
    with pytest.raises(DataError, match="record 0 is text; pass tokenizer"):
        tokenized(["a"])
    with caplog.at_level(logging.WARNING):
        found = tokenized(["abcdef", "", "a"], Letters(), max_length=3, truncate=True)
    assert [len(one.ids) for one in found] == [3, 2]
    assert "1 of 2 texts were cut to 3 tokens" in caplog.text
    assert "1 empty records were left out" in caplog.text
    with pytest.raises(DataError, match="600 tokens, the longest allowed are 512"):
        quick(tiny_text(layers=2), [[1] * 600])
    assert len(quick(tiny_text(layers=2), [[1] * 600], truncate=True)) == 1
    assert len(quick(tiny_text(layers=2), [[7]])) == 1  # a text of one token is a text


def test_files_of_every_form(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text('question,answer\n"one, two","line\nbreak"\n')
    assert read_records(table) == [{"question": "one, two", "answer": "line\nbreak"}]
    lines = tmp_path / "a.jsonl"
    lines.write_text('"a"\n\n{"text": "b\\u2028c"}\n', encoding="utf-8")
    assert read_records(lines) == ["a", {"text": "b\u2028c"}]
    lines.write_text('"a"\n{"text"\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: is not JSON"):
        read_records(lines)
    listed = tmp_path / "a.json"
    listed.write_text(json.dumps(["a", "b"]))
    assert read_records(str(listed)) == ["a", "b"]
    listed.write_text("3")
    with pytest.raises(DataError, match="expected a list of records"):
        read_records(listed)
    (tmp_path / "a.txt").write_text("one\nmore\n\n\ntwo\n")
    assert read_records(tmp_path / "a.txt") == ["one\nmore", "two"]
    with pytest.raises(DataError, match="does not exist"):
        read_records(tmp_path / "missing.txt")
    with pytest.raises(DataError, match="names no split"):
        read_records("hub:only")


def test_a_dataset_of_the_hub_is_loaded_by_name_config_and_split(monkeypatch) -> None:
    import datasets

    seen = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: seen.append((a, k)) or [{"text": "a"}])
    assert read_records("hub:openai/gsm8k:main:train") == [{"text": "a"}]
    assert read_records("hub:some/texts:test") == [{"text": "a"}]
    assert [(names, options["split"]) for names, options in seen] == [
        (("openai/gsm8k", "main"), "train"), (("some/texts",), "test"),
    ]  # fmt: skip


def test_texts_are_drawn_with_a_seed() -> None:
    model = tiny_text(layers=2)
    one, same, other = (quick(model, samples=3, seed=s) for s in (1, 1, 2))
    name = one.matrices[0].name
    assert torch.equal(one.sample_norms(name), same.sample_norms(name))
    assert not torch.equal(one.sample_norms(name), other.sample_norms(name))
    many = quick(model, samples=20, replacement=True, seed=1)
    assert len(many) == 20
    assert len(many.norms[many.inputs[name]]) <= 5  # each text is read once
    with pytest.raises(DataError, match="20 samples were asked for, the data has 5"):
        quick(model, samples=20)
    with pytest.raises(DataError, match="at least one"):
        quick(model, samples=0)


# -- resamples --------------------------------------------------------------------------------------------------------


def test_resamples_equal_fresh_collections_and_cost_no_forward(monkeypatch) -> None:
    model = tiny_text(layers=2)
    whole = quick(model)
    calls = []
    handle = model.register_forward_pre_hook(lambda m, a, k: calls.append(1), with_kwargs=True)
    drawn = whole.draw(7, seed=3, replacement=True)
    assert calls == []
    fresh = quick(model, [ROWS[i] for i in drawn.rows.tolist()], batch_size=1)
    assert len(calls) == 7
    for matrix in whole.matrices:
        torch.testing.assert_close(
            drawn.channel_norms(matrix.name), fresh.channel_norms(matrix.name), rtol=1e-6, atol=0
        )
    handle.remove()
    one, two = whole.halves(seed=0)
    assert not set(one.rows.tolist()) & set(two.rows.tolist())
    assert len(one) == len(two) == 2
    with pytest.raises(DataError, match="no two disjoint parts of 3"):
        whole.halves(size=3)
    with pytest.raises(DataError, match="cannot be drawn without replacement"):
        whole.draw(9)
    with pytest.raises(DataError, match="not among the 5"):
        whole.take([5])
    assert torch.equal(one.take([1, 0]).rows, one.rows.flip(0))


def test_statistics_are_stored_and_read_back(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)
        for model, keep in ((tiny_text(layers=2), "samples"), (tiny_text("mixtral", layers=1), "sums")):
            found = quick(model, name="texts", keep=keep)
            again = Statistics.load(found.save(tmp_path / keep))
            assert again.coverage == found.coverage
            assert again.inputs == found.inputs
            assert again.about == found.about
            for matrix in found.matrices:
                assert torch.equal(again.channel_norms(matrix.name), found.channel_norms(matrix.name))
    broken = tmp_path / "samples.safetensors"
    broken.write_bytes(broken.read_bytes()[:-9])
    with pytest.raises(paperhooks.ArtefactError):
        Statistics.load(broken)


def test_an_interrupted_collection_goes_on_where_it_was(tmp_path: Path, monkeypatch) -> None:
    from paperhooks_mathneuro.statistics import collector as collecting

    monkeypatch.setattr(collecting, "_PART", 2)
    model = tiny_text(layers=2)
    whole = quick(model, batch_size=1)
    read = []

    def stop(module, args, kwargs):
        read.append(1)
        if len(read) == 4:
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(stop, with_kwargs=True)
    with pytest.raises(KeyboardInterrupt):
        quick(model, batch_size=1, out=tmp_path)
    assert len(list((tmp_path / "units").glob("*.safetensors"))) == 1
    assert not (tmp_path / "statistics.safetensors").exists()
    found = quick(model, batch_size=1, out=tmp_path)
    assert len(read) == 4 + 3  # two of the five texts were kept
    for matrix in whole.matrices:
        assert torch.equal(found.sample_norms(matrix.name), whole.sample_norms(matrix.name))
    quick(model, batch_size=1, out=tmp_path)
    assert len(read) == 7
    handle.remove()
    with pytest.raises(DataError, match=r"of another run: texts = .*, not "):
        quick(model, ROWS[:3], out=tmp_path)
    sums = quick(model, batch_size=1, keep="sums", out=tmp_path / "sums")
    assert torch.equal(sums.channel_norms(whole.matrices[0].name), whole.channel_norms(whole.matrices[0].name))


def stopped(model, out: Path, at: int) -> None:
    """A collection that ends before its ``at``-th batch."""
    read = []

    def stop(module, args, kwargs):
        read.append(1)
        if len(read) == at:
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(stop, with_kwargs=True)
    with pytest.raises(KeyboardInterrupt):
        quick(model, batch_size=1, out=out)
    handle.remove()


@pytest.fixture
def small_parts(monkeypatch) -> None:
    from paperhooks_mathneuro.statistics import collector

    monkeypatch.setattr(collector, "_PART", 2)


@pytest.mark.parametrize("keep", ["samples", "sums"])
def test_interruptions_and_damage_leave_no_trace_in_the_statistics(tmp_path: Path, small_parts, caplog, keep) -> None:
    def content(folder: str) -> bytes:
        found = quick(model, batch_size=1, keep=keep, out=tmp_path / folder)
        assert set(found.about["calls"].values()) == {len(ROWS)}  # of the whole run
        return (tmp_path / folder / "statistics.safetensors").read_bytes()

    model = tiny_text(layers=2)
    wanted = content("undisturbed")
    assert content("undisturbed") == wanted
    if keep == "samples":
        for at in range(1, len(ROWS) + 1):
            stopped(model, tmp_path / f"{at}", at)
            assert content(f"{at}") == wanted
        stopped(model, tmp_path / "twice", 4)
        stopped(model, tmp_path / "twice", 3)
        assert content("twice") == wanted
    part = sorted((tmp_path / "undisturbed" / "units").iterdir())[1]
    damaged = bytearray(part.read_bytes())
    damaged[-7] ^= 16
    part.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert content("undisturbed") == wanted
    assert f"{part} was changed or damaged" in caplog.text


def test_a_folder_belongs_to_one_run(tmp_path: Path, small_parts) -> None:
    model, other = tiny_text(layers=2), tiny_text(layers=2)
    with torch.no_grad():
        other.model.embed_tokens.weight[7, 0] += 1
    stopped(model, tmp_path, 4)
    with pytest.raises(DataError, match=r"of another run: weights = .*, not "):
        quick(other, out=tmp_path)
    with pytest.raises(DataError, match=r"of another run: seed = 0, not 1; "):
        quick(model, out=tmp_path, seed=1)
    model.config.new_default = 1
    read = []
    handle = model.register_forward_pre_hook(lambda m, a, k: read.append(1), with_kwargs=True)
    with pytest.warns(UserWarning, match=r"parts .* are made again: .* another config: new_default = None, not 1"):
        quick(model, batch_size=1, out=tmp_path)
    assert len(read) == len(ROWS)
    handle.remove()

    def meanwhile(module, args, kwargs):
        handle.remove()
        with pytest.raises(DataError, match="is used by another run"):
            quick(other, out=tmp_path / "held")

    handle = model.register_forward_pre_hook(meanwhile, with_kwargs=True)
    quick(model, out=tmp_path / "held")


def test_a_run_that_wakes_up_in_the_folder_of_another_stops(tmp_path: Path, small_parts) -> None:
    import shutil

    model, other = tiny_text(layers=2), tiny_text(layers=2, seed=1)
    out, kept = tmp_path / "out", {}

    def taken(module, args, kwargs):
        handle.remove()
        shutil.rmtree(out)
        quick(other, out=out)
        kept.update({file: file.read_bytes() for file in out.rglob("*.*")})

    handle = model.register_forward_pre_hook(taken, with_kwargs=True)
    with pytest.raises(DataError, match="belongs to another run by now"):
        quick(model, batch_size=1, out=out)
    assert kept
    assert {file: file.read_bytes() for file in out.rglob("*.*")} == kept


@pytest.mark.parametrize("token", [100, -1, 70_000])
def test_token_ids_outside_of_the_vocabulary_are_named(tmp_path: Path, token: int) -> None:
    from paperhooks_mathneuro.experiment.measures import Items, choose_by_likelihood, generated_numbers, nll

    model, rows = tiny_text(layers=1), [[1, 2], [1, 5, token]]
    items = Items(tokenized(rows))
    calls = [lambda: quick(model, rows), lambda: nll(model, items), lambda: generated_numbers(model, None, items)]
    asked = Items([Sample((1, 2), 1, (Sample((1, token), 1),), 0, "record 1")])
    for call in (*calls, lambda: choose_by_likelihood(model, asked)):
        with pytest.raises(DataError, match=f"record 1 has the id {token}; the model has 0 to 99"):
            call()
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in rows))
    with pytest.raises(DataError, match=rf"rows\.jsonl:2 has the id {token}"):
        quick(model, file)


def test_choices_as_tables_and_benchmarks_have_them(caplog) -> None:
    four = ["apple", "brick", "cloud", "door"]
    records = [
        {"question": "q", "choices": "['apple' 'brick'\n 'cloud' 'door']", "answer": "2"},
        {"question": "q", "choices": '["apple", "brick", "cloud", "door"]', "answer": "2.0"},
        {"question": "q", "choices": four, "answer": 2.0},
        {"question": "q", "choices": four, "answer": "C"},
        {"question": "q", "choices": {"text": four, "label": list("ABCD")}, "answerKey": "C"},
        {"question": "q", "choices": {"text": four, "label": list("1234")}, "answerKey": "3"},
        {"question": "q", "choices": {"text": four, "label": list("ABCD")}, "answer": 2},
    ]
    found = tokenized(records, Letters())
    assert [(len(one.choices), one.right) for one in found] == [(4, 2)] * len(records)
    assert len({one.choices[1].ids for one in found}) == len({one.ids for one in found}) == 1
    for answer in (-1, None, "E", "1.5", "apple"):
        with pytest.raises(DataError, match="record 0"):
            tokenized([{**records[2], "answer": answer}], Letters())
    bare = {"qa": "Question: q\n\nAnswer: apple", "choices": "['Marks's', 'b']", "answer": "1"}
    with caplog.at_level(logging.WARNING):
        _, other = tokenized([records[0], bare], Letters())
    assert (len(other.choices), other.right, other.answer_start) == (0, None, 1 + len("Question: q\n\nAnswer:"))
    assert "1 records have choices that are no list of texts" in caplog.text
    assert "the first is record 1" in caplog.text


def test_mistakes_in_files_are_named_by_line(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "a"}\n\n{"text": 4}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:3: text is 4; expected text"):
        tokenized(read_records(file), Letters())
    table = tmp_path / "a.csv"
    table.write_text("question,choices,answer\nq,\"['a' 'b']\",5\n")
    with pytest.raises(DataError, match=r"a\.csv:2: answer '5' is not one of 2 choices"):
        tokenized(read_records(table), Letters())
    assert read_records(file).take([1]).places == [f"{file}:3"]


def benchmark_file(path: Path, rows: int = 20) -> Path:
    """Questions as tables of them go around: lists written without escapes, so that apostrophes break them."""
    lines = ["question,subject,choices,answer,qa"]
    for i in range(rows):
        question, choices = f"Which is number {i}?", [f"box {i}", "the twins' box" if i % 4 == 3 else "a box", "c", "d"]
        cell = "[" + ", ".join(f"'{choice}'" for choice in choices) + "]"
        qa = f"Question: {question}\n\nChoices: {cell}\n\nAnswer: {choices[0]}"
        lines.append(f'{question},boxes,"{cell}",0,"{qa}"')
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_questions_of_a_benchmark_file_are_all_used(tmp_path: Path, caplog) -> None:
    file = benchmark_file(tmp_path / "mmlu.csv")
    with caplog.at_level(logging.WARNING):
        found = quick(tiny_text(layers=1), file, tokenizer=Letters())
    assert len(found) == 20
    assert [len(one.choices) for one in tokenized(read_records(file), Letters())].count(4) == 15
    text = f"5 records have choices that are no list of texts, and are used without them; the first is {file}:17"
    assert text in caplog.text


def test_sharing_is_refined_where_matrices_part() -> None:
    assert refined([{"a": "a", "b": "a", "c": "a"}, {"a": "a", "b": "a", "c": "c"}]) == {"a": "a", "b": "a", "c": "c"}
    both = refined([{"a": "a", "b": "a", "c": "c"}, {"a": "a", "b": "b", "c": "a"}])
    assert both == {"a": "a", "b": "b", "c": "c"}


def test_matrices_that_share_an_input_in_some_texts_only_are_kept_apart() -> None:
    class Sometimes(nn.Module):
        """k reads what q reads, except in long texts."""

        def __init__(self, attention: nn.Module) -> None:
            super().__init__()
            self.k_proj = attention

        def forward(self, x):
            return self.k_proj(2 * x if x.shape[1] > 4 else x)

    model = tiny_text(layers=1)
    attention = model.model.layers[0].self_attn
    attention.k_proj = Sometimes(attention.k_proj)
    found = quick(model, batch_size=1)
    q, k = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.k_proj.weight"
    assert found.inputs[q] != found.inputs[k]
    factor = (found.sample_norms(k) / found.sample_norms(q)).mean(1)
    assert factor.tolist() == pytest.approx([2, 1, 1, 1, 2])


def collected(family: str, keep: str, out: str, folder: str) -> None:
    """One of several processes: collect a share of the texts, and store what all of them found."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)
        found = quick(tiny_text(family, layers=2), batch_size=2, keep=keep, out=out or None)
    found.save(Path(folder) / f"rank{Ranks().index}")


@pytest.mark.parametrize(("family", "keep", "resumed"), [("llama", "samples", True), ("mixtral", "sums", False)])
def test_two_processes_end_with_the_same_statistics(tmp_path: Path, family: str, keep: str, resumed: bool) -> None:
    out = str(tmp_path / "out") if resumed else ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CoverageWarning)
        whole = quick(tiny_text(family, layers=2), keep=keep, batch_size=2)
    run_ranks(collected, family, keep, out, tmp_path)
    for rank in range(2):
        found = Statistics.load(tmp_path / f"rank{rank}.safetensors")
        assert len(found) == len(ROWS)
        for matrix in whole.matrices:
            torch.testing.assert_close(
                found.channel_norms(matrix.name), whole.channel_norms(matrix.name), rtol=1e-5, atol=1e-7
            )
    if resumed:
        assert len(list((tmp_path / "out" / "units").glob("*.safetensors"))) == 3
