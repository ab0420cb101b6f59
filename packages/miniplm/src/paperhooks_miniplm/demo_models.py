"""What studies in small need: a tokenizer made on the spot, models of a few thousand parameters, a plain training loop.

The demo and the benchmarks train with it; nothing of it is meant for models that are to be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from paperhooks import attach
from paperhooks.hooks import LossContext
from paperhooks.training import compute_loss
from torch import Tensor

from paperhooks_miniplm.algorithm import IGNORED, Array, lr_at
from paperhooks_miniplm.corpus.collator import collate
from paperhooks_miniplm.corpus.rows import RowSource
from paperhooks_miniplm.distillation.methods import Distil

__all__ = ["byte_tokenizer", "small_llama", "train", "training_batch"]


def byte_tokenizer(texts: Sequence[str], vocabulary: int = 512) -> Any:
    """A byte-level BPE of these texts, whose token 0 ends documents and pads. Needs the library tokenizers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<eos>")


def small_llama(
    vocabulary: int, width: int, layers: int, *, inner: int, positions: int, seed: int, bos: int = 0, end: int = 0
) -> Any:
    """A Llama with random weights from ``seed``, heads of 32, an MLP of ``inner`` and tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32), max_position_embeddings=positions, tie_word_embeddings=True,
        bos_token_id=bos, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def training_batch(source: RowSource, rows: Sequence[int] | Array, max_length: int, end: int = 0) -> dict[str, Tensor]:
    """Rows as ``input_ids``, ``attention_mask`` and ``shift_labels`` [B, T], which are not moved any more."""
    ready = collate([row.ids for row in source.read([int(row) for row in rows])], max_length=max_length, pad_id=end)
    labels = ready["label"].masked_fill(ready["loss_mask"] == 0, IGNORED)
    return {"input_ids": ready["input_ids"], "attention_mask": ready["attention_mask"], "shift_labels": labels}


def train(
    model: Any,
    batches: Iterable[dict[str, Tensor]],
    *,
    steps: int,
    rate: float,
    warmup: int,
    method: Distil,
    eps: float = 1e-8,
    clip: float | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """The official recipe (section 2.7) on the first ``steps`` batches: warm-up and cosine to a tenth of ``rate``.

    A generator: yields the number of steps done and the loss after each of them, so that the caller measures, counts
    or stops in between. The model is in train mode at every step.

    :param method: what the loss is; ``Distil(weight=0)`` is the mean of row means.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), eps=eps, weight_decay=0.01)
    with attach(model, method) as session:
        for step, batch in zip(range(1, steps + 1), batches, strict=False):
            model.train()
            for group in optimizer.param_groups:
                group["lr"] = lr_at(step, rate, rate / 10, warmup, steps)
            loss = compute_loss(session, LossContext(model, batch))
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            yield step, loss.detach()
