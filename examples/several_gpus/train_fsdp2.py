"""Train with FSDP2 and a method: every process holds a part of the model, and batches of its own.

torchrun --nproc-per-node 2 examples/several_gpus/train_fsdp2.py
"""

from __future__ import annotations

from typing import Any

import paperhooks
import torch
from paperhooks import LossContext
from paperhooks.testing import tiny_vlm, vlm_inputs
from paperhooks.training import compute_loss
from paperhooks_pyramiddrop import PyramidDrop
from torch import distributed
from torch.distributed.fsdp import fully_shard


def batch_of(model: Any, step: int) -> dict[str, Any]:
    """Two prompts with an image each; put your data loader here."""
    batch = vlm_inputs(
        model, ((3, 12, 6), (4, 8, 5)), seed=distributed.get_world_size() * step + distributed.get_rank()
    )
    labels = batch["input_ids"].clone()
    labels[:, :-4] = -100
    return {**batch, "labels": labels}


def main() -> None:
    """Five steps, and what the session says of the model."""
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    device = torch.device("cuda", distributed.get_rank()) if torch.cuda.is_available() else torch.device("cpu")
    model = tiny_vlm("llava").to(device).train()  # put your model here
    for layer in model.get_decoder().layers:
        fully_shard(layer)
    fully_shard(model)
    # The same before sharding: hooks stay on the layers. The optimiser comes after it, as FSDP2 wants it.
    with paperhooks.attach(model, PyramidDrop(stages={2: 0.5, 4: 0.25})) as session:
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
        for step in range(5):
            batch = batch_of(model, step)
            loss = compute_loss(session, LossContext(model, batch, session=session))
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            total = loss.detach().clone()
            distributed.all_reduce(total)
            if distributed.get_rank() == 0:
                print(f"step {step}: loss {float(total) / distributed.get_world_size():.3f}")
        if distributed.get_rank() == 0:
            print(session.describe())
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
