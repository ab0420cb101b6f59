"""Discovery: health of each plugin on its own, names, methods, options."""

from __future__ import annotations

import json
import logging
import sys
from textwrap import dedent

import paperhooks
import pytest
from paperhooks.errors import PluginBroken, PluginConflict, PluginError, PluginIncompatible, PluginNotFound
from paperhooks.io import versions
from paperhooks.plugins import catalog, containment, refresh
from paperhooks.plugins.installed import Catalog
from paperhooks.testing import run_python
from paperhooks.testing.fake_site import METHOD, FakeSite, info_source

pytest_plugins = ["paperhooks.testing.site_fixtures"]

BROKEN = "import a_module_that_is_not_there\n"


def states(found: Catalog) -> dict[str, str]:
    """Name to state of the plugins of the fake site (others may be installed)."""
    return {status.name: status.state for status in found.plugins if status.name.startswith("t-")}


def test_a_healthy_plugin_is_found_with_its_distribution_and_file(site: FakeSite) -> None:
    site.add("dist-one", "t-one", version="2.5")
    status = Catalog.discover().plugin("t-one")
    assert (status.state, status.distribution, status.version) == ("healthy", "dist-one", "2.5")
    assert status.file == str(site.root / "dist_one.py")
    assert status.error == status.traceback == ""


def test_a_broken_plugin_is_named_once_with_the_fix_and_stops_nobody(site: FakeSite, caplog) -> None:
    site.add("dist-bad", "t-bad", BROKEN, requires=["A.Module-that-is-not-there>=2"])
    site.add("dist-one", "t-one")
    with caplog.at_level(logging.WARNING, "paperhooks.plugins.installed"):
        found = Catalog.discover()
        found.method_class("t-one")
    assert states(found) == {"t-bad": "broken", "t-one": "healthy"}
    (record,) = [r for r in caplog.records if "t-bad" in r.getMessage()]
    assert "dist-bad 1.0" in record.getMessage()
    assert "pip install 'A.Module-that-is-not-there>=2', or leave" in record.getMessage()
    with pytest.raises(PluginBroken, match=r"t-bad.*a_module_that_is_not_there.*PAPERHOOKS_BLOCK=t-bad"):
        found.method_class("t-bad")


def with_fields(**fields: object) -> str:
    """Source of a plugin whose PluginInfo got round its checks."""
    return f"""
from paperhooks.info import PluginInfo

class Loose(PluginInfo):
    def __post_init__(self):
        for name, value in {fields!r}.items():
            object.__setattr__(self, name, value)

PLUGIN = Loose("t-bad", 1, "x")
"""


ODD = {
    "exit": "raise SystemExit(3)\n",
    "interrupt": "raise KeyboardInterrupt\n",
    "generator exit": "raise GeneratorExit\n",
    "base exception": "class Odd(BaseException): pass\nraise Odd\n",
    "group": "raise BaseExceptionGroup('x', [SystemExit(3)])\n",
    "error": "1 / 0\n",
    "no info": "PLUGIN = 7\n",
    "syntax": "def broken(:\n",
    "null": "\0\n",
    "mute": "class Mute(Exception):\n    def __str__(self): raise RuntimeError\nraise Mute\n",
    "mute exit": "class Mute(SystemExit):\n    def __str__(self): raise SystemExit\nraise Mute\n",
    "odd name": "raise ModuleNotFoundError(name=7)\n",
    "odd class": "class Odd:\n    @property\n    def __class__(self): raise SystemExit\nPLUGIN = Odd()\n",
    "module": "import sys\ndel sys.modules[__name__]\n",
    "recursion": "def f(): f()\nf()\n",
    "api none": with_fields(api=None),
    "api text": with_fields(api="1"),
    "api true": with_fields(api=True),
    "name": with_fields(name=3),
    "summary": with_fields(summary=b"x"),
    "methods": with_fields(methods=[("t-bad", "a:B")]),
    "method names": with_fields(methods={1: "a:B"}),
    "method targets": with_fields(methods={"t-bad": 1}),
    "paper": with_fields(paper="2401.00001"),
    "hooks": with_fields(hooks=("a", "b")),
}


@pytest.mark.parametrize("case", ODD)
def test_whatever_a_plugin_does_at_import_the_others_are_listed(site: FakeSite, case: str, monkeypatch) -> None:
    site.add("dist-bad", "t-bad", ODD[case])
    site.add("dist-one", "t-one")
    found = Catalog.discover()
    assert states(found) == {"t-bad": "broken", "t-one": "healthy"}
    json.dumps([status.as_dict() for status in found.plugins])
    for name in ("t-bad", "Dist_Bad"):
        monkeypatch.setenv("PAPERHOOKS_BLOCK", name)
        assert states(Catalog.discover()) == {"t-bad": "blocked", "t-one": "healthy"}


@pytest.mark.parametrize(
    ("entries", "name"),
    [
        (b"[paperhooks.plugins]\nno equals sign\n", "no equals sign"),
        (b"[paperhooks.plugins]\nt-bad = not a target\n", "t-bad"),
        (b"[paperhooks.plugins]\nt-bad =\n", "t-bad"),
        (b"[paperhooks.plugins]\n= dist_bad:PLUGIN\n", ""),
        ("[paperhooks.plugins]\nt-bad = dist_bad:PLUGIN\n".encode("utf-16"), "t-bad"),
        (b"\xef\xbb\xbf[paperhooks.plugins]\nt-bad = \n", "t-bad"),
        (b"# caf\xe9\n[paperhooks.plugins]\nt-bad = dist_bad:PLUGIN\n", "t-bad"),
        (b"[paperhooks.plugins]\nt-\x1b[31mbad = dist_bad:PLUGIN\n", r"t-\x1b[31mbad"),
    ],
)
def test_entry_points_that_cannot_be_read_are_broken_and_stop_nobody(
    site: FakeSite, entries, name, monkeypatch
) -> None:
    site.add("dist-bad", "t-bad", entries=entries)
    site.add("dist-one", "t-one")
    found = {status.distribution: status for status in Catalog.discover().plugins}
    assert (found["dist-bad"].name, found["dist-bad"].state) == (name, "broken")
    assert found["dist-one"].healthy
    monkeypatch.setenv("PAPERHOOKS_BLOCK", "dist-bad")
    assert {s.distribution: s.state for s in Catalog.discover().plugins}["dist-bad"] == "blocked"


def test_a_good_line_beside_a_bad_one_is_used(site: FakeSite) -> None:
    site.add("dist-one", "t-one", entries=b"[paperhooks.plugins]\nno equals sign\nt-one = dist_one:PLUGIN\n")
    assert states(Catalog.discover()) == {"t-one": "healthy"}


def test_metadata_that_cannot_be_read_still_say_the_name(site: FakeSite, monkeypatch) -> None:
    site.add("dist-one", "t-one", metadata=b"Author: Jos\xe9\n")
    site.add("dist-two", "t-two")
    (site.root / "dist_two-1.0.dist-info" / "METADATA").unlink()
    one, two = (status for status in Catalog.discover().plugins if status.name in ("t-one", "t-two"))
    assert (one.state, one.origin) == ("healthy", "dist-one 1.0")
    assert (two.state, two.origin) == ("healthy", "(unknown distribution)")
    assert versions()["python"]
    monkeypatch.setenv("PAPERHOOKS_BLOCK", "dist-one,t-two")
    assert states(Catalog.discover()) == {"t-one": "blocked", "t-two": "blocked"}


def test_a_blocked_plugin_does_not_even_import_its_package(site: FakeSite, monkeypatch) -> None:
    site.add(
        "dist-bad", "t-bad", entries=b"[paperhooks.plugins]\nt-bad = dist_bad.inner:PLUGIN\n", source="raise SystemExit"
    )
    monkeypatch.setenv("PAPERHOOKS_BLOCK", "t-bad")
    assert states(Catalog.discover()) == {"t-bad": "blocked"}
    assert "dist_bad" not in sys.modules


@pytest.mark.parametrize("where", ["plugin", "method"])
@pytest.mark.usefixtures("ctrl_c")
def test_a_real_interrupt_ends_the_program_also_where_a_plugin_swallows_it(site: FakeSite, where: str) -> None:
    source = "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException:\n    pass\n"
    if where == "plugin":
        site.add("dist-bad", "t-bad", source + "PLUGIN = None\n")
    else:
        site.add("dist-bad", "t-bad", method=source)
    with pytest.raises(KeyboardInterrupt):
        Catalog.discover().method_class("t-bad")


def test_what_a_plugin_prints_goes_to_stderr(site: FakeSite, capsys) -> None:
    site.add(
        "dist-one",
        "t-one",
        "print('hello')\n" + info_source("t-one", "dist_one"),
        method="print('more')\n" + dedent(METHOD),
    )
    Catalog.discover().method_class("t-one")
    assert capsys.readouterr() == ("", "hello\nmore\n")


def test_a_slow_import_is_named_while_it_goes_on(site: FakeSite, caplog, monkeypatch) -> None:
    monkeypatch.setattr(containment, "SLOW", 0.05)
    site.add("dist-slow", "t-slow", "import time\ntime.sleep(0.5)\n" + info_source("t-slow", "dist_slow"))
    with caplog.at_level(logging.WARNING):
        assert states(Catalog.discover()) == {"t-slow": "healthy"}
    assert "the import of plugin 't-slow' of dist-slow 1.0 takes long" in caplog.text


@pytest.mark.parametrize(
    ("module", "requires", "advice"),
    [
        ("yaml", ["PyYAML>=6"], "pip install 'PyYAML>=6', or"),
        ("yaml", ["PyYAML>=6; extra == 'config'"], "pip install 'dist-bad[config]', or"),
        ("yaml", [], "declares no library that brings it; ask the authors of dist-bad"),
    ],
)
def test_advice_names_what_pip_can_install(site: FakeSite, module: str, requires: list[str], advice: str) -> None:
    site.add("dist-bad", "t-bad", f"raise ModuleNotFoundError(name={module!r})\n", requires=requires)
    (status,) = (status for status in Catalog.discover().plugins if status.name == "t-bad")
    assert advice in status.fix


def test_strict_mode_makes_a_broken_plugin_fatal(site: FakeSite, monkeypatch) -> None:
    site.add("dist-bad", "t-bad", BROKEN)
    monkeypatch.setenv("PAPERHOOKS_STRICT", "1")
    with pytest.raises(PluginBroken, match="t-bad"):
        Catalog.discover()


def test_a_blocked_plugin_is_not_imported(site: FakeSite, monkeypatch) -> None:
    module = site.add("dist-bad", "t-bad", BROKEN)
    monkeypatch.setenv("PAPERHOOKS_STRICT", "1")
    monkeypatch.setenv("PAPERHOOKS_BLOCK", "other, t-bad")
    found = Catalog.discover()
    assert states(found) == {"t-bad": "blocked"}
    assert module not in sys.modules
    with pytest.raises(PluginError, match="PAPERHOOKS_BLOCK"):
        found.method_class("t-bad")


@pytest.mark.parametrize(("api", "upgrade"), [(2, "paperhooks"), (0, "dist-old")])
def test_another_hook_api_is_incompatible_and_says_what_to_upgrade(site: FakeSite, api: int, upgrade: str) -> None:
    site.add("dist-old", "t-old", info_source("t-old", "dist_old", api=api))
    found = Catalog.discover()
    assert states(found) == {"t-old": "incompatible"}
    with pytest.raises(PluginIncompatible, match=rf"hook API {api}.*pip install --upgrade {upgrade}$"):
        found.method_class("t-old")


def test_a_wrong_entry_point_name_is_broken(site: FakeSite) -> None:
    site.add("dist-odd", "t-odd", info_source("t-other", "dist_odd"))
    (status,) = [s for s in Catalog.discover().plugins if s.name == "t-odd"]
    assert (status.state, "t-other" in status.error) == ("broken", True)


def test_two_plugins_of_one_name_conflict_and_both_distributions_are_named(site: FakeSite) -> None:
    site.add("dist-one", "t-same")
    site.add("dist-two", "t-same", info_source("t-same", "dist_two"))
    found = Catalog.discover()
    assert [s.state for s in found.plugins if s.name == "t-same"] == ["duplicate", "duplicate"]
    with pytest.raises(PluginConflict, match=r"dist-one 1\.0.*dist-two 1\.0.*pip uninstall dist-one \| dist-two"):
        found.method_class("t-same")
    assert any("dist-one" in sentence and "dist-two" in sentence for sentence in found.conflicts())


def test_a_method_that_two_plugins_offer_needs_the_plugin_name(site: FakeSite) -> None:
    for name in ("one", "two"):
        module = f"dist_{name}"
        source = info_source(f"t-{name}", module, methods=f'{{"scale": "{module}_method:Scale"}}')
        site.add(f"dist-{name}", f"t-{name}", source)
    found = Catalog.discover()
    with pytest.raises(PluginConflict, match=r"dist-one.*dist-two.*'t-one/scale' or 't-two/scale'"):
        found.method_class("scale")
    assert found.method_class("t-one/scale").__module__ == "dist_one_method"
    assert found.method_class("t-two/scale").__module__ == "dist_two_method"
    assert found.conflicts() == ()
    with pytest.raises(PluginNotFound, match="no method of its own name; write one of: t-one/scale"):
        found.method_class("t-one")


def test_a_method_cannot_take_the_name_of_another_plugin(site: FakeSite) -> None:
    site.add("dist-one", "t-one")
    both = '{"t-one": "dist_two_method:Scale", "lonely": "dist_two_method:Scale"}'
    site.add("dist-two", "t-two", info_source("t-two", "dist_two", methods=both))
    found = Catalog.discover()
    assert found.method_class("t-one").__module__ == "dist_one_method"
    with pytest.raises(PluginNotFound, match="write 't-two/lonely'"):
        found.method_class("lonely")


def test_unknown_names_get_a_hint(site: FakeSite) -> None:
    site.add("dist-one", "t-one")
    found = Catalog.discover()
    with pytest.raises(PluginNotFound, match="did you mean 't-one'"):
        found.method_class("t-ohne")
    with pytest.raises(PluginNotFound, match="did you mean 't-one'"):
        found.method_class("t-one/t-onee")
    with pytest.raises(PluginNotFound, match=r"form that the command line takes; .*create_method\('t-one', \.\.\.\)"):
        found.method_class("t-one:factor=2")
    with pytest.raises(PluginNotFound, match="no plugin is called 'nobody'"):
        found.method_class("nobody/x")


def test_what_the_registry_knows_comes_with_the_pip_command(own_catalog: Catalog) -> None:
    with pytest.raises(PluginNotFound, match="pip install paperhooks-pyramiddrop"):
        own_catalog.method_class("pyramiddrop")


def test_create_method_sets_options_and_refuses_unknown_ones(site: FakeSite) -> None:
    site.add("dist-one", "t-one")
    found = Catalog.discover()
    assert found.create_method("t-one", factor=0.25).factor == 0.25
    with pytest.raises(PluginError, match=r"no option 'faktor'; did you mean 'factor'\? Known: factor, first_layer"):
        found.create_method("t-one", faktor=1.0)


def test_an_option_called_name_reaches_the_method(site: FakeSite) -> None:
    method = """
    from dataclasses import dataclass
    import paperhooks

    @dataclass(eq=False)
    class Scale:
        name: str = "x"
        traits = paperhooks.Traits()

        @paperhooks.hookimpl
        def post_layer(self, hidden_states):
            return None
    """
    site.add("dist-one", "t-one", method=method)
    assert Catalog.discover().create_method("t-one", name="given").name == "given"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("@dataclass(eq=False)", "@dataclass"), "eq=False"),
        (("@dataclass(eq=False)", ""), "decorated with @dataclass"),
        (("traits = paperhooks.Traits(training=True)", "traits = 3"), "needs a class attribute"),
        (("@paperhooks.hookimpl", ""), "implements no hook"),
        (("def post_layer(", "def post_leyer("), "did you mean 'post_layer'"),
        (("import paperhooks", "import paperhooks, nowhere_at_all"), "No module named 'nowhere_at_all'"),
        (("class Scale", "class Skale"), "has no 'Scale'"),
    ],
)
def test_a_method_class_that_breaks_the_contract_is_refused(site: FakeSite, change, said: str) -> None:
    from paperhooks.testing.fake_site import METHOD

    site.add("dist-one", "t-one", method=METHOD.replace(*change))
    found = Catalog.discover()
    with pytest.raises(PluginBroken, match=said) as caught:
        found.method_class("t-one")
    assert "dist-one 1.0" in str(caught.value)
    assert said.split()[0] in str(found.deep_check()["t-one/t-one"])


def test_a_bad_option_value_keeps_its_error_and_gains_the_method(site: FakeSite) -> None:
    from paperhooks.testing.fake_site import METHOD

    check = '\n        def __post_init__(self):\n            raise ValueError("factor is bad")\n'
    site.add("dist-one", "t-one", method=METHOD.rstrip() + "\n" + check)
    with pytest.raises(ValueError, match="factor is bad") as caught:
        Catalog.discover().create_method("t-one")
    assert any("t-one" in note for note in caught.value.__notes__)


def test_registering_in_the_process_and_undoing_it(site: FakeSite) -> None:
    site.add("dist-one", "t-one")
    found = refresh()
    assert catalog() is found
    info = paperhooks.PluginInfo(name="t-mine", api=1, summary="x", methods={"t-mine": "dist_one_method:Scale"})
    undo = found.register(info)
    assert catalog().method_class("t-mine").__name__ == "Scale"
    with pytest.raises(PluginConflict, match="t-mine"):
        found.register(info)
    undo()
    with pytest.raises(PluginNotFound):
        found.method_class("t-mine")
    undo()
    assert states(found) == {"t-one": "healthy"}


def test_registering_over_an_installed_plugin_or_for_another_api_is_refused(site: FakeSite) -> None:
    site.add("dist-one", "t-one")
    found = refresh()
    with pytest.raises(PluginConflict, match="dist-one"):
        found.register(paperhooks.PluginInfo(name="t-one", api=1, summary="x"))
    with pytest.raises(PluginIncompatible, match="hook API 9"):
        found.register(paperhooks.PluginInfo(name="t-new", api=9, summary="x"))


def test_import_and_listing_load_neither_torch_nor_transformers(site: FakeSite) -> None:
    site.add("dist-one", "t-one")
    code = (
        f"import sys; sys.path.insert(0, {str(site.root)!r})\n"
        "import paperhooks\n"
        "from paperhooks.plugins import catalog\n"
        "from paperhooks.plugins import load_registry\n"
        "from paperhooks.info import TaskInfo\n"
        "names = [s.name for s in catalog().plugins if s.healthy]; load_registry(); dir(paperhooks)\n"
        "catalog().process_hooks\n"
        "heavy = sorted({'torch', 'transformers', 'numpy', 'matplotlib', 'typer', 'rich'} & set(sys.modules))\n"
        "print(names, heavy)\n"
    )
    done = run_python("-c", code)
    assert "t-one" in done.stdout
    assert done.stdout.rstrip().endswith("[]"), done.stdout


def test_a_plugin_written_for_another_paperhooks_is_told_to_be_updated(site: FakeSite) -> None:
    site.add("dist-old", "t-old", "import paperhooks.no_such_room\n")
    with pytest.raises(PluginBroken, match="another paperhooks: pip install --upgrade dist-old"):
        Catalog.discover().plugin("t-old")


def test_hints_name_no_plugin_that_offers_no_method(site: FakeSite) -> None:
    site.add("dist-one", "t-one")
    known = Catalog.discover()
    with pytest.raises(PluginNotFound) as error:
        known.resolve("nothing-like-it")
    assert "t-one" in str(error.value)
    assert "hallucination" not in str(error.value)
