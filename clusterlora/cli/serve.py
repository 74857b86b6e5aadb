"""`clusterlora serve`: a registered model behind an address that OpenAI's clients speak to."""

import json
import logging
import signal
from pathlib import Path
from types import FrameType

import click

from clusterlora.cli.local_stores import open_registry
from clusterlora.cli.options import FiniteRange
from clusterlora.cli.orchestration import use_local_services
from clusterlora.cli.progress import echo_stderr
from clusterlora.serving import MOST_RESIDENT

_EXAMPLES = """\b
Examples:
  clusterlora serve demo@champion
  clusterlora serve demo@candidate --port 8001      beside it, before it becomes champion
  clusterlora serve exported/                       a folder that `registry export` has written
"""


@click.command(epilog=_EXAMPLES)
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port to listen on; 0 chooses a free one.")
@click.option("--name", "names", multiple=True, help="A host name by which clients call this server, besides its address. May be repeated.")
@click.option("--key-file", type=click.Path(path_type=Path, dir_okay=False), help="API keys, one per line.  [default: one that is made]")
@click.option("--no-key", is_flag=True, help="Answer without a key; on loopback only.")
@click.option("--slots", type=click.IntRange(1, 1024), default=16, show_default=True, help="Requests that are answered at once.")
@click.option("--queue", type=click.IntRange(1, 100_000), default=256, show_default=True, help="Requests that may wait for a slot.")
@click.option(
    "--resident",
    type=click.IntRange(1, 1_000_000),
    default=MOST_RESIDENT,
    show_default=True,
    help="Adapters in memory at once; others are read from disk when somebody asks for them.",
)
@click.option("--rate", type=click.IntRange(1, 1_000_000), help="Requests per minute and key.  [default: any]")
@click.option("--max-body", type=click.IntRange(1024, 1 << 30), default=1 << 20, show_default=True, help="Bytes of a request at most.")
@click.option("--watch", type=FiniteRange(0.1, 86_400), default=10.0, show_default=True, help="Seconds between looks at a moved alias.")
@click.option(
    "--stop-after", type=click.IntRange(1, 86_400), default=60, show_default=True, help="Seconds that running requests may finish in."
)
@click.option("--json", "as_json", is_flag=True, help="Print the address as JSON once requests are accepted.")
def serve(
    model: str,
    host: str,
    port: int,
    names: tuple[str, ...],
    key_file: Path | None,
    no_key: bool,
    slots: int,
    queue: int,
    resident: int,
    rate: int | None,
    max_body: int,
    watch: float,
    stop_after: int,
    as_json: bool,
) -> None:
    """Answer OpenAI's clients with MODEL until stopped: a registered one (NAME, NAME@ALIAS, NAME@VERSION) or an exported folder.

    Who asks is `user`, the header X-Persona-Id or the model's name, NAME/PERSONA. A version to which the alias moves answers from then on.
    """
    if no_key and key_file is not None:
        raise click.UsageError("--no-key and --key-file exclude each other")
    from clusterlora.serving.keys import load_or_create_keys
    from clusterlora.serving.live_model import FolderSource, RegistrySource
    from clusterlora.serving.server import ModelServer, ServerSettings, listen
    from clusterlora.wiring import results_home

    settings = ServerSettings(
        host=host,
        port=port,
        names=names,
        n_slots=slots,
        max_waiting=queue,
        requests_per_minute=rate,
        max_body_bytes=max_body,
        watch_seconds=watch,
        stop_seconds=stop_after,
    )
    folder = Path(model) if (Path(model) / "routes.json").is_file() else None
    listener = listen(settings, has_keys=not no_key)
    source = FolderSource(folder, n_resident=resident) if folder else RegistrySource(open_registry(), model, n_resident=resident)
    # The keys are where the results are, whatever is served.
    use_local_services()
    file = key_file or results_home() / ".serving" / "api-keys"
    keys = None if no_key else load_or_create_keys(file)
    echo_stderr(f"loading {model}")
    server = ModelServer(source, listener, settings, keys)
    address = f"http://{f'[{host}]' if ':' in host else host}:{server.port}/v1"

    def announce() -> None:
        served = server.live.current
        if as_json:
            key = None if no_key else str(file)
            click.echo(json.dumps({"address": address, "model": served.name, "version": served.version, "key_file": key}))
        else:
            click.echo(f"{served.name} version {served.version} answers at {address}")
            if not no_key:
                click.echo(f"API key: the first line of {file}")

    logging.getLogger("clusterlora.serving").setLevel(logging.INFO)
    # The server ends what runs on either signal and then raises it again, which would end this process before it has cleaned up.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _ignore)
    server.run(announce)
    echo_stderr("stopped")


def _ignore(_number: int, _frame: FrameType | None) -> None:
    pass
