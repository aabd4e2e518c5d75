"""DICOMweb (PS3.18): STOW-RS into the spool, QIDO-RS and WADO-RS over what the spool holds."""
