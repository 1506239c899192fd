"""Bytes in, verified values out: keys, envelopes, roster, policy, hand-offs. No network, no disk but key
files.
"""
