"""Distillation methods: one interface, one file a method, combined by weight."""
