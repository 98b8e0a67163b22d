"""The frozen reader as a job (METHODS 3): retrieve, train the re-ranker, re-rank, pack.

What comes of it are files of prompts with passages, on which the run's stages tune the reader.
"""
