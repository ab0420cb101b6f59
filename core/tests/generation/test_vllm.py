"""vLLM behind the interface of backends: by a stand-in with the signatures of its classes, and on a GPU by itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from paperhooks.errors import DataError, MissingExtra
from paperhooks.generation import Request, Response, Sampling, VllmBackend, ask
from paperhooks.testing import tiny_llama
from word_tokenizers import word_tokenizer


@dataclass(kw_only=True)
class SamplingParams:
    """The arguments of vLLM's own that are used, with its defaults."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = 16


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class Engines:
    """What was made and asked, and what is answered next."""

    made: list[Any] = field(default_factory=list)
    asked: list[tuple[list[int], SamplingParams]] = field(default_factory=list)
    answers: list[CompletionOutput] = field(default_factory=list)
    longest: int = 40


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    found = Engines()

    class LLM:
        def __init__(self, model: str, *, dtype: str = "auto", max_model_len: int | None = None) -> None:
            found.made.append((model, dtype))
            self.llm_engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=found.longest))

        def generate(
            self,
            prompts: Sequence[dict[str, Any]],
            sampling_params: Sequence[SamplingParams] | None = None,
            *,
            use_tqdm: bool = True,
        ) -> list[Any]:
            assert not use_tqdm
            assert all(len(prompt["prompt_token_ids"]) < found.longest for prompt in prompts)
            found.asked += [(p["prompt_token_ids"], s) for p, s in zip(prompts, sampling_params or (), strict=True)]
            return [SimpleNamespace(outputs=[found.answers.pop(0)]) for _ in prompts]

    module = ModuleType("vllm")
    module.LLM, module.SamplingParams, module.TokensPrompt = LLM, SamplingParams, dict
    monkeypatch.setitem(sys.modules, "vllm", module)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny_llama(layers=1)
    model.save_pretrained(tmp_path / "model")
    word_tokenizer(model.config.vocab_size).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def ended(*ids: int, text: str = " w5 w6", finish: str = "stop", reason: int | str | None = None) -> CompletionOutput:
    return CompletionOutput(0, text, list(ids), finish, reason)


def test_requests_are_handed_on_by_token_ids(engines: Engines, folder: Path, tmp_path: Path) -> None:
    engines.answers = [ended(5, 6, 2)] * 3
    requests = {
        "a": Request(prompt="w7 w8", max_new_tokens=9),
        "b": Request(prompt_ids=(1, 9), sampling=Sampling(0.7, 0.9, seed=5), stop=("!",)),
        "c": Request(prompt_ids=(1, 8), sampling=Sampling(top_k=4, seed=6)),
    }
    found = ask(VllmBackend(folder, dtype="float32"), requests, out=tmp_path / "run", batch_size=8)
    assert engines.made == [(str(folder), "float32")]
    assert sorted(engines.asked, key=lambda each: each[0]) == [
        ([1, 7, 8], SamplingParams(temperature=0.0, max_tokens=9, stop=[])),
        ([1, 8], SamplingParams(temperature=1.0, top_p=1.0, top_k=4, seed=6, max_tokens=32, stop=[])),
        ([1, 9], SamplingParams(temperature=0.7, top_p=0.9, seed=5, max_tokens=32, stop=["!"])),
    ]
    assert found["a"] == Response("w5 w6", 2, "eos", prompt_tokens=3, ids=(5, 6), end=2)
    assert ask(VllmBackend(folder, dtype="float32"), requests, out=tmp_path / "run") == found
    assert len(engines.made) == 1, "no engine is made where nothing is asked"


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (ended(5, 6, 2), Response("w5 w6", 2, "eos", ids=(5, 6), end=2)),
        (ended(5, 6, 9, reason=9), Response("w5 w6", 2, "eos", ids=(5, 6), end=9)),
        (ended(5, 6, 7, reason="w7"), Response("w5 w6", 3, "stop", ids=(5, 6, 7))),
        (ended(5, 6, finish="length"), Response("w5 w6", 2, "length", ids=(5, 6))),
        (ended(2, text=""), Response("", 0, "eos", end=2)),
        (ended(5, finish="abort"), Response("", error="vLLM ended the answer by 'abort'")),
    ],
)
def test_ends_of_answers(engines: Engines, folder: Path, output: CompletionOutput, expected: Response) -> None:
    engines.answers = [output]
    backend = VllmBackend(folder)
    with backend.opened():
        (found,) = backend.answer([backend.prompt("a", Request(prompt_ids=(1, 2, 3)))])
    assert (found.prompt_tokens, found.error) == (3, expected.error)
    assert (found.text, found.new_tokens, found.finish, found.ids, found.end) == (
        expected.text, expected.new_tokens, expected.finish, expected.ids, expected.end
    )  # fmt: skip


def test_a_prompt_without_room_is_an_error_of_its_own(engines: Engines, folder: Path, tmp_path: Path) -> None:
    engines.longest, engines.answers = 4, [ended(5, 2)]
    requests = {"long": Request(prompt_ids=(1, 5, 5, 5)), "short": Request(prompt_ids=(1, 5, 5))}
    found = ask(VllmBackend(folder), requests, out=tmp_path / "run", batch_size=2)
    assert found["long"].error == "its prompt takes 4 tokens of 4"
    assert found["short"].finish == "eos"


def test_other_weights_in_the_same_folder_are_another_run(engines: Engines, folder: Path, tmp_path: Path) -> None:
    engines.answers = [ended(5, 2)] * 2
    requests = {"a": Request(prompt="w5")}
    ask(VllmBackend(folder), requests, out=tmp_path / "run")
    with pytest.raises(DataError, match=r"inputs\.options\.dtype = None, not 'bfloat16'"):
        ask(VllmBackend(folder, dtype="bfloat16"), requests, out=tmp_path / "run")
    moved = folder.rename(tmp_path / "moved")
    ask(VllmBackend(moved), requests, out=tmp_path / "run")
    tiny_llama(layers=1, seed=1).save_pretrained(moved)
    with pytest.raises(DataError, match=r"inputs\.model = "):
        ask(VllmBackend(moved), requests, out=tmp_path / "run")
    assert len(engines.asked) == 1


def test_the_context_is_told(engines: Engines, folder: Path) -> None:
    assert VllmBackend(folder).context() == 512
    assert VllmBackend(folder, max_model_len=99).context() == 99


def test_what_is_missing_is_named(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtra, match=r"paperhooks\[vllm\]"):
        ask(VllmBackend(folder), {"a": Request(prompt="w5")}, out=tmp_path / "run")
    with pytest.raises(DataError, match=r"no tokenizer was found at .*nowhere"):
        VllmBackend(tmp_path / "nowhere")


@pytest.mark.cuda
def test_vllm_itself_answers_by_ids(tmp_path: Path) -> None:
    """Greedy answers are those of transformers by token ids; drawn ones are told with their ids."""
    pytest.importorskip("vllm")
    import torch
    from paperhooks.generation import TransformersBackend
    from paperhooks_testbed import load_smollm2

    model, tokenizer = load_smollm2()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    ids = tuple(tokenizer("The capital of France is")["input_ids"])
    requests = {"greedy": Request(prompt_ids=ids, max_new_tokens=8)}
    requests |= {
        str(s): Request(prompt_ids=ids, max_new_tokens=8, sampling=Sampling(1.0, 0.9, 40, seed=s)) for s in range(4)
    }
    options = {"dtype": "float32", "max_model_len": 256, "gpu_memory_utilization": 0.3, "enforce_eager": True}
    found = ask(VllmBackend(tmp_path / "model", **options), requests, out=tmp_path / "run", batch_size=8)
    with torch.no_grad():
        expected = ask(TransformersBackend(model, tokenizer), {"greedy": requests["greedy"]}, out=tmp_path / "stock")
    assert found["greedy"].ids == expected["greedy"].ids
    assert len({one.ids for one in found.values()}) > 2
    assert all(one.finish and one.ids for one in found.values())
