"""`memory3 serve` against servers that others run, with the same five passages in their prompts.

    python research/serving/peers.py --bank BANK --out peers.json
    python research/serving/peers.py --bank BANK --peers llama.cpp-q4_1 --clients 1,8 --requests 1 --repeats 1

Starts each server on this machine with two threads, waits until it is ready, and runs ``memory3 bench serve --against``
them all: arms take turns, servers that are not asked sleep (``idle_cpus`` in the result says how well). All answers are
greedy and go on after an end token to the same length.

    transformers            `transformers serve`: our weights, adapter merged, float32. One request after the other
    transformers-batching   the same with --continuous-batching
    llama.cpp-f32           llama-server: the same weights in float32, 16 slots, prompt caching as it is by default
    llama.cpp-q4_1          llama-server: Q4_1, the file that the default model was made of, without our adapter

What lacks is made once and kept in the folder ``--work``: `research.serving.llama_cpp` tells what that takes.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Threads of each server.
THREADS = 2
#: Clients at most: so many slots does llama.cpp get, of so many tokens each.
SLOTS, SLOT_TOKENS = 16, 2048
#: Tokens in a pass of transformers' continuous batching.
PASS_TOKENS = 512
#: Seconds that a server may take to load its model.
START = 180
#: Seconds over which a server is watched that has nothing to do.
IDLE = 2.0


@dataclass(frozen=True)
class Peer:
    """A server that is no work of ours.

    Attributes:
        command: without its port.
        body: fields of requests to it.
        model: that it is asked for; "": the one that it lists.
        about: what it is, for the result.
    """

    command: list[str]
    body: dict[str, Any]
    model: str
    about: dict[str, Any]


def transformers(work: Path, *options: str) -> Peer:
    """`transformers serve` of this environment, which knows no ``ignore_eos``: no token has the number -1."""
    import transformers as library

    folder = our_model(work)
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", str(folder), "--device", "cpu", "--host", "127.0.0.1", "--log-level", "error", *options]
    body = {"generation_config": json.dumps({"eos_token_id": -1, "do_sample": False})}
    about = {"version": library.__version__, "weights": "float32, adapter merged", "bytes": size_of(folder)}
    return Peer([*command, "--port"], body, str(folder), about)


def batching(work: Path) -> Peer:
    """The same with continuous batching. Its pages would take 0.6 of what RAM is free: here they hold what 16 clients need.
    A pass would have 8,192 tokens, all of which look at one another through a dense mask: here it has about a prompt's."""
    pages, tokens = str(SLOTS * SLOT_TOKENS // 256), str(PASS_TOKENS)
    return transformers(work, "--continuous-batching", "--cb-num-blocks", pages, "--cb-max-batch-tokens", tokens)


def llama_cpp(work: Path, file: Path, weights: str) -> Peer:
    """llama.cpp's server with a model."""
    from research.serving import llama_cpp as made

    program = made.server(work)
    command = [str(program), "--model", str(file), "--host", "127.0.0.1", "--offline"]
    command += ["--threads", str(THREADS), "--threads-batch", str(THREADS)]
    command += ["--parallel", str(SLOTS), "--ctx-size", str(SLOTS * SLOT_TOKENS)]
    body = {"ignore_eos": True, "stream_options": {"include_usage": True}}
    about = {"version": f"{made.PACKAGE}, {made.version(program)}", "weights": weights, "bytes": size_of(file)}
    return Peer([*command, "--port"], body, "", about)


def llama_cpp_f32(work: Path) -> Peer:
    """Our weights."""
    from research.serving import llama_cpp as made

    return llama_cpp(work, made.f32(work, our_model(work)), "float32, adapter merged")


def llama_cpp_q4_1(work: Path) -> Peer:
    """What a CPU's owner would take."""
    from research.serving import llama_cpp as made

    return llama_cpp(work, made.q4_1(work), "Q4_1, without adapter")


PEERS: Mapping[str, Callable[[Path], Peer]] = {
    "transformers": transformers,
    "transformers-batching": batching,
    "llama.cpp-f32": llama_cpp_f32,
    "llama.cpp-q4_1": llama_cpp_q4_1,
}


def our_model(work: Path) -> Path:
    """The default model with its adapter, in float32, as a folder that others load."""
    folder = work / "model"
    if not folder.is_dir():
        from memory3 import Memory3
        from memory3.models.catalogue import DEFAULT_ADAPTED

        m3, part = Memory3.from_pretrained(DEFAULT_ADAPTED), work / "model.part"
        m3.model.save_pretrained(part)
        m3.tokenizer.save_pretrained(part)
        part.rename(folder)
    return folder


def size_of(path: Path) -> int:
    """Bytes of a file of weights, or of those of a folder."""
    return sum(one.stat().st_size for one in ([path] if path.is_file() else path.glob("*.safetensors")))


# ---- running ---------------------------------------------------------------------------------------------------------


@contextmanager
def running(name: str, peer: Peer, work: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """A peer's server until the end of ``with``: its port, and what is to be said of it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = work / f"{name}.log"
    env = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    with log.open("wb") as said, subprocess.Popen([*peer.command, str(port)], stdout=said, stderr=said, env=env) as process:
        try:
            while not is_ready(port):
                if process.poll() is not None or time.monotonic() > started + START:
                    raise SystemExit(f"{name} did not come up: see {log}")
                time.sleep(0.2)
            seconds = time.monotonic() - started
            yield (
                port,
                {**peer.about, "command": " ".join(peer.command[:-1]), "start_seconds": seconds, "process": process.pid},
            )
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def is_ready(port: int) -> bool:
    """Whether a server has loaded its model."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def cpu_seconds(process: int) -> float:
    """Of all threads of a process, since it began (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--bank", required=True, help="folder of a bank of the default model; the demo's will do")
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    parser.add_argument("--work", type=Path, help="folder for what is built [~/.cache/memory3/peers]")
    parser.add_argument("--peers", default=",".join(PEERS), help="between commas [all]")
    parser.add_argument("--modes", default="memory,text", help="of memory3's own server")
    for name, default in {
        "clients": "1,4,8,16",
        "tokens-in": "32",
        "tokens-out": "64",
        "requests": "2",
        "repeats": "3",
    }.items():
        parser.add_argument(f"--{name}", default=default, help=f"as of `memory3 bench serve` [{default}]")
    asked = parser.parse_args()
    names = asked.peers.split(",")
    for name in set(names) - set(PEERS):
        parser.error(f"{name!r} is none of {', '.join(PEERS)}")
    os.environ["OMP_NUM_THREADS"] = str(THREADS)  # of our server, too: set before torch is there

    from memory3 import benchmarks
    from memory3.models.catalogue import cache_dir

    work = (asked.work or cache_dir() / "peers").absolute()
    work.mkdir(parents=True, exist_ok=True)
    peers = {name: PEERS[name](work) for name in names}
    with ExitStack() as stack:
        up = {name: stack.enter_context(running(name, peer, work)) for name, peer in peers.items()}
        options = {name: str(getattr(asked, name)) for name in ("bank", "modes", "clients", "requests", "repeats")}
        options |= {name: str(getattr(asked, name)) for name in ("tokens_in", "tokens_out")}
        addresses = {name: f"{name}=http://127.0.0.1:{port}" for name, (port, _) in up.items()}
        options["against"] = ",".join(
            address + (f"#{peers[name].model}" if peers[name].model else "") for name, address in addresses.items()
        )
        options["against_body"] = json.dumps({name: peer.body for name, peer in peers.items()})
        found = benchmarks.run("serve", options)
        about = {name: dict(told) for name, (_, told) in up.items()}
        before = {name: cpu_seconds(told["process"]) for name, told in about.items()}
        time.sleep(IDLE)
        for name, told in about.items():
            told["idle_cpus"] = (cpu_seconds(told["process"]) - before[name]) / IDLE
            del told["process"]
    asked.out.write_text(json.dumps({**found, "threads": THREADS, "peers": about}, indent=2) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))  # a checkout of the repository
    main()
