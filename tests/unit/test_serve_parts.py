"""Keys, limits, the cache of noise, problems and pictures."""

import asyncio
import base64
import io
import json
import stat

import numpy as np
import pytest
from limits.errors import StorageError as StoreError
from PIL import Image

from counterray.config import ConfigError
from counterray.models.generator import EditError, NoMatchError
from counterray.storage import StorageError
from serve.keys import VARIABLE, Keyring, add_key, hashed, new_key
from serve.limits import Limiter
from serve.noise_cache import NoiseCache
from serve.pictures import effect_map, given_picture, made_picture
from serve.problems import KINDS, ProblemError, problem_of
from serve.schemas import Provenance
from serve.settings import LimitSettings, NoiseSettings

# Keys.


def test_a_key_opens_and_only_its_hash_is_kept(tmp_path):
    file = tmp_path / "serve" / "keys.json"
    key, other = add_key(str(file), "ann"), add_key(str(file), "bob")
    ring = Keyring.read(str(file))
    assert ring.owner(f"Bearer {key}") == "ann"
    assert ring.owner(f"bearer {other}") == "bob"
    assert key not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    for wrong in (
        "",
        key,
        f"Basic {key}",
        f"Bearer {key}x",
        f"Bearer {new_key()}",
        "Bearer ",
        "Bearer \u00e9",
    ):
        assert ring.owner(wrong) is None


def test_a_new_key_of_a_name_ends_the_former(tmp_path):
    file = str(tmp_path / "keys.json")
    former, key = add_key(file, "ann"), add_key(file, "ann")
    ring = Keyring.read(file)
    assert ring.owner(f"Bearer {key}") == "ann"
    assert ring.owner(f"Bearer {former}") is None


def test_keys_are_read_anew_and_what_is_no_file_of_keys_changes_nothing(tmp_path):
    file = tmp_path / "keys.json"
    former = add_key(str(file), "ann")
    ring = Keyring.read(str(file))
    key, other = add_key(str(file), "ann"), add_key(str(file), "bob")
    ring.refresh()
    assert ring.owner(f"Bearer {former}") is None
    file.write_text("[]")
    with pytest.raises(ConfigError, match="no file of keys"):
        ring.refresh()
    file.write_text('{"ann": "x"}')
    with pytest.raises(ConfigError, match="no SHA-256"):
        ring.refresh()
    assert (ring.owner(f"Bearer {key}"), ring.owner(f"Bearer {other}")) == ("ann", "bob")
    file.unlink()
    ring.refresh()
    assert ring.owner(f"Bearer {key}") is None


def test_keys_of_the_environment_stand_in_place_of_the_file(monkeypatch, tmp_path):
    key = new_key()
    monkeypatch.setenv(VARIABLE, f"ann={hashed(key)}, bob={hashed('x')}")
    ring = Keyring.read(str(tmp_path / "none"))
    ring.refresh()
    assert ring.owner(f"Bearer {key}") == "ann"
    monkeypatch.setenv(VARIABLE, f"ann={key}")
    with pytest.raises(ConfigError, match="'ann' is no SHA-256"):
        Keyring.read(str(tmp_path / "none"))
    monkeypatch.delenv(VARIABLE)
    with pytest.raises(ConfigError, match="--new-key"):
        Keyring.read(str(tmp_path / "none"))


# Limits.


def kind_of(error):
    return error.value.kind, int(error.value.headers["Retry-After"])


def test_a_key_may_ask_so_often_and_others_are_not_touched():
    async def ask():
        limiter = Limiter(LimitSettings(rate="2/minute"))
        for _ in range(2):
            async with limiter.admitted("ann"):
                pass
        with pytest.raises(ProblemError) as error:
            async with limiter.admitted("ann"):
                pass
        async with limiter.admitted("bob"):
            return kind_of(error)

    kind, wait = asyncio.run(ask())
    assert kind == "rate-limited"
    assert 1 <= wait <= 60


def test_places_are_limited_by_key_and_in_all_and_given_back():
    async def ask():
        limiter = Limiter(LimitSettings(concurrent=2, waiting=3, retry_after_seconds=7))
        kinds = []
        async with limiter.admitted("ann"), limiter.admitted("ann"):
            with pytest.raises(ProblemError) as error:
                await limiter.admitted("ann").__aenter__()
            kinds.append(kind_of(error))
            async with limiter.admitted("bob"):
                with pytest.raises(ProblemError) as error:
                    await limiter.admitted("eve").__aenter__()
                kinds.append(kind_of(error))
        with pytest.raises(ZeroDivisionError):
            async with limiter.admitted("ann"):
                raise ZeroDivisionError
        return kinds, limiter.inside.total()

    assert asyncio.run(ask()) == ([("too-many-at-once", 7), ("overloaded", 7)], 0)


class SlowStore:
    """A store of rates that is far away, or not there at all."""

    def __init__(self, error=None):
        self.error = error

    async def hit(self, rate, owner):
        await asyncio.sleep(0.01)
        if self.error is not None:
            raise self.error
        return True


@pytest.mark.parametrize(
    ("concurrent", "waiting", "kind"), [(2, 9, "too-many-at-once"), (9, 2, "overloaded")]
)
def test_a_burst_passes_no_limit_while_the_rate_is_looked_up(concurrent, waiting, kind):
    limiter = Limiter(LimitSettings(concurrent=concurrent, waiting=waiting))
    limiter._window = SlowStore()

    async def ask():
        async with limiter.admitted("ann"):
            await asyncio.sleep(0.05)

    async def burst():
        return await asyncio.gather(*(ask() for _ in range(5)), return_exceptions=True)

    refused = [error.kind for error in asyncio.run(burst()) if error is not None]
    assert refused == [kind] * 3
    assert limiter.inside.total() == 0


def test_a_store_of_rates_that_is_away_is_unavailable_and_its_place_is_given_back():
    limiter = Limiter(LimitSettings())
    limiter._window = SlowStore(StoreError(ConnectionError("refused")))
    with pytest.raises(ProblemError) as error:
        asyncio.run(limiter.admitted("ann").__aenter__())
    assert error.value.kind == "unavailable"
    assert limiter.inside.total() == 0


def test_a_rate_that_cannot_be_read_is_refused():
    with pytest.raises(ConfigError, match=r"limits\.rate = 'often'"):
        Limiter(LimitSettings(rate="often"))


# Noise.


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def cache_of(**settings):
    clock = Clock()
    return NoiseCache(NoiseSettings(**{"most_bytes": 100, "expires_seconds": 10, **settings}), clock), clock


def put(cache, what, nbytes=40, owner="ann"):
    return cache.put(what, owner=owner, model="m", nbytes=nbytes)[0]


def test_noise_is_found_by_its_owner_alone_under_a_name_nobody_guesses():
    cache, _ = cache_of()
    first, second = put(cache, "a"), put(cache, "b")
    assert first != second
    assert len(bytes.fromhex(first)) == 16
    assert cache.get(first, owner="ann").kept == "a"
    assert cache.get(first, owner="bob") is None
    assert cache.get("0" * 32, owner="ann") is None
    assert (cache.hits, cache.misses) == (1, 2)


def test_the_least_recently_used_makes_room():
    cache, _ = cache_of()
    first, second = put(cache, "a"), put(cache, "b")
    cache.get(first, owner="ann")
    third = put(cache, "c")
    assert cache.get(second, owner="ann") is None
    assert cache.get(first, owner="ann").kept == "a"
    assert cache.get(third, owner="ann").kept == "c"
    assert cache.nbytes == 80
    assert cache.put("d", owner="ann", model="m", nbytes=101) == (None, None)
    assert len(cache) == 2


def test_noise_is_forgotten_in_time_however_much_it_is_used():
    cache, clock = cache_of()
    first = put(cache, "a")
    clock.now = 6
    second = put(cache, "b")
    assert cache.get(first, owner="ann") is not None
    clock.now = 11
    assert cache.get(first, owner="ann") is None
    assert cache.get(second, owner="ann") is not None
    assert cache.nbytes == 40
    clock.now = 17
    cache.sweep()
    assert (len(cache), cache.nbytes) == (0, 0)


# Problems.


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EditError("do edema: no such finding."), "edit-refused"),
        (NoMatchError("no donor"), "no-match"),
        (StorageError("Could not read s3://secret: access denied"), "unavailable"),
        (RuntimeError("the patient's name"), "internal"),
        (ProblemError("deadline", "x"), "deadline"),
    ],
)
def test_errors_become_problems_that_keep_secrets(error, kind, caplog):
    problem = problem_of(error, doing="predict with m")
    document = problem.document("id").model_dump()
    assert problem.kind == kind
    assert document["status"] == KINDS[kind].status
    assert document["type"] == f"/problems/{kind}"
    assert document["remedy"]
    assert "secret" not in json.dumps(document)
    assert "patient" not in json.dumps(document) + caplog.text


def test_what_may_be_tried_again_says_so():
    assert {kind for kind, what in KINDS.items() if what.retry} == {
        *("rate-limited", "too-many-at-once", "overloaded", "unavailable")
    }


# Pictures.

PROVENANCE = Provenance(model="m", stage="s", checksum="c" * 64, code_version="1", device="cpu")


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_a_made_image_says_that_it_is_synthetic_and_where_it_comes_from():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    picture = opened(made_picture(grey, PROVENANCE, seed=7))
    assert "synthetic" in picture.text["Description"]
    assert picture.text["Source"] == "bundle " + "c" * 64
    assert json.loads(picture.text["Provenance"])["seed"] == 7
    assert np.array_equal(np.asarray(picture), grey)
    assert not opened(given_picture(grey)).text


def test_the_effect_map_is_half_the_difference_around_128():
    before, after = np.array([[0, 255, 100, 10]], np.uint8), np.array([[255, 0, 100, 14]], np.uint8)
    assert effect_map(before, after).tolist() == [[255, 0, 128, 130]]
