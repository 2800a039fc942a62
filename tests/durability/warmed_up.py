"""Imported by the server that `child_jobs` forks from, and by nobody else: what each child would do at its start."""

import regex  # noqa: F401

import transformer_lab.backends.frameworks.numpy
import transformer_lab.comparison.reporting.report
import transformer_lab.jobs.record
import transformer_lab.jobs.train
import transformer_lab.training.tracking  # noqa: F401
from transformer_lab.environment import environment
from transformer_lab.tokenizers import load_tokenizer

environment()
load_tokenizer("gpt2")
