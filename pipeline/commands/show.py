"""`kdpipe show` and `kdpipe schema`: print a profile with every default, and the JSON Schema of profiles."""

from __future__ import annotations

import click

from pipeline.commands.base import Command
from pipeline.commands.options import json_option, profile_argument, set_option
from pipeline.console.session import Session


def _show(profile: str, overrides: tuple[str, ...]) -> None:
    from pipeline.profile.loading import load
    from pipeline.profile.showing import show

    session = click.get_current_context().ensure_object(Session)
    session.so_far = lambda: {"profile": profile, "overrides": list(overrides)}
    loaded = load(profile, overrides)
    if session.json:
        session.print_json(
            profile=str(loaded.path),
            overrides=list(overrides),
            files=[str(file) for file in loaded.files],
            settings=dict(loaded.sections),
        )
    else:
        session.console.document(show(loaded))


def _schema() -> None:
    from pipeline.profile.reference import schema_text

    click.get_current_context().ensure_object(Session).console.document(schema_text())


show = Command(
    "show",
    help="Print a profile with every default, merged with the profiles that it extends.",
    params=[profile_argument(), set_option(), json_option()],
    callback=_show,
    examples=(
        "kdpipe show profiles/resnet_to_mobilenet.yaml",
        "kdpipe show profiles/resnet_to_mobilenet.yaml --set targets='[onnxruntime-int8]'",
        "kdpipe show profiles/resnet_to_mobilenet.yaml --json | jq .settings.distill",
    ),
)

schema = Command(
    "schema",
    help="Print the JSON Schema of profiles, for editors and checks.",
    params=[],
    callback=_schema,
    examples=(
        "kdpipe schema > kdpipe.schema.json",
        "kdpipe schema | jq '.properties | keys'",
        "kdpipe schema | jq '.properties.distill'",
    ),
)
