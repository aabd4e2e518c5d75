"""Which rule an object fires, what is to be made of it and where that goes, and why. Headers only, no
pixels."""

from pacs_node.route.rules import ConditionTrace, Decision, RuleTrace, decide

__all__ = ["ConditionTrace", "Decision", "RuleTrace", "decide"]
