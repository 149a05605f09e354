"""Read what comes in: the formats of files, their labels, the splits of a source."""
