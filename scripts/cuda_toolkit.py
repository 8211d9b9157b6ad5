#!/usr/bin/env python3
"""Installs nvcc below .cuda/ from NVIDIA's Python packages, for machines without a CUDA toolkit.

    python3 scripts/cuda_toolkit.py

The build of the feature `cuda` finds it there. Requires Python 3 with pip and about 400 MB of disk, no GPU.
Does nothing if the toolkit is installed; starts over after an interrupted run.
"""

import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = [
    "nvidia-cuda-nvcc==13.0.88",
    "nvidia-nvvm==13.0.88",
    "nvidia-cuda-crt==13.0.88",
    "nvidia-cuda-runtime==13.0.96",
    "nvidia-cuda-cccl==13.0.85",
]


def main() -> None:
    target = Path(__file__).resolve().parent.parent / ".cuda"
    complete = target / "complete"
    if complete.exists():
        print(f"{target} exists already")
        return
    shutil.rmtree(target, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--root-user-action=ignore", "--target", str(target), *PACKAGES], check=True)
    nvcc = target / "nvidia" / "cu13" / "bin" / "nvcc"
    subprocess.run([str(nvcc), "--version"], check=True, stdout=subprocess.DEVNULL)
    complete.touch()
    print(f"nvcc is at {nvcc}")


if __name__ == "__main__":
    main()
