"""A target: the C++ target with more optimization by the compiler."""

from shorthaul.runtime.compile import compile_program
from shorthaul.runtime.target import Target


class CppO3(Target):
    base = "cpp"

    def compile(self, program, device, **limits):
        return compile_program(program, flags=("-O3",), **limits)
