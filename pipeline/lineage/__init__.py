"""From a preference pair back to all that made it, read from the store, the ledger and the runs' folders."""
