"""The page of ``cvattn explore``: what it shows, and how it is written."""

from cvattn.cli.explorer.classified import classified
from cvattn.cli.explorer.content import Content, Wanted
from cvattn.cli.explorer.page import write_page
from cvattn.cli.explorer.read_lines import read_lines

__all__ = ["Content", "Wanted", "classified", "read_lines", "write_page"]
