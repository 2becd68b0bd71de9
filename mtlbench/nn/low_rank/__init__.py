"""Low-rank terms beside frozen linears: one fused core, what methods of the family map onto it, what leaves it."""
