"""A server in one process: real models, small ones, behind the real application, without Ray."""

import io
import json
import secrets
import struct
import threading

import numpy as np
import pydicom
import torch
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from counterray.bundle import open_bundle, write_bundle
from counterray.models.predictors.classifier import ClassifierConfig, ClassifierStage
from counterray.nn.backbone import BackboneConfig
from counterray.storage import resolve
from serve.app import create_app
from serve.backend import Found
from serve.cards import card_of
from serve.engine import Engine
from serve.jury import Jury
from serve.keys import Keyring, add_key
from serve.noise_cache import NoiseCache
from serve.problems import problem_of
from serve.routes import Services
from serve.samples import Samples
from serve.settings import Settings
from tests.small_gsvae import INFO
from tests.small_mine_ldm import chain
from tests.small_pathology_ldm import ldm_bundle, parent_bundles

KEPT = {"abduction": {"noise": "inverted", "residual": True}, "sampler": {"scheduler": "ddim"}}


def classifier_bundle(folder, seed=17):
    """An untrained classifier of the small images."""
    torch.manual_seed(seed)
    stage = ClassifierStage(ClassifierConfig(backbone=BackboneConfig(widths=(8, 16), blocks=(1, 1))))
    return write_bundle(
        resolve(folder),
        method="judges",
        stage=stage.name,
        config=stage.config.model_dump(mode="json"),
        export=stage.export(stage.build({}, INFO)),
        data_fingerprint="small",
    )


def write_models(folder):
    """Bundles of two generators and a judge; settings that name them, as plain values."""
    parents = parent_bundles(folder / "parents")
    words = ldm_bundle(folder / "words", parents, trained=5)
    attributes = chain(folder / "attributes")["ldm"]
    judge = classifier_bundle(folder / "judge")
    return {
        "models": {
            "words": {"bundle": words.location.uri},
            "kept": {"bundle": words.location.uri, "generator": KEPT},
            "attributes": {"bundle": attributes.location.uri},
        },
        "judges": [judge.location.uri],
        "keys": str(folder / "keys.json"),
    }


class LocalBackend:
    """Implements `Backend` in the process that asks."""

    def __init__(self, settings):
        self.settings, self.engines, self.cache = settings, {}, NoiseCache(settings.noise)
        self.lock = threading.Lock()

    def engine(self, model):
        if model not in self.engines:
            jury = Jury.open(self.settings.judges, torch.device("cpu"))
            self.engines[model] = Engine.open(model, self.settings.models[model], jury, rows=32)
        return self.engines[model]

    async def make(self, model, work):
        try:
            [made] = self.engine(model).do([work])
        except Exception as error:
            return problem_of(error, doing=f"load the model {model}")
        return made

    async def watch(self, model, work):
        previews = []
        [made] = self.engine(model).do([work], on_preview=previews.append)
        for preview in previews:
            yield preview
        yield made

    async def keep(self, kept, *, owner, model):
        return self.cache.put(kept, owner=owner, model=model, nbytes=kept.nbytes)

    async def find(self, name, *, owner):
        entry = self.cache.get(name, owner=owner)
        return None if entry is None else Found(entry.model, entry.kept, entry.expires)

    async def loaded(self):
        return set(self.engines)

    async def counts(self):
        return self.cache.counts()

    async def ready(self):
        return True


def local_app(plain, *, samples=(), auditor=None, backend=None, **settings):
    """The application and a key for it."""
    asked = Settings.model_validate({**plain, **settings})
    key = add_key(asked.keys, secrets.token_hex(4))
    cards = {
        name: card_of(name, open_bundle(model.bundle), model, judges=())
        for name, model in asked.models.items()
    }
    services = Services(
        settings=asked,
        cards=cards,
        keyring=Keyring.read(asked.keys),
        backend=backend or LocalBackend(asked),
        samples=Samples(tuple(samples)),
        auditor=auditor,
    )
    return create_app(services), key


def radiograph(size=48, seed=0):
    """A smooth grey picture ``[size, size]`` uint8."""
    coarse = np.random.default_rng(seed).integers(20, 230, (4, 4), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BILINEAR))


def file_of(array, form="PNG", **options):
    """An array as the bytes of a picture file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format=form, **options)
    return buffer.getvalue()


def crowded_dicom(elements=1_000_000):
    """A DICOM file of 8 MB that takes seconds to read: empty elements, of which no check knows."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, enforce_file_format=False, little_endian=True, implicit_vr=False)
    head = bytes(128) + b"DICM" + buffer.getvalue().removeprefix(bytes(128) + b"DICM")
    empty = (struct.pack("<HH2sH", 0x51 + 2 * (n >> 15), n & 0x7FFF, b"LO", 0) for n in range(elements))
    return head + b"".join(empty)


def form_of(data, **request):
    """The two parts of a form."""
    return {"files": {"image": ("image", data)}, "data": {"request": json.dumps(request)}}
