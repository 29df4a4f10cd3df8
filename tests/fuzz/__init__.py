"""Inputs made at random, at length: ``python -m fuzz`` runs the parts and prints a figure for each.

`canon` is for libFuzzer, `folders` and `model` are hypothesis'. What one of them finds becomes a test of its own.
"""
