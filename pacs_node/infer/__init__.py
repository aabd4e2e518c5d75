"""Arrays in, arrays and numbers out: ONNX models, providers, samplers and the three tasks."""
