"""Anomaly scores of a chest radiograph, learnt from normal ones only and conditioned on age, sex and view."""
