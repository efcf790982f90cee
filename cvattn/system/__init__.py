"""What the machine around us says and is told: its settings, its terminal. Imports nothing."""

from cvattn.system import figures
from cvattn.system.offline import is_offline
from cvattn.system.terminal import csv_cell, printable

__all__ = ["csv_cell", "figures", "is_offline", "printable"]
