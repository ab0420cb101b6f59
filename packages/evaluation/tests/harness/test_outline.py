"""Which tasks and groups a harness is told of."""

from __future__ import annotations

from paperhooks_evaluation import Document
from paperhooks_evaluation.harness.outline import Bundle, make_outline


def documents(*groups: dict[str, str]) -> list[Document]:
    return [Document(str(number), each) for number, each in enumerate(groups)]


def test_one_task_without_groups_and_of_a_single_group() -> None:
    for groups in ({}, {"kind": "a"}):
        outline = make_outline("x", documents(groups, groups))
        assert [(leaf.name, len(leaf.documents)) for leaf in outline.leaves] == [("x", 2)]
        assert outline.bundles == []


def test_groupings_that_contain_one_another_become_groups_in_groups() -> None:
    levels = {"design": ("arts", "agnostic"), "music": ("arts", "agnostic"), "math": ("science", "agnostic"),
              "history": ("", "specific")}  # fmt: skip
    outline = make_outline(
        "x",
        documents(
            *({"subject": s, "domain": d, "subset": u, "form": form} for s, (d, u) in levels.items() for form in "ab")
        ),
    )
    assert [leaf.name for leaf in outline.leaves] == ["x_design", "x_music", "x_math", "x_history"]
    assert [[one.id for one in leaf.documents] for leaf in outline.leaves] == [
        ["0", "1"],
        ["2", "3"],
        ["4", "5"],
        ["6", "7"],
    ]
    assert list(outline.bundles) == [
        Bundle("x_arts", "arts", ["x_design", "x_music"]),
        Bundle("x_science", "science", ["x_math"]),
        Bundle("x_agnostic", "agnostic", ["x_arts", "x_science"]),
        Bundle("x_specific", "specific", ["x_history"]),
        Bundle("x", "x", ["x_agnostic", "x_specific"]),
    ]


def test_a_grouping_across_the_others_becomes_tags() -> None:
    rows = [("a", "p", "u"), ("b", "p", "v"), ("c", "q", "u"), ("d", "q", "v")]
    outline = make_outline("x", documents(*({"subject": s, "domain": d, "size": z} for s, d, z in rows)))
    assert [tuple(leaf.tags) for leaf in outline.leaves] == [
        ("x_tasks", "x_u"), ("x_tasks", "x_v"), ("x_tasks", "x_u"), ("x_tasks", "x_v"),
    ]  # fmt: skip
    assert [bundle.name for bundle in outline.bundles] == ["x_p", "x_q", "x"]


def test_names_are_words_and_none_is_given_twice() -> None:
    rows = [("a b", "tasks"), ("a-b", "tasks"), ("a/b", "a b"), ("", "a b")]
    outline = make_outline("x", documents(*({"subject": s, "domain": d} for s, d in rows)))
    assert [leaf.name for leaf in outline.leaves] == ["x_a_b", "x_subject_a_b", "x_subject_a_b_2", "x_others"]
    assert [bundle.name for bundle in outline.bundles] == ["x_domain_tasks", "x_domain_a_b", "x"]
    assert [leaf.alias for leaf in outline.leaves] == ["a b", "a-b", "a/b", "others"]
