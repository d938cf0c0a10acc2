"""Lowest floor: errors, checkpoints, metrics, predictions; imports nothing of the floors above."""
