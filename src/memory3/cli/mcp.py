"""``memory3 mcp``: a bank as tools of other programs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from memory3.cli import options
from memory3.cli.loading import open_bank
from memory3.cli.output import message, out, print_json
from memory3.garbage import collecting_later
from memory3.serving.listening import check_free

__all__ = ["mcp"]

#: Seconds between two looks at what others wrote to the bank.
REFRESH = 2.0


def mcp(
    bank: options.Bank,
    stdio: Annotated[
        bool, typer.Option("--stdio", help="Speak over standard input and output, to the program that started this.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="Address to listen at. Other than this machine's own it needs keys.", metavar="HOST")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: one that is free.", min=0, max=65535, metavar="N")] = 8765,
    write: Annotated[bool, typer.Option("--write", help="Offer the tools that change the bank: write and forget.")] = False,
    api_key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", help="Ask for a key of this file: one a line, at least 16 characters.", metavar="FILE"),
    ] = None,
    model: options.Model = None,
    adapter: options.Adapter = None,
    device: options.Device = None,
    as_json: options.Json = False,
) -> None:
    """Serve a bank as tools, by the Model Context Protocol.

    The tools are search (passages as text) and ask (an answer with citations);
    with --write also write (remember a text) and forget. Streamable HTTP at
    /mcp, or --stdio. Stop it with Ctrl-C.

    [bold]Examples[/bold]

        memory3 mcp --bank bank
        memory3 mcp --bank bank --stdio --write
    """
    if stdio and (as_json or api_key_file):
        raise typer.BadParameter("--stdio leaves no room for --json, and needs no --api-key-file")
    if not stdio:
        check_free(host, port)
    with collecting_later():
        from memory3.plugs.mcp import PATH, BankTools, http_server, make_server
    from memory3.serving.catalogue import NAME, Banks, Served
    from memory3.serving.engine import Engine
    from memory3.serving.keys import Keys
    from memory3.serving.state import ServerState

    keys = Keys() if api_key_file is None else Keys.read(api_key_file)
    m3, opened = open_bank(bank, model, adapter=adapter, device=device)
    name = Path(bank).resolve().name
    name = name if NAME.fullmatch(name) else "bank"  # keys may be bound to banks by their names
    banks = Banks(m3)
    banks.add(Served(name, opened))
    with Engine(m3) as engine:
        state = ServerState(m3, engine, banks, keys)
        tools = make_server(BankTools(state, name), write=write)
        banks.watch(REFRESH, lambda _name, error: message(f"the bank cannot be read anew: {error}", kind="warning"))
        try:
            if stdio:
                tools.run("stdio")
                return
            server = http_server(tools, state, name, host, port)
            offered = ["search", "ask", *(["write", "forget"] if write else [])]
            server.when_started = lambda: _tell(f"{server.address}{PATH}", offered, as_json=as_json)
            server.run()
        finally:
            banks.close()  # writes down what was recalled
    if not server.started:
        raise typer.Exit(1)


def _tell(url: str, tools: list[str], *, as_json: bool) -> None:
    """Where it listens, and what it offers."""
    if as_json:
        print_json({"url": url, "tools": tools})
    else:
        out.print(f"Listening at {url}", style="bold")
        out.print(f"Tools: {', '.join(tools)}")
    sys.stdout.flush()  # whoever reads it through a pipe waits for it
