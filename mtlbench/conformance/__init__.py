"""The conformance kit: the contract of every method, checked on a tiny Llama and a tiny T5.

``mtlbench check NAME`` prints the findings of :func:`mtlbench.conformance.kit.check_method`; tests of plugins call
:func:`mtlbench.testing.check_method`.
"""
