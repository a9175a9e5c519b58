"""Storage on a local disk and in a bucket alike: content, atomicity, publishing, pickling."""

import errno
import hashlib
import os
import pickle
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from counterray.storage import Location, MissingError, StorageError, publish, resolve, upload
from tests.s3_server import ADMIN


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path) -> Location:
    """An empty folder on each kind of storage."""
    if request.param == "local":
        return resolve(tmp_path / "folder")
    return resolve(f"{request.getfixturevalue('make_bucket')()}/folder")


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


# --- content ------------------------------------------------------------------------------------------------


def test_what_is_written_is_read(folder):
    place = folder / "deep/er/file.bin"
    assert not place.exists()
    place.write_bytes(b"old")
    place.write_bytes(b"\x00new")
    assert place.exists()
    assert place.read_bytes() == b"\x00new"
    assert place.size() == 4


def test_a_local_file_is_copied_over_what_is_there(folder, tmp_path):
    (tmp_path / "local").write_bytes(b"\x00new")
    place = folder / "a/b"
    place.write_bytes(b"old")
    place.write_file(tmp_path / "local")
    assert place.read_bytes() == b"\x00new"
    assert folder.files() == ["a/b"]


def test_an_empty_file_is_a_file(folder):
    (folder / "empty").write_bytes(b"")
    assert (folder / "empty").read_bytes() == b""
    assert (folder / "empty").size() == 0
    assert folder.files() == ["empty"]


def test_json_round_trip(folder):
    (folder / "a.json").write_json({"b": [1, 2.5, None], "a": "ü"})
    assert (folder / "a.json").read_json() == {"a": "ü", "b": [1, 2.5, None]}


def test_what_is_not_json_is_refused_by_name(folder):
    (folder / "a.json").write_bytes(b"{")
    with pytest.raises(StorageError, match=r"folder/a\.json is not valid JSON"):
        (folder / "a.json").read_json()


def test_sha256_of_a_known_content(folder):
    (folder / "abc").write_bytes(b"abc")  # the example of FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (folder / "abc").sha256() == expected


def test_a_compressed_file_is_read_as_it_is(folder):
    """By default, pyarrow unpacks whatever has a compressed file's ending."""
    (folder / "table.csv.gz").write_bytes(b"not even gzip")
    assert (folder / "table.csv.gz").read_bytes() == b"not even gzip"
    assert (folder / "table.csv.gz").sha256() == hashlib.sha256(b"not even gzip").hexdigest()


def test_a_file_of_many_parts(folder):
    data = os.urandom(20 << 20)
    (folder / "large").write_bytes(data)
    assert (folder / "large").sha256() == hashlib.sha256(data).hexdigest()


def test_files_are_listed_below_and_sorted(folder):
    assert folder.files() == []
    for name in ("b", "a/z", "a/b/c"):
        (folder / name).write_bytes(b"x")
    assert folder.files() == ["a/b/c", "a/z", "b"]
    assert (folder / "a").files() == ["b/c", "z"]


def test_names_are_those_of_one_level(folder):
    assert folder.names() == []
    for name in ("b", "a/z", "a/b/c", f".x.{'0' * 32}.partial/f"):
        (folder / name).write_bytes(b"x")
    assert folder.names() == ["a", "b"]
    assert (folder / "a").names() == ["b", "z"]


def test_deleting_a_file_a_folder_and_nothing(folder):
    for name in ("a/x", "a/y", "b"):
        (folder / name).write_bytes(b"x")
    (folder / "b").delete()
    (folder / "none").delete()
    assert folder.files() == ["a/x", "a/y"]
    (folder / "a").delete()
    assert folder.files() == []


def test_download(folder, tmp_path):
    (folder / "a/x").write_bytes(b"1")
    (folder / "y").write_bytes(b"2")
    copy = folder.download(tmp_path / "copy")
    assert (copy / "a/x").read_bytes() == b"1"
    assert (copy / "y").read_bytes() == b"2"


@pytest.mark.parametrize("method", ["read_bytes", "sha256", "size", "read_json"])
def test_a_missing_file_is_named(folder, method):
    with pytest.raises(MissingError, match=r"Could not read \S+folder/none: there is no such file") as caught:
        getattr(folder / "none", method)()
    assert isinstance(caught.value, StorageError)
    assert isinstance(caught.value, FileNotFoundError)


def test_a_missing_folder_cannot_be_downloaded(folder, tmp_path):
    with pytest.raises(MissingError, match="Could not download"):
        folder.download(tmp_path / "copy")


@pytest.mark.parametrize("name", ["", "/etc", "../x", "a/../../x"])
def test_names_stay_below_the_folder(folder, name):
    with pytest.raises(StorageError, match="must be relative"):
        folder / name


# --- URIs and pickling --------------------------------------------------------------------------------------


def test_local_uris_are_absolute_and_equal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = resolve(tmp_path / "a b")
    assert expected.uri == expected.path == str(tmp_path / "a b")
    assert expected.is_local
    for text in (
        "a b",
        "./a b/",
        f"file://{tmp_path}/a%20b",
        f"file://localhost{tmp_path}/a%20b",
        "c/../a b",
    ):
        assert resolve(text) == expected


def test_bucket_uris_are_normalised(make_bucket):
    bucket = make_bucket()
    place = resolve(f"{bucket}//a///b/")
    assert place.uri == f"{bucket}/a/b"
    assert place.path == f"{bucket.removeprefix('s3://')}/a/b"
    assert not place.is_local


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("gs://bucket/x", "scheme 'gs' is unknown"),
        ("https://host/x", "scheme 'https' is unknown"),
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        (Path("s3://bucket/x"), "lost a slash"),
        ("file://server/x", "names the host 'server'"),
    ],
)
def test_uris_that_make_no_sense_are_refused(uri, message):
    with pytest.raises(StorageError, match=message):
        resolve(uri)


def test_a_location_pickles_as_its_uri_without_keys(folder):
    (folder / "x").write_bytes(b"1")
    pickled = pickle.dumps(folder / "x")
    assert pickle.loads(pickled) == folder / "x"
    assert pickle.loads(pickled).read_bytes() == b"1"
    for secret in ADMIN:
        assert secret.encode() not in pickled


# --- atomicity ----------------------------------------------------------------------------------------------

WRITER = """
    import sys
    from counterray.storage import resolve
    place = resolve(sys.argv[1])
    sys.stdout.write("ready\\n"); sys.stdout.flush()
    number = 0
    while True:
        place.write_bytes(number.to_bytes(4) * (1 << 20))
        number += 1
"""

PUBLISHER = """
    import sys, time
    from counterray.storage import publish, resolve
    with publish(resolve(sys.argv[1])) as folder:
        (folder / "manifest.json").write_text("{}")
        (folder / "weights").write_bytes(b"new")
        sys.stdout.write("ready\\n"); sys.stdout.flush()
        time.sleep(60)
"""


def start(program: str, uri: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), uri], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_killed_writer_leaves_a_whole_file(folder):
    place = folder / "counter"
    writer = start(WRITER, place.uri)
    try:
        for delay in (0.05, 0.1, 0.2, 0.3, 0.5):
            time.sleep(delay)
            if place.exists():
                assert_one_write(place.read_bytes())
    finally:
        kill(writer)
    assert_one_write(place.read_bytes())
    assert folder.files() == ["counter"]


def assert_one_write(data: bytes) -> None:
    assert len(data) == 4 << 20
    assert data == data[:4] * (1 << 20)


def test_readers_never_meet_a_mixture_of_two_writes(folder):
    place = folder / "counter"
    place.write_bytes(bytes(1 << 20))
    seen, stop = set(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(place.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 20):
        place.write_bytes(bytes([number]) * (1 << 20))
    stop.set()
    reader.join()
    assert seen
    assert all(len(set(data)) == 1 and len(data) == 1 << 20 for data in seen)


# --- publishing folders -------------------------------------------------------------------------------------

OLD = {"manifest.json": b"old", "weights": b"old", "only/old": b"old"}
NEW = {"manifest.json": b"new", "weights": b"new", "sub/only-new": b"new"}


def content(place: Location) -> dict[str, bytes]:
    return {name: (place / name).read_bytes() for name in place.files()}


def test_uploading_replaces_what_was_published(folder, tmp_path):
    upload(fill(tmp_path / "old", OLD), folder)
    assert content(folder) == OLD
    upload(fill(tmp_path / "new", NEW), folder)
    assert content(folder) == NEW


def test_a_folder_without_its_last_file_is_not_published(folder, tmp_path):
    with pytest.raises(StorageError, match=r"it has no manifest\.json"):
        upload(fill(tmp_path / "half", {"weights": b"x"}), folder)
    with pytest.raises(StorageError, match=r"it has no done"), publish(folder, last="done") as staging:
        fill(staging, NEW)
    assert not folder.exists()


def test_a_block_that_raises_publishes_nothing(folder, tmp_path):
    upload(fill(tmp_path / "old", OLD), folder)

    def break_off() -> None:
        with publish(folder) as staging:
            fill(staging, NEW)
            raise RuntimeError("half-way")

    with pytest.raises(RuntimeError, match="half-way"):
        break_off()
    assert content(folder) == OLD


def test_a_killed_publisher_leaves_what_was_there(folder, tmp_path):
    upload(fill(tmp_path / "old", OLD), folder)
    kill(start(PUBLISHER, folder.uri))
    assert content(folder) == OLD
    if folder.is_local:  # the remains lie beside it and are not listed
        remains = list(Path(folder.path).parent.glob(".folder.*.partial"))
        assert len(remains) == 1
        assert not [name for name in resolve(tmp_path).files() if "partial" in name]


def test_in_a_bucket_the_last_file_goes_first_and_comes_last(make_bucket, tmp_path, monkeypatch):
    """A reader that starts from the manifest meets the old folder, none, or the new one."""
    folder = resolve(f"{make_bucket()}/folder")
    upload(fill(tmp_path / "old", OLD), folder)
    without_manifest = []
    upload_file = type(folder.client).upload_file

    def watched(client, filename, bucket, key, **options):
        without_manifest.append(not (folder / "manifest.json").exists())
        upload_file(client, filename, bucket, key, **options)

    monkeypatch.setattr(type(folder.client), "upload_file", watched)
    upload(fill(tmp_path / "new", NEW), folder)
    assert without_manifest == [True] * len(NEW)
    assert content(folder) == NEW


def test_what_was_there_returns_when_the_new_cannot_take_its_place(tmp_path, monkeypatch):
    place = resolve(tmp_path / "folder")
    upload(fill(tmp_path / "old", OLD), place)
    rename = Path.rename

    def refuse_new(source: Path, target: Path) -> Path:
        if (source / "sub").exists():  # only NEW has it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(StorageError, match="the disk is full"):
        upload(fill(tmp_path / "new", NEW), place)
    assert content(place) == OLD
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "new", "old"]


def test_a_folder_of_other_files_is_not_replaced(tmp_path):
    fill(tmp_path / "mine", {"thesis.txt": b"years"})
    with pytest.raises(StorageError, match="holds other files"), publish(resolve(tmp_path / "mine")):
        raise AssertionError("the block must not start")
    assert (tmp_path / "mine/thesis.txt").read_bytes() == b"years"


# --- the disk -----------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_old_content_and_names_the_remedy(tmp_path):
    """A file-size limit makes the system refuse in mid-write, as a full disk does."""
    place = resolve(tmp_path / "file")
    place.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        with pytest.raises(StorageError, match=r"file: the disk is full.*unchanged.*Free some space"):
            place.write_bytes(bytes(2 << 20))
        with (
            pytest.raises(StorageError, match="the disk is full"),
            publish(resolve(tmp_path / "f")) as staging,
        ):
            (staging / "weights").write_bytes(bytes(2 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert place.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def small_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root and the right to mount")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_truly_full_disk(small_disk):
    place = resolve(small_disk / "file")
    place.write_bytes(b"old")
    with pytest.raises(StorageError, match=os.strerror(errno.ENOSPC)):
        place.write_bytes(bytes(2 << 20))
    assert place.read_bytes() == b"old"
    place.write_bytes(bytes(1 << 19))  # the failed attempt holds no space


def as_nobody(action) -> str:
    """Runs ``action`` without root's rights, which no permission stops, and returns its outcome."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)
            action()
            outcome = "done"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        os.write(writer, outcome.encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as stream:
        return stream.read()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_read_only_folder_is_named(tmp_path):
    place = resolve(tmp_path / "locked")
    (place / "file").write_bytes(b"old")
    for ancestor in tmp_path.parents:
        if ancestor.stat().st_uid == os.getuid() and ancestor != Path("/"):
            ancestor.chmod(ancestor.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)
    Path(place.path).chmod(0o555)
    for action in (
        lambda: (place / "file").write_bytes(b"new"),
        lambda: (place / "other").write_bytes(b"new"),
        lambda: (place / "file").delete(),
    ):
        outcome = as_nobody(action)
        assert outcome.startswith("StorageError: Could not")
        assert "locked" in outcome
        assert "does not permit it (Permission denied). Change its permissions" in outcome
    assert (place / "file").read_bytes() == b"old"
