"""The `em` command, as a process of its own, on real parts."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml

from em_pipeline.cli.options import parse_voxel_size
from em_pipeline.cli.output import by_axis, size
from em_pipeline.cli.plan import _keeping_up
from em_pipeline.demo.portal import DemoPortal
from em_pipeline.domain.errors import InputRefused
from em_pipeline.domain.geometry import PartialVoxelSize
from em_pipeline_tests.commands import em, run


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    folder = tmp_path / "slices"
    folder.mkdir()
    planes = np.random.default_rng(0).integers(0, 255, (12, 140, 150), np.uint8)
    for z, plane in enumerate(planes):
        tifffile.imwrite(folder / f"s_{z}.tif", plane, photometric="minisblack")
    return folder


@pytest.mark.integration
def test_a_folder_becomes_a_dataset_a_block_and_a_picture(environment: dict[str, str], stack: Path) -> None:
    named = (str(stack), "--name", "mine", "--voxel-size", "50,4,4")
    planned = em(environment, "plan", *named, "--kind", "labels")
    assert planned["images"][0]["kind"] == "labels"
    assert planned["images"][0]["levels"][0]["shape"] == [12, 140, 150]
    assert planned["images"][0]["voxel_bytes"] == 12 * 140 * 150
    plain = em(environment, "plan", str(stack), "--name", "mine", "--voxel-size", "50", "--codec", "none")
    assert (planned["images"][0]["codec"], plain["images"][0]["codec"]) == ("zstd-3", "none")
    tight = environment | {"EM_THREADS": "64", "EM_MEMORY_BUDGET": "256MiB"}
    told = run(tight, "em", "plan", str(stack), "--name", "mine", "--voxel-size", "50").stdout
    assert re.search(r"threads +\d of 64: EM_MEMORY_BUDGET serves no more$", told, re.MULTILINE)
    assert em(environment, "ls") == []
    made = em(environment, "ingest", *named)
    assert made["dataset_id"] == "files-mine"
    assert (made["shape"], made["changed"]) == ([12, 140, 150], True)
    again = run(environment, "em", "ingest", str(stack), "--name", "mine")
    assert "nothing to do" in again.stdout
    assert "not looked at now: em verify files-mine looks again" in again.stdout
    assert "already there, not read again" in again.stderr
    (shard,) = Path(environment["EM_HOME"]).glob("store/volumes/files-mine/*.ome.zarr/0/c/0/0/0")
    shard.unlink()
    damaged = run(environment, "em", "block", "files-mine", "0", "0", "0")
    assert "`em verify ID --discard`, then `em ingest ID`" in damaged.stderr
    verified = run(environment, "em", "verify", "files-mine", "--discard")
    assert verified.returncode == 5
    # What takes less than a second gives no rate.
    assert re.search(r"read but not decoded(, | at \d+ MB/s, )4 faults", verified.stdout)
    assert verified.stdout.count("missing-shard") == 1
    assert "missing-shard: shard 0/c/0/0/0 is missing, which held 4 chunks" in verified.stdout
    (row,) = em(environment, "ls")
    assert (row["status"], row["stored_bytes"]) == ("pending", None)
    listed = run(environment, "em", "ls").stdout
    assert re.search(r"^files-mine: volume \w+ was discarded; `em ingest files-mine`", listed, re.MULTILINE)
    for more in ([], ["--discard"]):
        gone = run(environment, "em", "verify", "files-mine", *more)
        assert gone.returncode == 5
        assert "it was discarded, or lost" in gone.stderr
        assert "Run `em ingest files-mine`" in gone.stderr
    assert "written again" in run(environment, "em", "ingest", str(stack), "--name", "mine").stdout
    (row,) = em(environment, "ls")
    assert row["status"] == "complete"
    assert row["stored_bytes"] > 0
    assert row["voxel_size_nm"] == [50, 4, 4]
    out = stack.parent / "b.npy"
    block = em(environment, "block", "files-mine", "2", "10", "20", "--out", str(out))
    assert block["shape"] == [10, 128, 128]
    expected = np.stack([tifffile.imread(stack / f"s_{z}.tif") for z in range(12)])[2:, 10:138, 20:148]
    np.testing.assert_array_equal(np.load(out), expected)
    picture = stack.parent / "b.png"
    em(environment, "block", "files-mine", "0", "0", "0", "--out", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    shown = em(environment, "show", "files-mine")
    origins = {claim["evidence"]["origin"] for claim in shown["record"]["claims"]}
    assert {"override", "file", "computed"} <= origins
    assert all(check["passed"] for check in shown["checks"])


@pytest.mark.integration
@pytest.mark.slow
def test_verify_names_the_chunk(environment: dict[str, str]) -> None:
    em(environment, "ingest", "EMPIAR-11759")
    assert em(environment, "verify", "empiar-11759")["faults"] == []
    (shard,) = Path(environment["EM_HOME"]).glob("store/volumes/empiar-11759/*.ome.zarr/0/c/0/0/0")
    whole = shard.read_bytes()
    for damage, kind in (
        (whole[:100] + bytes([whole[100] ^ 4]) + whole[101:], "chunk"),
        (whole[:-10] + bytes([whole[-10] ^ 1]) + whole[-9:], "index"),
        (whole[:-1], "truncated-shard"),
    ):
        shard.write_bytes(damage)
        done = run(environment, "em", "verify", "empiar-11759", "--json")
        assert done.returncode == 5, done.stderr
        faults = json.loads(done.stdout)["faults"]
        assert kind in {fault["kind"] for fault in faults}
        assert all("0/c/0/0/0" in fault["shard"] for fault in faults)
        assert faults[0]["chunk"] == [0, 0, 0] or kind != "chunk"
    shard.unlink()
    done = run(environment, "em", "verify", "empiar-11759")
    assert done.returncode == 5
    assert "0/c/0/0/0" in done.stdout
    shard.write_bytes(whole)
    assert em(environment, "verify", "empiar-11759", "--decode")["faults"] == []


@pytest.mark.integration
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["ingest", "nowhere.tif"], 7, "no path, no URL"),
        (["ingest", ""], 2, "names nothing"),
        (["ingest", "empiar-1175"], 7, "empiar"),
        (["ingest", "ftp://host/x.tif"], 2, "http"),
        (["show", "empiar-1"], 7, "em ls --all"),
        (["show", "Not An Id"], 2, "em ls"),
        (["block", "empiar-11759", "0", "0", "0"], 7, "em ingest"),
        (["block", "empiar-11759", "0", "0", "0", "--out", "x.jpg"], 2, "Use .npy or .png"),
        (["verify", "nothing-1"], 7, "em ls --all"),
        (["ingest", ".", "--voxel-size", "a,b"], 2, "50,8,8"),
        (["ingest", "EMPIAR-11759", "--name", "x"], 2, "Leave --name out"),
        (["ingest", "EMPIAR-11759", "--codec", "gzip"], 2, "zstd-1"),
    ],
)
def test_refusals_say_what_to_do(
    environment: dict[str, str], tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    done = run(environment, "em", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    as_json = run(environment, "em", *arguments, "--json", cwd=tmp_path)
    assert as_json.returncode == code
    error = json.loads(as_json.stderr.strip().splitlines()[-1])
    assert error["exit_code"] == code
    assert error["tried"]


@pytest.mark.integration
def test_an_outage_is_named_and_leaves_nothing(environment: dict[str, str], portal: DemoPortal) -> None:
    portal.stop()
    environment |= {"EM_SOURCES__EMPIAR__RETRIES": "0"}
    done = run(environment, "em", "ingest", "EMPIAR-11759", "--json")
    assert done.returncode == 4, done.stderr
    assert em(environment, "ls") == []
    status = {row["dataset_id"]: row["status"] for row in em(environment, "ls", "--all")}
    assert status["empiar-11759"] == "failed"


@pytest.mark.integration
def test_a_missing_voxel_size_is_asked_for(environment: dict[str, str], stack: Path) -> None:
    done = run(environment, "em", "ingest", str(stack), "--name", "n")
    assert done.returncode == 2
    assert "--voxel-size Z,Y,X" in done.stderr
    # A wish that was refused leaves nothing behind.
    assert "files-n" not in {row["dataset_id"] for row in em(environment, "ls", "--all")}


@pytest.mark.integration
def test_a_refused_option_does_not_stick(environment: dict[str, str]) -> None:
    em(environment, "ingest", "EMPIAR-99001")
    refused = run(environment, "em", "ingest", "empiar-99001", "--image-set", "7", "--json")
    assert refused.returncode == 2, refused.stderr
    assert em(environment, "ingest", "empiar-99001")["changed"] is False
    (row,) = em(environment, "ls")
    assert row["status"] == "complete"


@pytest.mark.integration
def test_a_path_that_is_also_an_id_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "empiar-11759").mkdir()
    done = run(environment, "em", "ingest", "empiar-11759", cwd=tmp_path)
    assert done.returncode == 2
    assert "./empiar-11759" in done.stderr


@pytest.mark.integration
def test_another_schema_is_refused_with_its_remedy(
    environment: dict[str, str], empty_database_url: str
) -> None:
    environment["EM_DATABASE_URL"] = empty_database_url
    done = run(environment, "em", "ls")
    assert done.returncode == 8
    assert "em db upgrade" in done.stderr
    upgraded = em(environment, "db", "upgrade")
    assert (upgraded["before"], upgraded["after"]) == (None, "0002")
    assert em(environment, "ls") == []
    status = em(environment, "db", "status")
    assert status["revision"] == status["needed"]


@pytest.mark.integration
def test_the_embedded_server_needs_no_step(tmp_path: Path, environment: dict[str, str]) -> None:
    del environment["EM_DATABASE_URL"]
    tmp_path.chmod(0o711)
    assert em(environment, "ls") == []
    assert "127.0.0.1" in em(environment, "db", "status")["url"]


def test_config_shows_where_values_come_from(tmp_path: Path) -> None:
    (tmp_path / "em.yaml").write_text(yaml.safe_dump({"threads": 3}))
    done = run(
        {"EM_API_PORT": "81", "PATH": "", "HOME": str(tmp_path)}, "em", "config", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["threads"] == {"value": "3", "from": str(tmp_path / "em.yaml")}
    assert shown["api_port"] == {"value": "81", "from": "EM_API_PORT in the environment"}
    assert shown["executor"]["from"] == "default"


def test_a_wrong_setting_is_refused_by_every_command(tmp_path: Path) -> None:
    done = run({"EM_STORE_ULR": "x", "HOME": str(tmp_path)}, "em", "ls")
    assert done.returncode == 2
    assert "EM_STORE_URL" in done.stderr


def test_help_names_the_exit_codes(tmp_path: Path) -> None:
    done = run({"HOME": str(tmp_path), "COLUMNS": "200"}, "em", "--help")
    assert "Exit codes" in done.stdout
    for verb in ("ingest", "register", "ls", "show", "verify", "block", "serve", "config", "db", "dev"):
        assert verb in done.stdout


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50,8,8", PartialVoxelSize(z=50, y=8, x=8)),
        ("50,,", PartialVoxelSize(z=50)),
        ("8", PartialVoxelSize(z=8, y=8, x=8)),
        (" 5 , 4 ,4.5", PartialVoxelSize(z=5, y=4, x=4.5)),
        ("file", PartialVoxelSize()),
    ],
)
def test_voxel_sizes(text: str, expected: PartialVoxelSize) -> None:
    assert parse_voxel_size(text) == expected


@pytest.mark.parametrize("text", ["", "a", "1,2", "1,2,3,4", "0,1,1", "-1,1,1", "nan,1,1", "inf,1,1"])
def test_what_is_no_voxel_size_is_refused(text: str) -> None:
    with pytest.raises(InputRefused):
        parse_voxel_size(text)


def test_numbers_for_people() -> None:
    assert [size(n) for n in (None, 0, 1023, 1536, 5 << 30)] == ["", "0 B", "1023 B", "1.5 KiB", "5.0 GiB"]
    assert by_axis((50.0, 7.998250424861908, 4)) == "50×7.998×4"
    assert by_axis((1000.0, 127_000.0, 14_310.0)) == "1000×127000×14310"


def test_a_plan_s_time_names_where_the_volume_will_lie() -> None:
    assert _keeping_up("file:///data/store") == "the disk keeps up"
    assert _keeping_up("s3://bucket/em").startswith("the bucket keeps up")
