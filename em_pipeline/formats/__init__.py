"""Files → lazily readable volumes: one module per format, found through the table in `open`."""
