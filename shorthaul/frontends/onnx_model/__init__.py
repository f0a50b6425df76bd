"""ONNX models as PyTorch modules that train (`load_onnx`), and back (`save_onnx`).

`read` checks a file, `emit` writes its graph as Python code over the table of operators (`table`, `operators/`), `module` is what
the user gets. From there on an ONNX model goes the way of any module.
"""
