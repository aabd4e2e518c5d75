"""What the shipped bone suppression does, measured through the runtime: a table, pictures and figures for the
card from each part.
"""
