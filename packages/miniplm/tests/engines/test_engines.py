"""datatrove and Ray on whole runs: files equal to those of one loop in one process, wherever they lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from engine_place import UNITS, Place, make_place
from paperhooks import DataError
from paperhooks.testing import run_python
from paperhooks_miniplm import ScoringRun, ScoringSpec, merge_parts

datatrove = pytest.importorskip("datatrove", reason="run with nox -s engines")
ray = pytest.importorskip("ray", reason="run with nox -s engines")
pytestmark = [pytest.mark.engines, pytest.mark.timeout(300)]
ENGINES = ("datatrove", "ray")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("workers", ["1,2", pytest.param("1,2,5", marks=pytest.mark.slow)])
def test_scores_are_those_of_one_process(place: Place, tmp_path: Path, engine: str, workers: str) -> None:
    found = place.run(engine, workers, str(tmp_path / "scores"))
    assert [each["missing"] for each in found] == [[]] * len(found)
    for count in workers.split(","):
        place.check(tmp_path / f"scores{count}")
    report = merge_parts(tmp_path / "scores2", place.folder / "parts", tmp_path / "merged")
    assert (report.rows, report.duplicates) == (UNITS * 10 - 3, 0)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_datatroves_own_executor_on_ray(place: Place, tmp_path: Path, workers: int) -> None:
    (found,) = place.run("datatrove-on-ray", workers, str(tmp_path / "scores"))
    assert found["missing"] == []
    place.check(tmp_path / "scores")


@pytest.mark.slow
def test_nodes_of_ray_that_lack_a_module_are_told_of(place: Place, tmp_path: Path) -> None:
    (found,) = place.run("ray", 1, str(tmp_path / "scores"), "absent")
    assert "install the same on every node" in found["error"]
    assert "module_of_the_driver" in found["error"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("engine", ENGINES)
def test_smollm2(tmp_path: Path, ray_folder: Path, engine: str) -> None:
    testbed = pytest.importorskip("paperhooks_testbed")
    model, _ = testbed.load_smollm2()
    place = make_place(tmp_path / "place", ray_folder, model, unit_rows=2)
    found = place.run(engine, "1,2,5", str(tmp_path / "scores"))
    assert [each["missing"] for each in found] == [[]] * 3
    for count in (1, 2, 5):
        place.check(tmp_path / f"scores{count}")


@pytest.fixture
def bucket() -> Iterator[dict[str, str]]:
    """What tells processes of a bucket on a server here."""
    server_of = pytest.importorskip("moto.server", reason="run with nox -s engines").ThreadedMotoServer
    server = server_of(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    told = {
        "FSSPEC_S3_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "none",
        "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    yield told
    server.stop()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_store_of_objects(place: Place, tmp_path: Path, monkeypatch, bucket: dict[str, str], engine: str) -> None:
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    store = fsspec.filesystem("s3", endpoint_url=bucket["FSSPEC_S3_ENDPOINT_URL"], skip_instance_cache=True)
    name = f"corpora-{engine}"  # the server keeps buckets of this process
    store.mkdir(name)
    store.put(str(place.folder / "parts"), f"{name}/parts", recursive=True)
    (found,) = place.run(engine, 2, f"s3://{name}/scores", CORPUS=f"s3://{name}/parts", **bucket)
    assert found["missing"] == []
    store.invalidate_cache()
    names = [name for name in store.ls(f"{name}/scores", detail=False) if name.endswith(".parquet")]
    assert {name.rpartition("/")[2]: store.cat(name) for name in names} == place.wanted


def begun(place: Place, out: str | Path, corpus: str | Path | None = None) -> ScoringRun:
    spec = ScoringSpec(str(place.folder / "model"), end=2, max_length=48)
    return ScoringRun.begin(spec, corpus or place.folder / "parts", out)


def test_datatrove_in_this_process_on_memory(place: Place) -> None:
    from paperhooks_miniplm.on_datatrove import score_on_datatrove

    memory = fsspec.filesystem("memory")
    memory.put(str(place.folder / "parts"), "/engines/parts", recursive=True)
    score_on_datatrove(begun(place, "memory://engines/scores", "memory://engines/parts"))
    names = [name for name in memory.ls("/engines/scores", detail=False) if name.endswith(".parquet")]
    assert {name.rpartition("/")[2]: memory.cat(name) for name in names} == place.wanted


def test_marks_of_units_that_are_gone_are_removed(place: Place, tmp_path: Path) -> None:
    from paperhooks_miniplm.on_datatrove import score_on_datatrove

    run = begun(place, tmp_path / "scores")
    score_on_datatrove(run)
    gone = sorted((tmp_path / "scores").glob("*.parquet"))[4]
    gone.unlink()
    assert len(list((tmp_path / "scores").rglob("completions/*"))) == UNITS
    score_on_datatrove(run)
    place.check(tmp_path / "scores")


def test_another_number_of_tasks_than_of_units_is_refused(place: Place, tmp_path: Path) -> None:
    from paperhooks_miniplm.on_datatrove import ScoringStep

    step = ScoringStep(begun(place, tmp_path / "scores"))
    with pytest.raises(DataError, match=f"the run has {UNITS} units and 3 tasks; give it a task a unit"):
        step.run(None, 0, 3)
    assert not list((tmp_path / "scores").glob("*.parquet"))


def test_slurm_is_given_a_script_that_does_its_tasks(place: Place, tmp_path: Path, monkeypatch) -> None:
    from datatrove.executor.slurm import SlurmPipelineExecutor
    from paperhooks_miniplm.on_datatrove import executor_options

    (tmp_path / "bin").mkdir()
    for name, answer in (("sbatch", "Submitted batch job 7"), ("scontrol", "node-1")):
        stand_in = tmp_path / "bin" / name
        stand_in.write_text(f"#!/bin/sh\necho {answer}\n")
        stand_in.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    options = executor_options(begun(place, tmp_path / "scores"))
    SlurmPipelineExecutor(
        **options, time="01:00:00", partition="gpu", job_name="score", tasks_per_job=10, workers=2, gpus_per_task=1
    ).run()
    folder = Path(options["logging_dir"])
    lines = (folder / "launch_script.slurm").read_text().splitlines()
    wanted = {"--array=0-2%2", "--gpus=1", "--partition=gpu", "--time=01:00:00"}
    assert wanted <= {line.removeprefix("#SBATCH ") for line in lines}
    assert lines[-1].strip().endswith(f"launch_pickled_pipeline {folder / 'executor.pik'}")
    code = "import sys; from datatrove.tools.launch_pickled_pipeline import main; main()"
    for job in range(3):
        told = {"SLURM_ARRAY_TASK_ID": str(job), "SLURM_NODELIST": "node-1"}
        run_python("-c", code, folder / "executor.pik", environment=told)
    place.check(tmp_path / "scores")
