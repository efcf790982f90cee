"""From a command line to a configuration that can run, before any data is read.

In the order of a run: ``command_line`` sees what was typed, ``composition`` what Hydra will make of
it, ``checks`` and ``trainer_checks`` compare every key with the class that takes it, ``trust`` with
what a checkpoint may bring along, ``resolve`` fills what the data knows, and ``decisions`` are what
the machine chooses (``data=auto``, precision), once for all processes of a run.
"""
