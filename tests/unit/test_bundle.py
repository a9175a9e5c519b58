"""Bundles: what goes in comes out bit by bit, and what was changed is refused by name."""

import hashlib
import json
import math
import os
import pickle
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from counterray import __version__, bundle
from counterray.bundle import BundleError, code_version, open_bundle, write_bundle
from counterray.storage import Location, StorageError, resolve, upload
from counterray.training.stage import Export

WEIGHTS = {
    "model": {
        "encoder.weight": torch.randn(3, 5, generator=torch.Generator().manual_seed(1)),
        "encoder.bias": torch.tensor([1.0, -0.0, math.inf, math.nan]).bfloat16(),
        "steps": torch.tensor(7, dtype=torch.int64),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "empty": torch.zeros(0, 4),
    },
    "ema": {"encoder.weight": torch.full((2,), 1 / 3, dtype=torch.float64)},
}
EXPORT = Export(
    tensors=WEIGHTS,
    metadata={"findings": ["edema"], "size": 64},
    files={"tokenizer.json": b'{"a": 1}'},
    intended_use="Research on synthetic images.",
    limits="Never a diagnosis.",
)


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path) -> Location:
    """Where a bundle goes, on each kind of storage."""
    if request.param == "local":
        return resolve(tmp_path / "bundle")
    return resolve(f"{request.getfixturevalue('make_bucket')()}/bundle")


@pytest.fixture
def local(tmp_path) -> Path:
    """A bundle on disk."""
    write(resolve(tmp_path / "original"))
    return tmp_path / "original"


def write(location: Location, **changes):
    settings = {
        "method": "gsvae",
        "stage": "gsvae",
        "config": {"optimizer": {"lr": 3e-4}},
        "export": EXPORT,
        "data_fingerprint": "d4ta",
        "metrics": {"auroc": 0.875, "fid": math.nan},
        "judges": {"classifier-seed1": "c0ffee"},
        "training": {"steps": 300, "duration": "12 s"},
    }
    return write_bundle(location, **(settings | changes))


def rewrite_manifest(folder: Path, **changes) -> None:
    """Changes the manifest as somebody would who recomputes its checksum too."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    manifest["checksum"] = bundle._checksum(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()


# --- round trip ---------------------------------------------------------------------------------------------


def test_round_trip_is_bitwise(folder):
    write(folder)
    opened = open_bundle(folder.uri)
    for stem, state in WEIGHTS.items():
        loaded = opened.tensors(stem)
        assert loaded.keys() == state.keys()
        for name, tensor in state.items():
            assert loaded[name].dtype == tensor.dtype
            assert loaded[name].shape == tensor.shape
            assert bits(loaded[name]) == bits(tensor)
    assert opened.metadata == {"findings": ["edema"], "size": 64}
    assert opened.config == {"optimizer": {"lr": 3e-4}}
    assert opened.file("tokenizer.json") == b'{"a": 1}'
    assert (opened.method, opened.stage) == ("gsvae", "gsvae")
    assert opened.metrics["auroc"] == 0.875
    assert math.isnan(opened.metrics["fid"])


def test_manifest_is_strict_json_with_all_that_is_promised(local):
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    manifest = json.loads((local / "manifest.json").read_text(), parse_constant=refuse)
    assert manifest["format"] == 1
    assert manifest["judges"] == {"classifier-seed1": "c0ffee"}
    assert manifest["data_fingerprint"] == "d4ta"
    assert manifest["metrics"] == {"auroc": 0.875, "fid": None}
    assert manifest["code_version"] == code_version()
    written = {path.name for path in local.iterdir()} - {"manifest.json"}
    assert set(manifest["files"]) == written
    for name, checksum in manifest["files"].items():
        assert hashlib.sha256((local / name).read_bytes()).hexdigest() == checksum


def test_tied_weights_are_stored_as_each_name_needs_them(tmp_path):
    weight = torch.randn(4, 4)
    export = Export(tensors={"model": {"in": weight, "out": weight, "row": weight[1]}}, metadata={})
    loaded = write(resolve(tmp_path / "b"), export=export).tensors()
    assert torch.equal(loaded["in"], loaded["out"])
    assert torch.equal(loaded["row"], weight[1])


def test_card_says_what_a_reader_must_know(local):
    card = (local / "README.md").read_text()
    assert "Research on synthetic images." in card
    assert "Never a diagnosis." in card
    assert "| auroc | 0.875 |" in card
    assert "| fid | undefined |" in card
    assert "- classifier-seed1: `c0ffee`" in card
    assert "`d4ta`" in card
    assert "- steps: 300" in card
    assert "- `ema.safetensors`: 2 values" in card


def test_the_card_loads_the_bundle_as_it_says(local):
    code = re.search(r"```python\n(.*?)```", (local / "README.md").read_text(), re.DOTALL)[1]
    names = {}
    exec(code.replace("<folder or s3:// URI>", str(local)), names)
    assert names["state"].keys() == WEIGHTS["model"].keys()


# --- identity -----------------------------------------------------------------------------------------------


def test_the_checksum_does_not_depend_on_the_place(folder, tmp_path, local):
    upload(local, folder)
    shutil.copytree(local, tmp_path / "copy")
    checksum = open_bundle(local).checksum
    assert open_bundle(tmp_path / "copy").checksum == checksum
    assert open_bundle(folder).checksum == checksum
    assert write(folder).checksum == checksum  # and it can be made again


def test_the_checksum_does_not_depend_on_where_parents_lie(tmp_path, local):
    shutil.copytree(local, tmp_path / "moved")
    children = [
        write(resolve(tmp_path / f"child-{place}"), parents={"identity": open_bundle(tmp_path / place)})
        for place in ("original", "moved")
    ]
    assert children[0].checksum == children[1].checksum
    parent = children[0].manifest["parents"]["identity"]
    assert parent == {
        "uri": str(local),
        "checksum": open_bundle(local).checksum,
        "stage": "gsvae",
    }


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"optimizer": {"lr": 3e-5}}},
        {"data_fingerprint": "other"},
        {"judges": {"classifier-seed1": "0ther"}},
        {"metrics": {"auroc": 0.876}},
        {"stage": "other"},
        {"export": Export(tensors={"model": {"w": torch.zeros(1)}}, metadata=EXPORT.metadata)},
        {"export": Export(tensors=WEIGHTS, metadata={"size": 128}, files=EXPORT.files)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_checksum_depends_on_everything_else(tmp_path, local, change):
    assert write(resolve(tmp_path / "other"), **change).checksum != open_bundle(local).checksum


def test_the_checksum_depends_on_the_parents(tmp_path, local):
    child = write(resolve(tmp_path / "child"), parents={"identity": open_bundle(local)})
    grandchild = write(resolve(tmp_path / "grandchild"), parents={"identity": child})
    assert len({open_bundle(local).checksum, child.checksum, grandchild.checksum}) == 3


def test_the_expected_stage_is_checked(local):
    opened = open_bundle(local)
    assert opened.expect("gsvae") is opened
    with pytest.raises(BundleError, match=r"made by stage 'gsvae'; 'classifier' is needed"):
        opened.expect("classifier")


# --- what is refused ----------------------------------------------------------------------------------------


def test_no_bundle_there(folder):
    with pytest.raises(BundleError, match=r"bundle, file 'manifest\.json': it is missing"):
        open_bundle(folder.uri)


def test_a_half_copied_bundle_is_refused(folder, local):
    """Whatever has arrived so far: there is no manifest, or a file is missing."""
    files = [*sorted(path.name for path in local.iterdir() if path.name != "manifest.json"), "manifest.json"]
    for arrived in range(len(files)):
        for name in files[:arrived]:
            (folder / name).write_bytes((local / name).read_bytes())
        with pytest.raises(BundleError, match="it is missing"):
            open_bundle(folder.uri)
        folder.delete()
    (folder / "manifest.json").write_bytes((local / "manifest.json").read_bytes())
    with pytest.raises(BundleError, match=r"file 'README\.md': it is missing"):
        open_bundle(folder.uri)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "ema.safetensors", "config.json", "README.md", "tokenizer.json"]
)
def test_each_file_is_missed_and_a_changed_bit_is_noticed(local, name):
    data = bytearray((local / name).read_bytes())
    data[-1] ^= 1
    (local / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"file '{re.escape(name)}': its content is not what was written"):
        open_bundle(local)
    (local / name).unlink()
    with pytest.raises(BundleError, match=rf"file '{re.escape(name)}': it is missing"):
        open_bundle(local)


def test_a_file_that_changes_after_opening_is_refused(local):
    opened = open_bundle(local)
    (local / "model.safetensors").write_bytes((local / "ema.safetensors").read_bytes())
    with pytest.raises(BundleError, match=r"file 'model\.safetensors': its content changed"):
        opened.tensors()


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_truncated_weights_are_refused_even_if_the_manifest_agrees(local, kept):
    data = (local / "model.safetensors").read_bytes()[:kept]
    (local / "model.safetensors").write_bytes(data)
    with pytest.raises(BundleError, match="truncated or tampered with"):
        open_bundle(local)
    files = json.loads((local / "manifest.json").read_text())["files"]
    rewrite_manifest(local, files=files | {"model.safetensors": hashlib.sha256(data).hexdigest()})
    with pytest.raises(BundleError, match=r"file 'model\.safetensors': no valid safetensors"):
        open_bundle(local).tensors()


def test_a_changed_manifest_is_refused(local):
    text = (local / "manifest.json").read_text()
    for old, new in (('"size": 64', '"size": 32'), ("0.875", "0.975"), ("c0ffee", "c0ffef")):
        assert old in text
        (local / "manifest.json").write_text(text.replace(old, new))
        with pytest.raises(BundleError, match=r"file 'manifest\.json': its content is not what was written"):
            open_bundle(local)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ('{"format": 1', "not valid JSON"),
        ("[]", "its format is 'list'"),
        ("{}", "its format is None"),
        ('{"format": 2}', "its format is 2; this version of counterray reads 1"),
        ('{"format": 1, "stage": "x"}', "it lacks method, metadata, files, checksum"),
    ],
)
def test_manifests_of_another_kind_are_refused(local, text, message):
    (local / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=re.escape(message)):
        open_bundle(local)


def test_weights_that_the_manifest_does_not_know_are_refused(local):
    shutil.copy(local / "model.safetensors", local / "model-2.safetensors")
    with pytest.raises(
        BundleError, match=r"'model-2\.safetensors': the manifest does not know these weights"
    ):
        open_bundle(local)


def test_a_manifest_cannot_reach_outside_the_folder(local):
    (local.parent / "secret").write_bytes(b"s")
    files = {"../secret": hashlib.sha256(b"s").hexdigest()}
    rewrite_manifest(local, files=files)
    with pytest.raises(BundleError, match=r"'\.\./secret', which is no plain file name"):
        open_bundle(local)


def test_a_pickle_in_the_place_of_weights_is_never_run(local, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    data = pickle.dumps(Payload())
    (local / "model.safetensors").write_bytes(data)
    files = json.loads((local / "manifest.json").read_text())["files"]
    rewrite_manifest(local, files=files | {"model.safetensors": hashlib.sha256(data).hexdigest()})
    with pytest.raises(BundleError, match="no valid safetensors"):
        open_bundle(local).tensors()
    assert not (tmp_path / "executed").exists()
    pickle.loads(data)
    assert (tmp_path / "executed").exists()  # the payload works, so its absence above meant something


def test_unknown_names_are_listed(local):
    opened = open_bundle(local)
    with pytest.raises(BundleError, match=r"'vocab\.json': not part of the bundle, which has: README\.md"):
        opened.file("vocab.json")
    with pytest.raises(BundleError, match=r"'teacher\.safetensors': not part of the bundle"):
        opened.tensors("teacher")


# --- what cannot be written ---------------------------------------------------------------------------------


def with_file(name: str) -> Export:
    return Export(tensors=WEIGHTS, metadata={}, files={name: b""})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"size": torch.tensor(1)}}, "its config is not plain JSON"),
        ({"export": Export(tensors=WEIGHTS, metadata={"x": math.nan})}, "its metadata is not plain JSON"),
        (
            {"export": Export(tensors=WEIGHTS, metadata={}, files={"config.json": b""})},
            "'config.json' is taken",
        ),
        ({"export": Export(tensors=WEIGHTS, metadata={}, files={"README.md": b""})}, "'README.md' is taken"),
        ({"export": Export(tensors=WEIGHTS, metadata={}, files={"x.safetensors": b""})}, "is taken"),
        (
            {"export": Export(tensors=WEIGHTS, metadata={}, files={"../x": b""})},
            "'../x' is no plain file name",
        ),
        ({"export": Export(tensors={"a/b": {}}, metadata={})}, "'a/b.safetensors' is no plain file name"),
    ],
)
def test_what_cannot_be_written_is_refused_before_anything_is(tmp_path, changes, message):
    with pytest.raises(BundleError, match=re.escape(message)):
        write(resolve(tmp_path / "bundle"), **changes)
    assert not list(tmp_path.iterdir())


def test_a_bundle_replaces_a_bundle(folder):
    first = write(folder)
    export = Export(tensors={"model": {"w": torch.ones(1)}}, metadata={})
    second = write(folder, export=export)
    assert open_bundle(folder).checksum == second.checksum != first.checksum
    assert folder.files() == ["README.md", "config.json", "manifest.json", "model.safetensors"]


def test_a_bundle_does_not_replace_a_dataset(folder):
    (folder / "manifest.json").write_json({"format": 1, "shards": {}})
    (folder / "train/part-00000.parquet").write_bytes(b"studies")
    with pytest.raises(BundleError, match="holds something that is no bundle; choose another folder"):
        write(folder)
    assert (folder / "train/part-00000.parquet").read_bytes() == b"studies"


def test_a_missing_bucket_is_a_storage_error(make_bucket):
    make_bucket()
    with pytest.raises(StorageError, match="there is no bucket 'no-such-bucket'"):
        write(resolve("s3://no-such-bucket/bundle"))
    with pytest.raises(StorageError, match="there is no bucket 'no-such-bucket'"):
        open_bundle("s3://no-such-bucket/bundle")


# --- code version -------------------------------------------------------------------------------------------


def test_code_version_names_the_commit_and_whether_it_was_changed(tmp_path, monkeypatch):
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        command = ["git", *identity, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    module = tmp_path / "src/bundle.py"
    module.parent.mkdir()
    shutil.copy(bundle.__file__, module)
    monkeypatch.setattr(bundle, "__file__", str(module))
    version = code_version.__wrapped__  # not the cached answer
    assert version() == __version__  # no checkout
    git("init", "-q")
    assert version() == __version__  # somebody else's checkout
    git("add", "src")
    git("commit", "-qm", "all")
    commit = git("rev-parse", "--short=7", "HEAD")
    assert version() == f"{__version__}+g{commit}"
    module.write_text("")
    assert version() == f"{__version__}+g{commit}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert version() == __version__  # no git
