"""Decide which stages have to run, and run them.

Read `plan.py` first (whether a stage's artefact can be reused, and if not, why), then `run_state.py` (the
state of a run and its listener), `runner.py` (bring the stages up to date) and `outcome.py` (the error of a
complete run).
"""
