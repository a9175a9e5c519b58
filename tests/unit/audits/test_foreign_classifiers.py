"""ONNX files and Hugging Face folders: tiny real ones, written here."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch

from counterray.audits.classifiers.contract import ClassifierError
from counterray.audits.classifiers.huggingface import (
    HuggingFaceClassifier,
    HuggingFaceConfig,
    read_preprocessing,
)
from counterray.audits.classifiers.onnx import OnnxClassifier, OnnxConfig
from counterray.audits.classifiers.opening import open_classifier, read_classifier


def image(count=5, size=8):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def ask(classifier, images):
    return classifier.scores(images, keys=[str(row) for row in range(len(images))])


# ONNX


def onnx_file(folder, *, batch="N", findings="", outputs=1):
    """The mean of an image, times 4 and times -4, as logits ``[N, 2]``."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    weight = helper.make_tensor("weight", kind, [1, 2], [4.0, -4.0])
    names = ["logits", "flat"][:outputs]
    graph = helper.make_graph(
        nodes,
        "mean",
        [helper.make_tensor_value_info("image", kind, [batch, 1, 8, 8])],
        [helper.make_tensor_value_info(name, kind, None) for name in names],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    if findings:
        helper.set_model_props(model, {"findings": findings})
    onnx.save(model, folder / "mean.onnx")
    return str(folder / "mean.onnx")


def expected(images):
    mean = ((images + 1) / 2).mean(dim=(1, 2, 3)).double().numpy()
    return np.stack([1 / (1 + np.exp(-4 * mean)), 1 / (1 + np.exp(4 * mean))], axis=1)


def test_an_onnx_file_answers(tmp_path):
    pytest.importorskip("onnxruntime")
    file = onnx_file(tmp_path, findings="edema, atelectasis")
    classifier = open_classifier(read_classifier(file))
    assert classifier.findings == ("edema", "atelectasis")
    np.testing.assert_allclose(ask(classifier, image()), expected(image()), atol=1e-6)


def test_an_onnx_file_of_a_fixed_batch_size_answers_to_any_number(tmp_path):
    pytest.importorskip("onnxruntime")
    config = OnnxConfig(file=onnx_file(tmp_path, batch=2), findings=("a", "b"))
    np.testing.assert_allclose(ask(OnnxClassifier(config), image(5)), expected(image(5)), atol=1e-6)


def test_what_an_onnx_file_must_say(tmp_path):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ClassifierError, match="does not say what its outputs are"):
        OnnxClassifier(OnnxConfig(file=onnx_file(tmp_path)))
    file = onnx_file(tmp_path, outputs=2)
    with pytest.raises(ClassifierError, match="output = ''; the file has logits, flat"):
        OnnxClassifier(OnnxConfig(file=file, findings=("a", "b")))
    chosen = OnnxClassifier(OnnxConfig(file=file, findings=("a", "b"), output="logits"))
    assert ask(chosen, image(2)).shape == (2, 2)
    with pytest.raises(ClassifierError, match=r"cannot read images \[2, 1, 16, 16\]"):
        ask(chosen, image(2, size=16))
    three = OnnxClassifier(OnnxConfig(file=file, findings=("a", "b", "c"), output="logits"))
    with pytest.raises(ClassifierError, match=r"shape \[2, 2\] to 2 images; \[2, 3\]"):
        ask(three, image(2))
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x09\x12")
    with pytest.raises(ClassifierError, match="it is no ONNX file, was cut off"):
        OnnxClassifier(OnnxConfig(file=str(tmp_path / "cut.onnx"), findings=("a",)))


def test_without_onnxruntime_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(ClassifierError, match=r"pip install 'counterray\[onnx\]'"):
        OnnxClassifier(OnnxConfig(file=str(tmp_path / "model.onnx"), findings=("a",)))


# Hugging Face


def vit(folder, *, problem="multi_label_classification", labels=("edema", "atelectasis"), channels=3):
    transformers = importlib.import_module("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=16,
        patch_size=8,
        num_channels=channels,
        id2label=dict(enumerate(labels)),
        label2id={name: code for code, name in enumerate(labels)},
        problem_type=problem,
    )
    network = transformers.ViTForImageClassification(config).eval()
    network.save_pretrained(folder)
    return network


PROCESSOR = {
    "size": {"height": 16, "width": 16},
    "rescale_factor": 1 / 255,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.25, 0.25, 0.25],
}


def test_a_hugging_face_folder_answers(tmp_path):
    network = vit(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    classifier = open_classifier(read_classifier(str(tmp_path / "vit")))
    assert (classifier.name, classifier.findings) == ("vit", ("edema", "atelectasis"))
    images = image(3, size=16)
    seen = (((images + 1) / 2 - 0.5) / 0.25).expand(-1, 3, -1, -1)
    with torch.no_grad():
        wanted = network(pixel_values=seen).logits.sigmoid()
    np.testing.assert_allclose(ask(classifier, images), wanted, atol=1e-6)
    assert ask(classifier, image(2, size=32)).shape == (2, 2), "resized to what the model takes"


def test_classes_that_exclude_each_other(tmp_path):
    vit(tmp_path, problem="single_label_classification", channels=1)
    config = HuggingFaceConfig(folder=str(tmp_path), preprocessing={"size": 16})
    np.testing.assert_allclose(ask(HuggingFaceClassifier(config), image(3)).sum(axis=1), 1, atol=1e-6)


def test_what_a_hugging_face_folder_leaves_open_must_be_stated(tmp_path):
    with pytest.raises(ClassifierError, match=r"no local folder with a config.json"):
        HuggingFaceClassifier(HuggingFaceConfig(folder="google/vit-base-patch16-224"))
    vit(tmp_path / "a")
    with pytest.raises(ClassifierError, match=r"has no preprocessor_config.json"):
        HuggingFaceClassifier(HuggingFaceConfig(folder=str(tmp_path / "a")))
    vit(tmp_path / "b", problem=None)
    with pytest.raises(ClassifierError, match="State activation: sigmoid"):
        HuggingFaceClassifier(HuggingFaceConfig(folder=str(tmp_path / "b")))
    vit(tmp_path / "c", labels=("LABEL_0", "LABEL_1"))
    with pytest.raises(ClassifierError, match="does not say what its outputs are"):
        HuggingFaceClassifier(HuggingFaceConfig(folder=str(tmp_path / "c")))
    (tmp_path / "a" / "model.safetensors").unlink()
    with pytest.raises(ClassifierError, match="holds no image classifier"):
        HuggingFaceClassifier(HuggingFaceConfig(folder=str(tmp_path / "a"), preprocessing={}))


@pytest.mark.parametrize(
    "said",
    [
        {"size": {"height": 8, "width": 16}},
        {"do_center_crop": True},
        {"rescale_factor": 1 / 127.5},
        {"size": {}},
    ],
)
def test_a_processor_that_does_more_than_resize_and_scale_is_refused(tmp_path, said):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **said}))
    with pytest.raises(ClassifierError, match="State preprocessing"):
        read_preprocessing("x", tmp_path, channels=3)


def test_a_processor_without_normalisation(tmp_path):
    said = {"size": 8, "do_normalize": False, "do_rescale": False}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(said))
    found = read_preprocessing("x", tmp_path, channels=1)
    assert (found.size, found.channels, found.high, found.mean, found.std) == (8, 1, 255.0, (), ())
