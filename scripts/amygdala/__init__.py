"""What amygdala's entry scripts and its Snakefile share. Only `residual` and `architecture` import torch."""
