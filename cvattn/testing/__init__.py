"""For tests of attention, here and elsewhere: the slow oracle and check_attention."""

from cvattn.testing.checks import check_attention
from cvattn.testing.oracle import slow_attention
from cvattn.testing.report import AttentionCheckError, Report

__all__ = ["AttentionCheckError", "Report", "check_attention", "slow_attention"]
