"""Use cases: each module joins the core's decisions with the shell's I/O."""
