"""From a training checkpoint to the folder that ships: model, processor, tokenizer and a measured model card."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from paperhooks.io import hash_file
from transformers import LlavaForConditionalGeneration

from paperhooks_testbed.architecture import build_processor
from paperhooks_testbed.evaluate import Share, accuracy, depth_profile, noise_image
from paperhooks_testbed.folders import new_folder
from paperhooks_testbed.questions import KINDS, question_set

__all__ = ["ModelMeasurement", "export", "measure"]


@dataclass(frozen=True)
class ModelMeasurement:
    """Held-out results: accuracy by kind, the same with noise for images, and the depth profile."""

    questions: int
    own: Mapping[str, Share]
    noise: Mapping[str, Share]
    depth: Sequence[Share]


def measure(folder: Path, questions: int = 1000, depth_questions: int = 300) -> ModelMeasurement:
    """Measure the saved model on held-out questions of the ``test`` split, through generate."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, local_files_only=True).eval()
    processor = build_processor()
    asked = question_set("test", questions)
    noise = [noise_image(number) for number in range(len(asked))]
    return ModelMeasurement(
        questions,
        accuracy(model, processor, asked),
        accuracy(model, processor, asked, noise),
        depth_profile(model, processor, asked[:depth_questions]),
    )


def export(
    model: LlavaForConditionalGeneration, run: Mapping[str, Any], folder: Path, questions: int = 1000
) -> ModelMeasurement:
    """Write the model folder with its card; an existing folder is replaced only when everything is written.

    :param model: the trained model; it is written as float32 and not changed.
    :param run: what is known of the training (``settings``, ``steps``, ``seconds``).
    :param folder: where the folder goes.
    :param questions: held-out questions for the card.
    """
    with new_folder(folder, replace=True) as partial:
        model.save_pretrained(partial)
        build_processor().save_pretrained(partial)
        measured = measure(partial, questions, min(questions, 300))
        (partial / "MODEL_CARD.md").write_text(_card(partial, run, measured), encoding="utf-8")
        (partial / "results.json").write_text(json.dumps(_results(partial, run, measured), indent=2) + "\n")
        for path in partial.iterdir():
            path.chmod(0o644)
        partial.chmod(0o755)
    return measured


def _results(folder: Path, run: Mapping[str, Any], measured: ModelMeasurement) -> dict[str, Any]:
    def shares(values: Mapping[str, Share]) -> dict[str, list[int]]:
        return {name: [share.right, share.total] for name, share in values.items()}

    return {
        "run": dict(run),
        "sha256": hash_file(folder / "model.safetensors"),
        "questions": measured.questions,
        "accuracy": shares(measured.own),
        "accuracy_noise": shares(measured.noise),
        "depth_profile": [[share.right, share.total] for share in measured.depth],
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}


def _percent(share: Share) -> str:
    low, high = share.interval
    return f"{100 * share.value:.1f} % ({100 * low:.1f} to {100 * high:.1f}, n = {share.total})"


def _card(folder: Path, run: Mapping[str, Any], measured: ModelMeasurement) -> str:
    kinds = [kind for kind in (*KINDS, "all") if kind in measured.own]
    rows = "\n".join(
        f"| {kind} | {_percent(measured.own[kind])} | {_percent(measured.noise[kind])} |" for kind in kinds
    )
    depth = "\n".join(f"| {r} | {_percent(share)} |" for r, share in enumerate(measured.depth))
    weights = folder / "model.safetensors"
    settings = run.get("settings", {})
    return _TEMPLATE.format(
        steps=run.get("steps"),
        seconds=float(run.get("seconds") or 0) / 60,
        threads=run.get("threads"),
        seed=settings.get("seed"),
        settings=json.dumps(settings, indent=2),
        rows=rows,
        depth=depth,
        size=weights.stat().st_size / 1e6,
        sha=hash_file(weights),
        versions=", ".join(f"{name} {version}" for name, version in _versions().items()),
    )


_TEMPLATE = """\
# The tiny vision-language model of paperhooks-testbed

A stock `LlavaForConditionalGeneration`: a CLIP vision tower of 2 layers, a Llama decoder of 8 layers, width 128,
196 image tokens, a word-level tokenizer. It answers one-word questions about generated images of coloured shapes
and is meant for tests and demonstrations of methods that act on image tokens. It knows nothing else.

## Data

Scenes of 3 to 6 coloured shapes on a 7 x 7 grid, drawn at 224 x 224 pixels, and five kinds of questions: existence,
colour, count, place and two-step (the colour or form of the neighbour of a named shape). Scenes are assigned to
train, dev and test by a hash of their contents, so no test scene occurs in training. Everything is generated by
`paperhooks_testbed`; no outside data was used.

## Training

`python -m paperhooks_testbed.training --out RUN`, seed {seed}, {steps} steps, {seconds:.0f} minutes, {threads}
thread(s). First the patches learn to name what is drawn on them; then the model learns to answer, from two objects a
scene to six, and later from up to nine with drills for two-step questions (`drills.py`, `neighbours.py`).
**In part of the training images the questions cannot see the image in the first one or two decoder layers**
(`HIDDEN_LAYERS` in `curriculum.py`): this makes the model read the image deeper down, as large models do, and is the
reason for the low start of the depth profile below. Nothing was done to the late layers.

```json
{settings}
```

## Held-out results

Exact match of the generated answer on questions of the test split, Wilson 95 % intervals; at the right with every
image replaced by uniform noise.

| kind | accuracy | with noise |
| --- | --- | --- |
{rows}

Accuracy when all image tokens are dropped before layer r (r = 0: the text never sees the image; the last row is the
model as it is):

| r | accuracy |
| --- | --- |
{depth}

## File

`model.safetensors`, float32, {size:.1f} MB, SHA-256 `{sha}`.
Written with {versions}.
"""
