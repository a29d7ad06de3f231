"""A command that an extension brought, with a defect."""

from pipeline.commands.base import Command
from pipeline.commands.options import json_option, store_option


def _break(store: str | None) -> None:
    raise ZeroDivisionError("no such luck")


broken = Command("broken", help="Break.", params=[json_option(), store_option()], callback=_break)
