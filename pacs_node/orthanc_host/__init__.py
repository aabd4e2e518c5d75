"""The node inside Orthanc: a process beside Orthanc that follows what is stored there and works it off.

``orthanc/plugin.py`` starts it and talks to it over its standard input and output; everything else goes over
Orthanc's REST API. It starts the node's worker, and ends when Orthanc does.
"""
