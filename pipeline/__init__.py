"""The engine: profile, plan, artefact store, runner and command line. It contains no model and no runtime.

Read `stage.py` (the contract with a stage) and `errors.py` first, then the packages `profile`, `store` and
`running`. The commands start in `cli.py`, which `shadowing.py` calls after a check of the import path.
"""

__version__ = "0.1.0"
