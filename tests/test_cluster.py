"""Ray: the same tables and objects as without it, on two nodes, also where one dies, a file is hostile, or the driver is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from benchmarks.untrained import write_run, write_slices
from pipeline import cluster as engine
from pipeline.cli import main
from pipeline.cluster import Budget, ClusterPool, connected
from pipeline.dicom.derived import content_digest
from pipeline.errors import ConfigError, RadloopError, RejectReason, SourceError
from pipeline.identity import IdentityKey
from pipeline.indexing import inventory
from pipeline.indexing.tables import INDEX_FILE, REJECTS_FILE, STACKS_FILE, SUMMARY_FILE
from pipeline.infer import infer
from pipeline.prediction import inference_parts
from pipeline.prediction.inference_parts import Ledger
from tests.hostile import bad_files
from tests.test_work import behave, reason

ROOT = Path(__file__).parent.parent
TABLES = ("predictions.csv", "image_predictions.csv", "objects.csv", "references.csv", "not_written.csv", "rejects.csv")
INDEX_TABLES = (INDEX_FILE, REJECTS_FILE, STACKS_FILE, SUMMARY_FILE)
KEY = IdentityKey(b"a key for tests, of no patient")
STORE_BYTES = 150 * 2**20
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 6,
    "worker_niceness": 0,
    "num_workers_soft_limit": 6,
}
"""A dead node is seen after seconds; processes that have imported what they need stay (`docs/scale.md`)."""
IMAGES, SIDE = 72, 64


def test_without_the_extra_it_is_said_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "export").mkdir()
    assert main(["index", str(tmp_path / "export"), "--out", str(tmp_path / "out"), "--engine", "ray"]) == 2
    assert "pip install 'radloop[ray]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match=r"radloop\[ray\]"):
        infer(tmp_path / "run", str(tmp_path), tmp_path / "out", engine="ray")
    with pytest.raises(ConfigError, match="expected one of local, ray"):
        infer(tmp_path / "run", str(tmp_path), tmp_path / "out", engine="dask")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head of one CPU; the tests add a second node. All of them are one driver's, whose processes go from test to test."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        head = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_dashboard": False, "_system_config": QUICK}
        started = Cluster(initialize_head=True, head_node_args=head)
        patch.setenv("RAY_ADDRESS", started.address)
        with connected():
            yield started
        started.shutdown()


@pytest.fixture
def second(cluster: Any) -> Iterator[Any]:
    """The second node, of one CPU."""
    node = cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
    cluster.wait_for_nodes()
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node)


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CT slices, and among them files that lie."""
    folder = tmp_path_factory.mktemp("cluster") / "export"
    write_slices(folder, IMAGES, SIDE)
    (folder / "bad").mkdir()
    scratch = tmp_path_factory.mktemp("scratch")
    for number, (content, _) in enumerate(bad_files(scratch).values()):
        (folder / "bad" / f"{number:02d}.dcm").write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, "resnet18", 64)
    return folder


@pytest.fixture(scope="module")
def indexed(export: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What the local engine says of the export."""
    out = tmp_path_factory.mktemp("local") / "index"
    inventory.take_inventory([(None, export)], out, key=KEY)
    return _bytes(out, INDEX_TABLES)


@pytest.fixture(scope="module")
def inferred(run: Path, export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the local engine writes of it."""
    out = tmp_path_factory.mktemp("local") / "out"
    infer(run, str(export), out, write=["sc", "sr"], progress=False)
    return out


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that there is a middle to be interrupted in."""
    monkeypatch.setattr(engine, "CHUNKS_A_TASK", 1)
    monkeypatch.setattr(inventory, "FILES_A_BATCH", 4)
    monkeypatch.setattr(inventory, "BATCHES_A_WORKER", 1)
    monkeypatch.setattr(inference_parts, "PART_IMAGES", 6)  # not a divisor of a batch: batches lie across parts


def _bytes(out: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in names}


def _objects(out: Path) -> dict[str, str]:
    """Of each object its content, times aside, read again from the disk."""
    return {path.relative_to(out).as_posix(): content_digest(dcmread(path)) for path in sorted(out.rglob("*.dcm"))}


def _same(out: Path, expected: Path) -> None:
    assert _bytes(out, TABLES) == _bytes(expected, TABLES)
    assert _objects(out) == _objects(expected)
    assert len(_objects(out)) > IMAGES
    assert not (out / ".inference").exists()


def test_results_in_order_and_hostile_items_cost_themselves(cluster: Any, second: Any):
    items = [1, "die", 2, "segfault", "reject", 3, "hang", "quote", *range(100, 140)]
    with ClusterPool(Budget(timeout_s=3.0)) as pool:
        outcomes = list(pool.run_each(behave, items, chunk=3))
    assert [item for item, _ in outcomes] == items
    told = dict(outcomes)
    assert all(told[item] == item for item in items if isinstance(item, int))
    assert reason(told["die"]) == reason(told["segfault"]) == RejectReason.CRASHED
    assert reason(told["hang"]) == RejectReason.TIMED_OUT
    assert reason(told["reject"]) == RejectReason.EMPTY
    assert reason(told["quote"]) == RejectReason.MALFORMED
    assert "Doe" not in str(told)


def test_reading_ahead_is_bounded(cluster: Any):
    taken: list[int] = []

    def endless() -> Iterator[int]:
        while True:
            taken.append(len(taken))
            yield taken[-1]

    with ClusterPool(Budget(timeout_s=20.0)) as pool:
        outcomes = pool.run_each(behave, endless(), chunk=2)
        assert [next(outcomes)[0] for _ in range(40)] == list(range(40))
        outcomes.close()
    assert len(taken) <= 40 + (4 + 1) * 2 * engine.CHUNKS_A_TASK


def test_a_node_without_the_storage_is_an_error_that_names_it(cluster: Any, tmp_path: Path):
    with (
        ClusterPool(Budget(timeout_s=20.0, places=(str(tmp_path / "gone"),))) as pool,
        pytest.raises(SourceError, match=r"gone.*not there on the cluster's node"),
    ):
        list(pool.run_each(behave, [1]))


def test_what_cannot_be_sent_is_an_error_of_the_program(cluster: Any):
    with ClusterPool(Budget(timeout_s=20.0)) as pool, pytest.raises(RadloopError, match="pickle"):
        list(pool.run_each(behave, ["unpicklable"]))


def test_the_index_is_the_same(cluster: Any, second: Any, export: Path, indexed: dict[str, bytes], tmp_path: Path):
    inventory.take_inventory([(None, export)], tmp_path, key=KEY, engine="ray")
    assert _bytes(tmp_path, INDEX_TABLES) == indexed


def test_a_node_dies_while_indexing(
    cluster: Any,
    second: Any,
    export: Path,
    indexed: dict[str, bytes],
    tmp_path: Path,
    small_tasks: None,
    monkeypatch: pytest.MonkeyPatch,
):
    real, read = inventory._unpacked, []

    def killing(batch: bytes) -> Any:
        read.append(len(batch))
        if len(read) == 2:
            cluster.remove_node(second, allow_graceful=False)
        return real(batch)

    monkeypatch.setattr(inventory, "_unpacked", killing)
    inventory.take_inventory([(None, export)], tmp_path, key=KEY, engine="ray")
    assert len(read) > 10
    assert _bytes(tmp_path, INDEX_TABLES) == indexed


@pytest.mark.slow
def test_a_node_dies_while_inferring(
    cluster: Any,
    second: Any,
    run: Path,
    export: Path,
    inferred: Path,
    tmp_path: Path,
    small_tasks: None,
    monkeypatch: pytest.MonkeyPatch,
):
    real, kept = Ledger.keep, []

    def killing(ledger: Ledger, part: Any, *tables: Any) -> None:
        kept.append(part.number)
        if len(kept) == 2:
            cluster.remove_node(second, allow_graceful=False)
        real(ledger, part, *tables)

    monkeypatch.setattr(Ledger, "keep", killing)
    summary = infer(run, str(export), tmp_path, write=["sc", "sr"], engine="ray", progress=False)
    assert len(kept) == len(set(kept)) > 10
    assert summary.cases > IMAGES
    assert summary.failed  # files that cannot be decoded
    _same(tmp_path, inferred)


@pytest.mark.slow
def test_a_killed_driver_goes_on(
    cluster: Any, run: Path, export: Path, inferred: Path, tmp_path: Path, small_tasks: None
):
    out, script = tmp_path / "out", tmp_path / "script.py"
    script.write_text(
        "import sys; from pipeline.prediction import inference_parts; inference_parts.PART_IMAGES = 6\n"
        "if __name__ == '__main__':\n    from pipeline.cli import main\n    sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = ["infer", str(run), str(export), "--out", str(out), "--write", "sc,sr", "--engine", "ray"]
    process = subprocess.Popen([sys.executable, str(script), *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)})
    began = time.monotonic()
    while process.poll() is None and time.monotonic() - began < 600:
        if any(not path.name.startswith(".") for path in (out / ".inference").glob("*")):
            break
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    done = {path.name for path in (out / ".inference").iterdir() if not path.name.startswith(".")}
    kept: list[str] = []
    real = Ledger.keep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "keep", lambda ledger, part, *rest: (kept.append(part.name), real(ledger, part, *rest)))
        infer(run, str(export), out, write=["sc", "sr"], engine="ray", progress=False)
    assert done
    assert not done & set(kept)
    _same(out, inferred)
