"""Write the weights of prompts in Overpaint's syntax."""

MAX_WEIGHT = 10.0
"""The largest weight that a prompt can have."""


def weigh(text: str, weight: float) -> str:
    """Return a text with a weight."""
    return text if weight == 1 else f"({text}:{format_weight(weight)})"


def format_weight(weight: float) -> str:
    """Return a weight as text: up to four decimals, and within the range of weights."""
    return f"{max(-MAX_WEIGHT, min(weight, MAX_WEIGHT)):.4f}".rstrip("0").rstrip(".")
