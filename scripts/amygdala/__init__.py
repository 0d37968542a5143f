"""What amygdala's entry scripts and its Snakefile share. Import-light: torch is imported only by `residual` and `architecture`."""
