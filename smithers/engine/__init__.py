"""Deciding, purely: what a tree and its facts make due."""
