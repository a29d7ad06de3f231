"""The subcommands, one module for each that does something of its own."""
