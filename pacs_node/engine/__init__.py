"""The durable engine: jobs that survive a crash. The only room that imports the workflow library (dbos).

It knows nothing of DICOM: a job has a kind, an id, a JSON payload and a queue. ``job`` names what a job is,
``client`` enqueues and inspects without running anything (what the receiver and the command line use),
``engine`` runs jobs.
"""
