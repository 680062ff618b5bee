"""``memory3 serve``: a server that OpenAI's clients can ask, with banks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memory3.cli import options
from memory3.cli.loading import full_name, load_model
from memory3.cli.output import count, err, message, out, print_json, size, tell_advice
from memory3.garbage import collecting_later
from memory3.serving.listening import check_free, is_local

if TYPE_CHECKING:
    from memory3.llm import Memory3
    from memory3.serving.base import BaseEngine
    from memory3.serving.catalogue import Banks
    from memory3.serving.server import Server
    from memory3.serving.storage import Unowned

__all__ = ["serve"]

LOAD = "How much at once"
BOUNDS = "Bounds of a request"
WEB = "Web"
ENGINES = ("transformers", "vllm")


def serve(
    bank: Annotated[
        list[str] | None,
        typer.Option(
            "--bank",
            "-b",
            help="Folder of a bank, or its URL on object storage; again for more. NAME=DIR gives it another name than its "
            "folder's. All are of one model.",
            envvar="MEMORY3_BANK",
            metavar="[NAME=]DIR|URL",
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at. 0.0.0.0: all of this machine's.", metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: any that is free.", min=0, max=65535, metavar="N")] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            help="Who may ask: one key a line, behind it the names of the banks it is bound to. Default: everybody, for all.",
            metavar="FILE",
        ),
    ] = None,
    files: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the files and vector stores that clients make. Default: they cannot make any.", metavar="DIR"
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="What clients call the model. Default: its own short name.", metavar="NAME")
    ] = None,
    model: options.Model = None,
    adapter: options.Adapter = None,
    device: options.Device = None,
    model_dtype: options.ModelDtype = None,
    memory_temperature: options.MemoryTemperature = None,
    engine: Annotated[
        str,
        typer.Option(
            help="What runs the model: transformers, or vllm, which must be installed (docs/vllm.md).",
            metavar="NAME",
            rich_help_panel=LOAD,
        ),
    ] = "transformers",
    slots: Annotated[int, typer.Option(help="Requests in one forward pass.", min=1, metavar="N", rich_help_panel=LOAD)] = 16,
    waiting: Annotated[
        int,
        typer.Option(
            help="Requests that wait beside those; more are told to come again.", min=0, metavar="N", rich_help_panel=LOAD
        ),
    ] = 64,
    connections: Annotated[int, typer.Option(help="Connections at once.", min=1, metavar="N", rich_help_panel=LOAD)] = 512,
    drain: Annotated[
        float,
        typer.Option(
            help="When told to stop: how long requests that have begun may go on.",
            min=0,
            max=3600,
            metavar="SECONDS",
            rich_help_panel=LOAD,
        ),
    ] = 20.0,
    max_tokens: Annotated[
        int, typer.Option(help="Tokens of an answer at most.", min=1, metavar="N", rich_help_panel=BOUNDS)
    ] = 4096,
    max_seconds: Annotated[
        float,
        typer.Option(
            help="After so long a request is answered with what there is.", min=1, metavar="SECONDS", rich_help_panel=BOUNDS
        ),
    ] = 300.0,
    max_body: Annotated[str, typer.Option(help="Size of a body at most.", metavar="SIZE", rich_help_panel=BOUNDS)] = "2MB",
    max_upload: Annotated[
        str, typer.Option(help="Size of an uploaded file at most.", metavar="SIZE", rich_help_panel=BOUNDS)
    ] = "64MB",
    cache_device: options.CacheDevice = None,
    cache_ram: options.CacheRam = None,
    cache_disk: options.CacheDisk = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(
            help="Origin whose web pages may ask, such as https://example.org; again for more. Default: none.",
            metavar="ORIGIN",
            rich_help_panel=WEB,
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Serve a model and its banks to OpenAI's clients.

    Each bank is one model: smollm2-135m-instruct@docs. Answers cite what they were read from. Stops at Ctrl-C or SIGTERM,
    when requests that have begun are answered. docs/serving.md says what clients may ask.

    [bold]Examples[/bold]

        memory3 serve --bank bank
        memory3 serve --bank docs=./bank --bank manuals=./other --port 9000
        memory3 serve --bank bank --host 0.0.0.0 --api-key-file keys.txt
        memory3 serve --bank bank --engine vllm
        memory3 serve --bank bank --json
    """
    if engine not in ENGINES:
        raise typer.BadParameter(f"{engine!r} is none: use {' or '.join(ENGINES)}", param_hint="--engine")
    check_free(host, port)  # the imports below take seconds
    with collecting_later():
        import torch

        from memory3.bank import Bank
        from memory3.serving.app import create_app
        from memory3.serving.catalogue import Banks
        from memory3.serving.keys import Keys
        from memory3.serving.limits import Limits
        from memory3.serving.metrics import Metrics
        from memory3.serving.server import Server
        from memory3.serving.state import ServerState
        from memory3.serving.threads import apart

    named = dict[str, str]()
    for each in bank or []:
        called, path = _named(each)
        if called in named:
            raise typer.BadParameter(
                f"two banks are called {called!r}: give one another name with NAME=DIR", param_hint="--bank"
            )
        named[called] = path
    limits = Limits(
        connections=connections,
        most_answer_tokens=max_tokens,
        seconds=max_seconds,
        body_bytes=options.byte_count(max_body) or 1,
        upload_bytes=options.byte_count(max_upload) or 1,
    )
    keys = Keys.read(api_key_file) if api_key_file is not None else Keys()
    first = next(iter(named.values()), None)
    cache = options.cache_bytes(cache_device, cache_ram, cache_disk)

    def load() -> tuple[Memory3, Banks]:
        m3 = _model(None if first is None else Bank.describe(first), model, adapter, device, model_dtype, memory_temperature)
        banks = Banks(m3, name)
        for called, path in named.items():
            with err.status(f"opening {path}"), collecting_later():
                banks.open(called, path, **cache)
        return m3, banks

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    m3, banks = apart(load, threads)
    for served in banks:
        if isinstance(served.bank, Bank) and (said := served.bank.advice()) is not None:
            tell_advice(said)
    metrics = Metrics()
    runs = _engine(engine, m3, slots=slots, waiting=waiting, threads=threads, observer=metrics)
    state = ServerState(m3, runs, banks, keys, limits, metrics, folder=files, cors=tuple(cors or ()))
    keys.check_banks(banks.names)  # among them the vector stores that were found in the folder
    server = Server(create_app(state, drain=drain), state, host, port, drain=drain)
    server.when_started = lambda: _tell(server, banks, as_json=as_json)
    if not keys.tenants and not is_local(host):
        message(f"no keys: everybody who reaches {host} may ask. Give --api-key-file.", kind="warning", style="yellow")
    if state.storage is not None:
        _tell_of_unowned(state.storage.unowned(keys.names))
    server.run()
    runs.close()
    if not server.started:
        raise typer.Exit(1)


def _named(argument: str) -> tuple[str, str]:
    """``docs=./bank`` or ``./bank``."""
    called, equals, path = argument.partition("=")
    if equals and re.fullmatch(r"[A-Za-z0-9._-]+", called) and path:
        return called, str(options.place(path))
    own = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(argument).resolve().name).lstrip("._-")
    if not own:
        raise typer.BadParameter(f"{argument!r} gives the bank no name: write NAME={argument}", param_hint="--bank")
    return own, str(options.place(argument))


def _model(
    manifest: object | None,
    model: str | None,
    adapter: str | None,
    device: str | None,
    dtype: str | None,
    temperature: float | None,
) -> Memory3:
    """The model that the first bank remembers, or the one that was named."""
    from memory3.bank.format.manifest import BankManifest
    from memory3.models.catalogue import DEFAULT_ADAPTED

    if not isinstance(manifest, BankManifest):
        return load_model(full_name(model or DEFAULT_ADAPTED, adapter), device=device, dtype=dtype)
    config = manifest.config if temperature is None else manifest.config.replace(memory_temperature=temperature)
    return load_model(full_name(model or manifest.model, adapter), config, device=device, dtype=dtype)


def _engine(name: str, m3: Memory3, **options: Any) -> BaseEngine:
    """The engine of this name."""
    if name == "vllm":
        from memory3.models.catalogue import cache_dir
        from memory3.vllm.engine import VllmEngine
        from memory3.vllm.release import check_release

        check_release()
        with err.status("starting vLLM"):
            return VllmEngine(m3, cache_dir() / "vllm" / m3.fingerprint, **options)
    from memory3.serving.engine import Engine

    return Engine(m3, **options)


def _tell_of_unowned(left: list[Unowned]) -> None:
    """What keys have left that are not there any more."""
    for one in left:
        held = f"{count(one.files, 'file')} ({size(one.bytes)}) and {count(one.stores, 'vector store')}"
        message(f"{one.folder} holds {held} of a key that is not there any more: remove it, or give the key back", kind="note")


def _tell(server: Server, banks: Banks, *, as_json: bool) -> None:
    """Where it listens, what it serves, and how to ask."""
    models = [banks.model, *(banks.id_of(name) for name in banks.names)]
    if as_json:
        print_json({"address": server.address, "models": models})
        return
    asked = models[1] if len(models) > 1 else models[0]
    out.print(f"Listening at {server.address}", style="bold", highlight=False)
    if server.from_elsewhere:
        out.print(f"From other machines: {server.from_elsewhere}", highlight=False)
    out.print(f"Models: {', '.join(models)}", highlight=False, soft_wrap=True)
    out.print(f"A page to ask and upload: {server.address}/", highlight=False)
    out.print(
        f"\nAsk with curl:\n\n"
        f"  curl {server.address}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f'    -d \'{{"model": "{asked}", "messages": [{{"role": "user", "content": "..."}}]}}\'\n\n'
        f"or with OpenAI's client:\n\n"
        f'  client = openai.OpenAI(base_url="{server.address}/v1", api_key="none")\n'
        f'  client.chat.completions.create(model="{asked}", messages=[{{"role": "user", "content": "..."}}])\n',
        highlight=False,
        soft_wrap=True,
    )
