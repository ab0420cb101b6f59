"""Serve one model whose layers lie on several devices: accelerate moves what they hand on.

python examples/several_gpus/serve_device_map.py
"""

from __future__ import annotations

import tempfile

import paperhooks
import torch
from paperhooks.testing import tiny_llava, vlm_inputs
from paperhooks_pyramiddrop import PyramidDrop


def main() -> None:
    """The same tokens from a model in one place and from one that a device map lays out."""
    devices: list[int | str] = list(range(torch.cuda.device_count())) or ["cpu", "disk"]
    with tempfile.TemporaryDirectory() as folder:
        whole = tiny_llava()  # put your model's name in the place of the folder
        whole.save_pretrained(folder)
        places = {f"model.language_model.layers.{n}": devices[n * len(devices) // 6] for n in range(6)}
        first, last = devices[0], devices[0]
        places |= {
            "model.vision_tower": first,
            "model.multi_modal_projector": first,
            "model.language_model.embed_tokens": first,
            "model.language_model.norm": last,
            "model.language_model.rotary_emb": first,
            "lm_head": last,
        }
        # The class of yours, such as LlavaForConditionalGeneration.
        spread = type(whole).from_pretrained(folder, device_map=places, offload_folder=folder)
        method = PyramidDrop(stages={2: 0.5, 4: 0.25})
        found = []
        for model in (whole, spread):
            inputs = vlm_inputs(whole, ((3, 12, 5),))
            with paperhooks.attach(model, method) as session:
                print(f"spread: {session.view.spread}")
                found.append(model.generate(**inputs, max_new_tokens=6, do_sample=False).tolist())
        print("the same tokens:", found[0] == found[1])


if __name__ == "__main__":
    main()
