"""Scoring and selecting, end to end with a test method on tiny models."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

import paperhooks
import pytest
import torch
from paperhooks.data import Selection, score, select
from paperhooks.errors import DataError, HookError, PluginIncompatible
from paperhooks.io import Corpus, read_tensors
from paperhooks.plugins.installed import Catalog
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

pytest_plugins = ["paperhooks.testing.site_fixtures"]


@dataclass(eq=False)
class LossGap:
    """Mean log-probability of an example under the teacher minus that under the reference; NaN below two tokens."""

    scale: float = 1.0
    traits = paperhooks.Traits()

    def __post_init__(self) -> None:
        self.calls: list[list[int]] = []

    @paperhooks.hookimpl
    def score_examples(self, views, examples):
        self.calls.append([example.row for example in examples])
        return torch.tensor([self.scale * self._gap(views, example.input_ids) for example in examples])

    def _gap(self, views, ids) -> float:
        if len(ids) < 2:
            return float("nan")
        losses = [views[role].model(ids[None], labels=ids[None]).loss.item() for role in ("reference", "teacher")]
        return losses[0] - losses[1]


@dataclass(eq=False)
class Noise:
    """A random score, to check seeding."""

    traits = paperhooks.Traits()

    @paperhooks.hookimpl
    def score_examples(self, examples):
        return torch.rand(len(examples))


def tiny(seed: int) -> LlamaForCausalLM:
    """A tiny random Llama."""
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


@pytest.fixture(scope="module")
def models() -> dict[str, LlamaForCausalLM]:
    """Teacher and reference."""
    return {"teacher": tiny(0), "reference": tiny(1)}


def write_corpus(path: Path, n: int = 23) -> list[dict]:
    """A corpus file of ``n`` records; the sixth has one token and so no score."""
    draw = random.Random(0)
    records = [{"input_ids": [draw.randrange(20) for _ in range(draw.randrange(2, 9))], "id": i} for i in range(n)]
    records[5]["input_ids"] = [3]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return records


def expected(models, records) -> torch.Tensor:
    """The scores, computed directly."""
    values = []
    for record in records:
        ids = torch.tensor([record["input_ids"]])
        if ids.shape[1] < 2:
            values.append(float("nan"))
            continue
        with torch.no_grad():
            losses = {role: model.eval()(ids, labels=ids).loss.item() for role, model in models.items()}
        values.append(losses["reference"] - losses["teacher"])
    return torch.tensor(values)


def test_scores_are_those_of_the_method_in_the_order_of_the_corpus(models, tmp_path: Path) -> None:
    records = write_corpus(tmp_path / "c.jsonl")
    scores = score(models, tmp_path / "c.jsonl", LossGap(), out=tmp_path / "run", batch_size=4, unit_rows=10)
    torch.testing.assert_close(scores, expected(models, records), equal_nan=True)
    header, stored = read_tensors(tmp_path / "run" / "scores.safetensors")
    assert torch.equal(stored["scores"].isnan(), scores.isnan())
    assert (header["rows"], header["unscored"]) == (23, 1)


class Killed(BaseException):
    """Stands for an interruption."""


def test_an_interrupted_run_goes_on_and_ends_the_same(models, tmp_path: Path) -> None:
    write_corpus(tmp_path / "c.jsonl")

    class Dies(LossGap):
        @paperhooks.hookimpl
        def score_examples(self, views, examples):
            if examples[0].row >= 12:
                raise Killed
            return LossGap.score_examples(self, views, examples)

    Dies.__module__, Dies.__qualname__ = LossGap.__module__, LossGap.__qualname__
    options = {"out": tmp_path / "run", "batch_size": 4, "unit_rows": 8}
    with pytest.raises(Killed):
        score(models, tmp_path / "c.jsonl", Dies(), **options)
    assert len(list((tmp_path / "run" / "units").glob("*.safetensors"))) == 1
    second = LossGap()
    scores = score(models, tmp_path / "c.jsonl", second, **options)
    assert [row for call in second.calls for row in call] == list(range(8, 23))
    fresh = score(models, tmp_path / "c.jsonl", LossGap(), out=tmp_path / "other", batch_size=4, unit_rows=8)
    assert torch.equal(scores.nan_to_num(9.0), fresh.nan_to_num(9.0))


def test_a_damaged_unit_is_computed_again(models, tmp_path: Path) -> None:
    write_corpus(tmp_path / "c.jsonl")
    options = {"out": tmp_path / "run", "unit_rows": 8}
    scores = score(models, tmp_path / "c.jsonl", LossGap(), **options)
    (tmp_path / "run" / "units" / "unit-000001.safetensors").write_bytes(b"rubbish")
    again = LossGap()
    assert torch.equal(score(models, tmp_path / "c.jsonl", again, **options).nan_to_num(9), scores.nan_to_num(9))
    assert again.calls == [list(range(8, 16))]


@pytest.mark.parametrize("change", ["option", "corpus", "model", "seed"])
def test_a_folder_of_another_run_is_refused_by_name(models, tmp_path: Path, change: str) -> None:
    records = write_corpus(tmp_path / "c.jsonl")
    score(models, tmp_path / "c.jsonl", LossGap(), out=tmp_path / "run")
    method, named, seed = LossGap(), dict(models), 0
    if change == "option":
        method = LossGap(scale=2.0)
    elif change == "corpus":
        (tmp_path / "c.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records[1:]))
    elif change == "model":
        named["teacher"] = tiny(2)
    else:
        seed = 1
    with pytest.raises(DataError, match="use another folder"):
        score(named, tmp_path / "c.jsonl", method, out=tmp_path / "run", seed=seed)


def test_random_methods_are_seeded_and_the_global_state_is_left_alone(models, tmp_path: Path) -> None:
    records = write_corpus(tmp_path / "c.jsonl")
    state = torch.get_rng_state()
    first = score(models, records, Noise(), out=tmp_path / "a", seed=3, unit_rows=7)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, score(models, records, Noise(), out=tmp_path / "b", seed=3, unit_rows=7))
    assert not torch.equal(first, score(models, records, Noise(), out=tmp_path / "c", seed=4, unit_rows=7))


def test_training_mode_is_put_back_module_by_module(models, tmp_path: Path) -> None:
    model = tiny(5).train()
    model.lm_head.eval()
    score({"teacher": model, "reference": tiny(6)}, [{"input_ids": [1, 2]}], LossGap(), out=tmp_path / "run")
    assert model.training
    assert not model.lm_head.training


def test_selection_keeps_the_best_in_corpus_order(models, tmp_path: Path) -> None:
    records = write_corpus(tmp_path / "c.jsonl")
    chosen = select(LossGap(), corpus=tmp_path / "c.jsonl", ratio=0.5, out=tmp_path / "run", **models)
    wanted = expected(models, records).nan_to_num(-1e9).topk(11).indices.sort().values
    assert chosen.rows.tolist() == wanted.tolist()
    lines = chosen.file.read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == wanted.tolist()
    index = load_file(chosen.index)
    assert torch.equal(index["rows"], wanted)
    assert index["scores"].tolist() == chosen.scores.tolist()
    again = Selection.load(chosen.index)
    assert (again.rows.tolist(), again.total, again.cut) == (wanted.tolist(), 23, chosen.cut)
    assert (tmp_path / "run" / "report.html").is_file()
    results = json.loads((tmp_path / "run" / "result.json").read_text())["results"]
    assert (results["kept"], results["unscored"], results["rows"]) == (11, 1, 23)


def test_one_scoring_serves_several_ratios(models, tmp_path: Path) -> None:
    write_corpus(tmp_path / "c.jsonl")
    scores = score(models, tmp_path / "c.jsonl", LossGap(), out=tmp_path / "scoring")
    for ratio, n in ((0.25, 5), (1.0, 22)):
        out = tmp_path / f"r{ratio}"
        chosen = select(LossGap(), corpus=tmp_path / "c.jsonl", ratio=ratio, out=out, scores=tmp_path / "scoring")
        assert len(chosen.rows) == n
    with pytest.raises(DataError, match="22 scores for 23 rows"):
        select(LossGap(), corpus=tmp_path / "c.jsonl", ratio=0.5, out=tmp_path / "x", scores=scores[1:])
    with pytest.raises(DataError, match="cannot be read"):
        select(LossGap(), corpus=tmp_path / "c.jsonl", ratio=0.5, out=tmp_path / "x", scores=tmp_path / "nowhere")


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.1, float("nan")])
def test_ratios_outside_0_to_1_are_refused(models, tmp_path: Path, ratio: float) -> None:
    with pytest.raises(DataError, match="ratio is"):
        select(LossGap(), corpus=[{"input_ids": [1, 2]}], ratio=ratio, out=tmp_path, **models)


def test_a_ratio_that_keeps_nothing_is_an_error(models, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="keeps 0 of 1 rows"):
        select(LossGap(), corpus=[{"input_ids": [1, 2]}], ratio=0.5, out=tmp_path, **models)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "returned NoneType"),
        ([1.0], "returned list"),
        (torch.zeros(2), r"\[2\] torch.float32; expected \[1\]"),
        (torch.zeros(1, dtype=torch.int64), "torch.int64"),
    ],
)
def test_wrong_answers_of_the_hook_are_named(models, tmp_path: Path, answer, said: str) -> None:
    @dataclass(eq=False)
    class Wrong:
        traits = paperhooks.Traits()

        @paperhooks.hookimpl
        def score_examples(self, examples):
            return answer

    with pytest.raises(HookError, match=said):
        score(models, [{"input_ids": [1, 2]}], Wrong(), out=tmp_path)


def test_a_method_by_name_and_one_that_scores_nothing(models, tmp_path: Path, own_catalog: Catalog) -> None:
    methods = {"t-gap": f"{__name__}:LossGap", "still": f"{__name__}:Still"}
    own_catalog.register(paperhooks.PluginInfo("t-gap", 1, "Scores.", methods=methods))
    assert len(score(models, [{"input_ids": [1, 2]}], "t-gap", out=tmp_path / "a")) == 1
    with pytest.raises(PluginIncompatible, match="t-gap/still does not score examples; it implements post_layer"):
        score(models, [{"input_ids": [1, 2]}], "t-gap/still", out=tmp_path / "b")


@dataclass(eq=False)
class Still:
    """A method without score_examples."""

    traits = paperhooks.Traits()

    @paperhooks.hookimpl
    def post_layer(self, hidden_states): ...


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("{]\n", "jsonl:1: is not JSON"),
        ("3\n", "got int"),
        ('"ok"\n{"id": 1}\n', "jsonl:2: has neither 'text' nor 'input_ids'"),
        ('{"input_ids": [1, "2"]}\n', "non-negative integers"),
        ('{"input_ids": [true]}\n', "non-negative integers"),
        ('{"text": 3}\n', "'text' is int"),
    ],
)
def test_malformed_corpora_name_the_row(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "c.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=said):
        Corpus(file).examples([0, 1] if "ok" in content else [0])


def test_a_corpus_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"PAR1\xff\xfe\n")
    with pytest.raises(DataError, match=r"a\.jsonl:1: is not UTF-8"):
        list(Corpus(file).lines([0]))
    for name, said in (("a.docx", "no ending that is known"), ("nowhere.jsonl", "does not exist")):
        if name == "a.docx":
            (tmp_path / name).touch()
        with pytest.raises(DataError, match=said):
            Corpus(tmp_path / name)


def test_files_and_memory_give_the_same_examples(tmp_path: Path) -> None:
    records = ["grüße\u2028a", {"text": "b", "input_ids": [1]}]
    file = tmp_path / "c.jsonl"
    file.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    for source in (file, records):
        first, second = Corpus(source).examples([1, 0])
        assert (first.row, first.text, first.input_ids.tolist()) == (1, "b", [1])
        assert (second.row, second.text, second.input_ids) == (0, "grüße\u2028a", None)


def test_texts_are_tokenized_where_there_are_no_ids() -> None:
    def tokenizer(text, add_special_tokens):
        assert not add_special_tokens
        return {"input_ids": [ord(letter) for letter in text]}

    (example,) = Corpus(["ab"]).examples([0], tokenizer)
    assert example.input_ids.tolist() == [97, 98]


@pytest.mark.parametrize(
    ("record", "said"),
    [({"input_ids": [1, 2], "image": b"raw"}, "record 0: cannot be written as JSON"),
     ({"text": "half \ud83d"}, "record 0: character 5 is half of a surrogate pair")],
)  # fmt: skip
def test_records_that_cannot_be_selected_are_named_before_anything_is_scored(models, tmp_path, record, said) -> None:
    method = LossGap()
    with pytest.raises(DataError, match=said):
        select(method, corpus=[record], ratio=1.0, out=tmp_path / "run", tokenizer=lambda *_, **__: {}, **models)
    assert not method.calls


def test_nan_and_halves_of_characters_in_other_fields_do_no_harm(models, tmp_path: Path) -> None:
    records = [{"input_ids": [1, 2], "note": "half \ud83d", "value": float("nan")}]
    chosen = select(LossGap(), corpus=records, ratio=1.0, out=tmp_path / "run", **models)
    (found,) = Corpus(chosen.file).lines([0])
    assert json.loads(found)["note"] == records[0]["note"]
