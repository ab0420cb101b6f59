"""How many tokens a config says that its model was made for."""

from __future__ import annotations

import pytest
from paperhooks.generation.stated_context import stated_context
from transformers import FalconConfig, Gemma3TextConfig, GPT2Config, LlamaConfig, Qwen2Config

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6, "original_max_position_embeddings": 32768}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (LlamaConfig(max_position_embeddings=2048), 2048),
        (GPT2Config(n_positions=1024), 1024),
        (Qwen2Config(max_position_embeddings=32768, rope_parameters=YARN), 131072),
        (LlamaConfig(max_position_embeddings=131072, rope_parameters=LLAMA3), 131072),
        (LlamaConfig(max_position_embeddings=2048, rope_parameters={"rope_type": "linear", "factor": 2.0,
                                                                    "rope_theta": 1e4}), 4096),
        (Gemma3TextConfig(max_position_embeddings=1024), 1024),
        (FalconConfig(alibi=True), 0),
        (object(), 0),
    ],
    ids=["plain", "learned", "yarn", "llama3", "linear", "by kind of layer", "alibi", "nothing"],
)  # fmt: skip
def test_what_a_config_states(config: object, expected: int) -> None:
    assert stated_context(config) == expected
