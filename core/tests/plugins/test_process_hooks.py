"""Process-wide hooks: each plugin's object is loaded, registered and called on its own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path

import pytest
from paperhooks.errors import PluginBroken
from paperhooks.plugins import implemented_hooks
from paperhooks.plugins.containment import contained
from paperhooks.plugins.installed import Catalog
from paperhooks.plugins.methods import known_hooks
from paperhooks.testing.fake_site import FakeSite, info_source

pytest_plugins = ["paperhooks.testing.site_fixtures"]

OFFERS = """
import paperhooks

class Hooks:
    @paperhooks.hookimpl
    def evaluation_tasks(self):
        return {body}
"""


def add(site: FakeSite, number: str, body: str) -> None:
    """A plugin ``t-NUMBER`` whose ``evaluation_tasks`` runs ``body``."""
    module = f"dist_{number}"
    extra = f'hooks="{module}_hooks:Hooks"'
    site.add(f"dist-{number}", f"t-{number}", info_source(f"t-{number}", module, extra=extra))
    (site.root / f"{module}_hooks.py").write_text(OFFERS.format(body=body), encoding="utf-8")


def test_results_are_collected_by_plugin_and_one_that_raises_is_left_out(site: FakeSite, caplog) -> None:
    add(site, "b", "['b']")
    add(site, "a", "['a']")
    add(site, "c", "1 / 0")
    hooks = Catalog.discover().process_hooks
    found = [pair for pair in hooks.collect("evaluation_tasks") if pair[0].startswith("t-")]
    assert found == [
        ("t-a", ["a"]),
        ("t-b", ["b"]),
    ]
    assert "t-c" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_hooks_that_cannot_be_loaded_are_named_and_stop_nobody(site: FakeSite, caplog, monkeypatch) -> None:
    add(site, "a", "['a']")
    site.add("dist-bad", "t-bad", info_source("t-bad", "dist_bad", extra='hooks="dist_bad_hooks:Hooks"'))
    found = Catalog.discover()
    assert ("t-a", ["a"]) in found.process_hooks.collect("evaluation_tasks")
    assert "t-bad" in found.process_hooks.failures
    assert "t-bad (hooks)" in found.deep_check()
    assert "PAPERHOOKS_BLOCK=t-bad" in caplog.text
    monkeypatch.setenv("PAPERHOOKS_STRICT", "1")
    with pytest.raises(PluginBroken, match="t-bad"):
        _ = Catalog.discover().process_hooks


def test_an_unknown_process_wide_hook_is_refused_with_a_hint(site: FakeSite) -> None:
    add(site, "a", "[]")
    file = site.root / "dist_a_hooks.py"
    file.write_text(file.read_text().replace("evaluation_tasks", "evaluation_task"), encoding="utf-8")
    failure = Catalog.discover().process_hooks.failures["t-a"]
    assert "did you mean 'evaluation_tasks'" in str(failure)


def test_the_manager_is_a_pluggy_manager_with_the_declared_hooks(site: FakeSite) -> None:
    add(site, "a", "['a']")
    manager = Catalog.discover().process_hooks.manager
    assert ["a"] in manager.hook.evaluation_tasks()
    assert set(known_hooks("CatalogHooks")) == {"evaluation_tasks", "register_commands"}
    assert "t-a" in [name for name, _ in manager.list_name_plugin()]


def test_implemented_hooks_follow_the_order_of_declaration_and_honour_specname() -> None:
    from paperhooks import hookimpl

    class Method:
        @hookimpl
        def teardown(self, view): ...

        @hookimpl(specname="pre_decoder")
        def first(self, view): ...

        @hookimpl
        def not_a_hook(self): ...

        def setup(self, view): ...

    assert implemented_hooks(Method) == ("pre_decoder", "teardown", "not_a_hook")
    assert known_hooks()[0] == "setup"


def test_a_module_of_plain_functions_may_be_named(site: FakeSite) -> None:
    site.add("dist-m", "t-m", info_source("t-m", "dist_m", extra='hooks="dist_m_hooks"'))
    source = "import paperhooks\n\n@paperhooks.hookimpl\ndef evaluation_tasks():\n    return ['m']\n"
    (site.root / "dist_m_hooks.py").write_text(source, encoding="utf-8")
    assert ("t-m", ["m"]) in Catalog.discover().process_hooks.collect("evaluation_tasks")


@pytest.mark.parametrize(
    "body", ["exit(3)", "(_ for _ in ()).throw(GeneratorExit)", "(_ for _ in ()).throw(KeyboardInterrupt)"]
)
def test_a_hook_cannot_end_the_program(site: FakeSite, body: str) -> None:
    add(site, "a", "['a']")
    add(site, "b", body)
    found = [name for name, _ in Catalog.discover().process_hooks.collect("evaluation_tasks")]
    assert "t-a" in found
    assert "t-b" not in found


@pytest.mark.parametrize(
    "source", ["raise SystemExit\n", "class Hooks:\n    def __init__(self): raise SystemExit\n", "Hooks = 7\n"]
)
def test_hooks_that_end_the_program_while_they_load_stop_nobody(site: FakeSite, source: str) -> None:
    add(site, "a", "['a']")
    add(site, "b", "[]")
    (site.root / "dist_b_hooks.py").write_text(source)
    assert ("t-a", ["a"]) in Catalog.discover().process_hooks.collect("evaluation_tasks")


def test_output_comes_back_whatever_the_order_in_which_threads_end(capsys) -> None:
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with contained("a test"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    inside.wait(10)
    with contained("another test"):
        print("diverted")
        leave.set()
        thread.join(10)
        print("still diverted")
    print("back")
    assert capsys.readouterr() == ("back\n", "diverted\nstill diverted\n")


def test_tasks_that_are_none_are_left_out_and_said(site: FakeSite, caplog) -> None:
    good = "paperhooks.info.TaskInfo('good', 'x', 'a:B')"
    add(site, "a", f"[{good}, 'no task', None]")
    add(site, "b", "7")
    add(site, "c", f"[{good.replace('good', 'other')}]")
    add(site, "d", "[paperhooks.info.TaskInfo(1, None, 'a:B')]")
    (site.root / "dist_a_hooks.py").write_text((site.root / "dist_a_hooks.py").read_text() + "import paperhooks.info\n")
    tasks = Catalog.discover().process_hooks.tasks()
    assert {name: list(found) for name, found in tasks.items() if {"t-a", "t-c"} & set(found)} == {
        "good": ["t-a"], "other": ["t-c"],
    }  # fmt: skip
    for said in ("'no task' is no", "None is no", "7 is no", "TaskInfo.name is 1; expected text"):
        assert said in caplog.text


def test_in_the_background_a_hook_cannot_end_the_program_either(site: FakeSite) -> None:
    """There Ctrl-C is ignored, so that a KeyboardInterrupt is the plugin's own."""
    add(site, "a", "['a']")
    add(site, "b", "(_ for _ in ()).throw(KeyboardInterrupt)")
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        found = [name for name, _ in Catalog.discover().process_hooks.collect("evaluation_tasks")]
    finally:
        signal.signal(signal.SIGINT, before)
    assert "t-a" in found
    assert "t-b" not in found


def test_the_working_folder_and_the_places_of_modules_are_put_back(tmp_path: Path) -> None:
    folder, path = os.getcwd(), list(sys.path)
    with contained("a test"):
        os.chdir(tmp_path)
        sys.path.clear()
    assert (os.getcwd(), sys.path) == (folder, path)
