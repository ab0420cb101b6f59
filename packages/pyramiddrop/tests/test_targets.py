"""Where the answers begin: labels, a target_mask in their place, a function, or a refusal, but never another row."""

from __future__ import annotations

import pytest
import torch
from paperhooks import DataError, HooksTrainerMixin, attach
from paperhooks.testing import tiny_vlm, vlm_inputs
from paperhooks_pyramiddrop import PyramidDrop, Ranking, policies
from transformers import Trainer, TrainingArguments

STAGES = {2: 0.5, 4: 0.25}
PARTS = ((3, 12, 9), (2, 8, 6))


def batch_of(model, pad="right"):
    inputs = vlm_inputs(model, PARTS, pad=pad)
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    start = inputs["attention_mask"].argmax(1)[:, None]
    place = torch.arange(labels.shape[1]) - start
    return inputs, labels.masked_fill(place < torch.tensor([[18], [12]]), -100)


def spied(seen, **options):
    def spy(given: Ranking):
        seen.append(given.query_rows[given.query_valid].tolist())
        return policies.last_token(given)

    return PyramidDrop(stages=STAGES, rank=spy, **options)


@pytest.mark.parametrize("name", ["target_mask", "completion_mask"])
@pytest.mark.parametrize("pad", ["left", "right"])
def test_a_target_mask_stands_for_labels(pad, name):
    """The same rows rank, and the same are protected, as with the labels that say the same."""
    model, seen, drops = tiny_vlm().train(), [], []
    inputs, labels = batch_of(model, pad)
    with attach(model, spied(seen, record=drops)):
        model(**inputs, labels=labels)
        with_labels, kept = seen.copy(), [d.kept for d in drops]
        seen.clear()
        model(**batch_of(model, pad)[0], **{name: labels != -100})
    assert seen == with_labels
    assert all(torch.equal(d.kept, k) for d, k in zip(drops[2:], kept, strict=True))


@pytest.mark.filterwarnings("ignore:.*visual_mask:UserWarning")
def test_training_without_labels_or_targets_is_refused():
    model = tiny_vlm().train()
    inputs, _ = batch_of(model)
    with attach(model, PyramidDrop(stages=STAGES)):
        with pytest.raises(DataError, match=r"without labels.*target_mask=.*HooksTrainerMixin.*query='last'"):
            model(**inputs)
        with torch.no_grad():
            model(**batch_of(model)[0])  # generation from a model in training mode
        model(**vlm_inputs(model, ((9,), (5,))))  # no image, nothing to rank
        model.eval()
        model(**batch_of(model)[0])


@pytest.mark.parametrize("checkpointing", [True, False], ids=["reentrant", "checkpointed"])
def test_training_without_labels_is_refused_with_checkpointing_too(checkpointing):
    model = tiny_vlm().train()
    model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
    model.enable_input_require_grads()
    with attach(model, PyramidDrop(stages=STAGES)), pytest.raises(DataError, match="without labels"):
        model(**batch_of(model)[0], use_cache=False)


@pytest.mark.parametrize("query", ["last", lambda call: torch.zeros(call.input_ids.shape, dtype=torch.bool)])
def test_who_says_which_rows_rank_needs_no_labels(query):
    model = tiny_vlm().train()
    with attach(model, PyramidDrop(stages=STAGES, query=query)):
        logits = model(**batch_of(model)[0]).logits
    assert logits.requires_grad


class _Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, i):
        ids = torch.randint(3, 90, (18,), generator=torch.Generator().manual_seed(i))
        ids[3:11] = 95
        return {"input_ids": ids, "labels": ids.masked_fill(torch.arange(18) < 13, -100)}


class MyTrainer(HooksTrainerMixin, Trainer):
    """What the message recommends."""


def test_a_trainer_that_takes_the_labels_away_is_told(tmp_path):
    """Label smoothing pops the labels before the model is called."""
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, label_smoothing_factor=0.1, report_to=[], use_cpu=True, disable_tqdm=True
    )
    model = tiny_vlm()
    with (
        attach(model, PyramidDrop(stages=STAGES)),
        pytest.raises(DataError, match=r"label smoothing.*pass target_mask="),
    ):
        Trainer(model=model, args=arguments, train_dataset=_Rows()).train()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_mixin_hands_the_targets_over(tmp_path, smoothing):
    """With label smoothing the rows that rank are those that rank without it."""
    arguments = TrainingArguments(
        str(tmp_path), max_steps=1, label_smoothing_factor=smoothing, report_to=[], use_cpu=True, disable_tqdm=True
    )
    seen = []
    with attach(model := tiny_vlm(), spied(seen)):
        MyTrainer(model=model, args=arguments, train_dataset=_Rows()).train()
    assert seen == [[12, 12], [8, 8]]


# -- functions of the caller's own -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (lambda ids: torch.zeros_like(ids), r"returned int64 \[2, 24\]; expected bool \[2, 24\]"),
        (
            lambda ids: torch.zeros_like(ids, dtype=torch.bool)[:, :-1],
            r"returned bool \[2, 23\]; expected bool \[2, 24\]",
        ),
        (lambda ids: torch.zeros_like(ids, dtype=torch.bool)[:1], r"returned bool \[1, 24\]; expected bool \[2, 24\]"),
        (lambda ids: torch.zeros(24, dtype=torch.bool), r"returned bool \[24\]; expected bool \[2, 24\]"),
        (lambda ids: torch.zeros_like(ids).float(), r"returned float32 \[2, 24\]"),
        (lambda ids: [[True] * 24] * 2, "returned list; expected bool"),
        (lambda ids: None, "returned NoneType"),
    ],
    ids=["numbers", "short", "one row", "flat", "float", "list", "nothing"],
)
@torch.no_grad()
def test_a_query_function_that_gives_another_form_is_refused(rows, words):
    model = tiny_vlm()
    method = PyramidDrop(stages=STAGES, query=lambda call: rows(call.input_ids))
    with attach(model, method), pytest.raises(DataError, match=f"query function {words}"):
        model(**batch_of(model)[0])
