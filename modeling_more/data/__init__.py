"""What comes in: readers of the formats, one check for every row, the splits of a source."""
