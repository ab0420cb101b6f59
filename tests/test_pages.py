"""Pages of the documentation whose Python stands by itself, or with little in front of it: it runs, and is right."""

from __future__ import annotations

import importlib
import re
import sys
import types
from pathlib import Path
from typing import Any

import paperhooks
import pytest
import torch
from paperhooks import Artefact
from paperhooks.authoring.template import create_project
from paperhooks.testing import ChildError, MethodContract, fingerprint, tiny_llama, tiny_vlm, vlm_inputs
from repository import ROOT

pytest_plugins = ["paperhooks.testing.fixtures"]

FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)
#: What a page takes for granted.
GIVEN: dict[str, Any] = {
    "coordinates": dict,
    "compose": lambda: {
        "torch": torch,
        "model": tiny_llama(),
        "inputs": {"input_ids": torch.tensor([[5, 6, 7]]), "max_new_tokens": 2},
        "direction": torch.ones(32) / 32**0.5,
    },
}


@pytest.fixture
def page(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> types.ModuleType:
    """A module that has run all Python of a page, one block after the other."""
    file = ROOT / "docs" / f"{request.param}.md"
    module = types.ModuleType("page")  # dataclasses look their module up
    monkeypatch.setitem(sys.modules, "page", module)
    vars(module).update(GIVEN[request.param]())
    exec(compile("\n".join(FENCE.findall(file.read_text(encoding="utf-8"))), str(file), "exec"), vars(module))
    return module


@pytest.mark.parametrize("page", ["coordinates"], indirect=True)
def test_the_page_prints_what_it_shows(page: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "coordinates.md").read_text(encoding="utf-8")
    shown = re.findall(r"^    (layer \d.*|\[1, 20, 100\])$", text, re.M)
    assert len(shown) == 7
    assert capsys.readouterr().out.splitlines() == shown


@pytest.mark.parametrize("page", ["coordinates"], indirect=True)
def test_original_tensors_are_brought_to_living_coordinates(page: types.ModuleType) -> None:
    class Check(page.Look):
        @page.hookimpl
        def pre_attention(self, site, call, inputs):
            torch.testing.assert_close(page.living(inputs, call.image_mask), inputs.image_mask)
            seen.append(site.index)

    seen: list[int] = []
    model = tiny_vlm("llava")
    with page.attach(model, page.Dropper(), page.KeepSeen(), Check()), torch.no_grad():
        model(**vlm_inputs(model, ((3, 12, 5),)))
    assert seen == list(range(6))


CHECKS = {
    "test_batch_equals_singles": [("left", "sdpa"), ("right", "sdpa"), ("right", "eager")],
    "test_short_prompts": [()],
    "test_batched_generation_equals_singles": [("sdpa",)],
    "test_behind_a_dropper": [("left",), ("right",)],
    "test_decoding_behind_a_dropper": [()],
    "test_rows_of_a_cache_may_change": [()],
    "test_a_cache_outlives_the_session": [()],
    "test_undo_is_exact": [()],
    "test_nothing_is_gathered": [()],
    "test_wrong_options_are_refused": [()],
    "test_gradients_are_not_cut": [()],
}


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    ("page", "method", "flags"),
    [
        ("coordinates", "KeepSeen", {"vision": True, "recompute": False}),
        ("compose", "KeepHalf", {"recompute": False}),
        ("compose", "KeepHalf", {"recompute": False, "vision": True}),
        ("compose", "Steer", {}),
    ],
    indirect=["page"],
    ids=["KeepSeen", "KeepHalf", "KeepHalf of images", "Steer"],
)
def test_methods_of_a_page_keep_the_contract(
    page: types.ModuleType, method: str, flags: dict[str, Any], check: str
) -> None:
    make = getattr(page, method)
    contract = type("Contract", (MethodContract,), {"make": lambda self: make(), **flags})()
    if "gradients" in check and not contract.traits.training:
        pytest.skip("not for training")
    for arguments in CHECKS[check]:
        getattr(contract, check)(*arguments)


@pytest.mark.parametrize("page", ["compose"], indirect=True)
@pytest.mark.parametrize(
    "check",
    [
        "test_rows_of_a_cache_may_change",
        "test_a_cache_may_be_cut_back",
        "test_a_cache_outlives_the_session",
        "test_short_prompts",
        "test_decoding_behind_a_dropper",
    ],
)
def test_state_of_a_page_follows_the_cache(page: types.ModuleType, check: str) -> None:
    contract = type("Contract", (MethodContract,), {"make": lambda self: page.Gap(), "recompute": False})()
    getattr(contract, check)()


def _example(page: str, holding: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """The one block of a page that holds these words, as a module in a file."""
    (block,) = (b for b in FENCE.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")) if holding in b)
    name = f"example_of_{page.replace('-', '_')}"
    (folder / f"{name}.py").write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(sys.modules, name, None)  # forgotten after the test
    del sys.modules[name]
    return importlib.import_module(name)


@pytest.mark.parametrize("waits", [1, 2])
def test_the_example_of_a_test_with_an_accelerator(
    emulated: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: int
) -> None:
    module = _example("devices", "pytest_plugins", tmp_path, monkeypatch)
    module.MyMethod.traits = module.Traits(layers=range(2, 2 + waits))
    if waits == 1:
        module.test_my_method_waits_once_a_prefill(emulated)
    else:
        with pytest.raises(AssertionError, match="waits of the host"):
            module.test_my_method_waits_once_a_prefill(emulated)


@pytest.mark.parametrize("declared", [True, False])
def test_the_example_of_a_test_with_several_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declared: bool
) -> None:
    """With a generated project, and the line in it that declares DDP."""
    source = create_project("my-method", tmp_path) / "src"
    file = source / "paperhooks_my_method" / "method.py"
    if declared:
        text = file.read_text(encoding="utf-8")
        assert text.count("# parallel=") == 1
        file.write_text(text.replace("# parallel=", "parallel="), encoding="utf-8")
    monkeypatch.syspath_prepend(str(source))
    try:
        module = _example("write-a-plugin", "run_ranks(", tmp_path, monkeypatch)
        if declared:
            module.test_ddp_equals_one_process()
        else:
            with pytest.raises(ChildError, match="UnsupportedModel"):
                module.test_ddp_equals_one_process()
    finally:
        for name in [name for name in sys.modules if name.startswith("paperhooks_my_method")]:
            del sys.modules[name]


def test_messages_on_the_page_of_errors_are_those_of_the_code() -> None:
    """Between the dots; strings that the code joins are joined."""
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.+?`.*?) \|", text.split("## Caches and calls")[1], re.M)
    messages = [message for cell in cells for message in re.findall("`(.+?)`", cell)]
    assert len(messages) > 20
    files = (ROOT / "core" / "src").rglob("*.py")
    source = re.sub(r'"\s*\n\s*f?"', "", "".join(file.read_text(encoding="utf-8") for file in files))
    parts = [part.strip("[] ") for message in messages for part in message.split("...")]
    assert [part for part in parts if part not in source] == []


def test_levels_of_a_page_are_offered_and_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "compression-levels.md").read_text(encoding="utf-8")
    offer, leave_out, tests, search, use = FENCE.findall(text)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    exec(offer + leave_out + tests + search, vars(module))
    for contract in (module.TestNearest(), module.TestLeaveOut()):
        for check in sorted(name for name in dir(contract) if name.startswith("test_")):
            getattr(contract, check)(*([monkeypatch] if check == "test_switching_is_undone_exactly" else []))
    model, fresh, ids = tiny_llama(layers=2), tiny_llama(layers=2), torch.tensor([[5, 6, 7]])
    before = fingerprint(model)
    monkeypatch.chdir(tmp_path)
    vars(module).update(paperhooks=paperhooks, model=model, texts=[[5, 6, 7, 8], [9, 10, 11]])
    exec(use, vars(module))
    said = capsys.readouterr().out
    assert said.startswith("weights of descent: ")
    assert "bits'" in said
    Artefact.load("run").apply(fresh)
    assert torch.equal(fresh(ids).logits, model(ids).logits)
    module.artefact.undo()
    assert fingerprint(model) == before


def test_the_task_of_a_page_keeps_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8").partition("## A task of your own")[2]
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    exec("\n".join(FENCE.findall(text)), vars(module))
    contract = module.TestCapitals()
    contract.test_a_task_goes_to_another_process()
    for layout in ("prepend", "text-only"):
        contract.test_layouts(layout, tmp_path / layout)
    others = {
        "test_a_task_goes_to_another_process",
        "test_layouts",
        "test_reading_documents_and_replies_loads_no_torch",
    }
    for check in sorted({name for name in dir(contract) if name.startswith("test_")} - others):
        getattr(contract, check)(tmp_path / check)
