"""Distillation methods: one interface, one file per method, combined with weights."""
