"""One file for each outside thing: the database, the results storage, the process, git, Prefect's API."""
