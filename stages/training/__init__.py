"""The training loop of the stages train, distill and quantize.

Read in this order: `loop` (`fit`), `epoch` (the training step), `tasks` (what is trained), `supply` (batches
on the device), `augmentation` (random views), `optimizers`, `schedules`, `moving_average`, `evaluation`,
`checkpoint`. The stages call `checks` before a run, `recipe` to unpack a profile's settings, `fabric` to
start the processes, and `artefact` to write the result.
"""
