"""What `serve_load`'s clients do, for locust: one counterfactual after the other."""

import json
import os
import random
from pathlib import Path

from locust import FastHttpUser, task

ASKED = json.loads(Path(os.environ["COUNTERRAY_LOAD_REQUEST"]).read_text())
HEADERS = {"Authorization": f"Bearer {os.environ.get('COUNTERRAY_LOAD_KEY', '')}"}


class Client(FastHttpUser):
    """Asks for another counterfactual as soon as it has one."""

    network_timeout = connection_timeout = 120.0

    @task
    def counterfactual(self) -> None:
        asked = {**ASKED, "seeds": [random.randrange(2**31)]}
        self.client.post("/v1/counterfactuals", json=asked, headers=HEADERS)
