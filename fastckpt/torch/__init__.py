"""The torch edge: nothing here is imported before a program uses torch."""
