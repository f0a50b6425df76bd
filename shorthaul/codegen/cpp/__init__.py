"""The C++ target: maps as OpenMP and SIMD kernels."""
