"""A refiner that asks a language model behind any OpenAI-compatible endpoint.

Reports leave this machine only where the site sets ``COUNTERRAY_LLM_BASE_URL``; then the sections that
describe the image go there, and nothing else of a study. The names are ours, so that an ``OPENAI_API_KEY``
that happens to be set sends nothing anywhere. What the endpoint cannot answer is read by the rules, and
counted.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from counterray.config import Config
from counterray.data.labels import FINDINGS
from counterray.reports.refine import LOCATIONS, SEVERITIES, Mention, Refined, RefineError, normalise
from counterray.reports.rules import RulesRefiner
from counterray.reports.sections import describing
from counterray.storage import Location, MissingError

BASE_URL, MODEL, API_KEY = "COUNTERRAY_LLM_BASE_URL", "COUNTERRAY_LLM_MODEL", "COUNTERRAY_LLM_API_KEY"

INSTRUCTIONS = """\
You read the text of a chest radiograph's report and list what it says of the findings in the schema.
- One entry for each finding and place. Leave out findings that the report does not mention.
- negated: the report says that the finding is not there. uncertain: it says neither that it is there nor that
  it is not (possible, may represent, versus, cannot be excluded, borderline). Never both.
- severity: "mild" (small, minimal, slight, trace), "moderate", "severe" (large, marked, extensive), or "".
- location: the side, the zone, or both as the schema allows, or "".
- no_finding only where the whole report is normal.
- Only what the image shows: neither the indication, nor earlier examinations, nor advice.
Answer with the JSON object alone."""


class LlmConfig(Config):
    """How the endpoint is used; which one it is comes from the environment."""

    name: Literal["llm"] = "llm"
    """The refiner's name."""
    concurrency: int = Field(default=8, ge=1, le=256)
    """Requests in flight at a time, for each worker."""
    timeout_seconds: float = Field(default=60, gt=0)
    """Longest time to wait for an answer [s]."""
    retries: int = Field(default=5, ge=0, le=20)
    """Further attempts after 408, 409, 429, 5xx, a timeout or a lost connection; waits 0.5 s, doubling up to
    8 s, or as long as ``Retry-After`` says (up to 2 minutes)."""
    max_tokens: int = Field(default=1024, ge=16)
    """Longest answer [tokens]; one that is cut off is invalid."""


@dataclass(frozen=True)
class Endpoint:
    """Where the model is.

    Attributes:
        base_url: Such as ``http://localhost:8000/v1``.
        model: The model's name there.
    """

    base_url: str
    model: str

    @property
    def shown(self) -> str:
        """The address without user, password and query, which may be secret."""
        parts = urlsplit(self.base_url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def endpoint_from_environment() -> Endpoint:
    """The endpoint that the site has set.

    Raises:
        RefineError: If it has set none, or only a part.
    """
    missing = [name for name in (BASE_URL, MODEL) if not os.environ.get(name)]
    if missing:
        raise RefineError(
            f"The llm refiner needs {' and '.join(missing)} in the environment (and {API_KEY}, where the "
            "endpoint asks for a key): reports leave this machine only to an endpoint that you set. Without "
            "one use the rules refiner."
        )
    return Endpoint(os.environ[BASE_URL], os.environ[MODEL])


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    finding: str
    location: str
    severity: Literal["", "mild", "moderate", "severe"]
    negated: bool
    uncertain: bool


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    mentions: tuple[_Row, ...]


@cache
def answer_schema() -> dict[str, Any]:
    """JSON Schema of an answer: the contract's mentions, every field required."""
    allowed = {"finding": FINDINGS, "location": LOCATIONS, "severity": SEVERITIES}
    row: dict[str, Any] = {name: {"type": "string", "enum": list(values)} for name, values in allowed.items()}
    row |= {name: {"type": "boolean"} for name in ("negated", "uncertain")}
    mention = {
        "type": "object",
        "properties": row,
        "required": list(row),
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"mentions": {"type": "array", "items": mention}},
        "required": ["mentions"],
        "additionalProperties": False,
    }


PROMPT_VERSION = hashlib.sha256(f"{INSTRUCTIONS}{json.dumps(answer_schema())}".encode()).hexdigest()[:12]
"""Changes whenever the instructions or the schema do, so that no older answer is taken from the cache."""


def read_answer(content: str) -> Refined:
    """The mentions of an answer.

    Args:
        content: The model's answer, JSON of `answer_schema`.

    Raises:
        ValueError: If it is not; the message does not quote it.
    """
    try:
        rows = _Answer.model_validate_json(content).mentions
    except ValidationError as error:
        raise _InvalidAnswer(f"The answer breaks the schema in {error.error_count()} places.") from None
    try:
        return normalise(Mention(**row.model_dump()) for row in rows)
    except ValueError as error:
        raise _InvalidAnswer(f"The answer breaks the contract: {error}") from None


class _InvalidAnswer(ValueError):
    """An answer that is not in the contract."""


class _Unanswered(Exception):
    """The endpoint gave no usable answer to one report; its text is the cause."""


class LlmRefiner:
    """Asks a language model; see `counterray.reports.refine.Refiner`.

    Equal texts are asked once, and never again where the cache has the answer.

    Args:
        config: How the endpoint is used.
        endpoint: Where it is.
        cache: Folder of the answers, by checksum of prompt version, model and text; it holds no text.

    Raises:
        RefineError: If the package ``openai`` is not installed.
    """

    def __init__(self, config: LlmConfig, endpoint: Endpoint, cache: Location) -> None:
        self.tally: Counter[str] = Counter()
        self._config, self._endpoint, self._cache = config, endpoint, cache
        self._rules = RulesRefiner()
        self._openai = _import_openai()
        self._client = self._openai.OpenAI(
            base_url=endpoint.base_url,
            api_key=os.environ.get(API_KEY) or "none",
            timeout=config.timeout_seconds,
            max_retries=config.retries,
        )

    def refine(self, texts: Sequence[str]) -> list[Refined]:
        """Reads report texts, in order.

        Raises:
            RefineError: If nothing answers at the endpoint, or it refuses the key or the model.
            StorageError: If the cache cannot be used.
        """
        described = [describing(text) for text in texts]
        distinct = list(dict.fromkeys(text for text in described if text))
        with ThreadPoolExecutor(max_workers=self._config.concurrency) as pool:
            read = dict(zip(distinct, pool.map(self._read, distinct), strict=True))
        for text in described:
            if text:
                self.tally.update([read[text][1]] if read[text][1] else [])
        return [read[text][0] if text else Refined() for text in described]

    def _read(self, text: str) -> tuple[Refined, str]:
        """What is said, and the event to be counted, if any."""
        place = self._cache / self._file(text)
        try:
            return read_answer(place.read_bytes().decode()), "cached"
        except (MissingError, UnicodeDecodeError, _InvalidAnswer):
            pass
        try:
            content = self._ask(text)
            refined = read_answer(content)
        except _Unanswered as cause:
            return self._rules.refine([text])[0], f"fell_back.{cause}"
        except _InvalidAnswer:
            return self._rules.refine([text])[0], "fell_back.invalid"
        place.write_bytes(content.encode())
        return refined, ""

    def _file(self, text: str) -> str:
        parts = [PROMPT_VERSION, self._endpoint.model, text]
        name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        return f"{name[:2]}/{name}.json"

    def _ask(self, text: str) -> str:
        openai, address = self._openai, self._endpoint.shown
        schema = {"name": "mentions", "strict": True, "schema": answer_schema()}
        try:
            choice = self._client.chat.completions.create(
                model=self._endpoint.model,
                messages=[{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": text}],
                response_format={"type": "json_schema", "json_schema": schema},
                max_tokens=self._config.max_tokens,
                temperature=0,
            ).choices[0]
            finished, answer = choice.finish_reason, choice.message.content or ""
        except openai.APITimeoutError:
            raise _Unanswered("timeout") from None
        except openai.APIConnectionError:
            raise RefineError(
                f"Nothing answers at {BASE_URL}={address}. Start the endpoint or correct the address, and "
                "run again: what is answered stays."
            ) from None
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            # Not the endpoint's own words: they may quote the request.
            raise RefineError(
                f"{BASE_URL}={address} answers with status {error.status_code} for the model "
                f"{self._endpoint.model!r}. Check {BASE_URL}, {MODEL} and {API_KEY}."
            ) from None
        except openai.RateLimitError:
            raise _Unanswered("rate_limit") from None
        except openai.APIStatusError as error:
            raise _Unanswered("server_error" if error.status_code >= 500 else "refused") from None
        except (openai.APIError, IndexError, TypeError, AttributeError, ValueError):
            raise _Unanswered("invalid") from None
        if finished == "length":
            raise _Unanswered("cut_off")
        return answer


def _import_openai() -> Any:
    try:
        module = importlib.import_module("openai")
    except ImportError:
        raise RefineError(
            "The llm refiner needs the package openai: pip install 'counterray[llm]', or use the rules "
            "refiner."
        ) from None
    # Its debug lines, which OPENAI_LOG=debug turns on, hold the requests' texts.
    logging.getLogger("openai").setLevel(logging.WARNING)
    return module
