"""Texts from the standard library, and arithmetic problems."""

from __future__ import annotations

import re
import sys
from itertools import islice

import pytest
from paperhooks.errors import MissingExtra
from paperhooks_testbed import documents, problems
from paperhooks_testbed.text import DOMAINS


@pytest.fixture(scope="module")
def library():
    return [*documents(domain="docstrings"), *documents(domain="topics")]


def test_the_standard_library_alone_gives_a_megabyte(library):
    assert sum(len(d.text) for d in library) > 1_000_000
    assert {d.domain for d in library} == {"docstrings", "topics"}
    assert len({(d.domain, d.source) for d in library}) == len(library)


def test_docstrings_are_those_of_the_modules(library):
    by_source = {d.source: d.text for d in library if d.domain == "docstrings"}
    import textwrap

    assert textwrap.indent.__doc__.split("\n")[0] in by_source["textwrap"]
    assert not any(source.startswith(("site-packages", "test.")) for source in by_source)


def test_order_is_fixed_and_short_documents_are_left_out():
    first = list(islice(documents(min_chars=500, domain="docstrings"), 5))
    assert first == list(islice(documents(min_chars=500, domain="docstrings"), 5))
    assert all(len(d.text) >= 500 for d in first)
    assert [d.source for d in first] == sorted(d.source for d in first)


def test_nothing_is_imported(library):
    assert "turtle" not in sys.modules
    assert any(d.source == "turtle" for d in library)


def test_unknown_domain_is_refused():
    with pytest.raises(ValueError, match="there is no domain 'news'"):
        next(documents(domain="news"))
    assert all(d.domain in DOMAINS for d in islice(documents(), 3))


def test_problems_are_seeded_and_their_solutions_end_with_the_answer():
    pytest.importorskip("reasoning_gym", reason="needs paperhooks-testbed[arithmetic]")
    first = problems(20, seed=1)
    assert first == problems(20, seed=1)
    assert first != problems(20, seed=2)
    last = [re.findall(r"-?\d[\d,]*(?:\.\d+)?", p.solution)[-1] for p in first]
    assert [float(text.replace(",", "")) for text in last] == [float(p.answer.replace(",", "")) for p in first]


def test_missing_library_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(MissingExtra, match=r"pip install 'paperhooks-testbed\[arithmetic\]'"):
        problems(1)
    with pytest.raises(ValueError, match="n must be at least 1"):
        problems(0)
