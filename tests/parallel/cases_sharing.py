"""What each rank does in the tests of work that ranks share, whose model is spread over them."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from typing import Any
from unittest import mock

import paperhooks
import torch
from evaluation_tasks import Echo, word_tokenizer
from paperhooks import PaperhooksError
from paperhooks.generation import Request, Sampling, TransformersBackend, ask
from paperhooks.io import Ranks, UnitStore
from paperhooks.models import in_step
from paperhooks.testing import tiny_llama, tiny_vlm
from paperhooks_evaluation import evaluate
from paperhooks_mathneuro import collect
from paperhooks_miniplm import LogLikelihood, MemoryRows, MiniPLM
from paperhooks_miniplm import score as scores_of
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.distributed import DistributedConfig


def spread(kind: str, folder: str) -> Any:
    """The model of a folder as a rank has it; ``fsdp2`` shards it by hand, ``tp fsdp2`` needs four ranks."""
    config = DistributedConfig(tp_size=2, fsdp_size=Ranks().count // 2) if "tp" in kind else None
    model = AutoModelForCausalLM.from_pretrained(folder, distributed_config=config)
    if kind == "fsdp2":
        for layer in model.model.layers:
            fully_shard(layer)
        fully_shard(model)
    return model.eval()


class Asked(TransformersBackend):
    """Notes what it is asked. On rank 1 it fails at its second batch, ``before`` the model is called or ``within``.

    Whoever ``lives on`` then keeps its connections for a while.
    """

    fails = ""

    def answer(self, prompts: Any) -> Any:
        self.asked = [*getattr(self, "asked", ()), *(prompt.id for prompt in prompts)]
        if Ranks().index == 1 and len(self.asked) > 1 and self.fails:
            if self.fails == "before":
                self.lose()
            self.model.model.layers[1].register_forward_pre_hook(self.lose)
        return super().answer(prompts)

    def lose(self, *_: object) -> None:
        raise RuntimeError("lost its device")


def evaluated(kind: str, folder: str, data: str, out: str, fails: str = "") -> list[Any]:
    """Documents answered, the headline, and what this rank was asked; or its error and the notes on it."""
    backend = Asked(spread(kind, folder), word_tokenizer())
    backend.fails = fails
    try:
        result = evaluate(backend, None, Echo(), data=data, out=out, report=False)
    except Exception as error:
        if fails == "within":
            raise
        if fails == "within, and lives on":
            time.sleep(30)
        return [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]
    return [result.answered, result.headline.value, getattr(backend, "asked", [])]


def drawn(kind: str, folder: str, out: str) -> tuple[dict[str, list[int]], list[str]]:
    """The ids of answers that are drawn by seeds, without a task, and what this rank was asked."""
    backend = Asked(spread(kind, folder), word_tokenizer())
    requests = {
        f"{i}/y+": Request(prompt=f"w{i} w{i + 3}"[: 2 + 3 * (i % 2)], max_new_tokens=6, sampling=sampling)
        for i, sampling in enumerate(Sampling(1.2, [1.0, 0.9][i % 2], seed=i) for i in range(8))
    }
    replies = ask(backend, requests, out=out, batch_size=3)
    return {key: list(one.ids) for key, one in replies.items()}, list(getattr(backend, "asked", []))


class Narrow(TransformersBackend):
    """Rank 1 has no memory for more than one document, ``before`` the model is called or ``between`` two calls."""

    where, asked = "", ()

    def answer(self, prompts: Any) -> Any:
        self.asked = [*self.asked, len(prompts)]
        if Ranks().index == 0 or len(prompts) == 1:
            return super().answer(prompts)
        if self.where == "before":
            self.lack()
        hook = self.model.register_forward_hook(self.lack)
        try:
            return super().answer(prompts)
        finally:
            hook.remove()

    def lack(self, *_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory: out of memory")


def asked_with_little_memory(kind: str, folder: str, data: str, out: str, where: str) -> list[Any]:
    """Documents answered, the headline, and the sizes of this rank's batches."""
    backend = Narrow(spread(kind, folder), word_tokenizer())
    backend.where = where
    result = evaluate(backend, None, Echo(), data=data, out=out, batch_size=2, report=False)
    return [result.answered, result.headline.value, list(backend.asked)]


class Uneven(Echo):
    """Rank 1 cannot make one request, rank 0 another one, and a third is not the same on both."""

    def request(self, document: Any) -> Any:
        if (Ranks().index, document.id) in ((0, "q1"), (1, "q4")):
            raise OSError(f"rank {Ranks().index} has no image")
        made = super().request(document)
        return dataclasses.replace(made, max_new_tokens=2) if (Ranks().index, document.id) == (1, "q6") else made


def asked_unevenly(folder: str, data: str, out: str, batch_size: int) -> list[Any]:
    """What was answered, and the errors of the others, by document."""
    backend = TransformersBackend(spread("tp", folder), word_tokenizer())
    found = evaluate(backend, None, Uneven(), data=data, out=out, batch_size=batch_size, report=False).first
    return [{record.document.id: record.response for record in found.records}, dict(found.failures)]


def called_unlike(folder: str, calls: list[int]) -> str:
    """The error of a tensor-parallel group, each rank of which calls the model for so many tokens, 0 for not at all."""
    model, count = spread("tp", folder), calls[Ranks().index]
    try:
        with torch.no_grad(), in_step(model):
            if count:
                model(input_ids=torch.arange(1, 1 + abs(count))[None] + (count < 0))
    except PaperhooksError as error:
        return str(error)
    return ""


def called_with(folder: str, kind: str) -> str:
    """The error of a tensor-parallel group whose ranks give the model other floats, caches or numbers."""
    model, rank = spread("tp", folder), Ranks().index
    tokens = {"input_ids": torch.arange(1, 6)[None]}
    cache = DynamicCache(config=model.config)
    if kind == "cache" and rank:
        cache.update(torch.ones(1, 2, 1, 8), torch.ones(1, 2, 1, 8), 0)
    given: dict[str, dict[str, Any]] = {
        "embeddings": {"inputs_embeds": torch.full((1, 5, model.config.hidden_size), 1.0 + rank)},
        "mask": {**tokens, "attention_mask": torch.full((1, 1, 5, 5), -1.0 - rank)},
        "number": {**tokens, "logits_to_keep": 1 + rank},
        "cache": {**tokens, "past_key_values": cache},
    }
    try:
        with torch.no_grad(), in_step(model):
            model(**given[kind])
    except PaperhooksError as error:
        return str(error)
    return ""


def goes_on_after_a_failed_call(kind: str, folder: str) -> str:
    """Rank 1 handles an error in the middle of a call, and calls the model again."""
    model, rank = spread(kind, folder), Ranks().index
    fails = rank == 1

    def lose(*_: object) -> None:
        if fails:
            raise RuntimeError("lost its device")

    model.model.layers[1].register_forward_pre_hook(lose)
    try:
        with torch.no_grad(), in_step(model):
            with contextlib.suppress(RuntimeError):
                model(input_ids=torch.arange(1, 6)[None])
            fails = False
            model(input_ids=torch.arange(1, 6)[None])
    except PaperhooksError:
        if rank == 1:
            time.sleep(30)
        raise
    return ""


def with_images_on_one_rank() -> list[Any]:
    """How far logits are from those of the plain model, where the units of the vision tower are passed by rank 0 only,
    and it calls twice what rank 1 calls.
    """
    plain, model = tiny_vlm("llava"), tiny_vlm("llava")
    tower, decoder = model.model.vision_tower, model.get_decoder()
    units = [tower.encoder.layers[0], *decoder.layers]
    for unit in [*units, model]:
        fully_shard(unit)
    size, tokens = model.config.vision_config.image_size, _image_tokens(model)
    image = torch.linspace(-1, 1, 3 * size * size).reshape(1, 3, size, size)
    text = {"input_ids": torch.arange(1, 8)[None]}
    seen = {"input_ids": torch.tensor([[1, *[model.config.image_token_id] * tokens, 2, 3]]), "pixel_values": image}

    def far(inputs: dict[str, Any]) -> float:
        return float((model(**inputs).logits - plain(**inputs).logits).abs().max())

    with torch.no_grad(), in_step(model):
        found = [far(inputs) for inputs in ([text, seen, seen, text] if Ranks().first else [text, text])]
    with torch.no_grad():  # as before: all ranks alike
        return [*found, far(seen)]


def _image_tokens(model: Any) -> int:
    vision = model.config.vision_config
    return int((vision.image_size // vision.patch_size) ** 2)


#: Texts of several lengths, so that shares differ.
ROWS = [[1, *range(5, 5 + length)] for length in (9, 3, 4, 2, 6, 5, 7, 3, 8, 1, 2)]


def collected(kind: str, folder: str, out: str, keep: str) -> list[Any]:
    """The digest of the weights in MathNeuro's statistics, and how often this rank read a text."""
    model, texts = spread(kind, folder), 0

    def count(_: object, args: object, kwargs: dict[str, Any]) -> None:
        nonlocal texts
        texts += len(kwargs["input_ids"]) if "attention_mask" in kwargs else 0  # not those that are thrown away

    model.register_forward_pre_hook(count, with_kwargs=True)
    found = collect(model, ROWS, out=out, keep=keep, batch_size=2, progress=False)
    return [found.weights, texts]


def refused(kind: str, folder: str) -> list[str]:
    """What is said to a model of whose experts each rank has a part, and where these are left out."""
    told, model = [], spread(kind, folder)
    for exclude in (None, "experts"):
        try:
            collect(model, ROWS, exclude=exclude, progress=False)
            told.append("")
        except PaperhooksError as error:
            told.append(f"{type(error).__name__}: {error}")
    return told


def scored(kind: str, folder: str, out: str) -> list[Any]:
    """MiniPLM's scores of the rows by one model, in units of two, and the units that this rank made."""
    made: list[int] = []
    score_rows = LogLikelihood.score

    def score(self: Any, rows: Any, *, first: int = 0, numbers: Any = None) -> Any:
        made.append(first // 2)
        return score_rows(self, rows, first=first, numbers=numbers)

    model = spread(kind, folder)
    with mock.patch.object(LogLikelihood, "score", score):
        found = scores_of(
            model, MemoryRows(ROWS), out, end=None, max_length=16, batch_tokens=16, unit_rows=2, progress=False
        )
    return [[] if found is None else found.nll.tolist(), made]


def scored_by_a_method(kind: str, folder: str, out: str) -> list[Any]:
    """The difference of the model and a plain reference, by core's machinery, and the units that this rank made."""
    made: list[int] = []
    write = UnitStore.write

    def noted(self: Any, name: str, *args: Any) -> None:
        made.append(int(name.rpartition("-")[2]))
        write(self, name, *args)

    models = {"teacher": spread(kind, folder), "reference": tiny_llama()}
    with mock.patch.object(UnitStore, "write", noted):
        rows = [{"input_ids": ids} for ids in ROWS]
        found = paperhooks.score(models, rows, MiniPLM(end=1), out=out, batch_size=2, unit_rows=3)
    return [found.tolist(), made]
