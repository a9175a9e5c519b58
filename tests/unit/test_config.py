"""Configuration: YAML, overrides, and errors that name the key, its value and what is allowed."""

import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, ValidationError

from counterray.config import Config, ConfigError, flatten, load, validate


class Optimizer(Config):
    lr: float = Field(default=1e-3, gt=0, le=1)
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)


class Vae(Config):
    kind: Literal["vae"] = "vae"
    channels: int = 8
    dropout: float = 0.0


class Diffusion(Config):
    kind: Literal["diffusion"] = "diffusion"
    timesteps: int = 100
    optimizer: Optimizer = Optimizer()


class Training(Config):
    seed: int = 0
    name: str = "run"
    resume: bool = False
    optimizer: Optimizer = Optimizer()
    fallback: Optimizer | None = None
    method: Annotated[Vae | Diffusion, Field(discriminator="kind")] = Vae()
    stages: tuple[Optimizer, ...] = ()
    by_name: dict[str, Optimizer] = Field(default_factory=dict)


def test_defaults_without_a_file():
    assert load(Training) == Training()


def test_a_file_and_overrides_on_top(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("seed: 3\noptimizer:\n  lr: 0.5\n  weight_decay: 0.1\n")
    config = load(Training, path, ["optimizer.lr=3e-4", "name=pilot"])
    assert config == Training(seed=3, name="pilot", optimizer=Optimizer(lr=3e-4, weight_decay=0.1))


def test_an_empty_file_means_defaults(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    assert load(Training, path) == Training()


@pytest.mark.parametrize("text", ["3e-4", "3.0e-4", "0.0003", ".0003", "3E-4"])
def test_numbers_in_every_spelling(tmp_path, text):
    """PyYAML reads ``3e-4`` as text; it must still be the number."""
    path = tmp_path / "train.yaml"
    path.write_text(f"optimizer:\n  lr: {text}\n")
    assert load(Training, path).optimizer.lr == 3e-4
    assert load(Training, overrides=[f"optimizer.lr={text}"]).optimizer.lr == 3e-4


def test_overrides_are_read_as_yaml():
    config = load(
        Training,
        overrides=[
            "optimizer.betas=[0.5, 0.9]",
            "resume=true",
            "name=a=b",
            "fallback=null",
            "method={kind: diffusion, timesteps: 5}",
            "method.optimizer.lr=0.1",
            "by_name.head.lr=0.2",
            "seed=1",
            "seed=2",
        ],
    )
    assert config.optimizer.betas == (0.5, 0.9)
    assert config.resume
    assert config.name == "a=b"
    assert config.fallback is None
    assert config.method == Diffusion(timesteps=5, optimizer=Optimizer(lr=0.1))
    assert config.by_name["head"].lr == 0.2
    assert config.seed == 2


def test_numbers_that_no_schema_converts():
    class Free(Config):
        values: dict[str, Any] = Field(default_factory=dict)

    config = load(Free, overrides=["values={a: 3e-4, b: -1E+3, c: 1e5, d: e5, e: 1e, f: 12, g: 'x1e5'}"])
    assert config.values == {"a": 3e-4, "b": -1000.0, "c": 1e5, "d": "e5", "e": "1e", "f": 12, "g": "x1e5"}


def test_an_override_of_nothing_clears_a_text():
    assert load(Training, overrides=["name=''"]).name == ""


def test_a_group_that_a_file_left_empty_can_be_overridden(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("optimizer:\n")
    assert load(Training, path, ["optimizer.lr=0.5"]).optimizer.lr == 0.5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set 'seed' is not of the form a.b=c."),
        ("=3", "--set '=3' is not of the form a.b=c."),
        ("optimizer.=3", "--set 'optimizer.=3' is not of the form a.b=c."),
        (".lr=3", "--set '.lr=3' is not of the form a.b=c."),
        ("optimizer.betas=[1", "--set optimizer.betas: the value is not valid YAML"),
    ],
)
def test_overrides_that_are_none(override, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(Training, overrides=[override])


def test_an_override_below_a_value(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("seed: 3\n")
    with pytest.raises(ConfigError, match=r"--set seed\.a: 'seed' is a value, not a group"):
        load(Training, path, ["seed.a=1"])


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("sed=1", "sed", "seed"),
        ("optimizer.learning=1", "optimizer.learning", None),
        ("optimizer.weigth_decay=1", "optimizer.weigth_decay", "weight_decay"),
        ("fallback.weightdecay=1", "fallback.weightdecay", "weight_decay"),
        ("method={kind: vae, chanels: 1}", "method.chanels", "channels"),
        ("method={kind: diffusion, time_steps: 1}", "method.time_steps", "timesteps"),
        ("method={kind: diffusion, optimizer: {l_r: 1}}", "method.optimizer.l_r", "lr"),
        ("method={kind: diffusion, channels: 1}", "method.channels", None),
        ("stages=[{lr: 1}, {beta: [1, 1]}]", "stages.1.beta", "betas"),
        ("by_name={head: {lrr: 1}}", "by_name.head.lrr", "lr"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest_name(override, key, nearest):
    with pytest.raises(ConfigError) as caught:
        load(Training, overrides=[override])
    message = str(caught.value)
    assert message.startswith(f"Unknown setting {key!r}.")
    assert ("Did you mean" in message) == (nearest is not None)
    if nearest:
        assert f"Did you mean {nearest!r}?" in message


def test_known_names_are_those_of_the_chosen_alternative():
    with pytest.raises(ConfigError, match="Known here: channels, dropout, kind"):
        load(Training, overrides=["method={kind: vae, xyz: 1}"])
    with pytest.raises(ConfigError, match="Known here: kind, optimizer, timesteps"):
        load(Training, overrides=["method={kind: diffusion, xyz: 1}"])


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("optimizer.lr=0", ("Setting optimizer.lr:", "greater than 0", "got 0")),
        ("optimizer.lr=2", ("Setting optimizer.lr:", "less than or equal to 1", "got 2")),
        ("optimizer.lr=fast", ("Setting optimizer.lr:", "valid number", "got 'fast'")),
        ("seed=1.5", ("Setting seed:", "integer", "got 1.5")),
        ("resume=perhaps", ("Setting resume:", "boolean", "got 'perhaps'")),
        ("optimizer=3", ("Setting optimizer:", "Optimizer", "got 3")),
        ("method={kind: gan}", ("Setting method:", "'gan'", "'vae', 'diffusion'")),
        ("method={channels: 1}", ("Setting method:", "'kind'")),
        ("method={kind: diffusion, timesteps: x}", ("Setting method.timesteps:", "integer", "got 'x'")),
    ],
)
def test_refused_values_name_key_value_and_reason(override, parts):
    with pytest.raises(ConfigError) as caught:
        load(Training, overrides=[override])
    for part in parts:
        assert part in str(caught.value)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        validate(Training, {"sed": 1, "optimizer": {"lr": 5, "beta": 1}})
    assert len(str(caught.value).splitlines()) == 3


def test_bad_yaml_names_the_file_and_the_line(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("seed: 1\noptimizer: {lr: 1\n")
    with pytest.raises(ConfigError, match=r"(?s)broken\.yaml is not valid YAML.*line 3"):
        load(Training, path)


def test_a_file_that_is_no_mapping(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match=r"list\.yaml holds a list; a mapping of settings is needed"):
        load(Training, path)


def test_a_file_that_is_no_text(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(ConfigError, match=r"binary\.yaml is not valid YAML"):
        load(Training, path)


def test_a_key_given_twice_is_refused(tmp_path):
    """PyYAML would silently take the last."""
    path = tmp_path / "twice.yaml"
    path.write_text("optimizer:\n  lr: 0.1\n  lr: 0.2\n")
    with pytest.raises(ConfigError, match=r"(?s)twice\.yaml is not valid YAML.*'lr' is given twice.*line 2"):
        load(Training, path)


def test_a_missing_file_lists_its_neighbours(tmp_path):
    (tmp_path / "gsvae_phantom.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"no config file \S+gsvae\.yaml.*gsvae_phantom\.yaml"):
        load(Training, tmp_path / "gsvae.yaml")


def test_code_and_yaml_are_not_executed(tmp_path):
    path = tmp_path / "attack.yaml"
    path.write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load(Training, path)


def test_configs_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        Training().seed = 1


def test_dump_and_validate_are_inverse():
    config = Training(method=Diffusion(timesteps=7), stages=(Optimizer(lr=0.1),), by_name={"a": Optimizer()})
    assert validate(Training, config.model_dump()) == config
    assert validate(Training, config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("config", "flat"),
    [
        ({"a": {"b": 1, "c": {"d": "x"}}}, {"a.b": 1, "a.c.d": "x"}),
        ({"a": {}, "l": [1, 2]}, {"a": {}, "l": [1, 2]}),
    ],
)
def test_flat_settings(config, flat):
    assert flatten(config) == flat
