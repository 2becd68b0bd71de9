"""The conformance kit: what every method promises, checked on a tiny Llama and a tiny T5.

``mtlbench check NAME`` prints what :func:`mtlbench.conformance.kit.check_method` finds; a plugin author's tests call
:func:`mtlbench.testing.check_method`.
"""
