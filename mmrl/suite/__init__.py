"""Evaluation suites: what a suite file is made of."""

from mmrl.suite.suite import Benchmark, Suite
