"""Fairlead inside other people's tools: one file a tool, each behind an extra of its own. Nothing imports this room."""
