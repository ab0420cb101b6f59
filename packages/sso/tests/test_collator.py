"""Batches against the official collator's, and what each layout holds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from paperhooks import DataError
from paperhooks_sso import Objective
from paperhooks_sso.algorithm import GROUPS
from paperhooks_sso.data import ChatFormat, EncodedPrompt, PairCollator, conversation_of, encoded_prompt
from transformers import AutoTokenizer

REFERENCE = Path(__file__).parent / "reference"


def official_examples() -> list[EncodedPrompt]:
    """The three examples of the official preprocessing, which replaces a system text by the principle."""
    chat = ChatFormat(AutoTokenizer.from_pretrained(REFERENCE / "tiny_llama"))
    found = []
    for at, example in enumerate(json.loads((REFERENCE / "encode.json").read_text())["examples"]):
        record = {"instruction": example["instruction"], "history": example["history"]}
        prompts = {
            "plain": chat.prompt_ids(conversation_of({**record, "system": example["system"]}, str(at))),
            "good": chat.prompt_ids(conversation_of(record, str(at)), example["p_system"]),
            "bad": chat.prompt_ids(conversation_of(record, str(at)), example["n_system"]),
        }
        names = {"chosen": "chosen", "rejected": "rejected", "ordinary": "raw"}
        answers = {name: tuple(chat.response_ids(example[theirs])) for name, theirs in names.items()}
        found.append(EncodedPrompt(str(at), {group: tuple(ids) for group, ids in prompts.items()}, answers))
    return found


def small(**changes: Any) -> dict[str, Any]:
    record = {
        "id": "a", "plain_prompt": [1, 2], "good_prompt": [1, 3, 2], "bad_prompt": [1, 4, 4, 2],
        "chosen_ids": [5, 6, 9], "rejected_ids": [7, 9], "ordinary_ids": [8, 8, 9],
    }  # fmt: skip
    return {**record, **changes}


def test_joint_batches_are_those_of_the_official_collator() -> None:
    wanted = json.loads((REFERENCE / "collate.json").read_text())
    batch = PairCollator(pad_id=7, layout="joint")(official_examples())
    for name, values in wanted.items():
        assert batch[name].tolist() == values, name
    assert batch["ids"] == ["0", "1", "2"]


def test_groups_are_as_wide_as_their_own_rows() -> None:
    batch = PairCollator(multiple_of=1)([small(), small(id="b", chosen_ids=[5, 9])])
    assert [batch[group]["input_ids"].shape for group in GROUPS] == [(4, 5), (4, 6), (4, 7)]
    assert batch["bad"]["labels"].tolist()[0] == [-100] * 4 + [8, 8, 9]  # the ordinary answer is preferred
    assert batch["bad"]["labels"].tolist()[2] == [-100] * 4 + [5, 6, 9]
    assert batch["plain"]["attention_mask"].sum(1).tolist() == [5, 4, 4, 4]


def test_shared_rows_begin_each_answer_with_the_last_token_of_the_prompt() -> None:
    part = PairCollator(layout="shared", multiple_of=1)([small()])["good"]
    assert part["input_ids"].tolist() == [[1, 3, 2, 5, 6, 9, 2, 7, 9]]
    assert part["parts"].tolist() == [[0, 0, 1, 1, 1, 1, 2, 2, 2]]
    assert part["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 2, 3, 4]]
    assert part["shift_labels"].tolist() == [[-100, -100, 5, 6, 9, -100, 7, 9, -100]]


def test_flat_batches_begin_anew_with_every_row() -> None:
    batch = PairCollator(layout="flat")([small(), small(id="b")])
    assert batch["lengths"].tolist() == [5, 5, 4, 4, 6, 6, 5, 5, 7, 7, 7, 7]
    assert int((batch["position_ids"] == 0).sum()) == 12
    assert batch["input_ids"].shape == (1, int(batch["lengths"].sum()))
    assert int((batch["shift_labels"] != -100).sum()) == 2 * (3 + 2 + 3 + 2 + 3 + 3)


@pytest.mark.parametrize("layout", ["joint", "group", "shared", "flat"])
def test_groups_that_the_objective_leaves_out_are_not_built(layout: str) -> None:
    objective = Objective(gap=False)
    batch = PairCollator(layout=layout, groups=objective)([small(ordinary_ids=None), small()])
    if layout in ("group", "shared"):
        assert set(batch) == {"plain", "ids"}
    else:
        rows = {"joint": len(batch["input_ids"]), "flat": len(batch.get("lengths", ()))}
        assert rows[layout] == 4


def test_references_travel_with_their_rows() -> None:
    records = [small(reference=[1, 2, 3, 4, 5, 6.5]), small(reference=[7, 8, 9, 10, 11, 12])]
    batch = PairCollator(layout="joint")(records)
    assert batch["reference_logprobs"].tolist() == [1, 7, 2, 8, 3, 9, 4, 10, 5, 11, 6.5, 12]
    assert batch["reference_logprobs"].dtype == torch.float64
    assert PairCollator()(records)["bad"]["reference_logprobs"].tolist() == [5, 11, 6.5, 12]
    assert "reference_logprobs" not in PairCollator(layout="joint")([records[0], small()])


@pytest.mark.parametrize(
    ("record", "options", "words"),
    [
        (small(chosen_ids="ab"), {}, "has chosen_ids = 'ab'; expected token ids"),
        (small(good_prompt=None), {}, "has good_prompt = None"),
        (small(rejected_ids=[True]), {}, r"has rejected_ids = \[True\]"),
        (small(ordinary_ids=None), {}, r"'a' has no 'ordinary' answer, which group 'bad' compares.*SSO\(gap=False\)"),
        (small(reference=[1]), {}, r"has reference = \[1\]; expected six finite numbers"),
        (small(reference=["a"] * 6), {}, r"has reference = \['a', .*; expected six finite numbers"),
        (small(reference=[None] * 6), {}, r"has reference = \[None, .*; expected six finite numbers"),
        (small(reference=[True] * 6), {}, r"has reference = \[True, .*; expected six finite numbers"),
        (small(reference=[1, 2, 3, 4, 5, -math.inf]), {}, r"has reference = .*-inf\]; expected six finite numbers"),
        (small(reference=[1, 2, 3, math.nan, 5, 6]), {}, r"'a' has the reference \(3.0, nan\) in group 'good'"),
        (small(id=[1]), {}, r"record 0 of the batch has id = \[1\]; expected a text or a number"),
        (small(plain_prompt=[]), {}, "'a' has no ids in group 'plain'"),
        (small(), {"max_length": 6}, "'a' has a row of 4 \\+ 3 tokens in group 'bad', and max_length is 6"),
    ],
)
def test_what_cannot_be_trained_on_is_named(record: Any, options: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        PairCollator(**options)([record])


def test_nobody_reads_the_reference_of_a_group_that_is_left_out() -> None:
    record = small(reference=[1, 2, *[math.nan] * 4])
    assert PairCollator(groups=["plain"])([record])["plain"]["reference_logprobs"].tolist() == [1, 2]


def test_an_id_is_a_text() -> None:
    assert PairCollator()([small(id=3), small(id=None)])["ids"] == ["3", "record 1 of the batch"]


def test_a_record_may_be_encoded_already() -> None:
    one = encoded_prompt(small())
    assert encoded_prompt(one) is one
    assert one.rows("bad") == ((1, 4, 4, 2), (8, 8, 9), (5, 6, 9))
    with pytest.raises(ValueError, match="layout is 'packed'"):
        PairCollator(layout="packed")
    with pytest.raises(ValueError, match="groups is 'x'"):
        PairCollator(groups=["x"])
