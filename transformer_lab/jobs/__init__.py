"""One file per job: a frozen dataclass whose fields are the options in conf/job, and `run(settings) -> Result`."""
