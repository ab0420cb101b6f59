"""Views of a corpus for training, and the stock Trainer on them with no plugin."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import Any

import golden_miniplm as golden
import numpy as np
import pytest
import torch
from paperhooks import DataError
from paperhooks.data import Selection
from paperhooks_miniplm import (
    MemoryRows,
    Row,
    SelectedDataset,
    StreamDataset,
    TrainingCollator,
    collate,
    sequence_mean_loss,
)
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

COLLATOR = TrainingCollator(0, max_length=golden.MAX_LENGTH)


def source(count: int = 20) -> MemoryRows:
    """Row i is [i, 100 + i]."""
    return MemoryRows([[i, 100 + i] for i in range(count)])


def firsts(items: Any) -> list[int]:
    return [int(item["input_ids"][0]) for item in items]


def same(items: list[Any]) -> list[Any]:
    return items


# -- SelectedDataset ---------------------------------------------------------------------------------------------------


def test_items_are_the_chosen_rows_in_the_given_order() -> None:
    data = SelectedDataset(source(), [7, 3, 3])
    assert firsts(data[i] for i in range(3)) == [7, 3, 3]
    assert firsts(data.__getitems__([2, 0])) == [3, 7]
    assert data[-1]["input_ids"].tolist() == [3, 103]
    assert data[0]["input_ids"].dtype == torch.int64
    with pytest.raises(IndexError, match="item 3 was asked for, and there are 3"):
        data[3]
    assert len(SelectedDataset(source())) == 20


def test_a_mask_chooses_like_row_numbers() -> None:
    mask = np.zeros(20, dtype=bool)
    mask[[2, 5]] = True
    assert firsts(SelectedDataset(source(), mask)[i] for i in range(2)) == [2, 5]
    assert len(SelectedDataset(source(), [])) == 0
    selection = Selection(np.array([2, 5]), 20, 0.0)
    assert firsts(SelectedDataset(source(), selection)[i] for i in range(2)) == [2, 5]
    assert firsts(StreamDataset(source(), selection)) == [2, 5]
    with pytest.raises(DataError, match="the scores are of another corpus"):
        SelectedDataset(source(), Selection(np.array([2]), 20, 0.0, {"corpus": {"rows": 20, "sha256": "0"}}))
    with pytest.raises(DataError, match="the selection is of 21 rows"):
        SelectedDataset(source(), Selection(np.array([2, 5]), 21, 0.0))


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([20], "row 20 was chosen from in memory, which has 20"),
        ([-1], "row -1 was chosen"),
        ([0.5], "rows are float64"),
        ([[1]], r"\[1, 1\]; expected row numbers"),
        (np.ones(3, dtype=bool), "mask has 3 entries for 20 rows"),
    ],
)
def test_wrong_row_numbers_are_named(rows, words) -> None:
    with pytest.raises(DataError, match=words):
        SelectedDataset(source(), rows)


def test_spawned_workers_give_what_the_process_itself_gives() -> None:
    data = pickle.loads(pickle.dumps(SelectedDataset(source(), [9, 8, 7, 6])))
    alone = DataLoader(data, batch_size=2, collate_fn=COLLATOR)
    options = {"num_workers": 1, "multiprocessing_context": "spawn", "timeout": 120}
    loader = DataLoader(data, batch_size=2, collate_fn=COLLATOR, **options)
    for one, two in zip(alone, loader, strict=True):
        assert torch.equal(one["input_ids"], two["input_ids"])


# -- StreamDataset -----------------------------------------------------------------------------------------------------


def test_ranks_share_the_rows_and_get_equally_many() -> None:
    streams = [StreamDataset(source(), rank=rank, world=3, block=2) for rank in range(3)]
    found = [firsts(stream) for stream in streams]
    assert found == [[0, 1, 6, 7, 12, 13], [2, 3, 8, 9, 14, 15], [4, 5, 10, 11, 16, 17]]
    assert [len(stream) for stream in streams] == [6, 6, 6]
    assert firsts(streams[0]) == found[0], "another epoch"


@pytest.mark.parametrize("block", [1, 4, 7])
def test_workers_give_every_row_once(block: int) -> None:
    stream = StreamDataset(source(), range(3, 20), block=block)
    loader = DataLoader(stream, batch_size=4, num_workers=2, collate_fn=same, timeout=120)
    batches = [firsts(batch) for batch in loader]
    found = [row for batch in batches for row in batch]
    assert sorted(found) == list(range(3, 20)) == firsts(stream)
    if block == 4:  # the batch size: corpus order
        assert found == list(range(3, 20))


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("taken", [0, 1, 3, 5, 10])
def test_a_stream_goes_on_where_it_stopped(block: int, taken: int) -> None:
    whole = firsts(StreamDataset(source(), rank=1, world=2, block=block))
    first = StreamDataset(source(), rank=1, world=2, block=block)
    begun = iter(first)
    found = [next(begun) for _ in range(min(taken, len(whole)))]
    second = StreamDataset(source(), rank=1, world=2, block=block)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert firsts(found) + firsts(second) == whole
    assert firsts(second) == whole
    assert firsts(first) == whole, "an iteration that was given up is not gone on with unasked"


def test_a_stream_goes_on_with_another_number_of_ranks() -> None:
    old = [StreamDataset(source(24), rank=rank, world=3) for rank in range(3)]
    given = []
    for stream in old:
        begun = iter(stream)
        given += firsts(next(begun) for _ in range(4))
    new = [StreamDataset(source(24), rank=rank, world=2) for rank in range(2)]
    for stream in new:
        stream.load_state_dict(old[0].state_dict())
        given += firsts(stream)
    assert sorted(given) == list(range(24))


def test_states_of_other_data_are_refused() -> None:
    state = StreamDataset(source(), [1, 2, 3]).state_dict()
    for other, words in (
        (StreamDataset(source(), [1, 2, 4]), "its source is"),
        (StreamDataset(source(), [1, 2]), "its rows is 3, here it is 2"),
        (StreamDataset(source(), [1, 2, 3], block=2), "its block is 1"),
    ):
        with pytest.raises(DataError, match=words):
            other.load_state_dict(state)
    stream = StreamDataset(source(), block=4)
    next(iter(stream))
    other = StreamDataset(source(), world=2, block=4)
    other.load_state_dict(stream.state_dict())
    with pytest.raises(DataError, match="stopped inside a block"):
        next(iter(other))
    with pytest.raises(DataError, match="rank 2 of 2"):
        StreamDataset(source(), rank=2, world=2)


# -- TrainingCollator --------------------------------------------------------------------------------------------------


def official_rows() -> list[np.ndarray]:
    return [np.array(ids) for _, ids in golden.collate_inputs()["rows"]]


def sums(model: Any, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed loss and counted tokens of each row of a batch of :func:`collate`, from full logits."""
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["label"], reduction="none")
    return (losses * batch["loss_mask"]).sum(1), batch["loss_mask"].sum(1)


def test_the_stock_loss_sees_exactly_the_official_mask() -> None:
    batch, official = COLLATOR(official_rows()), collate(official_rows(), max_length=64, pad_id=0)
    assert batch["input_ids"].shape == (6, 65)
    counted = batch["labels"][:, 1:] != -100
    assert torch.equal(counted.float(), official["loss_mask"])
    assert torch.equal(batch["labels"][:, 1:][counted], official["label"][counted])
    assert torch.equal(batch["input_ids"][:, :-1] * official["attention_mask"], official["input_ids"])
    total, count = sums(golden.ref(), official)
    with torch.no_grad():
        found = golden.ref()(**batch)
        rows = sequence_mean_loss(found, batch["labels"])
    assert float(found.loss) == pytest.approx(float(total.sum() / count.sum()), abs=1e-5)
    assert float(rows) == pytest.approx(float((total / count).mean()), abs=1e-5)


def test_the_collator_takes_items_rows_and_lists() -> None:
    ids = [5, 0, 6, 7]
    wanted = COLLATOR([ids])
    assert wanted["labels"].tolist() == [[-100, 0, -100, 7]]
    for item in ({"input_ids": torch.tensor(ids)}, Row(np.array(ids)), np.array(ids, dtype=np.uint16)):
        found = COLLATOR([item])
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    apart = TrainingCollator(0, pad_id=3, pad_to=6)([ids])
    assert apart["input_ids"].tolist() == [[5, 0, 6, 7, 3, 3]]
    assert apart["labels"].tolist() == [[-100, 0, -100, 7, -100, -100]]
    assert TrainingCollator(0, mask_after_eos=False)([ids])["labels"].tolist() == [[-100, 0, 6, 7]]
    assert TrainingCollator(None)([ids])["labels"].tolist() == [[-100, 0, 6, 7]]


def test_the_collator_of_a_tokenizer() -> None:
    found = TrainingCollator.from_tokenizer(golden.tokenizer("tok_b"), max_length=16)
    assert (found.eos_id, found.max_length) == (golden.tokenizer("tok_b").eos_token_id, 16)

    class Endless:
        eos_token_id = None

    with pytest.raises(DataError, match="Endless has no end-of-sequence token"):
        TrainingCollator.from_tokenizer(Endless())


def test_rows_without_target_are_harmless_beside_others_and_told_of_alone(caplog) -> None:
    batch = COLLATOR([[3], [0, 5], [5, 6, 7]])
    with torch.no_grad():
        assert torch.isfinite(golden.ref()(**batch).logits).all()
        alone = golden.ref()(**COLLATOR([[5, 6, 7]])).loss
        assert float(golden.ref()(**batch).loss) == pytest.approx(float(alone), abs=1e-5)
    assert not caplog.text
    assert COLLATOR([[3], [0, 5]])["labels"].eq(-100).all()
    assert "no row of this batch of 2 has a token to predict" in caplog.text


def test_micro_batches_without_target_contribute_nothing_to_the_official_mean(tmp_path: Path) -> None:
    model, labels = golden.fresh("ref"), torch.tensor([[-100, -100]])
    loss = sequence_mean_loss(model(torch.tensor([[1, 2]])), labels, num_items_in_batch=torch.tensor(3))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and not bool(p.grad.any()) for p in model.parameters())
    for items in (None, 0, torch.tensor(0)):
        with pytest.raises(DataError, match="nothing to learn in this step"):
            sequence_mean_loss(model(torch.tensor([[1, 2]])), labels, items)
    rows, options = [[0, 7], [5, 6, 7]], {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    for data in (rows, rows[:1] * 2):
        run = trainer(
            golden.fresh("ref"),
            tmp_path,
            SelectedDataset(MemoryRows(data)),
            compute_loss_func=sequence_mean_loss,
            **options,
        )
        run.loss_is_scaled_for_ga = False
        with contextlib.nullcontext() if data is rows else pytest.raises(DataError, match="nothing to learn"):
            run.train()
        assert all(bool(p.isfinite().all()) for p in run.model.parameters())


def test_ids_that_a_model_does_not_have_are_named_with_their_row() -> None:
    source = MemoryRows([[1, 2], [3, 512], [4, -1]])
    for data in (SelectedDataset(source, [1, 0], vocabulary=512), StreamDataset(source, [1, 0], vocabulary=512)):
        with pytest.raises(DataError, match="row 1 of in memory has the id 512; the model has 0 to 511"):
            next(iter(data))
    with pytest.raises(DataError, match="row 2 of in memory has the id -1"):
        SelectedDataset(source, vocabulary=512)[2]
    with pytest.raises(DataError, match="row 1 of the batch has the id 512"):
        TrainingCollator.from_tokenizer(golden.tokenizer())([[1, 2], [3, 512]])


# -- the stock Trainer -------------------------------------------------------------------------------------------------


def trainer(model: Any, out: Path, data: Any, **options: Any) -> Trainer:
    function = options.pop("compute_loss_func", None)
    arguments = {
        "output_dir": str(out), "use_cpu": True, "max_steps": 1, "per_device_train_batch_size": 4,
        "learning_rate": 0.1, "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0.0,
        "report_to": "none", "save_strategy": "no", "logging_steps": 1, "disable_tqdm": True, "seed": 3,
    }  # fmt: skip
    return Trainer(
        model=model,
        args=TrainingArguments(**{**arguments, **options}),
        train_dataset=data,
        data_collator=COLLATOR,
        compute_loss_func=function,
    )


def selected(count: int) -> SelectedDataset:
    rows = golden.stable_indices("0.5")
    return SelectedDataset(MemoryRows(golden.chunks()), rows[:: len(rows) // count][:count])


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def test_the_stock_trainer_trains_on_a_selection_and_its_loss_is_the_plain_one(tmp_path: Path) -> None:
    data, model = selected(4), golden.fresh("ref")
    total, count = sums(model, collate([item["input_ids"].numpy() for item in data], max_length=64, pad_id=0))
    run = trainer(model, tmp_path, data, max_steps=6)
    run.train()
    assert losses(run)[0] == pytest.approx(float(total.sum() / count.sum()), abs=2e-5)
    assert losses(run)[-1] < losses(run)[0] - 0.05


def test_the_stock_trainer_gives_the_official_mean_when_asked(tmp_path: Path) -> None:
    data, weights = selected(4), []
    total, count = sums(golden.ref(), collate([item["input_ids"].numpy() for item in data], max_length=64, pad_id=0))
    for size, steps in ((4, 1), (1, 4)):
        model = golden.fresh("ref")
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps}
        run = trainer(model, tmp_path, data, compute_loss_func=sequence_mean_loss, **options)
        run.loss_is_scaled_for_ga = False
        run.train()
        assert losses(run)[0] == pytest.approx(float((total / count).mean()), abs=2e-5)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-6)
    with pytest.raises(DataError, match="no row of this batch"), torch.no_grad():
        sequence_mean_loss(golden.ref()(torch.tensor([[1, 2]])), torch.tensor([[-100, -100]]))


def test_the_stock_trainer_takes_a_stream(tmp_path: Path) -> None:
    stream = StreamDataset(MemoryRows(golden.chunks()), golden.stable_indices("0.5")[:40], block=4)
    run = trainer(golden.fresh("ref"), tmp_path, stream, max_steps=3)
    run.train()
    first = [np.array(golden.chunks()[row]) for row in golden.stable_indices("0.5")[:4]]
    total, count = sums(golden.ref(), collate(first, max_length=64, pad_id=0))
    assert losses(run)[0] == pytest.approx(float(total.sum() / count.sum()), abs=2e-5)
    assert len(losses(run)) == 3
