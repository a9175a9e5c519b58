"""Importing diffusion says nothing, warns of nothing and needs neither Ray nor DeepSpeed."""

import subprocess
import sys

PROGRAM = """
import importlib, pkgutil, sys
sys.modules.update({name: None for name in ("ray", "deepspeed")})
package = importlib.import_module("counterray.diffusion")
for found in pkgutil.iter_modules(package.__path__, "counterray.diffusion."):
    importlib.import_module(found.name)
assert not any(name.startswith(("counterray.data", "counterray.models")) for name in sys.modules)
"""


def test_import_is_quiet():
    done = subprocess.run([sys.executable, "-W", "error", "-c", PROGRAM], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
