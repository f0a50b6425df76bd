"""Extends every part of Shorthaul from outside; see README.md beside this package, which goes through it step by step."""
