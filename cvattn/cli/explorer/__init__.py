"""The page of ``cvattn explore``: what it shows (look), and how it is written (page)."""

from cvattn.cli.explorer.look import Block, Look, Seen, look
from cvattn.cli.explorer.page import write_page

__all__ = ["Block", "Look", "Seen", "look", "write_page"]
