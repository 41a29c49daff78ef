"""The composed verbs: what a command does once it is parsed. The one room that may use every other."""
