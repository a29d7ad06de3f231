"""The engine: profile, plan, artefact store, runner and command line. It knows no model."""

__version__ = "0.1.0"
