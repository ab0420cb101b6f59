"""The repository's jobs: ``nox -s demo``, ``nox -s tests``, and the rest of ``nox --list``.

torch and what comes with it take a minute and almost a gigabyte to install, so the sessions share one environment of
third-party packages (.nox/third-party, never a package of this repository in it). On top of it lie overlays: virtual
environments that see it through a ``.pth`` file and hold nothing but packages of this repository. Everything is
installed by pip; constraints.txt pins what is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nox
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.insert(0, str(Path(__file__).resolve().parent / "tools"))
import compat as versions
from jobs import ENV, NOTHING_FOUND, Job, longest, pytest_arguments

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "types", "tests", "wheels", "docs", "registry"]
nox.options.reuse_existing_virtualenvs = True
nox.options.default_venv_backend = "venv"

ROOT = Path(__file__).resolve().parent
CONSTRAINTS = ROOT / "constraints.txt"
NOX = ROOT / ".nox"
BASE = NOX / "third-party"
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

WORKERS = int(os.environ.get("PAPERHOOKS_JOBS", "2"))
#: What the session ``floors`` runs: attaching, the contract, and what uses typer, rich, matplotlib and packaging.
SMOKE = (
    "core/tests/sessions/test_session.py",
    "core/tests/cli/test_entry.py",
    "core/tests/reports/test_blocks.py",
    "core/tests/authoring/test_registry_check.py",
    "packages/pyramiddrop/tests/test_contract.py",
    "packages/testbed/tests/test_processor.py",
)
#: What the session ``wheels`` runs: contracts, public names, options, commands, and what reads files of the package.
IN_WHEELS = {
    "core": ("test_surface.py", "sessions/test_session.py", "cli/test_entry.py", "authoring/test_template.py"),
    "cca": ("test_contract.py::TestConcentric", "test_options.py"),
    "evaluation": ("test_commands.py",),
    "hallucination": ("chair/test_metrics.py", "mme/test_metrics.py", "pope/test_metrics.py"),
    "jmmmu": ("answers/test_parity.py", "data/test_rows.py", "test_algorithm.py"),
    "evopress": ("test_targets.py",),
    "mathneuro": ("test_options.py", "test_tools.py"),
    "miniplm": ("test_options.py", "test_algorithm.py"),
    "pyramiddrop": ("test_contract.py::TestPreserve", "test_options.py"),
    "sso": ("test_sso_losses.py", "test_principles.py"),
    "testbed": ("test_package.py", "test_processor.py", "test_vlm.py"),
}


@dataclass(frozen=True)
class Package:
    """A distribution of this repository."""

    folder: Path

    @cached_property
    def project(self) -> dict[str, Any]:
        """The table ``[project]``."""
        return tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    @property
    def name(self) -> str:
        """The distribution's name."""
        return canonicalize_name(self.project["name"])

    @property
    def module(self) -> str:
        """What is imported."""
        return self.name.replace("-", "_")

    def requirements(self, extras: Iterable[str]) -> list[Requirement]:
        """Its dependencies with those of some extras."""
        lines = list(self.project["dependencies"])
        for extra in extras:
            lines += self.project.get("optional-dependencies", {}).get(extra, [])
        return [Requirement(line) for line in lines]


PACKAGES = [Package(ROOT / "core"), *(Package(f.parent) for f in sorted((ROOT / "packages").glob("*/pyproject.toml")))]
BY_NAME = {package.name: package for package in PACKAGES}
CORE = PACKAGES[0]
#: Extras that bring an engine, with much of its own; no shared environment has them.
APART = ("datatrove", "ray", "vllm")
#: Where the tests of engines lie.
ENGINE_TESTS = ("packages/miniplm/tests/engines", "packages/evopress/tests/engines")


def third_party(*without: str) -> list[str]:
    """Requirements of all packages with all extras but some, without the packages themselves."""
    found = set()
    for package in PACKAGES:
        extras = set(package.project.get("optional-dependencies", {})) - {*without, *APART}
        for requirement in package.requirements(extras):
            if canonicalize_name(requirement.name) not in BY_NAME:
                found.add(str(requirement))
    return sorted(found)


def first_party(package: Package, extras: Iterable[str] = ()) -> list[Package]:
    """The packages of this repository that a package with some extras needs, itself included, sorted by name."""
    seen: set[tuple[str, str]] = set()
    queue = [(package.name, extra) for extra in ("", *extras)]
    while queue:
        name, extra = queue.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for requirement in BY_NAME[name].requirements([extra]):
            other = canonicalize_name(requirement.name)
            if other in BY_NAME:
                queue += [(other, each) for each in ("", *requirement.extras)]
    return [BY_NAME[name] for name in sorted({name for name, _ in seen})]


def fingerprint(*texts: str) -> str:
    """A hash by which a session knows whether an environment is still what it should be."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


# -- environments ------------------------------------------------------------------------------------------------------


def python_of(folder: Path) -> str:
    """The interpreter of a virtual environment."""
    return str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))


def site_packages(python: str) -> Path:
    """Where an interpreter's pure Python packages lie."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return Path(subprocess.check_output([python, "-c", code], text=True).strip())


def base(session: nox.Session, *groups: str) -> str:
    """The interpreter of the third-party environment, with the requirements of some dependency groups installed.

    Groups are installed when a session first asks for them; a change of the requirements installs again.
    """
    python, created = python_of(BASE), BASE / "created"
    if not created.is_file():  # also after an interruption half-way
        session.run(sys.executable, "-m", "venv", "--clear", str(BASE), external=True)
        created.touch()
    pip = (python, "-m", "pip", "install", "-q", "-c", str(CONSTRAINTS))
    wanted = {"run": third_party(), **{name: SETTINGS["dependency-groups"][name] for name in groups}}
    for name, requirements in wanted.items():
        stamp = BASE / f"{name}.installed"
        digest = fingerprint(*requirements, CONSTRAINTS.read_text(encoding="utf-8"))
        if stamp.is_file() and stamp.read_text() == digest:
            continue
        session.log(f"installing {', '.join(requirements)}")
        alone = ["--no-deps"] if name == "model-files" else []
        session.run(*pip, *alone, *requirements, external=True, silent=False)
        stamp.write_text(digest)
    return python


def overlay(session: nox.Session, folder: Path, *requirements: str) -> str:
    """The interpreter of a new environment: the third-party one underneath, and these (and no other) on top."""
    shutil.rmtree(folder, ignore_errors=True)
    session.run(python_of(BASE), "-m", "venv", "--without-pip", str(folder), external=True)
    python = python_of(folder)
    below = site_packages(python_of(BASE))
    (site_packages(python) / "third-party.pth").write_text(f"{below}\n", encoding="utf-8")
    session.run(
        python_of(BASE), "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-build-isolation",
        "--no-index", *requirements, external=True,
    )  # fmt: skip
    return python


def development(session: nox.Session, *groups: str) -> str:
    """The interpreter of the environment in which all packages are installed editable."""
    base(session, *dict.fromkeys(["test", *groups]))
    folder, stamp = NOX / "development", NOX / "development" / "installed"
    metadata = [(package.folder / "pyproject.toml").read_text(encoding="utf-8") for package in PACKAGES]
    digest = fingerprint(str(ROOT), *metadata)
    if not stamp.is_file() or stamp.read_text() != digest:
        editable = [part for package in PACKAGES for part in ("-e", str(package.folder))]
        overlay(session, folder, *editable)
        stamp.write_text(digest)
    return python_of(folder)


def extended(
    session: nox.Session, folder: Path, requirements: Sequence[str] = (), *, alone: Sequence[str] = (),
    constraints: Path = CONSTRAINTS,
) -> str:  # fmt: skip
    """The interpreter of an overlay with the packages editable and some libraries of its own, made where it is not.

    :param requirements: with what they need. :param alone: without.
    """
    stamp = folder / "installed"
    files = [CONSTRAINTS, constraints, *(package.folder / "pyproject.toml" for package in PACKAGES)]
    digest = fingerprint(str(ROOT), *alone, *requirements, *(file.read_text(encoding="utf-8") for file in files))
    if not stamp.is_file() or stamp.read_text() != digest:
        python = overlay(session, folder, *(part for p in PACKAGES for part in ("-e", str(p.folder))))
        pip = (python_of(BASE), "-m", "pip", "--python", python, "install", "-q", "-c", str(constraints))
        if alone:
            session.run(*pip, "--no-deps", *alone, external=True)
        if requirements:
            session.run(*pip, *requirements, external=True)
        stamp.write_text(digest)
    return python_of(folder)


def run(session: nox.Session, *command: str, **options: Any) -> None:
    """Run a command of the shared environments."""
    session.run(*command, external=True, env={**ENV, **options.pop("env", {})}, **options)


# -- test processes ----------------------------------------------------------------------------------------------------


def run_jobs(session: nox.Session, jobs: Sequence[Job]) -> None:
    """Run test processes, a few at a time; fails when one fails or when none has found a test."""
    with ThreadPoolExecutor(WORKERS) as pool:
        done = list(pool.map(lambda job: job(), jobs))
    for job in done:
        session.log(f"{job.name}: {job.summary}")
    if slow := longest(done):
        session.log(f"the tests that took longest\n{slow}")
    failed = [job.name for job in done if job.code not in (0, NOTHING_FOUND)]
    if failed:
        session.error(f"tests failed in {', '.join(failed)}")
    if all(job.code == NOTHING_FOUND for job in done):
        session.error("no test was selected")


# -- sessions ----------------------------------------------------------------------------------------------------------


@nox.session(venv_backend="none")
def demo(session: nox.Session) -> None:
    """The main job: every plugin's demo on the test bed, with reports in the folder paperhooks-demo."""
    python = development(session, "models", "model-files")
    run(session, python, "-m", "paperhooks.cli", "plugins")
    run(session, python, "-m", "paperhooks.cli", "demo", *session.posargs)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """All tests but those marked slow, cuda or network; options of pytest, or what to run, after ``--``."""
    python = development(session, "models", "model-files")
    chosen = any(Path(argument.partition("::")[0]).exists() for argument in session.posargs)
    # Sessions of their own run these, on what they have built: wheels and harnesses.
    elsewhere = [] if chosen else ["--ignore=tests/test_wheels.py", "--ignore=tests/harnesses"]
    options = ["-n", str(WORKERS), "--durations=10", *elsewhere, *pytest_arguments(session.posargs)]
    run(session, python, "-m", "pytest", *options)


@nox.session(venv_backend="none")
def faults(session: nox.Session) -> None:
    """The trials with faults put in on purpose, with 20 kills of every work at random moments (minutes)."""
    python = development(session, "models", "model-files")
    options = ["tests/faults", *pytest_arguments(session.posargs)]
    run(session, python, "-m", "pytest", *options, env={"PAPERHOOKS_KILLS": "20"})


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: rules and format."""
    session.install("-c", str(CONSTRAINTS), *SETTINGS["dependency-groups"]["lint"])
    session.run("python", "-m", "ruff", "check", ".")
    session.run("python", "-m", "ruff", "format", "--check", ".")


@nox.session(venv_backend="none")
def types(session: nox.Session) -> None:
    """Mypy: strict on core, plain on the other packages (see pyproject.toml)."""
    python = development(session, "types")
    run(session, python, "-m", "mypy", *(str(package.folder / "src" / package.module) for package in PACKAGES))


@nox.session(venv_backend="none")
def parallel(session: nox.Session) -> None:
    """Models spread over two and four processes (gloo, CPU), and offloaded ones; ``-- --full`` runs all combinations.

    The session ``tests`` runs the chosen ones too.
    """
    python = development(session, "models", "model-files")
    given = [argument for argument in session.posargs if argument != "--full"]
    marked = ["-m", "not cuda and not network"] if len(given) < len(session.posargs) else []
    run(session, python, "-m", "pytest", "tests/parallel", *pytest_arguments([*marked, *given]))


@nox.session(venv_backend="none")
def wheels(session: nox.Session) -> None:
    """Build every wheel; install each with what it needs alone, and run some of its tests outside the source tree.

    ``-- --full`` runs all its tests, which ``tests`` has run on the sources.
    """
    base(session, "test", "models", "model-files")
    folder, full = NOX / "wheels", "--full" in session.posargs
    shutil.rmtree(folder, ignore_errors=True)
    with ThreadPoolExecutor(WORKERS) as pool:
        wheels = pool.map(lambda package: build_wheel(session, package, folder / "dist"), PACKAGES)
        built = dict(zip(BY_NAME, wheels, strict=True))
        jobs = list(pool.map(lambda package: wheel_job(session, package, built, folder, full), PACKAGES))
    os.environ["PAPERHOOKS_WHEELS"] = str(folder / "dist")
    jobs.append(Job("what is in the wheels", development(session), [*pytest_arguments([]), "tests/test_wheels.py"]))
    run_jobs(session, jobs)


def build_wheel(session: nox.Session, package: Package, out: Path) -> Path:
    """Build a wheel by way of the sdist, which shows that the sdist is complete."""
    target = out / package.name
    run(session, python_of(BASE), "-m", "build", "--no-isolation", "--outdir", str(target), str(package.folder),
        silent=True)  # fmt: skip
    (wheel,) = target.glob("*.whl")
    return wheel


def wheel_job(session: nox.Session, package: Package, built: dict[str, Path], folder: Path, full: bool) -> Job:
    """Install a wheel in a fresh overlay, look at it, and prepare the run of its tests from a copy."""
    needed = [each.name for each in first_party(package, ["test"])]
    python = overlay(session, folder / package.name / "env", *(str(built[name]) for name in needed))
    place = folder / package.name / "run"
    shutil.copytree(package.folder / "tests", place / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    settings = shutil.copy(ROOT / "pyproject.toml", place / "pyproject.toml")
    checker = shutil.copy(ROOT / "tests" / "installed.py", place / "installed.py")
    points = (BY_NAME[name].project.get("entry-points", {}).get("paperhooks.plugins", {}) for name in needed)
    expected = {
        "first_party": needed,
        "all": sorted(BY_NAME),
        "module": package.module,
        "plugins": sorted(plugin for each in points for plugin in each),
        "environment": str(folder / package.name / "env"),
    }
    run(session, python, "-I", str(checker), json.dumps(expected))
    chosen = ["tests"] if full else [f"tests/{file}" for file in IN_WHEELS[package.folder.name]]
    return Job(f"wheel of {package.name}", python, [*pytest_arguments([], Path(settings)), *chosen], place)


@nox.session(venv_backend="none")
def floors(session: nox.Session) -> None:
    """A smoke test on the oldest versions that the packages' metadata allow. torch stays at its pin."""
    base(session, "test")
    lowest = NOX / "floors.txt"
    run(session, python_of(BASE), str(ROOT / "tests" / "lowest.py"), str(lowest), "--keep", str(CONSTRAINTS), "torch")
    python = overlay(session, NOX / "floors", *(part for p in PACKAGES for part in ("-e", str(p.folder))))
    pip = (python_of(BASE), "-m", "pip", "--python", python, "install", "-q")
    session.run(*pip, "-c", str(lowest), *third_party("test"), external=True)
    run_jobs(session, [Job(f"floors: {name}", python, [*pytest_arguments(session.posargs), name]) for name in SMOKE])


@nox.session(venv_backend="none")
def compat(session: nox.Session) -> None:
    """The tests on other versions of transformers, pluggy, peft and more, up to the newest that the index offers.

    ``--quick``: contracts only. ``--ends``: transformers' floor, and its newest beyond the pin. A whole run writes
    docs/versions.md and core's tested_versions.json, except in CI or with ``--check``, where it only compares.
    """
    base(session, "test", "models", "model-files")
    quick, ends = "--quick" in session.posargs, "--ends" in session.posargs
    offered = {name: versions.ask_index(python_of(BASE), name) for name in {*versions.RANGED, *versions.NEWEST}}
    if not offered["transformers"]:
        session.warn("the index did not say which versions of transformers there are; going on without the newest")
    overlays = versions.matrix(offered, ends)
    outcomes = [versions.Outcome(each, versions.jobs(each, varied(session, each), quick)) for each in overlays]
    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(lambda job: job(), [job for each in outcomes for job in each.jobs]))
    session.log(f"versions\n{versions.report(outcomes)}")
    if failed := [each.overlay.name for each in outcomes if not each.good and not each.overlay.beyond]:
        session.error(f"tests failed on {', '.join(failed)}")
    only_compare = "--check" in session.posargs or bool(os.environ.get("CI"))
    if not (quick or ends) and (complaint := versions.settle(outcomes, only_compare)):
        session.error(complaint)


def varied(session: nox.Session, overlay_: versions.Overlay) -> str:
    """The interpreter of an overlay with the packages editable and some libraries, with what they need, of its own."""
    held = NOX / "compat" / "held.txt"
    held.parent.mkdir(parents=True, exist_ok=True)
    held.write_text(f"torch=={versions.pins()['torch']}\n")  # of everything else each overlay takes its own
    folder = NOX / "compat" / overlay_.name.replace(" ", "-")
    return extended(session, folder, overlay_.requirements, constraints=held)


@nox.session(venv_backend="none")
def harnesses(session: nox.Session) -> None:
    """The real lm-eval and lmms-eval on exported folders, each in an environment of its own, called by its command."""
    python = development(session, "models", "model-files")
    for name in ("lm-eval", "lmms-eval"):
        harness(session, name)
    options = ["tests/harnesses", *pytest_arguments(session.posargs)]
    run(session, python, "-m", "pytest", *options, env={"PAPERHOOKS_HARNESSES": str(NOX / "harnesses")})


def harness(session: nox.Session, name: str) -> None:
    """An overlay with the packages editable and a harness, with nothing of what that asks for but what it imports."""
    extended(session, NOX / "harnesses" / name, alone=SETTINGS["dependency-groups"][name])


@nox.session(venv_backend="none")
def engines(session: nox.Session) -> None:
    """What runs on the real datatrove and Ray, with faults; ``-- --full``: 20 kills, every number of workers."""
    base(session, "test", "models", "model-files")
    given = [argument for argument in session.posargs if argument != "--full"]
    full = len(given) < len(session.posargs)
    chosen = ["-m", "engines" if full else "engines and not slow", "-n", str(WORKERS), "--dist", "worksteal"]
    options = [*pytest_arguments([*chosen, *given]), *ENGINE_TESTS]
    environment = {"PAPERHOOKS_KILLS": "20" if full else "2"}
    run(session, with_engines(session), "-m", "pytest", *options, env=environment)


def with_engines(session: nox.Session) -> str:
    """The interpreter of an overlay with the packages editable, the engines, and a server of S3 with all it needs."""
    groups = SETTINGS["dependency-groups"]
    return extended(session, NOX / "engines", groups["engines-store"], alone=groups["engines"])


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """The documentation, every warning an error; it lands in docs/_build/html."""
    python = development(session, "docs")
    out = ROOT / "docs" / "_build" / "html"
    run(session, python, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(ROOT / "docs"), str(out))
    session.log(f"open {out / 'index.html'}")


@nox.session(venv_backend="none")
def registry(session: nox.Session) -> None:
    """Prove that registry.toml, the packages' metadata, PluginInfo and Traits agree."""
    run(session, development(session), "-m", "paperhooks.cli", "registry", "check", str(ROOT / "registry.toml"))


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """Every package's benchmarks in their short form; ``-- --full`` for the long one."""
    python = development(session, "models", "model-files")
    options = [] if "--full" in session.posargs else ["--quick"]
    for script in sorted(file for package in PACKAGES for file in (package.folder / "benchmarks").glob("[!_]*.py")):
        run(session, python, str(script), *options)


@nox.session(venv_backend="none")
def train_testbed(session: nox.Session) -> None:
    """Train the test bed's model again; options of paperhooks_testbed.training.train after ``--``."""
    run(session, development(session), "-m", "paperhooks_testbed.training", *session.posargs)


@nox.session(venv_backend="none")
def cuda(session: nox.Session) -> None:
    """The tests that need a GPU; without one, says so and ends well."""
    python = development(session, "models", "model-files")
    probe = [python, "-c", "import torch; print(torch.cuda.device_count())"]
    if subprocess.check_output(probe, text=True).strip() == "0":
        session.log("no GPU here: collecting the tests marked cuda, running none")
        run(session, python, "-m", "pytest", *pytest_arguments(["-m", "cuda", "--collect-only", "-q"]))
        return
    run(session, python, "-m", "pytest", *pytest_arguments(["-m", "cuda", *session.posargs]))
