"""Checks that `huggingface_hub` reads the cache that Octant fills, and Octant the one that it fills. The
model comes from the hub of `tests/it/hub`.

    hub_client.py OCTANT_BINARY TEST_BINARY
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import RustServer, run_tests
from huggingface_hub import scan_cache_dir, snapshot_download

NAME = "org/tiny"
# What Octant downloads. The hub also has files that it leaves out.
FILES = ["*.json", "model-*.safetensors"]


def octant(binary: str, hub: str, cache: Path, **environment: str) -> str:
    """Reads the model by its name. Returns the log."""
    with tempfile.TemporaryDirectory() as out:
        command = [binary, "quantize", NAME, f"{out}/model"]
        places = {"HOME": out, "HF_ENDPOINT": hub, "HF_HUB_CACHE": str(cache)}
        run = subprocess.run(command, env=places | environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stderr


def blobs(cache: Path) -> dict[str, tuple[int, int]]:
    """Every blob, with what changes if it is written again."""
    files = [path for path in cache.glob("models--*/blobs/*") if not path.name.endswith(".lock")]
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def test_huggingface_hub_reads_what_octant_has_downloaded(binary, hub):
    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory)
        assert "downloaded" in octant(binary, hub, cache)
        found = Path(snapshot_download(NAME, cache_dir=cache, local_files_only=True))
        names = {path.name for path in found.iterdir()}
        assert {"config.json", "tokenizer.json"} < names and len(names) == 8, names
        before = blobs(cache)
        again = snapshot_download(NAME, cache_dir=cache, endpoint=hub, allow_patterns=FILES)
        assert (Path(again), blobs(cache)) == (found, before), "a file was downloaded again"
        scanned = scan_cache_dir(cache)
        [repo] = scanned.repos
        [revision] = repo.revisions
        assert not scanned.warnings and repo.repo_id == NAME, scanned
        assert (len(revision.files), revision.refs) == (8, frozenset({"main"})), revision


def test_octant_reads_what_huggingface_hub_has_downloaded(binary, hub):
    with tempfile.TemporaryDirectory() as directory:
        cache = Path(directory)
        snapshot_download(NAME, cache_dir=cache, endpoint=hub, allow_patterns=FILES)
        before = blobs(cache)
        assert len(before) == 8, before
        octant(binary, "http://127.0.0.1:1", cache, HF_HUB_OFFLINE="1")
        log = octant(binary, hub, cache)
        assert f"{NAME} is in the cache" in log and blobs(cache) == before, log


def main() -> None:
    binary, test_binary = os.path.abspath(sys.argv[1]), sys.argv[2]
    hub = RustServer(test_binary, "hub::serve_a_hub")
    # The redirect of a large file has its metadata. huggingface_hub reads them there only if the redirect
    # leads to a host of another name.
    root = hub.root.replace("127.0.0.1", "localhost")
    try:
        tests = [value for name, value in globals().items() if name.startswith("test_")]
        sys.exit(1 if run_tests(tests, binary, root) else 0)
    finally:
        hub.process.kill()


if __name__ == "__main__":
    main()
