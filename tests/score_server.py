"""A real HTTP server that scores images by their brightness, and fails as a test asks it to."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


@dataclass
class ScoreServer:
    """The server's address, what it was asked, and how it fails.

    Attributes:
        port: Where it listens.
        statuses: Statuses of the next requests; 0 breaks the connection, 200 answers. Then it answers.
        dies_after: Requests that it answers before it only breaks connections; ``None`` for ever.
        body: In place of an answer.
        headers: Sent with every status that is no 200.
    """

    port: int = 0
    statuses: list[int] = field(default_factory=list)
    dies_after: int | None = None
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    seen: list[dict] = field(default_factory=list)
    answered: int = 0

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.host}/score"


def brightness(data: bytes) -> float:
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.mode == "L"
        return float(np.asarray(picture).mean() / 255)


@contextmanager
def serve_scores() -> Iterator[ScoreServer]:
    state = ScoreServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            state.seen.append({"key": self.headers.get("Authorization"), "body": json.loads(content)})
            status = state.statuses.pop(0) if state.statuses else 200
            if state.dies_after is not None and state.answered >= state.dies_after:
                status = 0
            if status == 0:
                self.close_connection = True
                return
            state.answered += status == 200
            images = [base64.b64decode(text) for text in json.loads(content)["images"]]
            answer = {"scores": [[brightness(one), 1 - brightness(one)] for one in images]}
            body = state.body if state.body is not None else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in state.headers.items() if status != 200 else ():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
