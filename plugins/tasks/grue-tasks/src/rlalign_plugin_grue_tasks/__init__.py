"""The tasks of GRUE (Ramamurthy et al. 2023), and some beside them that fit a laptop: one file a task.

Nothing is imported here: `rlalign --help` reads the command beside the tasks, and they take a moment.
"""
