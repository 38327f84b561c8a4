"""Settings for the real TF Serving image; a package only so that they travel with the wheel."""
