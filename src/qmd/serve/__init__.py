"""Doors for people, programs and agents: parse, call, format; nothing else."""
