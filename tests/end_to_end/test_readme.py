"""The README's blocks run as they stand, in order, against a real server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from attune import Client

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.S | re.M)


def test_every_block_of_the_readme_runs(address: str, tmp_path: Path) -> None:
    if shutil.which("curl") is None or shutil.which("bash") is None:
        pytest.skip("the README's blocks need bash and curl, which this machine lacks")
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "ATTUNE_URL": address,
    }
    blocks = _BLOCK.findall((ROOT / "README.md").read_text())
    assert len(blocks) >= 5
    for language, block in blocks:
        text = block.replace("http://127.0.0.1:8080", address)
        if language == "bash":
            # A refused request must fail the block; `curl -s` alone would not.
            script = f'set -euo pipefail\ncurl() {{ command curl --fail-with-body "$@"; }}\n{text}'
            command = ["bash", "-c", script]
        else:
            command = [sys.executable, "-c", text]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_the_readmes_files_exist() -> None:
    text = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
        assert (ROOT / link).exists(), link


def test_the_answer_in_the_readme_is_the_servers(client: Client) -> None:
    text = (ROOT / "README.md").read_text()
    shown = json.loads(re.search(r"^```json\n(.*?)^```", text, re.S | re.M).group(1))  # type: ignore[union-attr]
    asked = json.loads(re.search(r"-d '(\{.*?\})'", text).group(1))  # type: ignore[union-attr]
    found = client.retrieve([query["text"] for query in asked["queries"]], k=asked["k"])
    expected = shown["results"][0]["hits"][0]
    assert found.hits[0].id == expected["id"]
    assert found.hits[0].payload == expected["payload"]
    assert found.hits[0].score == pytest.approx(expected["score"], abs=0.01)
    assert set(shown["adaptation"]) < set(vars(found.adaptation))
    assert set(shown["timings_ms"]) == set(found.timings_ms)
