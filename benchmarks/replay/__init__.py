"""Replays recorded numbers of the reference code through this implementation."""
