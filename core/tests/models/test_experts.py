"""Routed experts: what each of them reads is proven against the module itself, for every family of mixtures here."""

from __future__ import annotations

import pytest
import torch
import transformers
from paperhooks.models import Experts
from paperhooks.testing import tiny_text
from torch import nn

VERSION = f"transformers {transformers.__version__}"
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 32}
FAMILIES = {
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_key_value_heads": 2}),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "num_key_value_heads": 2},
    ),
    "olmoe": ("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 2}),
    "gpt_oss": ("GptOssConfig", {"num_local_experts": 4, "num_key_value_heads": 2, "head_dim": 8}),
}


def holders(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if any(p.ndim == 3 for p in m.parameters(recurse=False))]


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_of_a_family_are_read_as_the_module_does(family: str) -> None:
    name, options = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, name)(**{**SMALL, **options})
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
    (module,) = holders(model)
    experts = Experts.of(module)
    assert experts is not None, f"{family}: {VERSION}"
    assert experts.count == 4
    hidden = torch.randn(7, 16, generator=torch.Generator().manual_seed(1))
    index = torch.tensor([[0, 1], [1, 2], [0, 2], [2, 1], [0, 1], [1, 0], [2, 0]])  # nobody chooses expert 3
    seen = {e: (rows.tolist(), first, last) for e, rows, first, last in experts.inputs(hidden, index)}
    assert {e: rows for e, (rows, _, _) in seen.items()} == {0: [0, 2, 4, 5, 6], 1: [0, 1, 3, 4, 5], 2: [1, 2, 3, 6]}
    assert torch.equal(seen[2][1], hidden[[1, 2, 3, 6]])
    # an expert alone, through the module's own forward, is its last matrix times what is said to be its input
    alone = module.forward(hidden[:1], torch.tensor([[1]]), torch.ones(1, 1))
    weight = module.down_proj[1]
    own = seen[1][2][:1] @ (weight if experts.transposed else weight.T)
    bias = getattr(module, "down_proj_bias", None)
    assert torch.allclose(alone, own if bias is None else own + bias[1], atol=1e-5)


def test_ids_beyond_the_experts_are_nobody() -> None:
    (first, *_) = holders(tiny_text("mixtral"))
    experts = Experts.of(first)
    seen = list(experts.inputs(torch.ones(2, 32), torch.tensor([[0, 2], [2, 2]])))
    assert [(e, rows.tolist()) for e, rows, _, _ in seen] == [(0, [0])]


def test_what_cannot_be_proven_is_none() -> None:
    (first, *_) = holders(tiny_text("mixtral"))
    assert Experts.of(nn.Linear(2, 2)) is None

    class Other(type(first)):  # type: ignore[misc]
        def _apply_gate(self, projected):
            return 2 * super()._apply_gate(projected)

        def forward(self, hidden_states, top_k_index, top_k_weights):
            return super().forward(hidden_states, top_k_index, top_k_weights) * 3

    other = Other(tiny_text("mixtral").config)
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.2)
    assert Experts.of(other) is None
    assert Experts.of(first.to("meta")) is None
