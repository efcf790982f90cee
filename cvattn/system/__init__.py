"""The machine around us: its settings, its terminal, its files, and names that people type.

Imports nothing of ours.
"""

from cvattn.system import figures
from cvattn.system.near_names import did_you_mean
from cvattn.system.offline import is_offline
from cvattn.system.own_code import imported
from cvattn.system.terminal import csv_cell, printable

__all__ = ["csv_cell", "did_you_mean", "figures", "imported", "is_offline", "printable"]
