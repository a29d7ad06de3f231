"""The subcommands.

Read `base` (help, groups, global options) and `options` (those that several commands take) first, then
`profiles` and `up_to_date`, which most commands call. Every other module is a command or a few of them;
`pipeline.cli` lists them.
"""
