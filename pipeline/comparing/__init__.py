"""Compare distillation methods: train many runs of one profile, methods times seeds, and judge them together.

Read in this order: `method_specs` (the values of `--methods`), `comparison` (the planned runs, each run, and
the artefact), `execution` (all of it in order), `parallel_runs` and `parallel_commands` (`--jobs`), `text`.
"""
