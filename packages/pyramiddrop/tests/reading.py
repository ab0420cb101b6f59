"""A plain reading of the paper in float64: a llama without a cache, one sample at a time, with code of its own.

Section 2.2 of the method's description for the last token of a prompt, section 2.4 for training: at the entry of every
drop layer the rows that rank are looked up in the tokens that are there, and the labels go with their tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from golden_pyramiddrop import config, weights

IGNORE = -100


@dataclass
class Read:
    """What is left of a sample: ``hidden`` [n, D] behind the final norm, ``labels`` [n] of the tokens left, the tokens
    ``kept`` by every stage in the sample's own numbering, and the ``scores`` of every stage by token."""

    hidden: torch.Tensor
    labels: torch.Tensor | None
    kept: list[list[int]]
    scores: list[dict[int, float]]


class Reading:
    """The random language model of the reference values."""

    def __init__(self, kv_heads: int = 6) -> None:
        self.options = config(kv_heads)
        self.weights = {name: value.double() for name, value in weights(kv_heads).items()}
        self.heads, self.kv_heads = 6, kv_heads
        self.head_dim = 8

    def sample(self, embeds, visual, stages, mode, labels=None, protect=False) -> Read:
        """Run one sample. ``visual`` [n] bool; ``stages`` {layer: ratio}; ``mode`` "preserve" or "renumber"."""
        x, n0 = embeds.double(), int(visual.sum())
        place = torch.arange(len(x))
        kept, scores = [], []
        for layer in range(self.options["num_hidden_layers"]):
            if layer in stages and n0:
                position = place if mode == "preserve" else torch.arange(len(x))
                rows = self._rows(labels, len(x))
                if rows:
                    attention = self._attention(layer, x, position)[0].mean(0)[rows].mean(0)
                    keep = self._best(attention, visual, int(n0 * stages[layer]), rows if protect else [])
                    scores.append({int(place[i]): float(attention[i]) for i in visual.nonzero()[:, 0]})
                    x, visual, place = x[keep], visual[keep], place[keep]
                    labels = labels if labels is None else labels[keep]
                    kept.append(place.tolist())
            x = self._layer(layer, x, place if mode == "preserve" else torch.arange(len(x)))
        return Read(self._norm("model.norm.weight", x), labels, kept, scores)

    def logits(self, hidden):
        return hidden @ self.weights["lm_head.weight"].T

    def loss(self, samples: list[Read]) -> float:
        """Next-token loss on the short sequences: each token left predicts the next one left."""
        total, count = 0.0, 0
        for sample in samples:
            targets = sample.labels[1:]
            known = self.logits(sample.hidden[:-1]).log_softmax(-1)
            for row, target in enumerate(targets.tolist()):
                if target != IGNORE:
                    total, count = total - float(known[row, target]), count + 1
        return total / count

    def embed(self, ids):
        return self.weights["model.embed_tokens.weight"][ids]

    def _rows(self, labels, n):
        if labels is None:
            return [n - 1]
        return [p for p in range(n - 1) if labels[p] == IGNORE and labels[p + 1] != IGNORE]

    def _best(self, score, visual, k, must):
        candidates = visual.nonzero()[:, 0].tolist()
        must = [row for row in must if visual[row]]
        ranked = sorted(candidates, key=lambda i: (i not in must, -float(score[i]), i))
        keep = set(ranked[: max(k, len(must))])
        return torch.tensor([i for i in range(len(visual)) if not visual[i] or i in keep])

    def _norm(self, name, x):
        return self.weights[name] * x / (x.pow(2).mean(-1, keepdim=True) + self.options["rms_norm_eps"]).sqrt()

    def _rotate(self, x, position):
        half = self.head_dim // 2
        theta = self.options["rope_parameters"]["rope_theta"]
        angle = position[:, None].double() / theta ** (torch.arange(half).double() / half)
        first, second = x[..., :half], x[..., half:]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def _heads(self, name, x, heads):
        return (x @ self.weights[name].T).view(len(x), heads, self.head_dim).transpose(0, 1)

    def _attention(self, layer, x, position):
        """Softmax rows [H, n, n] and values [H, n, h]."""
        name = f"model.layers.{layer}"
        z = self._norm(f"{name}.input_layernorm.weight", x)
        q = self._rotate(self._heads(f"{name}.self_attn.q_proj.weight", z, self.heads), position)
        k = self._rotate(self._heads(f"{name}.self_attn.k_proj.weight", z, self.kv_heads), position)
        v = self._heads(f"{name}.self_attn.v_proj.weight", z, self.kv_heads)
        k, v = (t.repeat_interleave(self.heads // self.kv_heads, 0) for t in (k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        return scores.masked_fill(future, -torch.inf).softmax(-1), v

    def _layer(self, layer, x, position):
        name = f"model.layers.{layer}"
        attention, v = self._attention(layer, x, position)
        mixed = (attention @ v).transpose(0, 1).reshape(len(x), -1)
        x = x + mixed @ self.weights[f"{name}.self_attn.o_proj.weight"].T
        z = self._norm(f"{name}.post_attention_layernorm.weight", x)
        gate = z @ self.weights[f"{name}.mlp.gate_proj.weight"].T
        up = z @ self.weights[f"{name}.mlp.up_proj.weight"].T
        return x + (torch.nn.functional.silu(gate) * up) @ self.weights[f"{name}.mlp.down_proj.weight"].T
