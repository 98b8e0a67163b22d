"""Textual recursion as a job (METHODS 4.1): sample answers out of fold, show them to pass two.

What comes of it are files of questions with proposed answers, on which the run's last stage tunes
the prompt of pass two.
"""
