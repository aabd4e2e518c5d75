"""Receive: DICOM objects come in over the network and are durable in the spool before the sender is told
so.
"""
