"""Decide what a tree and its facts make due. Pure."""
