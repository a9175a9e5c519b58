"""What an encode refuses before a worker starts: all of it that needs no Ray."""

from dataclasses import replace

import pytest

from counterray.bundle import BundleError, write_bundle
from counterray.models.pathology_ldm.encoding import EncodeConfig
from counterray.storage import resolve
from jobs import encoding
from jobs.encoding import encode
from tests.phantom_dataset import write_dataset
from tests.small_gsvae import INFO, UNSUPERVISED, judge_bundles, make_stage


def test_a_gsvae_of_another_image_size_is_named_with_both_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "derive", lambda *_, **__: pytest.fail("a worker was asked"))
    stage = make_stage(weights=UNSUPERVISED)
    gsvae = write_bundle(
        resolve(tmp_path / "wide"),
        method="gsvae",
        stage=stage.name,
        config=stage.config.model_dump(mode="json"),
        export=stage.export(stage.build({}, replace(INFO, image_size=64))),
        data_fingerprint="small",
    )
    places = {
        "data": write_dataset(tmp_path / "data", train=2).location.uri,
        "gsvae": gsvae.location.uri,
        "text": judge_bundles(tmp_path)["pathology"].location.uri,
        "out": str(tmp_path / "out"),
    }
    sizes = r"wide encodes images of 64 px; those of --data have 32 px\. Ingest the data with image_size=64"
    with pytest.raises(BundleError, match=rf"^--gsvae: .*{sizes}"):
        encode(EncodeConfig(), **places)
    assert not (tmp_path / "out").exists()
