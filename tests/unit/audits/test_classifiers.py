"""Each kind of classifier with a tiny real model, and what is told where one cannot be used."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch

from counterray.audits.classifiers.bundle import BundleClassifier, BundleConfig
from counterray.audits.classifiers.contract import ClassifierError
from counterray.audits.classifiers.function import FunctionClassifier, FunctionConfig
from counterray.audits.classifiers.opening import (
    open_classifier,
    read_classifier,
    require_distinct,
    short_name,
)
from counterray.audits.classifiers.preprocessing import Preprocessing
from counterray.audits.classifiers.table import TableClassifier, TableConfig
from counterray.audits.classifiers.weights import WeightsClassifier, WeightsConfig
from counterray.bundle import write_bundle
from counterray.config import ConfigError, validate
from counterray.models.predictors.classifier import ClassifierConfig, ClassifierStage
from counterray.models.predictors.demographic import DemographicConfig, DemographicStage
from counterray.nn.resnet import ResNet18
from counterray.storage import resolve
from tests.predictor_toys import DATA, SIZE, batch

FUNCTIONS = "tests.audited_functions"


def keys(count):
    return [f"sex-00000000-{row:07d}-level0" for row in range(count)]


def ask(classifier, image):
    found = classifier.scores(image, keys=keys(len(image)))
    assert found.dtype == np.float64
    return found


def bundle_of(folder, stage):
    torch.manual_seed(0)
    module = stage.build({}, DATA)
    bundle = write_bundle(
        resolve(folder),
        method="predictors",
        stage=stage.name,
        config=stage.config.model_dump(mode="json"),
        export=stage.export(module),
        data_fingerprint=DATA.fingerprint,
    )
    return bundle, module.eval()


# preprocessing


def test_preprocessing_by_hand():
    image = torch.tensor([[[[-1.0, 1.0], [0.0, 0.5]]]])
    plain = Preprocessing().apply(image)
    np.testing.assert_allclose(plain[0, 0], [[0, 1], [0.5, 0.75]])
    xrv = Preprocessing(low=-1024, high=1024).apply(image)
    np.testing.assert_allclose(xrv[0, 0], [[-1024, 1024], [0, 512]])
    colour = Preprocessing(channels=3, mean=(0.5, 0.25, 0), std=(0.5,)).apply(image)
    np.testing.assert_allclose(colour[0, :, 0, 1], [1, 1.5, 2])
    inverted = Preprocessing(low=1, high=0).apply(image)
    np.testing.assert_allclose(inverted[0, 0], [[1, 0], [0.5, 0.25]])
    assert Preprocessing(size=4).apply(image).shape == (1, 1, 4, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 3, "mean": [0.1, 0.2]}, "mean has 2 numbers for 3"),
        ({"std": [0.0]}, "must be above 0"),
        ({"low": 1, "high": 1}, "every image the same"),
    ],
)
def test_preprocessing_that_cannot_be_meant(settings, message):
    with pytest.raises(ConfigError, match=message):
        validate(Preprocessing, settings)


# bundles


def test_a_bundle_answers_as_its_module(tmp_path):
    bundle, module = bundle_of(tmp_path / "runs" / "first" / "bundle", ClassifierStage(ClassifierConfig()))
    config = read_classifier(bundle.location.uri)
    assert isinstance(config, BundleConfig)
    assert config.name == "first"
    classifier = open_classifier(config)
    image = batch(5, 0).image
    np.testing.assert_allclose(ask(classifier, image), module(image).sigmoid().detach(), atol=1e-6)
    assert classifier.findings == ("edema", "fracture")
    moved = bundle.location.download(tmp_path / "moved")
    assert open_classifier(read_classifier(str(moved))).fingerprint == classifier.fingerprint


def test_a_bundle_of_another_size_is_told_or_served_as_the_settings_say(tmp_path):
    bundle, _ = bundle_of(tmp_path / "bundle", ClassifierStage(ClassifierConfig()))
    image = torch.zeros(2, 1, 64, 64)
    uri = bundle.location.uri
    with pytest.raises(ClassifierError, match=f"trained on images of {SIZE} px; these have 64 px"):
        ask(BundleClassifier(BundleConfig(uri=uri)), image)
    assert ask(BundleClassifier(BundleConfig(uri=uri, size=SIZE)), image).shape == (2, 2)


def test_a_bundle_of_a_stage_that_scores_no_findings(tmp_path):
    bundle, _ = bundle_of(tmp_path / "bundle", DemographicStage(DemographicConfig()))
    with pytest.raises(ClassifierError, match="stage 'demographic', which scores no findings"):
        BundleClassifier(BundleConfig(uri=bundle.location.uri))


# weights


def saved_resnet(folder):
    torch.manual_seed(0)
    network = ResNet18(2, width=4).eval()
    safetensors.torch.save_file(network.state_dict(), folder / "model.safetensors")
    settings = {"file": str(folder / "model.safetensors"), "architecture": "resnet18", "findings": ["a", "b"]}
    return network, {**settings, "settings": {"width": 4}}


def test_weights_of_a_named_architecture(tmp_path):
    network, settings = saved_resnet(tmp_path)
    image = batch(5, 0).image
    seen = {"low": -1, "high": 1}
    classifier = WeightsClassifier(WeightsConfig(**settings, preprocessing=seen, batch_size=2))
    np.testing.assert_allclose(ask(classifier, image), network(image).sigmoid().detach(), atol=1e-6)
    softmax = WeightsClassifier(WeightsConfig(**settings, preprocessing=seen, activation="softmax"))
    np.testing.assert_allclose(ask(softmax, image).sum(axis=1), 1)
    assert softmax.fingerprint != classifier.fingerprint
    smaller = WeightsClassifier(WeightsConfig(**settings, preprocessing=seen, batch_size=1, name="x"))
    assert smaller.fingerprint == classifier.fingerprint


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "resnet50"}, "'resnet50' is none of resnet18"),
        ({"settings": {"depth": 3}}, "refuses settings"),
        ({"settings": {"width": 8}}, "does not hold the weights of 'resnet18'"),
        ({"findings": ["a"]}, "does not hold the weights"),
        ({"findings": ["a", "a"]}, "names? 'a' twice"),
        ({"file": "no/such/file.safetensors"}, "there is no file"),
        ({"architecture": "tests.no_such:network"}, "cannot be imported"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, changes, message):
    _, settings = saved_resnet(tmp_path)
    with pytest.raises(ClassifierError, match=message):
        WeightsClassifier(WeightsConfig(**{**settings, **changes}))


def test_weights_of_the_user_s_own_architecture_and_wrong_channels(tmp_path):
    from tests.audited_functions import small_network

    torch.manual_seed(0)
    network = small_network(outputs=1)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "own.safetensors")
    given = {
        "file": str(tmp_path / "own.safetensors"),
        "architecture": f"{FUNCTIONS}:small_network",
        "findings": ["edema"],
    }
    image = batch(3, 0).image
    found = ask(WeightsClassifier(WeightsConfig(**given)), image)
    np.testing.assert_allclose(found, network((image + 1) / 2).sigmoid().detach(), atol=1e-6)
    wrong = WeightsClassifier(WeightsConfig(**given, preprocessing={"channels": 3}))
    with pytest.raises(ClassifierError, match=r"cannot read images.*Correct its preprocessing"):
        ask(wrong, image)


# functions


def test_a_function_and_its_settings():
    image = batch(5, 0).image
    expected = ((image + 1) / 2).mean(dim=(1, 2, 3)).clamp(0, 1)
    classifier = open_classifier(read_classifier(f"{FUNCTIONS}:brightness"))
    assert classifier.findings == ("edema", "atelectasis")
    np.testing.assert_allclose(ask(classifier, image)[:, 0], expected, atol=1e-6)
    config = FunctionConfig(function=f"{FUNCTIONS}:brightness", settings={"gain": 0.5}, batch_size=2)
    halved = FunctionClassifier(config)
    np.testing.assert_allclose(ask(halved, image)[:, 0], expected / 2, atol=1e-6)
    assert halved.fingerprint != classifier.fingerprint


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (f"{FUNCTIONS}:no_such", "has no function 'no_such'. It has: .*brightness"),
        ("no_such_module:f", "cannot be imported"),
        (f"{FUNCTIONS}:small_network", "does not say what its outputs are"),
    ],
)
def test_a_function_that_cannot_be_used(function, message):
    with pytest.raises(ClassifierError, match=message):
        FunctionClassifier(FunctionConfig(function=function))


def test_a_function_that_fails_or_answers_with_another_shape():
    image = batch(3, 0).image
    with pytest.raises(ClassifierError, match="ZeroDivisionError: division by zero"):
        ask(FunctionClassifier(FunctionConfig(function=f"{FUNCTIONS}:failing")), image)
    one = FunctionConfig(function=f"{FUNCTIONS}:brightness", findings=("edema",))
    with pytest.raises(ClassifierError, match=r"shape \[3, 2\] to 3 images; \[3, 1\] is needed"):
        ask(FunctionClassifier(one), image)


# tables


def table(folder, text, name="predictions.csv"):
    (folder / name).write_text(text)
    return TableConfig(file=str(folder / name))


def test_a_table_answers_by_names_in_any_order(tmp_path):
    first, second = keys(2)
    text = f"image,edema,atelectasis\n{second}.png,0.3,0.4\nexport/{first},0.1,\n"
    classifier = TableClassifier(table(tmp_path, text))
    assert classifier.findings == ("edema", "atelectasis")
    np.testing.assert_array_equal(ask(classifier, torch.zeros(2, 1, 4, 4)), [[0.1, np.nan], [0.3, 0.4]])
    with pytest.raises(ClassifierError, match=r"no prediction of 1 of 3 images, such as .*0000002-level0"):
        ask(classifier, torch.zeros(3, 1, 4, 4))


def test_a_parquet_table(tmp_path):
    import pandas as pd

    pd.DataFrame({"image": keys(2), "edema": [0.1, 0.2]}).to_parquet(tmp_path / "p.parquet")
    classifier = open_classifier(read_classifier(str(tmp_path / "p.parquet")))
    np.testing.assert_array_equal(ask(classifier, torch.zeros(2, 1, 4, 4)), [[0.1], [0.2]])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("edema\n0.3\n", "has no column image"),
        ("image\nx\n", "does not say what its outputs are"),
        ("image,edema\nx,0.1\nx.png,0.2\n", "1 rows of the table name an image that another"),
        ("image,edema\nx,high\n", "no number"),
        ("", "cannot be read as a table"),
    ],
)
def test_a_table_that_cannot_be_used(tmp_path, text, message):
    with pytest.raises(ClassifierError, match=message):
        TableClassifier(table(tmp_path, text))


# addresses


def test_a_yaml_file_describes_any_kind(tmp_path):
    _, settings = saved_resnet(tmp_path)
    file = tmp_path / "resnet.yaml"
    described = {"kind": "weights", "name": "mine", "threshold": {"method": "youden"}, **settings}
    file.write_text(json.dumps(described))
    config = read_classifier(str(file))
    assert isinstance(config, WeightsConfig)
    assert (config.name, config.threshold.method) == ("mine", "youden")
    file.write_text(json.dumps({**described, "architectur": "x"}))
    with pytest.raises(ConfigError, match=r"Unknown setting 'classifier.architectur'. Did you mean 'archit"):
        read_classifier(str(file))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("https://host/score", "an endpoint needs a YAML file"),
        ("model.safetensors", "weights need a YAML file"),
        ("no/such/folder", "is no bundle"),
    ],
)
def test_addresses_that_do_not_say_enough(address, message):
    with pytest.raises(ClassifierError, match=message):
        read_classifier(address)


def test_names_by_address():
    assert short_name("runs/resnet/bundle") == "resnet"
    assert short_name("s3://bucket/densenet/bundle/") == "densenet"
    assert short_name("models/best.onnx") == "models"
    assert short_name("predictions.csv") == "predictions"
    with pytest.raises(ClassifierError, match="Two classifiers are called 'a'"):
        require_distinct(["a", "b", "a"])
