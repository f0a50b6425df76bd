"""Code generation: scheduled programs become kernels, library calls and a host program."""
