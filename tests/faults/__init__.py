"""What goes wrong on purpose, at length: ``python -m faults`` runs the checks and prints a figure for each.

Each module here that has ``ABOUT`` is one check. What several checks share is in modules without it.
"""
