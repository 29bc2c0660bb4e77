"""MONAI transforms of radloop. They read no disk and know no DICOM; usable alone in anybody's MONAI `Compose`."""
