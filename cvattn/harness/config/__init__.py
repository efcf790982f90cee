"""From a command line to a configuration that can run, before any data is read.

In the order of a run: ``command_line`` sees what was typed and ``composition`` what Hydra will make
of it; for a run that goes on, ``saved_run`` opens its checkpoint, ``continuation`` puts what is new
on top of its configuration, and ``trust`` refuses what a file may not ask for; ``checks`` and
``trainer_checks`` compare every key with the class that takes it, ``resolve`` fills what the data
knows, and ``decisions`` are what the machine chooses (``data=auto``, precision), once for all
processes of a run.
"""
