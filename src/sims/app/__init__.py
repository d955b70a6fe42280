"""Pages for looking: runs, samples side by side, searches and proportions, on this machine alone (extra ``app``)."""
