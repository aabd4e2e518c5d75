"""The demonstration: the real node between a modality and an archive, and a page of what came."""
