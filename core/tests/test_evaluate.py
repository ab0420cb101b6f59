"""Evaluation, end to end with a test task on tiny models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import paperhooks
import pytest
import torch
from paperhooks.engine import Request, answer
from paperhooks.errors import DataError, PluginBroken, PluginConflict, PluginNotFound
from paperhooks.evaluation import Item, Score, TaskInfo, evaluate
from paperhooks.intervals import mean_interval, wilson_interval
from paperhooks.tasks import available_tasks, load_task
from plugins.fake_site import FakeSite, info_source
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

pytest_plugins = ["plugins.fixtures"]

WORDS = ["<pad>", "</s>", *(f"w{i}" for i in range(18))]


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """A tiny random Llama."""
    config = LlamaConfig(
        vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=None, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="w0"))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="w0")


class Echo:
    """Questions from a JSON file; right when the reply begins with the answer; replies with 'w0' are unreadable."""

    name = "echo"
    version = "1"

    def __init__(self) -> None:
        self.scored: list[str] = []

    def items(self, data: str) -> list[Item]:
        return [Item(row["id"], row, row.get("group", "")) for row in json.loads(Path(data).read_text())]

    def request(self, item: Item) -> Request:
        return Request(prompt=item.data["prompt"], max_new_tokens=3)

    def score(self, item: Item, reply: str) -> Score:
        self.scored.append(item.id)
        return Score(float(reply.startswith(item.data["answer"])), None if "w0" in reply.split() else reply)


def direct(model, tokenizer, prompt: str) -> str:
    """The greedy reply, by stock calls for a single prompt."""
    inputs = tokenizer(prompt, return_tensors="pt")
    with torch.no_grad():
        output = model.eval().generate(**inputs, max_new_tokens=3, do_sample=False)
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.fixture
def data(tmp_path: Path, model, tokenizer) -> Path:
    """Ten questions; the answers of the even ones are what the model says."""
    rows = []
    for i in range(10):
        prompt = " ".join(f"w{(i * j + j) % 18}" for j in range(1, 2 + i % 4))
        said = direct(model, tokenizer, prompt)
        right = said if i % 2 == 0 else "never"
        rows.append({"id": f"q{i}", "prompt": prompt, "answer": right, "group": "even" if i % 2 == 0 else "odd"})
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(rows))
    return file


def rows_of(path: Path) -> list[dict]:
    """The samples of a run."""
    return [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]


def test_scores_intervals_groups_and_files(model, tokenizer, data: Path, tmp_path: Path) -> None:
    result = evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "run")
    assert (result.overall.n, result.overall.mean) == (10, 0.5)
    assert (result.overall.low, result.overall.high) == wilson_interval(5, 10)
    assert {name: group.mean for name, group in result.groups.items()} == {"even": 1.0, "odd": 0.0}
    saved = json.loads((tmp_path / "run" / "result.json").read_text())
    assert saved["status"] == "finished"
    assert saved["results"]["overall"]["n"] == 10
    rows = rows_of(tmp_path / "run")
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(10)]
    assert result.unparsable == sum(row["parsed"] is None for row in rows)
    assert result.truncated == sum(row["new_tokens"] == 3 for row in rows)
    assert "even" in (tmp_path / "run" / "report.html").read_text()
    assert str(result).startswith("echo: 50.0% [")


def test_batches_with_padding_answer_like_single_prompts(model, tokenizer, data: Path, tmp_path: Path) -> None:
    evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "one")
    side = tokenizer.padding_side
    evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "four", batch_size=4)
    assert tokenizer.padding_side == side
    questions = {row["id"]: row["prompt"] for row in json.loads(data.read_text())}
    for one, four in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "four"), strict=True):
        assert one["reply"] == four["reply"] == direct(model, tokenizer, questions[one["id"]])


class Killed(BaseException):
    """Stands for an interruption."""


def test_a_killed_run_goes_on_and_ends_the_same(model, tokenizer, data: Path, tmp_path: Path) -> None:
    class Dies(Echo):
        def score(self, item: Item, reply: str) -> Score:
            if item.id == "q6":
                raise Killed
            return super().score(item, reply)

    with pytest.raises(Killed):
        evaluate(model, tokenizer, Dies(), data=data, out=tmp_path / "run")
    assert len(rows_of(tmp_path / "run")) == 6
    with (tmp_path / "run" / "samples.jsonl").open("a") as file:
        file.write('{"id": "q6", "rep')  # torn by the kill
    task = Echo()
    result = evaluate(model, tokenizer, task, data=data, out=tmp_path / "run")
    assert task.scored == ["q6", "q7", "q8", "q9"]
    fresh = evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "other")
    strip = [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(tmp_path / "run")]
    assert strip == [{k: v for k, v in row.items() if k != "seconds"} for row in rows_of(tmp_path / "other")]
    assert result.overall == fresh.overall


def test_the_limit_may_grow_and_a_finished_run_asks_nothing(model, tokenizer, data: Path, tmp_path: Path) -> None:
    assert evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "run", limit=4).overall.n == 4
    task = Echo()
    assert evaluate(model, tokenizer, task, data=data, out=tmp_path / "run").overall.n == 10
    assert len(task.scored) == 6
    task = Echo()
    assert evaluate(model, tokenizer, task, data=data, out=tmp_path / "run").overall.n == 10
    assert task.scored == []


def test_items_that_fail_are_counted_and_tried_again(model, tokenizer, data: Path, tmp_path: Path) -> None:
    class Fails(Echo):
        def request(self, item: Item) -> Request:
            if item.id == "q1":
                raise KeyError("picture")
            return super().request(item)

        def score(self, item: Item, reply: str) -> Score:
            if item.id == "q2":
                raise ValueError("unreadable gold")
            return super().score(item, reply)

    result = evaluate(model, tokenizer, Fails(), data=data, out=tmp_path / "run")
    assert (result.errors, result.overall.n) == (2, 8)
    errors = {row["id"]: row["error"] for row in rows_of(tmp_path / "run") if row["error"]}
    assert errors == {"q1": "request: KeyError: 'picture'", "q2": "score: ValueError: unreadable gold"}
    task = Echo()
    assert evaluate(model, tokenizer, task, data=data, out=tmp_path / "run").errors == 0
    assert task.scored == ["q1", "q2"]


def test_when_every_item_fails_the_first_error_is_shown(model, tokenizer, data: Path, tmp_path: Path) -> None:
    class Fails(Echo):
        def request(self, item: Item) -> Request:
            raise KeyError("picture")

    with pytest.raises(DataError, match=r"all 10 items failed, the first with.*picture"):
        evaluate(model, tokenizer, Fails(), data=data, out=tmp_path / "run")


def test_a_changed_prompt_model_or_version_is_refused(model, tokenizer, data: Path, tmp_path: Path) -> None:
    evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "run", limit=2)

    class Other(Echo):
        version = "2"

    with pytest.raises(DataError, match=r"inputs\.version = '1', not '2'"):
        evaluate(model, tokenizer, Other(), data=data, out=tmp_path / "run")
    rows = json.loads(data.read_text())
    rows[1]["prompt"] += " w3"
    data.write_text(json.dumps(rows))
    with pytest.raises(DataError, match="item 'q1' to another prompt"):
        evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "run")


@dataclass(eq=False)
class Silence:
    """Zeroes what the last layers return."""

    traits = paperhooks.Traits()

    @paperhooks.hookimpl
    def post_layer(self, hidden_states):
        return hidden_states * 0


def test_methods_are_attached_for_the_run_only(model, tokenizer, data: Path, tmp_path: Path) -> None:
    plain = evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "plain")
    hooked = evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "hooked", methods=[Silence()])
    assert [r["reply"] for r in plain.samples] != [r["reply"] for r in hooked.samples]
    again = evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "again")
    assert [r["reply"] for r in plain.samples] == [r["reply"] for r in again.samples]
    with pytest.raises(DataError, match=r"inputs\.methods"):
        evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "hooked")
    with paperhooks.attach(model, Silence()):
        outside = evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "outside")
    assert [r["reply"] for r in outside.samples] == [r["reply"] for r in hooked.samples]


@pytest.mark.filterwarnings("error")
def test_a_finished_run_with_methods_attaches_nothing(model, tokenizer, data: Path, tmp_path: Path) -> None:
    options = {"data": data, "out": tmp_path / "run", "limit": 2}
    first = evaluate(model, tokenizer, Echo(), methods=[Silence()], **options)
    assert evaluate(model, tokenizer, Echo(), methods=[Silence()], **options).overall == first.overall


def test_the_model_and_the_random_state_are_left_as_they_were(model, tokenizer, data: Path, tmp_path: Path) -> None:
    model.train()
    state, config = torch.get_rng_state(), model.generation_config.to_dict()
    evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "run", limit=2)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert model.generation_config.to_dict() == config


@pytest.mark.parametrize(
    ("content", "said"),
    [([], "has no items"), ([{"id": "a", "prompt": "w1", "answer": ""}] * 2, "two items with the id")],
)
def test_data_that_cannot_be_used_is_refused(model, tokenizer, tmp_path: Path, content, said: str) -> None:
    file = tmp_path / "q.json"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=said):
        evaluate(model, tokenizer, Echo(), data=file, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_line_in_the_middle_is_named(model, tokenizer, data: Path, tmp_path: Path) -> None:
    evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "run", limit=3)
    file = tmp_path / "run" / "samples.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], "rubbish", lines[2]]) + "\n")
    with pytest.raises(DataError, match=r"samples\.jsonl:2: is damaged"):
        evaluate(model, tokenizer, Echo(), data=data, out=tmp_path / "run")


def test_requests_that_cannot_be_asked_say_why(model, tokenizer) -> None:
    with pytest.raises(DataError, match="no chat template"):
        answer(model, tokenizer, [Request(messages=[{"role": "user", "content": "w1"}])])
    with pytest.raises(DataError, match="neither a prompt nor messages"):
        answer(model, tokenizer, [Request()])
    with pytest.raises(DataError, match="takes only text"):
        answer(model, tokenizer, [Request(prompt="w1", images=[object()])])
    assert answer(model, tokenizer, []) == []


def test_messages_go_through_the_chat_template(model, tokenizer) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}w5"
    (reply,) = answer(model, tokenizer, [Request(messages=[{"role": "user", "content": "w1 w2"}], max_new_tokens=3)])
    assert reply.text == direct(model, tokenizer, "w1 w2 w5")


def tiny_llava_with_processor():
    """A tiny random Llava with 4 image tokens, and a stock processor around a word-level tokenizer."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    core = Tokenizer(WordLevel({word: i for i, word in enumerate([*WORDS, "<image>"])}, unk_token="w0"))
    core.pre_tokenizer = WhitespaceSplit()
    words = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="w0",
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    size = {"height": 16, "width": 16}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size), words, patch_size=8,
        vision_feature_select_strategy="default", num_additional_image_tokens=1,
    )  # fmt: skip
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=16, patch_size=8, **small),
        text_config=LlamaConfig(vocab_size=21, bos_token_id=None, eos_token_id=1, pad_token_id=0, **small),
        image_token_id=20,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlavaForConditionalGeneration(config), processor


def test_pictures_reach_the_model_in_batches_of_any_size(tmp_path: Path) -> None:
    from PIL import Image

    vlm, processor = tiny_llava_with_processor()
    pictures = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "white")]
    requests = [Request(prompt="w1 " * i + "<image> w2", images=[p], max_new_tokens=4) for i, p in enumerate(pictures)]
    together = answer(vlm, processor, requests)
    assert together == [answer(vlm, processor, [request])[0] for request in requests]
    inputs = processor(text=requests[1].prompt, images=[pictures[1]], return_tensors="pt")
    with torch.no_grad():
        output = vlm.eval().generate(**inputs, max_new_tokens=4, do_sample=False)
    stock = processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert together[1].text == stock.strip()
    from paperhooks.samples import request_hash

    hashes = {request_hash(Request(prompt="x", images=[picture]), "x") for picture in pictures}
    assert len(hashes) == 3


HOOKS = """
import paperhooks
from paperhooks.tasks import TaskInfo

class Hooks:
    @paperhooks.hookimpl
    def evaluation_tasks(self):
        return [TaskInfo("echo", "Questions.", "test_evaluate_task:Echo")]
"""


def add(site: FakeSite, name: str) -> None:
    """A plugin that offers the task ``echo``."""
    module = f"dist_{name}"
    site.add(f"dist-{name}", f"t-{name}", info_source(f"t-{name}", module, extra=f'hooks="{module}_hooks:Hooks"'))
    (site.root / f"{module}_hooks.py").write_text(HOOKS)


def test_tasks_are_found_by_name_and_names_are_unique(site: FakeSite) -> None:
    add(site, "one")
    (site.root / "test_evaluate_task.py").write_text("class Echo:\n    version = '1'\n")
    assert available_tasks()["echo"].summary == "Questions."
    with pytest.raises(PluginBroken, match="lacks version, items"):
        load_task("echo")
    with pytest.raises(PluginNotFound, match="did you mean 'echo'"):
        load_task("eco")
    with pytest.raises(PluginBroken, match="cannot be made"):
        load_task(TaskInfo("x", "y", "nowhere_at_all:Task"))
    add(site, "two")
    from paperhooks.catalog import refresh

    refresh()
    with pytest.raises(PluginConflict, match=r"'t-one' and 't-two' both offer the task 'echo'"):
        available_tasks()


def test_wilson_agrees_with_published_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I, method 3.
    published = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (successes, n), bounds in published.items():
        assert wilson_interval(successes, n) == pytest.approx(bounds, abs=5e-5)
    assert wilson_interval(20, 20)[1] == 1.0
    for bad in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="no proportion"):
            wilson_interval(*bad)


def test_means_of_other_scores_get_a_normal_interval() -> None:
    low, high = mean_interval([0.2, 0.4, 0.6])
    assert (low + high) / 2 == pytest.approx(0.4)
    assert high - low == pytest.approx(2 * 1.959964 * 0.2 / 3**0.5)
    assert mean_interval([0.3]) == (0.3, 0.3)
    assert mean_interval([1.0, 0.0]) == wilson_interval(1, 2)
