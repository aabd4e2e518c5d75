"""DICOM in and out: the pixels of a radiograph, and the derived images, heatmaps and reports that are made
of it.

Every module stands for one thing: ``files`` (Part 10 files of any origin), ``decoding`` and ``display``
and ``pixels`` (data set to array and back), ``derivation`` (what made a result), ``derived``,
``heatmap``, ``report`` and ``report_page`` (the kinds of output), ``selfcheck`` (every output passes it),
``uids``, ``codes`` and ``identity``. The room knows no jobs, no models and no sockets.
"""
