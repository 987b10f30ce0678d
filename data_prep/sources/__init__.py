"""Where clips come from: folders, tables and published data sets."""
