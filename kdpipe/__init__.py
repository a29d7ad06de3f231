"""kdpipe: from a big accurate image classifier to a compact student that runs on a device."""
