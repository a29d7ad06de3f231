"""`kdpipe` with the small stages in the place of the real ones."""

import sys

import stages
from tests.pipeline import smallhouse

stages.STAGES = smallhouse.STAGES

if __name__ == "__main__":
    from pipeline import cli

    cli.group.add_lazy("broken", f"{smallhouse.HERE}.broken:broken", "A command with a defect.", "Commands")
    sys.exit(cli.main())
