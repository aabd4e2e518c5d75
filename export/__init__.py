"""The torch side: architectures, training recipes, ONNX export and the figures on the cards.

Not in the wheel.
"""
