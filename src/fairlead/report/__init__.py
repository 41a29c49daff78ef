"""Reads Records and artifacts; writes a page, a terminal table, an export. Never runs, never re-scores."""

from fairlead.report.compare import compare, compare_html, compare_table
from fairlead.report.export import rows, to_csv, to_json
from fairlead.report.html import page, render, rendered_as
from fairlead.report.source import read
from fairlead.report.table import terminal_table

__all__ = [
    "compare", "compare_html", "compare_table", "page", "read", "render", "rendered_as", "rows", "terminal_table",
    "to_csv", "to_json",
]  # fmt: skip
