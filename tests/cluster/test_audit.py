"""``audit`` on a real Ray: killed and resumed, with an endpoint that dies, with a learned generator."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from counterray.audits.errors import AuditError
from counterray.config import validate
from counterray.data.dataset import Dataset
from counterray.models.predictors.classifier import ClassifierConfig, ClassifierStage
from counterray.models.predictors.demographic import DemographicConfig, DemographicStage
from jobs.auditing.job import audit
from jobs.auditing.reporting import PAGE_FILE, SALT_FILE, SUMMARY_FILE
from jobs.auditing.request import AuditJobConfig
from tests.cluster.bundles import bundle_of
from tests.cluster.commands import command, finish, start
from tests.score_server import ScoreServer, serve_scores
from tests.small_mine_ldm import vae_stage

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

BRIGHT = "tests.audited_functions:brightness"
NAN = "tests.audited_functions:not_a_number"
AUDIT = {"minimum_patients": 4, "resamples": 200, "permutations": 199}
TINY = {"widths": (8,), "blocks": (1,)}


def config(**settings: Any) -> AuditJobConfig:
    return validate(
        AuditJobConfig,
        {
            "split": "train",
            "studies": 96,
            "chunk_studies": 8,
            "audit": AUDIT,
            "resources": {"workers": 2},
            **settings,
        },
    )


def endpoint(folder: Path, server: ScoreServer) -> str:
    file = folder / "endpoint.yaml"
    settings = {"kind": "http", "url": server.url, "findings": ["edema", "atelectasis"], "batch_size": 4}
    fast = {"retries": 1, "requests_per_second": 1000, "name": "remote"}
    file.write_text(json.dumps({**settings, **fast}))
    return str(file)


def run(dataset: Dataset, out: Path, classifiers: list[str], **more: Any) -> Any:
    settings = {
        key: more.pop(key) for key in list(more) if key in AuditJobConfig.model_fields and key != "generator"
    }
    given = {"generator": "exact", "attributes": ["sex"], "judges": [], **more}
    data = dataset.location.uri
    return audit(config(**settings), classifiers=classifiers, data=data, out=str(out), **given)


def audit_of(report: dict[str, Any]) -> dict[str, Any]:
    """The audit of sex."""
    [found] = [one for one in report["attributes"] if one["attribute"] == "sex"]
    audit: dict[str, Any] = found["audits"][0]
    return audit


def stored(out: Path) -> dict[str, bytes]:
    files = sorted((out / "cache").rglob("*.parquet"))
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def test_killed_half_way_and_run_again_gives_what_an_undisturbed_run_gives(
    phantom_dataset: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    settings = [
        *("split=train", "studies=96", "chunk_studies=8", "resources.workers=2"),
        *(f"audit.{name}={value}" for name, value in AUDIT.items()),
    ]
    places = ("--generator", "exact", "--data", phantom_dataset.location.uri, "--out", str(out))
    asked = ("--classifier", BRIGHT, "--classifier", NAN, "--attribute", "sex", "--attribute", "group")
    line = command("audit", *places, *asked, *(part for text in settings for part in ("--set", text)))
    process, end = start(line), time.monotonic() + 180
    while len(list((out / "cache" / "images").glob("*.parquet"))) < 5:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "audit.json").exists()
    before = stored(out)

    output, _ = finish(line)
    result = json.loads(output.splitlines()[-1])
    assert set(result["verdicts"]) == {"sex", "group"}
    assert before.items() <= stored(out).items(), "what was made was kept, byte for byte"

    # The codes of patients depend on a salt that every audit draws for itself.
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / SALT_FILE).write_bytes((out / SALT_FILE).read_bytes())
    run(phantom_dataset, tmp_path / "whole", [BRIGHT, NAN], attributes=["sex", "group"])
    assert stored(tmp_path / "whole") == stored(out)
    resumed, whole = (json.loads((place / "audit.json").read_text()) for place in (out, tmp_path / "whole"))
    assert resumed == whole
    for name in (PAGE_FILE, SUMMARY_FILE):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert "no finite numbers" in audit_of(whole)["refused"][f"{NAN}, atelectasis"]


def test_an_endpoint_that_dies_loses_nothing_and_nobody_else(
    phantom_dataset: Dataset, tmp_path: Path
) -> None:
    with serve_scores() as server:
        server.dies_after = 30
        classifiers = [BRIGHT, endpoint(tmp_path, server)]
        allowed = {"allowed_hosts": [server.host]}
        first = run(phantom_dataset, tmp_path / "out", classifiers, **allowed)
        assert "did not answer in 2 attempts" in first["refused"]["classifiers"]["remote"]
        assert "of 24 chunks are scored and kept" in first["refused"]["classifiers"]["remote"]
        assert set(first["verdicts"]["sex"]) == {f"{BRIGHT}, edema", f"{BRIGHT}, atelectasis"}
        assert first["incomplete"] == ["classifier remote"]
        answered, server.dies_after = server.answered, None
        second = run(phantom_dataset, tmp_path / "out", classifiers, **allowed)
        assert second["refused"]["classifiers"] == {}
        assert second["incomplete"] == []
        assert len(second["verdicts"]["sex"]) == 4
        # 12 chunks of 2 requests for the observed images, 12 of 6 for the counterfactuals; of those that
        # were answered before, only a chunk that was not finished is asked for again.
        assert answered == 30
        assert 96 - 30 <= server.answered - answered <= 96 - 30 + 6
    report = json.loads((tmp_path / "out" / "audit.json").read_text())
    ours, theirs = (
        [one for one in audit_of(report)["findings"] if one["classifier"] == name]
        for name in (BRIGHT, "remote")
    )
    for mine, other in zip(ours, theirs, strict=True):
        for name, number in mine["numbers"].items():
            for end in ("value", "low", "high"):
                if number[end] is not None:
                    assert other["numbers"][name][end] == pytest.approx(number[end], abs=1e-6)


def test_a_learned_generator_without_judges_cannot_tell_and_with_them_says_what_they_read(
    phantom_dataset: Dataset, tmp_path: Path
) -> None:
    untrained = vae_stage(attributes=("sex",), weights={"perceptual": 0.0, "kl": 1.0})
    generator = bundle_of(untrained, tmp_path / "generator", phantom_dataset).location.uri
    scored = ClassifierStage(ClassifierConfig(backbone=TINY))
    classifier = bundle_of(scored, tmp_path / "mine" / "bundle", phantom_dataset).location.uri
    judge = DemographicStage(DemographicConfig(backbone=TINY, attributes=("sex",)))
    judges = [bundle_of(judge, tmp_path / "judge", phantom_dataset).location.uri]
    common = {"generator": generator, "split": "test", "studies": 40, "cache": str(tmp_path / "cache")}
    one = {"audit": {**AUDIT, "minimum_patients": 2}}
    first = run(phantom_dataset, tmp_path / "a", [classifier], **common, **one)
    assert set(first["verdicts"]["sex"].values()) == {"cannot_tell"}
    gates = audit_of(json.loads((tmp_path / "a" / "audit.json").read_text()))["gates"]
    assert {gate["name"] for gate in gates if gate["reason"] == "it was not measured"} == {
        *("effectiveness", "off_target", "identity", "judge_auroc")
    }
    run(phantom_dataset, tmp_path / "b", [classifier], judges=judges, **common, **one)
    written = json.loads((tmp_path / "b" / "audit.json").read_text())
    read = {gate["name"]: gate["value"] for gate in audit_of(written)["gates"]}
    assert read["judge_auroc"] is not None
    assert np.isfinite(read["composition"])
    assert [role for role in written["bundles"] if role.startswith("judge")] == ["judge demographic"]


def test_nothing_that_can_be_audited_is_an_error_that_says_all(
    phantom_dataset: Dataset, tmp_path: Path
) -> None:
    failing = "tests.audited_functions:failing"
    with pytest.raises(AuditError, match=r"No classifier can be audited.*is no bundle"):
        run(phantom_dataset, tmp_path / "a", [str(tmp_path / "nothing")])
    with pytest.raises(AuditError, match=r"Nothing could be audited.*ZeroDivisionError"):
        run(phantom_dataset, tmp_path / "b", [failing], studies=24)
    assert "ZeroDivisionError" in (tmp_path / "b" / "audit.json").read_text()
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.txt").write_text("x")
    with pytest.raises(AuditError, match="holds files, but none of a python -m jobs audit"):
        run(phantom_dataset, tmp_path / "c", [BRIGHT], studies=24)
