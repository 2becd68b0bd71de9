"""The conformance kit: the contract of every method, checked on a tiny Llama and a tiny T5.

``mtlbench check NAME`` prints the findings of :func:`mtlbench.conformance.kit.method_findings`; tests of plugins call
:func:`mtlbench.testing.check_method`.
"""
