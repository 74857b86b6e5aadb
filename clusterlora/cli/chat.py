"""`clusterlora chat`: ask what a persona would ask, and read the methods' answers side by side."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from clusterlora.cli.here import stores_here
from clusterlora.cli.progress import say

if TYPE_CHECKING:
    from clusterlora.ports import Stores
    from clusterlora.settings import Study

_EXAMPLES = """\b
Examples:
  clusterlora chat --persona persona_003                                       talk; an empty line or Ctrl-D ends it
  clusterlora chat --persona persona_003 --methods unified,cluster "Make it cosy"
  clusterlora chat --study demo --persona persona_003 "Make it cosy" --json
"""


@click.command(epilog=_EXAMPLES)
@click.argument("question", required=False)
@click.option("--study", "name", help="Whose adapters.  [default: the newest study]")
@click.option("--persona", required=True, help="Who asks; somebody unknown is answered by unified.")
@click.option("--methods", help="Which methods answer, separated by commas.  [default: all that were evaluated]")
@click.option("--max-new-tokens", type=click.IntRange(min=1), help="Longest answer.  [default: the study's]")
@click.option("--json", "as_json", is_flag=True, help="Print the answers as JSON; needs a QUESTION.")
def chat(question: str | None, name: str | None, persona: str, methods: str | None, max_new_tokens: int | None, as_json: bool) -> None:
    """Show the same QUESTION answered by several methods of a study, side by side. Without a question, talk in the terminal."""
    if as_json and question is None:
        raise click.UsageError('--json needs a question: clusterlora chat --persona ID --json "..."')
    from clusterlora.planning.study_state import read_state
    from clusterlora.planning.work_plan import work_plan
    from clusterlora.serving.router import Router
    from clusterlora.stages.routing import adapter_folders, routing_table
    from clusterlora.stores.json_codec import from_plain, plain
    from clusterlora.stores.routing_table import RoutingTable

    stores = stores_here()
    state = read_state(name or _newest(stores), stores)
    study, plan = state.settings, work_plan(state)
    routers: dict[str, Router] = {}
    for method in _asked(methods, study, stores):
        table = from_plain(RoutingTable, plain(routing_table(state, plan, method, stores)))
        routers[method] = Router(table, adapter_folders(table, stores))
    if persona not in state.dataset.ids:
        say(f"persona {persona!r} is not in study {study.name}: unified answers")

    def answers(history: dict[str, list[dict[str, str]]]) -> dict[str, dict[str, str]]:
        limit = {"max_new_tokens": max_new_tokens} if max_new_tokens else {}
        return {m: router.answer([{"persona_id": persona, "messages": history[m], **limit}])[0] for m, router in routers.items()}

    talks: dict[str, list[dict[str, str]]] = {method: [] for method in routers}
    while (line := question if question is not None else _read()) is not None:
        for talk in talks.values():
            talk.append({"role": "user", "content": line})
        found = answers(talks)
        for method, answer in found.items():
            talks[method].append({"role": "assistant", "content": answer["text"]})
        if as_json:
            click.echo(json.dumps({"study": study.name, "persona_id": persona, "question": line, "answers": found}))
        else:
            _show(found)
        if question is not None:
            return


def _newest(stores: "Stores") -> str:
    from clusterlora.errors import UnknownName

    known = stores.studies.studies()
    if not known:
        raise UnknownName("there is no study yet; begin with: clusterlora study run --preset quick")
    return known[0][0]


def _asked(methods: str | None, study: "Study", stores: "Stores") -> list[str]:
    """Return the methods to ask. Raises UnknownName for one that was not evaluated."""
    from clusterlora.errors import UnknownName

    routed = {route.method for route in stores.studies.routes(study.name)}
    evaluated = [method for method in study.methods if method in routed]
    wanted = [word.strip() for word in methods.split(",") if word.strip()] if methods else evaluated
    unknown = next((m for m in wanted if m not in evaluated), None)
    if not wanted or unknown is not None:
        known = f"it has {', '.join(evaluated)}" if evaluated else f"run: clusterlora evaluate --name {study.name}"
        raise UnknownName(f"study {study.name} has not evaluated {unknown or 'any method'}; {known}")
    return wanted


def _read() -> str | None:
    """Return what is typed; None at an empty line or the end of the input."""
    try:
        line = input("you> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None
    return line or None


def _show(found: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(show_lines=True)
    for column in ("method", "answered by", "answer"):
        table.add_column(column)
    for method, answer in found.items():
        table.add_row(Text(method), Text(answer["answered_by"]), Text(answer["text"]))
    Console().print(table)
