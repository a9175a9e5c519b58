"""A local OpenAI-compatible endpoint over real HTTP whose answers and faults a test chooses."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import jsonschema
import uvicorn
from fastapi import FastAPI, Request, Response

from counterray.reports.rules import RulesRefiner

MODEL = "test-model"
KEY = "test-key"


@dataclass(frozen=True)
class Reply:
    """What the endpoint sends: an answer's content, or another status."""

    content: str | None = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_seconds: float = 0
    finish_reason: str = "stop"
    body: str | None = None


def by_rules(text: str, attempt: int) -> Reply:
    """A right answer, as the rules read the text."""
    (refined,) = RulesRefiner().refine([text])
    return Reply(json.dumps({"mentions": [asdict(mention) for mention in refined.mentions]}))


@dataclass
class LlmServer:
    """The endpoint; ``answer`` gets a report's text and the number of the attempt, from 1."""

    url: str = ""
    answer: Callable[[str, int], Reply] = by_rules
    requests: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0
    most_in_flight: int = 0

    async def complete(self, request: Request) -> Response:
        body = await request.json()
        if request.headers["authorization"] != f"Bearer {KEY}":
            return Response(status_code=401, content="{}")
        if body["model"] != MODEL:
            return Response(status_code=404, content="{}")
        text = body["messages"][-1]["content"]
        self.requests.append(body)
        self.times.append(time.monotonic())
        self.attempts[text] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            reply = self.answer(text, self.attempts[text])
            await asyncio.sleep(reply.delay_seconds)
        finally:
            self.in_flight -= 1
        if reply.status != 200 or reply.body is not None:
            return Response(reply.body or "{}", reply.status, reply.headers, "application/json")
        message = {"role": "assistant", "content": reply.content}
        choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": MODEL, "choices": [choice]}
        return Response(json.dumps(answer), media_type="application/json")


def conforms(content: str, request: dict[str, Any]) -> None:
    """Raises unless ``content`` is valid by the schema that the request asked for."""
    schema = request["response_format"]["json_schema"]["schema"]
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(content), schema)


@contextmanager
def serving() -> Iterator[LlmServer]:
    """Runs an endpoint in a thread of this process."""
    state = LlmServer()
    app = FastAPI()
    app.add_api_route("/v1/chat/completions", state.complete, methods=["POST"], response_model=None)
    config = uvicorn.Config(app, port=0, log_level="error", ws="none", lifespan="off", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    state.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    try:
        yield state
    finally:
        server.should_exit = True
        thread.join(timeout=10)
