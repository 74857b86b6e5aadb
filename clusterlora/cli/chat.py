"""`clusterlora chat`: ask a question as a persona and compare the methods' answers side by side."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from clusterlora.cli.local_stores import open_local_stores
from clusterlora.cli.progress import echo_stderr
from clusterlora.settings import MOST_TOKENS

if TYPE_CHECKING:
    from clusterlora.ports.stores import Stores
    from clusterlora.settings import Study

_EXAMPLES = """\b
Examples:
  clusterlora chat --persona persona_003                                       interactive; an empty line or Ctrl-D ends it
  clusterlora chat --persona persona_003 --methods unified,cluster "Make it cosy"
  clusterlora chat --study demo --persona persona_003 "Make it cosy" --json
"""


@click.command(epilog=_EXAMPLES)
@click.argument("question", required=False)
@click.option("--study", "name", help="Study whose adapters answer.  [default: the newest]")
@click.option("--persona", required=True, help="Persona who asks; unified answers one that is not in the study.")
@click.option("--methods", help="Methods that answer, separated by commas.  [default: all that were evaluated]")
@click.option("--max-new-tokens", type=click.IntRange(1, MOST_TOKENS), help="Maximum tokens per answer.  [default: the study's setting]")
@click.option("--json", "as_json", is_flag=True, help="Print the answers as JSON; needs a QUESTION.")
def chat(question: str | None, name: str | None, persona: str, methods: str | None, max_new_tokens: int | None, as_json: bool) -> None:
    """Print the answers of several methods of a study to QUESTION, side by side. Without it, start an interactive dialogue."""
    if as_json and question is None:
        raise click.UsageError('--json needs a question: clusterlora chat --persona ID --json "..."')
    from clusterlora.adapters.held import HeldAdapters
    from clusterlora.planning.study_state import read_state
    from clusterlora.planning.work_plan import work_plan
    from clusterlora.registry.routing import routing_table
    from clusterlora.serving.router import Router
    from clusterlora.stores.json_codec import from_plain, plain
    from clusterlora.stores.routing_table import RoutingTable

    stores = open_local_stores()
    state = read_state(name or _newest(stores), stores)
    study, plan = state.settings, work_plan(state)
    routers: dict[str, Router] = {}
    for method in _evaluated_methods(methods, study, stores):
        table = from_plain(RoutingTable, plain(routing_table(state, plan, method, stores)))
        routers[method] = Router(table, HeldAdapters.of_stores(table.keys, stores))
    if persona not in state.dataset.ids:
        echo_stderr(f"persona {persona!r} is not in study {study.name}: unified answers")

    def answers(history_by_method: dict[str, list[dict[str, str]]]) -> dict[str, dict[str, str]]:
        limit = {"max_new_tokens": max_new_tokens} if max_new_tokens else {}
        return {m: router.answer([{"persona_id": persona, "messages": history_by_method[m], **limit}])[0] for m, router in routers.items()}

    histories: dict[str, list[dict[str, str]]] = {method: [] for method in routers}
    while (line := question if question is not None else _read_line()) is not None:
        for history in histories.values():
            history.append({"role": "user", "content": line})
        answer_by_method = answers(histories)
        for method, answer in answer_by_method.items():
            histories[method].append({"role": "assistant", "content": answer["text"]})
        if as_json:
            click.echo(json.dumps({"study": study.name, "persona_id": persona, "question": line, "answers": answer_by_method}))
        else:
            _print_table(answer_by_method)
        if question is not None:
            return


def _newest(stores: "Stores") -> str:
    from clusterlora.errors import UnknownName

    studies = stores.studies.studies()
    if not studies:
        raise UnknownName("there is no study yet; start with: clusterlora study run --preset quick")
    return studies[0][0]


def _evaluated_methods(methods: str | None, study: "Study", stores: "Stores") -> list[str]:
    """Return the requested methods, by default all that were evaluated. Raises UnknownName for one that was not."""
    from clusterlora.errors import UnknownName

    routed = {route.method for route in stores.studies.routes(study.name)}
    evaluated = [method for method in study.methods if method in routed]
    requested = [word.strip() for word in methods.split(",") if word.strip()] if methods else evaluated
    unknown = next((m for m in requested if m not in evaluated), None)
    if not requested or unknown is not None:
        fix = f"it has {', '.join(evaluated)}" if evaluated else f"run: clusterlora evaluate --name {study.name}"
        raise UnknownName(f"study {study.name} has not evaluated {unknown or 'any method'}; {fix}")
    return requested


def _read_line() -> str | None:
    """Return a line of stdin; None for an empty line or at the end of the input."""
    try:
        line = input("you> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    return line or None


def _print_table(answer_by_method: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from clusterlora.errors import harmless

    table = Table(show_lines=True)
    for column in ("method", "answered by", "answer"):
        table.add_column(column, overflow="fold")
    for method, answer in answer_by_method.items():
        table.add_row(Text(method), Text(answer["answered_by"]), Text(harmless(answer["text"])))
    Console().print(table)
